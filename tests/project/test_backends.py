"""What must be the same on TensorFlow, JAX and torch, each in processes of its own."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionpipe.project.params import load_params
from visionpipe.stages.prepare import prepare

ROOT = Path(__file__).parents[2]
BACKENDS = ["tensorflow", "jax", "torch"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Forty images of two classes that differ in colour, in data/prepared of a temporary folder."""
    folder = tmp_path_factory.mktemp("backends")
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 60, 60)), ("blue", (60, 60, 200))):
        (folder / "images" / name).mkdir(parents=True)
        for index in range(40):
            noise = random.normal(colour, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(folder / "images" / name / f"{index}.png")
    params = load_params(ROOT / "params.yaml")
    source = replace(params.prepare, source="folder", path=str(folder / "images"), size=(16, 16))
    before = Path.cwd()
    os.chdir(folder)
    try:
        prepare(replace(params, prepare=source))
    finally:
        os.chdir(before)
    return folder / "data" / "prepared"


def train(backend, folder, recipes, stop_before=0, start=None):
    """What the trainings of these recipes print, in one process; None where it was killed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0"  # compiling takes longer than running here
    )
    environment.pop("KERAS_BACKEND", None)
    script = str(ROOT / "tests" / "shared" / "train_on_backend.py")
    command = [sys.executable, script, backend, str(folder), json.dumps(recipes), str(stop_before)]
    command += [str(start)] if start else []
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    if stop_before:
        assert result.returncode == -9, result.stderr
        return None
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


EVERYTHING = {
    "optimizer": "lamb",
    "accumulate": 2,
    "clip_norm": 1.0,
    "layer_decay": 0.8,
    "freeze": [{"epochs": 1, "train": ["logits"]}],
    "loss": "sigmoid",
    "class_weights": "balanced",
    "keep": "best",
    "precision": "bfloat16",
}
RECIPES = {"defaults": {}, "everything": EVERYTHING}


@pytest.fixture(scope="module")
def results(prepared):
    """Uninterrupted trainings of RECIPES on each backend."""
    return {backend: train(backend, prepared, RECIPES) for backend in BACKENDS}


def test_every_backend_sees_the_same_pixels_in_the_same_order_however_many_workers_make_them(prepared):
    results = []
    for backend, workers, prefetch in (("tensorflow", 1, 1), ("jax", 3, 8), ("torch", 2, 4)):
        command = [sys.executable, str(ROOT / "tests" / "shared" / "batches_on_backend.py")]
        command += [backend, str(prepared), str(workers), str(prefetch)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment.pop("KERAS_BACKEND", None)
        output = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=True
        )
        results.append(json.loads(output.stdout.splitlines()[-1]))
    assert results[0] == results[1] == results[2]
    assert len(set(results[0].values())) == len(results[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_learns(results, backend):
    losses = [row["loss"] for row in results[backend]["defaults"]["history"]]
    assert losses[-1] < losses[0]


# Dropout, stochastic depth, mixup and the moving average are on in both: all their states must come back.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("name", "kills", "resumed_before"),
    [
        ("defaults", (5, 15), 14),  # within an epoch, and after one; not from the beginning of the epoch
        ("everything", (8, 10), 10),  # with the checkpoint of the end of the frozen phase
    ],
)
def test_a_training_that_is_killed_twice_ends_at_the_same_bytes(
    results, prepared, backend, name, kills, resumed_before
):
    recipe = {name: RECIPES[name]}
    for step in kills:
        train(backend, prepared, recipe, stop_before=step)
    resumed, whole = train(backend, prepared, recipe)[name], results[backend][name]
    assert resumed["steps"][0] == resumed_before
    assert resumed["history"] == whole["history"]
    assert resumed["model"] == whole["model"]


SAME_EVERYWHERE = {
    "adamw": {"accumulate": 2, "clip_norm": 1.0, "layer_decay": 0.8, "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.02, "rates": {"logits": 3.0}, "class_weights": "balanced"},
    "lamb": {
        "optimizer": "lamb",
        "loss": "sigmoid",
        "freeze": [{"epochs": 1, "train": ["logits", "encoder"]}],
    },
    "lion": {
        "optimizer": "lion",
        "learning_rate": 0.001,
        "weight_decay": 0.1,
        "patience": 3,
        "loss": "focal",
        "focal_gamma": 0.5,
        "sampler": "balanced",
    },
    "muon": {
        "optimizer": "muon",
        "weight_decay": 0.1,
        "schedule": "polynomial",
        "final_rate": 0.1,
        "logit_adjustment": 1.0,
        "sampler": "sqrt",
    },
    "distilled": {"distill": {"teacher": "the result on TensorFlow", "weight": 0.7}},
}


@pytest.fixture(scope="module")
def of_recipes(results, prepared, tmp_path_factory):
    """What SAME_EVERYWHERE train on each backend, from the same weights."""
    start = tmp_path_factory.mktemp("start") / "start.weights.h5"
    teacher = {"teacher": results["tensorflow"]["defaults"]["file"], "weight": 0.7}
    recipes = SAME_EVERYWHERE | {"distilled": {"distill": teacher}}
    return {backend: train(backend, prepared, recipes, start=start) for backend in BACKENDS}


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
def test_the_same_recipe_trains_the_same_model_on_every_backend(of_recipes, name):
    """From the same weights, through averages, accumulation and rates: all that differs is the order of sums."""
    expected = np.array(of_recipes["tensorflow"][name]["logits"])
    assert np.ptp(expected) > 0.1
    for backend in ("jax", "torch"):
        found = of_recipes[backend][name]
        np.testing.assert_allclose(
            found["logits"], expected, atol=0.01 * np.abs(expected).max(), err_msg=backend
        )
        for row, other in zip(found["history"], of_recipes["tensorflow"][name]["history"], strict=True):
            assert row["learning_rate"] == pytest.approx(other["learning_rate"], rel=1e-5)
            assert row["loss"] == pytest.approx(other["loss"], rel=0.01)


def test_a_model_trained_on_any_backend_answers_the_same_on_tensorflow(results, prepared):
    script = """
import sys
import json, numpy, keras
from pathlib import Path
import visionpipe.models.attention, visionpipe.models.layers
from visionpipe.data.prepared import open_prepared
images = open_prepared(Path(sys.argv[1])).images("validation")
models = [keras.models.load_model(path) for path in sys.argv[2:]]
print(json.dumps([numpy.asarray(model(images)).tolist() for model in models]))
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": "tensorflow"}
    files = [results[backend]["defaults"]["file"] for backend in BACKENDS]
    command = [sys.executable, "-c", script, str(prepared), *files]
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    for backend, logits in zip(BACKENDS, json.loads(output.splitlines()[-1]), strict=True):
        expected = np.array(results[backend]["defaults"]["logits"])
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), err_msg=backend)
