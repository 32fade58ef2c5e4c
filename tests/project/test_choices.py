"""What init writes into params.yaml: it loads, it fits the images and the machine, and each choice has its reason."""

import dataclasses
import itertools

import pytest
import yaml
from dvc.utils.serialize import load_yaml

from visionpipe.models import model_from_spec
from visionpipe.models.variants import VARIANTS, resolve_variant
from visionpipe.project import choices
from visionpipe.project.choices import Choices, choose, params_yaml
from visionpipe.project.ladder import FROM_SCRATCH, from_published
from visionpipe.project.machine import Machine
from visionpipe.project.params import load_params, plan_of
from visionpipe.project.survey import PERCENTILES, Survey

GIB = 2**30
LAPTOP = Machine(cores=2, memory=16 * GIB, gflops=200)
WORKSTATION = Machine(cores=32, memory=120 * GIB, gflops=3_000)
SMALL = Machine(cores=1, memory=GIB, gflops=30)
GPU = Machine(cores=16, memory=80 * GIB, gflops=300_000, gpu="a GPU", bfloat16=True)
MACHINES = {"laptop": LAPTOP, "workstation": WORKSTATION, "small": SMALL, "gpu": GPU}


def images(count: int, classes: int, side: int, **changes) -> Survey:
    """A survey of `count` images, evenly spread over the classes."""
    sides = dict.fromkeys(PERCENTILES, side)
    names = {f"class {number:04}": count // classes for number in range(classes)}
    found = Survey(
        source="folder", path="/photos", classes=names, splits={}, short_sides=sides, long_sides=sides, elongated=0.0,
        one_size=None, pixels=count * side * side, formats={"PNG": count}, grey=0, transparent=0,
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


SETS = {
    "icons": images(200, 4, 32, one_size=(32, 32)),
    "clipart": images(3000, 15, 350),
    "digits": images(60_000, 10, 28, one_size=(28, 28), splits={"train": 50_000, "test": 10_000}),
    "photographs": images(50_000, 100, 3000),
    "very many": images(1_000_000, 1000, 400),
    "few": images(6, 2, 100),
    "tiny": images(100, 2, 9),
}


def size(chosen: Choices) -> list[int]:
    return chosen.params["prepare"]["size"]


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", SETS)
def test_what_is_written_is_what_is_read(tmp_path, name, machine, pretrained):
    chosen = choose(SETS[name], MACHINES[machine], "tensorflow", pretrained)
    (tmp_path / "params.yaml").write_text(params_yaml(chosen, ["a heading"]), encoding="utf-8")
    params = load_params(tmp_path / "params.yaml")
    assert yaml.safe_load((tmp_path / "params.yaml").read_text()) == chosen.params
    assert load_yaml(tmp_path / "params.yaml") == chosen.params  # as DVC reads it
    training, _ = choices.split_sizes(SETS[name], choices.fractions(SETS[name]))
    for model in params.models:
        plan_of(params.train_config(model), model, training)


@pytest.mark.parametrize("name", SETS)
def test_every_choice_has_its_reason_beside_it(name):
    text = params_yaml(choose(SETS[name], LAPTOP, "tensorflow", False), [])
    for key in ("size", "validation_fraction", "models", "resnet", "vit", "hybrid", "preset", "epochs", "batch_size",
                "learning_rate", "augmentation", "over_majority", "backend"):  # fmt: skip
        (line,) = [line for line in text.splitlines() if line.lstrip().startswith(f"{key}:")]
        assert " # " in line, line


@pytest.mark.parametrize(("elongated", "framing"), [(0.2, None), (0.21, "pad"), (1.0, "pad")])
def test_many_long_images_are_padded_and_the_reason_says_how_many(elongated, framing):
    chosen = choose(images(3000, 15, 350, elongated=elongated), LAPTOP, "tensorflow", False)
    assert chosen.params["prepare"].get("framing") == framing
    lines = [line for line in params_yaml(chosen, []).splitlines() if "framing:" in line]
    assert len(lines) == (framing is not None)
    for line in lines:
        assert f"{elongated:.0%} are more than 1.6 times as long as wide" in line


@pytest.mark.parametrize("pretrained", [False, True])
@pytest.mark.parametrize("name", ["icons", "clipart", "photographs"])
def test_the_trainings_fit_into_the_stated_time(name, pretrained):
    found = SETS[name]
    chosen = choose(found, LAPTOP, "tensorflow", pretrained)
    assert chosen.training_minutes <= choices.budget_minutes(found.images)
    assert chosen.minutes > chosen.training_minutes


def test_a_few_thousand_pictures_use_the_quarter_of_an_hour_that_two_cores_have():
    assert 10 <= choose(SETS["clipart"], LAPTOP, "tensorflow", False).training_minutes <= 15


def test_a_faster_machine_has_larger_images_or_more_epochs():
    for name, pretrained in itertools.product(("clipart", "photographs"), (False, True)):
        slow, fast = (
            choose(SETS[name], machine, "tensorflow", pretrained) for machine in (LAPTOP, WORKSTATION)
        )
        slow_work, fast_work = ((size(chosen), chosen.params["train"]["epochs"]) for chosen in (slow, fast))
        assert fast_work > slow_work


def test_images_are_hardly_ever_enlarged():
    for side in (40, 70, 100, 150, 300):
        chosen = choose(images(3000, 10, side), GPU, "tensorflow", False)
        assert max(size(chosen)) <= 1.25 * side


def test_small_images_of_one_size_are_taken_as_they_are():
    assert size(choose(SETS["digits"], WORKSTATION, "tensorflow", False)) == [28, 28]
    oblong = dataclasses.replace(images(200, 4, 24), one_size=(24, 40))
    assert size(choose(oblong, LAPTOP, "tensorflow", False)) == [24, 40]


def test_digits_are_not_mirrored():
    digits = dataclasses.replace(images(3000, 10, 28), classes={str(digit): 300 for digit in range(10)})
    for found, flips in ((digits, False), (SETS["clipart"], True)):
        augmentation = choose(found, LAPTOP, "tensorflow", False).params["train"]["augmentation"]
        assert ("flip" in [entry["name"] for entry in augmentation]) == flips


def test_a_batch_fits_into_the_memory():
    batches = [
        choose(SETS["clipart"], dataclasses.replace(GPU, memory=gib * GIB), "jax", True).params["train"][
            "batch_size"
        ]
        for gib in (2, 8, 80)
    ]
    assert batches == sorted(batches)
    assert batches[0] < batches[-1]


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9, 0.99, 0.999])
def test_the_gate_lies_above_the_most_frequent_class_and_within_reach(share):
    rest = 100_000 - round(share * 100_000)
    found = dataclasses.replace(images(100_000, 2, 64), classes={"often": 100_000 - rest, "rare": rest})
    gate = choose(found, LAPTOP, "tensorflow", False).params["register"]["gate"]["over_majority"]
    assert 0 <= gate <= 0.1
    assert found.blind + gate < 1


