"""What is measured: the versions of libraries, what a model costs, what it is made of."""

import functools
import hashlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peers

ROOT = Path(__file__).parents[1]


def versions() -> dict[str, str]:
    command = [sys.executable, "-m", "pip", "list", "--format=json"]
    listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    kept = {"keras", "keras-hub", "tensorflow", "jax", "torch", "timm", "numpy"}
    return {package["name"]: package["version"] for package in listed if package["name"] in kept}


def gmac(model: Any) -> float:
    """Multiply-accumulates of one image, in thousand millions; `model`: a `models.Model`."""
    from visionpipe.models.costs import multiply_accumulates

    return multiply_accumulates(built(model)) / 1e9


def code(model: Any, backend: str) -> str:
    """Of the layers in their shapes, the files that define them, and the backend's kernels: samples of different
    codes do not go together.
    """
    digest = hashlib.sha256()
    for layer in built(model).layers:
        shapes = [tuple(weight.shape) for weight in layer.weights]
        digest.update(repr((type(layer).__name__, layer.output.shape, shapes)).encode())
    files = {Path(inspect.getfile(type(layer))) for layer in built(model).layers}
    kernels = [f"kernels/{name}.py" for name in ("__init__", backend)]
    files |= {
        ROOT / "visionpipe" / name
        for name in (*kernels, "acceleration/network.py", "acceleration/chains.py", "training/adamw.py")
    }
    for file in sorted(file for file in files if file.is_relative_to(ROOT / "visionpipe")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def built(model: Any) -> Any:
    return peers.ours(model.name, model.classes, model.size)
