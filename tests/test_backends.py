"""What must be the same on TensorFlow, JAX and torch, each in processes of its own."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visionpipe.config import load_params
from visionpipe.prepare import prepare

ROOT = Path(__file__).parents[1]
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


def train(backend, folder, recipe=None, stop_before=0, start=None):
    """What the training prints, or None where it was killed; its checkpoints stay where there are any."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("KERAS_BACKEND", None)
    script = str(ROOT / "tests" / "train_on_backend.py")
    command = [sys.executable, script, backend, str(folder), json.dumps(recipe or {}), str(stop_before)]
    command += [str(start)] if start else []
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    if stop_before:
        assert result.returncode == -9, result.stderr
        return None
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def forget(backend, folder):
    """Removes the checkpoints of the last training."""
    shutil.rmtree(folder.parent / f"checkpoint-{backend}")


@pytest.fixture(scope="module")
def results(prepared):
    """One uninterrupted training on each backend."""
    trained = {}
    for backend in BACKENDS:
        trained[backend] = train(backend, prepared)
        forget(backend, prepared)
        path = prepared.parent / f"{backend}.keras"
        trained[backend]["file"] = str(path.rename(path.with_stem(f"{backend}-uninterrupted")))
    return trained


def test_every_backend_sees_the_same_pixels_in_the_same_order_however_many_workers_make_them(prepared):
    results = []
    for backend, workers, prefetch in (("tensorflow", 1, 1), ("jax", 3, 8), ("torch", 2, 4)):
        command = [sys.executable, str(ROOT / "tests" / "batches_on_backend.py")]
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
    losses = [row["loss"] for row in results[backend]["history"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_killed_within_an_epoch_and_after_one_it_ends_at_the_same_bytes(results, prepared, backend):
    # Dropout, stochastic depth, mixup and the moving average are on: all their states must come back.
    train(backend, prepared, stop_before=5)
    train(backend, prepared, stop_before=15)
    resumed = train(backend, prepared)
    forget(backend, prepared)
    assert resumed["steps"][0] == 14, "the checkpoint before step 15, not the beginning of the epoch"
    assert resumed["history"] == results[backend]["history"]
    assert resumed["model"] == results[backend]["model"]


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_the_rest_of_a_recipe_survives_a_kill_too(prepared, backend):
    whole = train(backend, prepared, EVERYTHING)
    forget(backend, prepared)
    train(backend, prepared, EVERYTHING, stop_before=8)  # with the checkpoint of the end of the frozen phase
    train(backend, prepared, EVERYTHING, stop_before=10)
    resumed = train(backend, prepared, EVERYTHING)
    forget(backend, prepared)
    assert resumed["steps"][0] == 10
    assert resumed["history"] == whole["history"]
    assert resumed["model"] == whole["model"]


@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "adamw", "accumulate": 2, "clip_norm": 1.0, "layer_decay": 0.8, "weight_decay": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.02, "rates": {"logits": 3.0}, "class_weights": "balanced"},
        {"optimizer": "lamb", "loss": "sigmoid", "freeze": [{"epochs": 1, "train": ["logits", "encoder"]}]},
        {"optimizer": "lion", "learning_rate": 0.001, "weight_decay": 0.1, "patience": 3},
        {"optimizer": "muon", "weight_decay": 0.1, "schedule": "polynomial", "final_rate": 0.1},
        {"distill": {"teacher": "the result on TensorFlow", "weight": 0.7}},
    ],
    ids=["adamw", "sgd", "lamb", "lion", "muon", "distilled"],
)
def test_the_same_recipe_trains_the_same_model_on_every_backend(prepared, results, tmp_path, recipe):
    """From the same weights, through averages, accumulation and rates: all that differs is the order of sums."""
    if "distill" in recipe:
        recipe = {"distill": recipe["distill"] | {"teacher": results["tensorflow"]["file"]}}
    found = {}
    for backend in BACKENDS:
        found[backend] = train(backend, prepared, recipe, start=tmp_path / "start.weights.h5")
        forget(backend, prepared)
    expected = np.array(found["tensorflow"]["logits"])
    assert np.ptp(expected) > 0.1
    for backend in ("jax", "torch"):
        np.testing.assert_allclose(
            found[backend]["logits"], expected, atol=0.01 * np.abs(expected).max(), err_msg=backend
        )
        for row, other in zip(found[backend]["history"], found["tensorflow"]["history"], strict=True):
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
    files = [results[backend]["file"] for backend in BACKENDS]
    command = [sys.executable, "-c", script, str(prepared), *files]
    output = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    for backend, logits in zip(BACKENDS, json.loads(output.splitlines()[-1]), strict=True):
        expected = np.array(results[backend]["logits"])
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), err_msg=backend)
