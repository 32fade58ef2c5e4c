"""What is timed: the models, and the libraries and modes that run them."""

import functools
import hashlib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.facts import ROOT, versions
from benchmarks.speed import peers


@dataclass(frozen=True)
class Model:
    """One architecture at one size, in batches of `batch` images. `steps` batches make a pass."""

    name: str
    size: int
    classes: int
    batch: int
    steps: int


MODELS = [
    Model("ResNet-20", 28, 10, 64, 20),
    Model("ViT 6×96", 28, 10, 64, 20),
    Model("ResNet-50", 224, 1000, 8, 4),
    Model("ViT-S/16", 224, 1000, 8, 4),
]
# name: (library, Keras backend or torch modes)
CONTENDERS = {
    "visionpipe, TensorFlow": ("visionpipe", "tensorflow"),
    "visionpipe, TensorFlow, again": ("visionpipe", "tensorflow"),
    "visionpipe, TensorFlow, compiled": ("visionpipe", "tensorflow"),
    "visionpipe, torch": ("visionpipe", "torch"),
    "visionpipe, torch, compiled": ("visionpipe", "torch"),
    "visionpipe, torch, inference compiled": ("visionpipe", "torch"),
    "visionpipe, JAX": ("visionpipe", "jax"),
    "stock Keras, TensorFlow": ("keras", "tensorflow"),
    "stock Keras, TensorFlow, compiled": ("keras", "tensorflow"),
    "stock Keras, torch": ("keras", "torch"),
    "stock Keras, JAX": ("keras", "jax"),
    "torch, eager": ("torch", "contiguous"),
    "torch, eager, channels_last": ("torch", "channels_last"),
    "torch, compiled": ("torch", "compiled contiguous"),
    "torch, compiled, channels_last": ("torch", "compiled channels_last"),
}
NOT_FOR_RESNETS = (  # slower as one program, and torch needs minutes to make one (docs/results/training.md)
    "visionpipe, TensorFlow, compiled",
    "visionpipe, torch, compiled",
    "stock Keras, TensorFlow, compiled",
)
NOT_FOR_VITS = ("visionpipe, torch, inference compiled",)
VITS = ("ViT 6×96", "ViT-S/16", "ViT-B/16")
CODE = (
    "kernels/__init__",
    "acceleration/network",
    "acceleration/chains",
    "training/adamw",
)  # what all models run


def possible(contender: str, model: str) -> bool:
    """Returns whether this mode exists for the model and can be compiled in minutes."""
    return contender not in (NOT_FOR_VITS if model in VITS else NOT_FOR_RESNETS)


def library_versions() -> dict[str, str]:
    return versions("keras", "keras-hub", "tensorflow", "jax", "torch", "timm", "numpy")


def gmac(model: Model) -> float:
    """Returns the multiply-accumulates of one image, in billions."""
    from visionpipe.models.costs import multiply_accumulates

    return multiply_accumulates(built(model)) / 1e9


def code(model: Model, backend: str) -> str:
    """Returns a hash of the layers in their shapes, the files that define them, and the backend's kernels.

    Samples with different hashes are of different code and do not belong together.
    """
    digest = hashlib.sha256()
    for layer in built(model).layers:
        shapes = [tuple(weight.shape) for weight in layer.weights]
        digest.update(repr((type(layer).__name__, layer.output.shape, shapes)).encode())
    package = ROOT / "visionpipe"
    files = {Path(inspect.getfile(type(layer))) for layer in built(model).layers}
    files |= {package / f"{name}.py" for name in (*CODE, f"kernels/{backend}")}
    for file in sorted(file for file in files if file.is_relative_to(package)):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def built(model: Model) -> Any:
    return peers.ours(model.name, model.classes, model.size)