def test_splits_that_the_images_come_with_count():
    found = images(1000, 2, 64, splits={"train": 700, "validation": 100, "test": 200})
    assert choices.split_sizes(found, choices.fractions(found)) == (700, 100)
    found = images(1000, 2, 64, splits={"train": 800, "test": 200})
    assert choices.split_sizes(found, {"validation_fraction": 0.25, "test_fraction": 0.5}) == (600, 200)
    assert choices.split_sizes(images(1000, 2, 64), {"validation_fraction": 0.25, "test_fraction": 0.2}) == (
        600,
        200,
    )


@pytest.mark.parametrize(
    "path",
    ["a b", "it's", 'say "hi"', "cost$5", "${prepare.size}", "#1", "a #b", "ümläut-日本", "a: b", "{x}", "[y]",
     "- z", "~", "100%", "back\\slash", "1_000", "0o17", "yes", "null", "tab\there",
     "line\nbreak", "nel\x85", "😀", "*a", "&b", "!c"],
)  # fmt: skip
def test_a_path_of_any_characters_is_read_as_it_is(tmp_path, path):
    chosen = choose(dataclasses.replace(SETS["icons"], path=path), LAPTOP, "tensorflow", False)
    file = tmp_path / "params.yaml"
    file.write_text(params_yaml(chosen, []), encoding="utf-8")
    assert load_params(file).prepare.path == path
    assert load_yaml(file)["prepare"]["path"] == path


def test_pretrained_models_start_from_the_table():
    for _, models in from_published():
        for model in models.values():
            assert model.init is not None
            assert model.variant in VARIANTS


@pytest.mark.parametrize("side", [side for side, _ in FROM_SCRATCH])
def test_the_costs_are_those_of_the_models(side):
    import keras

    from visionpipe.models.costs import multiply_accumulates

    for model in dict(FROM_SCRATCH)[side].values():
        spec = resolve_variant(model.variant, (side, side), **model.overrides)
        with keras.StatelessScope(initialize_variables=False):
            built = model_from_spec(spec, 10, (side, side), pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3)
        assert multiply_accumulates(built) == pytest.approx(model.macs((side, side)), rel=0.01)
