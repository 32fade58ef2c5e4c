"""What the machine is measured to be, with and without a GPU that the backend can use."""

from pathlib import Path

import pytest

from visionpipe.project import machine
from visionpipe.project.machine import Machine, cpu_gflops, probed, this_machine, with_gpu


def test_cores_multiply_matrices():
    assert cpu_gflops(1) > 1  # less than any processor of this century does


def test_without_an_nvidia_driver_there_is_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert with_gpu(2, "tensorflow") is None
    assert this_machine("tensorflow").gpu is None


def write_driver(folder: Path, output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that answers like nvidia-smi."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{output}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_a_gpu_that_the_backend_uses_is_measured(monkeypatch, tmp_path):
    write_driver(tmp_path, "NVIDIA A100, SXM, 40000 MiB, 8.0", monkeypatch)
    monkeypatch.setattr(machine, "probed", lambda backend, dtype: {"device": "A100", "gflops": 150_000.0})
    found = with_gpu(8, "jax")
    assert found == Machine(8, 40_000 * 2**20, 150_000.0, "NVIDIA A100, SXM", bfloat16=True)


@pytest.mark.slow
def test_a_gpu_that_the_backend_cannot_use_does_not_count(monkeypatch, tmp_path):
    """The backend itself says so, in a process of its own: the one that is installed here computes on the CPU."""
    write_driver(tmp_path, "NVIDIA T4, 15000 MiB, 7.5", monkeypatch)
    monkeypatch.setattr(machine, "GPU_SIDE", 64)
    said = probed("tensorflow", "float32")
    assert said is not None
    assert said["device"] == "CPU"
    assert said["gflops"] > 0
    assert with_gpu(2, "tensorflow") is None


@pytest.mark.parametrize("output", ["", "No devices were found", "NVIDIA-SMI has failed"])
def test_a_driver_without_a_device_is_no_gpu(monkeypatch, tmp_path, output):
    write_driver(tmp_path, output, monkeypatch)
    assert with_gpu(2, "tensorflow") is None
