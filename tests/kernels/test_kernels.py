"""The backends' own kernels against Keras's operations: outputs, and gradients through one training step."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KERNELS = ROOT / "visionpipe" / "models" / "kernels"
CALLED = r"\bkernel\(\s*\"(\w+)\"(?: if \w+ else \"(\w+)\")?\s*\)"  # kernel("a"), kernel("a" if x else "b")


# JAX spends most of its time here in LLVM's optimisations, which a program that runs twice does not need.
QUICKLY_COMPILED = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


@pytest.mark.parametrize(
    "backend",
    [
        "tensorflow",
        pytest.param("torch", marks=pytest.mark.slow),
        pytest.param("jax", marks=pytest.mark.slow),
    ],
)
def test_a_kernel_computes_what_keras_does(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    script = Path(__file__).parents[1] / "shared" / "kernels_on_backend.py"
    output = subprocess.run(
        [sys.executable, script, backend],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | QUICKLY_COMPILED,
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    result = json.loads(output.splitlines()[-1])
    # Float32, through sums of up to 500 terms.
    assert {name: value for name, value in result["differences"].items() if not value < 1e-4} == {}
    source = (KERNELS / f"{backend}.py").read_text()
    asked = {
        name
        for file in KERNELS.parents[1].rglob("*.py")
        for pair in re.findall(CALLED, file.read_text())
        for name in pair
        if name
    }
    assert result["used"] == sorted(name for name in asked if re.search(rf"^def {name}\(", source, re.M))


def test_tensorflow_takes_onednns_kernels_on_every_processor():
    """By itself only on those with AVX-512."""
    asked = "from tensorflow.python.util import _pywrap_util_port as port; print(port.IsMklEnabled())"
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    output = subprocess.run(
        [sys.executable, "-c", f"import visionpipe, tensorflow; {asked}"],
        env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    assert output.split() == ["True"]
