"""Imported weights against the implementations that they come from, on every backend."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.numpy
from reference_checkpoints import HEAVY
from weights_on_backend import build

from visionpipe.weights import load_weights
from visionpipe.weights.read import read_tensors

SHARED = Path(__file__).parents[1] / "shared"
FORMATS = {
    "huggingface deit": "Hugging Face ViT",
    "huggingface resnet basic": "Hugging Face ResNet",
    "huggingface resnet bottleneck": "Hugging Face ResNet",
    "huggingface vit": "Hugging Face ViT",
    "keras.applications": "keras.applications ResNet .h5",
    "kerashub resnet basic": "KerasHub ResNet",
    "kerashub resnet bottleneck": "KerasHub ResNet",
    "kerashub vit": "KerasHub ViT",
    "npz big_vision": "big_vision .npz",
    "npz big_vision scanned with class token": "big_vision .npz",
    "npz big_vision sincos": "big_vision .npz",
    "npz hybrid 3 4 9": "google-research .npz",
    "npz hybrid other stages": "google-research .npz",
    "npz vit": "google-research .npz",
    "npz vit gap": "google-research .npz",
    "npz vit newer names and prefix": "google-research .npz",
    "npz vit pre-logits": "google-research .npz",
    "timm deit distilled": "timm ViT",
    "timm hybrid 3 4 9": "timm hybrid ViT",
    "timm hybrid other stages": "timm hybrid ViT",
    "timm hybrid stem only": "timm hybrid ViT",
    "timm resnet152": "timm or torchvision ResNet",
    "timm resnet18": "timm or torchvision ResNet",
    "timm resnet50": "timm or torchvision ResNet",
    "timm vit": "timm ViT",
    "timm vit gap": "timm ViT",
    "timm vit registers and scales": "timm ViT",
}


def run(script, *arguments):
    environment = os.environ | {"PYTHONPATH": str(SHARED.parents[1]), "HF_HUB_OFFLINE": "1"}
    environment["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0"  # compiling takes longer than running here
    )
    environment.pop("KERAS_BACKEND", None)
    result = subprocess.run(
        [sys.executable, SHARED / script, *map(str, arguments)],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("references")
    for kind in ("torch", "keras"):
        run("reference_checkpoints.py", kind, folder)
    return folder


@pytest.fixture(scope="module")
def heavy_references(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heavy")
    run("reference_checkpoints.py", "heavy", folder)
    return folder


def check(results, names):
    assert results.keys() == names
    for name, result in results.items():
        assert result["format"] == FORMATS[name]
        assert result["difference"] <= 1e-4, name
        assert result["same answers"], name
        assert result["spread"] > 0.02, f"{name}: the images get the same answer, which would hide a fault"
        assert (result["head"], result["missing"]) == ("loaded, 7 classes", 0)
        assert result["mean"] is not None


def check_on(backend, references, names):
    results = json.loads(run("weights_on_backend.py", backend, references, *sorted(names)).splitlines()[-1])
    check(results, names)


@pytest.mark.parametrize(
    "backend",
    [
        "tensorflow",
        pytest.param("torch", marks=pytest.mark.slow),
        pytest.param("jax", marks=pytest.mark.slow),
    ],
)
def test_a_format_gives_the_logits_of_its_own_implementation(references, backend):
    check_on(backend, references, FORMATS.keys() - HEAVY)


@pytest.mark.rare
@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_deep_models_give_their_logits(heavy_references, backend):
    check_on(backend, heavy_references, HEAVY)


# What the logits cannot tell apart: they are the mean of both heads, and a softmax over keys does not see what is
# added to all of them.
UNSEEN = (
    re.compile(r"head(_dist)?\.bias|(cls|distillation)_classifier\.bias"),
    re.compile(r".*key[/.](bias|1)"),
)
# The two biases whose sum is all that leaves a residual block: of its last norm, and of its shortcut's.
BRANCH = r"layer\.[12]\.normalization|_[23]_bn|gn3|bn[23]|norm3"
SHORTCUT = r"shortcut\.normalization|_0_bn|gn_proj|downsample\.(1|norm)"
ADDED = re.compile(rf"({BRANCH}|(?P<shortcut>{SHORTCUT}))[./](bias|beta|1)$")


def unseen(pair):
    if any(all(pattern.fullmatch(name) for name in pair) for pattern in UNSEEN):
        return True
    ends = [ADDED.search(name) for name in pair]
    if not all(ends):
        return False
    blocks = {name[: end.start()] for name, end in zip(pair, ends, strict=True)}
    return len(blocks) == 1 and any(end["shortcut"] for end in ends)


def same_shapes(tensors, among):
    """Names of every two tensors of one shape; or, where there are very many, each with its next one."""
    shapes: dict = {}
    for name in sorted(tensors):
        if tensors[name].ndim:
            shapes.setdefault(tensors[name].shape, []).append(name)
    for names in shapes.values():
        pairs = itertools.combinations(names, 2) if among == "all" else itertools.pairwise(names)
        yield from (pair for pair in pairs if not unseen(pair))


MANY = {
    "huggingface resnet bottleneck",
    "keras.applications",
    "npz hybrid other stages",
    "timm hybrid other stages",
    "timm resnet18",
    "timm resnet50",
}
SWAPS = {"timm hybrid stem only": "next", "huggingface resnet basic": "next", "timm deit distilled": "all"}
SLOW_SWAPS = {
    name: "next" if name in MANY else "all" for name in FORMATS.keys() - HEAVY - {"timm deit distilled"}
}


@pytest.mark.parametrize(
    ("name", "among"),
    [*SWAPS.items(), *(pytest.param(*swap, marks=pytest.mark.rare) for swap in sorted(SLOW_SWAPS.items()))],
)
def test_no_two_tensors_can_be_swapped_unnoticed(references, monkeypatch, name, among):
    """Any such swap moves the logits by more than the tolerance of the comparison."""
    case = json.loads((references / name / "case.json").read_text())
    images, expected = (np.load(references / name / f"{part}.npy") for part in ("images", "logits"))
    tensors = dict(read_tensors(Path(case["path"])))
    model, swaps = build(case), 0
    load_weights(model, case["path"])
    before = arrays(model)
    for one, other in same_shapes(tensors, among):
        swapped = tensors | {one: tensors[other], other: tensors[one]}
        monkeypatch.setattr("visionpipe.weights.checkpoint.read_tensors", lambda path, read=swapped: read)
        load_weights(model, case["path"])
        difference = np.abs(np.asarray(model(images)) - expected).max() / np.abs(expected).max()
        assert not difference <= 1e-4, f"{one} and {other}"  # not a number where a variance is negative
        swaps += 1
    assert swaps > 20
    monkeypatch.undo()
    load_weights(model, case["path"])
    for path, value in arrays(model).items():
        np.testing.assert_array_equal(value, before[path])


def test_each_head_of_a_distilled_model_is_its_own(references):
    case = json.loads((references / "timm deit distilled" / "case.json").read_text())
    tensors, model = safetensors.numpy.load_file(case["path"]), build(case)
    report = load_weights(model, case["path"])
    for ours, theirs in (("logits_class", "head"), ("logits_distillation", "head_dist")):
        kernel, bias = model.get_layer(ours).get_weights()
        np.testing.assert_array_equal(kernel, tensors[f"{theirs}.weight"].T)
        np.testing.assert_array_equal(bias, tensors[f"{theirs}.bias"])
        assert report.used[f"{ours}/bias"] == (f"{theirs}.bias",)


@pytest.mark.parametrize("name", ["kerashub vit", "kerashub resnet basic", "kerashub resnet bottleneck"])
def test_a_preset_whose_file_has_no_layer_names_is_the_same(references, tmp_path, name):
    """As Keras wrote them before it kept the names."""
    case = json.loads((references / name / "case.json").read_text())
    model = build(case)
    load_weights(model, case["path"])
    preset = tmp_path / "preset"
    shutil.copytree(case["path"], preset)

    def forget(path, item):
        removed = [key for key in item.attrs if key == "name"]
        for key in removed:
            del item.attrs[key]

    for file in preset.glob("*.h5"):
        with h5py.File(file, "r+") as content:
            content.visititems(forget)
    other = build(case)
    load_weights(other, preset)
    for path, value in arrays(model).items():
        np.testing.assert_array_equal(arrays(other)[path], value)


def arrays(model):
    return {variable.path: np.asarray(variable) for variable in model.variables}
