"""Which entries of `models:` need which others: what DVC could not order, or would not train again, is refused."""

import pytest
import yaml
from repository import CHECKOUT, NEEDS

from visionpipe.errors import ConfigError
from visionpipe.project.params import load_params

ENTRY = {"needs": NEEDS, "variant": "ResNet-14"}
TAUGHT = {"train": {"distill": {"teacher": "t"}}}
BOTH = ENTRY | TAUGHT | {"init": "a"}
FILES = ["models/a/model.keras", "models/t/model.keras"]


def load(tmp_path, models, **sections):
    content = yaml.safe_load((CHECKOUT / "params.yaml").read_text()) | sections
    file = tmp_path / "params.yaml"
    file.write_text(yaml.safe_dump(content | {"models": {"a": ENTRY, "t": ENTRY, **models}}))
    return load_params(file)


def test_an_entry_that_needs_two_models_has_both_in_the_section_needs(tmp_path):
    for files in (FILES, FILES[::-1]):
        params = load(tmp_path, {"s": BOTH | {"needs": "data/s.needs"}}, needs={"s": files})
        assert set(params.needs["s"]) == set(FILES)


def test_one_model_to_start_and_to_learn_from_is_one_file(tmp_path):
    load(tmp_path, {"s": BOTH | {"needs": FILES[0], "train": {"distill": {"teacher": "a"}}}})


@pytest.mark.parametrize("needs", [*FILES, NEEDS, "data/s.needs"])
def test_one_message_says_all_of_what_two_models_take(tmp_path, needs):
    said = r"models.s.needs: must be data/s.needs, with needs: \{s: \[models/a/model.keras, models/t/model.keras\]\}"
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, {"s": BOTH | {"needs": needs}})


FROM_A = ENTRY | {"needs": FILES[0]}


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"s": FROM_A | {"init": "a", "variant": "ResNet-8"}}, r"the weights of a do not fit.*blocks_per_stage"),
        ({"s": FROM_A | {"init": "a", "variant": "ViT-Mi/4"}}, "do not fit: family resnet, here vit"),
        ({"s": FROM_A | {"init": "a", "overrides": {"stem_stride": 2}}}, "do not fit: stem_stride 1, here 2"),
        ({"s": ENTRY | {"init": "s"}}, "models.s.init: no other model 's'"),
        ({"s": FROM_A | {"init": "models/a/model.keras"}}, "models.s.init: is the output of an entry: write init: a"),
        ({"s": ENTRY | {"needs": "models/s/model.keras"}}, "models.s.needs: forms a circle, s needs s"),
        ({"a": ENTRY | {"needs": FILES[1], "init": "t"}, "t": FROM_A | {"init": "a"}}, "a needs t needs a"),
        ({"a": ENTRY | {"needs": "models/s/model.keras"}, "s": FROM_A | {"init": "a"}}, "a needs s needs a"),
        ({"s": ENTRY | {"init_head": "load"}}, "models.s.init_head: has no effect without init"),
        ({"s": ENTRY | {"train": {"rates": {"stage1": 2.0}}}}, None),
        ({"s": ENTRY | {"train": {"rates": {"stage1_blck1": 2.0}}}}, "rates: no layer begins with stage1_blck1 .did"),
        ({"s": ENTRY | {"train": {"freeze": [{"epochs": 1, "train": ["encoder"]}]}}}, r"freeze\[0\].train: no layer"),
    ],
)  # fmt: skip
def test_what_could_not_be_trained_is_refused_at_once(tmp_path, models, message):
    if message is None:
        load(tmp_path, models)
        return
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, models)


NOT_NEEDED = ["/etc/passwd", "data/s.needs", "data/prepared", "models/x/model.keras", "models/a/lineage.json"]


@pytest.mark.parametrize("needs", NOT_NEEDED)
def test_a_file_that_dvc_could_not_order_the_training_after_is_refused(tmp_path, needs):
    said = "models.s.needs: must be data/prepared/manifest.json, or models/NAME/model.keras to train s after the entry"
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, {"s": ENTRY | {"needs": needs}})


def test_dvc_may_watch_the_file_of_weights_to_start_from(tmp_path):
    load(tmp_path, {"s": ENTRY | {"init": "weights/vit.npz", "needs": "weights/vit.npz"}})


def test_an_entry_may_wait_for_another_without_its_weights(tmp_path):
    load(tmp_path, {"s": FROM_A | {"variant": "ViT-Mi/4"}})


def test_what_makes_no_weight_may_differ(tmp_path):
    other = {"init": "a", "overrides": {"zero_last_scale": False, "norm_momentum": 0.99}}
    load(tmp_path, {"s": FROM_A | other})


@pytest.mark.parametrize("needs", [{"s": FILES}, {"nobody": FILES}, {"s": FILES[:1]}])
def test_a_section_needs_that_belongs_to_no_entry_is_refused(tmp_path, needs):
    with pytest.raises(ConfigError, match=r"params.yaml: needs\.(s|nobody): "):
        load(tmp_path, {"s": ENTRY}, needs=needs)
