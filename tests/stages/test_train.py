"""What stage `train` says, and what it leaves in the tracking store when a training does not end well."""

import dataclasses
import signal
from pathlib import Path

import pytest
from linear_models import make_params, state, write_prepared

from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.errors import Interrupted, TrainingError
from visionpipe.files import write_json
from visionpipe.project.lock import write_lock
from visionpipe.stages.train import introduction, last_identity, print_changes
from visionpipe.stages.training_plan import resolve_training
from visionpipe.tracking.runs import LiveRun

IDENTITY = {
    "data_sha256": "d1",
    "code": "c1",
    "params": {"backend": "tensorflow", "model": {"family": "resnet"}, "train": {"epochs": 3}},
    "versions": {"keras": "3"},
}


@pytest.fixture
def params(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(".dvc").mkdir()
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    return make_params("x", ["one"])


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"epochs": 3}, "3 epochs, 1 step per epoch, adamw"),
        ({"steps": 2500}, "2,500 steps, 1 step per epoch, adamw"),
        (
            {"minutes": 1.5},
            "1.5 minutes, 1 step per epoch (not reproducible: the number of steps depends on the machine), adamw",
        ),
    ],
)
def test_a_training_says_what_it_is_about_to_do(params, budget, said):
    params = dataclasses.replace(params, train=budget | {"precision": "bfloat16"})
    write_prepared(PREPARED)
    write_lock()
    plan = resolve_training("one", params, open_prepared(PREPARED))
    line = introduction(plan)
    assert line.startswith("one: ResNet-8 on tensorflow, ")
    assert line.endswith(f", 1 threads, bfloat16, 40 images, {said}, key {plan.key[:6]}")


def test_a_training_says_what_changed_since_the_last_one_of_its_name(params, capsys):
    print_changes("one", IDENTITY)
    assert capsys.readouterr().out == "", "there was none"
    write_json(last_identity("one"), IDENTITY)
    print_changes("one", IDENTITY)
    assert capsys.readouterr().out == ""
    now = IDENTITY | {
        "data_sha256": "d2",
        "code": "c2",
        "teacher_sha256": "t1",
    }
    now["params"] = IDENTITY["params"] | {"train": {"epochs": 4, "patience": 2}}
    print_changes("one", now)
    assert capsys.readouterr().out.splitlines() == [
        "  changed: code",
        "  changed: data_sha256",
        "  changed: params.train.epochs, 3 → 4",
        "  changed: params.train.patience, nothing → 2",
        "  changed: teacher_sha256",
    ]


def test_the_run_of_a_training_that_failed_says_so_and_goes_on_with_the_next_attempt(params):
    def attempt(error: Exception) -> None:
        with pytest.raises(type(error)), LiveRun(params.tracking, "one", "key", IDENTITY):
            raise error

    for error, status in (
        (TrainingError("the loss became nan"), "FAILED"),
        (Interrupted(signal.SIGTERM), "RUNNING"),
        (TrainingError("out of memory"), "FAILED"),
    ):
        attempt(error)
        (run,) = state(params).runs
        assert run.info.status == status
