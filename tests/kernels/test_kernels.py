"""The kernels of the backends: which exist, and whether they compute what Keras's operations do, gradients included."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from visionpipe.kernels import OPERATIONS, kernel

ROOT = Path(__file__).parents[2]
CALLED = r"\bkernel\(\s*\"(\w+)\"(?: if \w+ else \"(\w+)\")?\s*\)"  # kernel("a"), kernel("a" if x else "b")
# JAX spends most of its time here in LLVM's optimisations, which do not pay in a program that runs twice.
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
    declared = sorted(name for name, backends in OPERATIONS.items() if backend in backends)
    assert result["defined"] == result["available"] == declared
    assert result["used"] == declared


def test_every_operation_that_is_called_is_declared_and_the_other_way_round():
    called = {
        name
        for file in (ROOT / "visionpipe").rglob("*.py")
        if file.parent.name != "kernels"
        for names in re.findall(CALLED, file.read_text())
        for name in names
        if name
    }
    assert called == set(OPERATIONS)


def test_a_misspelt_operation_is_an_error():
    with pytest.raises(KeyError, match="convd2"):
        kernel("convd2")


@pytest.mark.parametrize("backend", ["tensorflow", "torch", "jax"])
def test_a_module_defines_the_kernels_that_are_declared_for_it(backend):
    source = (ROOT / "visionpipe" / "kernels" / f"{backend}.py").read_text()
    defined = re.findall(r"^def ([a-z]\w*)\(", source, re.M)
    assert sorted(defined) == sorted(name for name, backends in OPERATIONS.items() if backend in backends)


def test_tensorflow_takes_onednns_kernels_on_every_processor():
    """By default it takes them only on processors with AVX-512."""
    asked = "from tensorflow.python.util import _pywrap_util_port as port; print(port.IsMklEnabled())"
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    output = subprocess.run(
        [sys.executable, "-c", f"import visionpipe, tensorflow; {asked}"],
        env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    assert output.split() == ["True"]
