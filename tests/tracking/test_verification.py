from types import SimpleNamespace

import pytest

from visionpipe.errors import RegistryError
from visionpipe.tracking.registry import task_of, validation_score
from visionpipe.tracking.verification import same_answer


def test_an_older_version_may_lack_keys_of_an_answer_but_none_may_differ():
    now = {"label": "a", "probability": 0.75, "probabilities": {"a": 0.75, "b": 0.25}}
    older = {"label": "a", "probabilities": {"a": 0.750001, "b": 0.249999}}
    assert same_answer(now, now)
    assert same_answer(now, older)
    for wrong in (
        {},
        {"label": "a"},
        older | {"label": "b"},
        older | {"probabilities": {"a": 0.75}},
        older | {"probabilities": {"a": 0.74, "b": 0.26}},
        older | {"unsure": True},
    ):
        assert not same_answer(now, wrong)


def test_a_task_that_a_newer_visionpipe_has_is_one_sentence():
    version = SimpleNamespace(
        version="3", name="flowers", tags={"task": "ordinal", "validation_accuracy": "1"}
    )
    with pytest.raises(RegistryError, match="version 3 of flowers has the task 'ordinal', which visionpipe"):
        task_of(version)
    assert validation_score(version) is None
