"""What this machine can compute: processors, memory, an accelerator, and how fast it multiplies matrices."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import psutil

GPU_SIDE = 8192  # of the matrices that are multiplied
START = 300  # seconds that a backend has to say what it computes on

# Prints how many 10⁹ operations a second one core makes in products of matrices.
PRODUCTS = """
import time
import numpy
matrix, best = numpy.ones((512, 512), numpy.float32), float("inf")
end = time.perf_counter() + 0.5
while (started := time.perf_counter()) < end:
    matrix @ matrix
    best = min(best, time.perf_counter() - started)
print(2 * 512**3 / best / 1e9)
"""

# Runs in a process of its own, because a backend cannot be unloaded. Prints what computes, and how fast.
PROBE = """
import json, sys, time
from types import SimpleNamespace
from visionpipe.project.backend import device_name, start_backend
start_backend(SimpleNamespace(backend=sys.argv[1], threads=None, seed=0))
import keras
side, dtype = int(sys.argv[2]), sys.argv[3]
matrix = keras.ops.ones((side, side), dtype)
best = float("inf")
for _ in range(8):
    started = time.perf_counter()
    float(keras.ops.matmul(matrix, matrix)[0, 0])
    best = min(best, time.perf_counter() - started)
print(json.dumps({"device": device_name(), "gflops": 2 * side**3 / best / 1e9}))
"""


@dataclass(frozen=True)
class Machine:
    """`memory`: bytes that are free, of the GPU where there is one; `gflops`: 10⁹ operations a second in products of
    matrices; `bfloat16`: whether the GPU computes in it.
    """

    cores: int
    memory: int
    gflops: float
    gpu: str | None = None
    bfloat16: bool = False

    def __str__(self) -> str:
        kind = self.gpu or f"{self.cores} processor core{'' if self.cores == 1 else 's'}"
        return f"{kind}, {self.memory / 2**30:.0f} GiB free, {self.gflops:,.0f} GFLOP/s"


def this_machine(backend: str) -> Machine:
    """Measures this machine in about a second; where there is a GPU, `backend` measures that instead."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(cores, psutil.cpu_count(logical=False) or cores)
    return with_gpu(cores, backend) or Machine(cores, psutil.virtual_memory().available, cpu_gflops(cores))


def cpu_gflops(cores: int) -> float:
    """Multiplies matrices on one core, in a process of its own, because the number of threads is fixed at import.

    The fastest product counts: what other processes disturb now, they need not disturb during the training.
    """
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-c", PRODUCTS]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | one)
    return cores * float(answer.stdout)


def with_gpu(cores: int, backend: str) -> Machine | None:
    """Returns the machine with its GPU; None where there is none, or the backend that is installed cannot use it."""
    rows = nvidia_smi("--query-gpu=name,memory.free,compute_cap")
    if rows is None:
        return None
    name, memory, capability = (part.strip() for part in rows[0].rsplit(",", 2))
    bfloat16 = float(capability) >= 8
    found = probed(backend, "bfloat16" if bfloat16 else "float32")
    if found is None or found["device"] == "CPU":
        return None
    return Machine(cores, int(memory.split()[0]) * 2**20, found["gflops"], name, bfloat16)


def nvidia_smi(query: str) -> list[str] | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, query, "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [row for row in answer.stdout.splitlines() if row.count(",") >= 2]
    return rows if answer.returncode == 0 and rows else None


def probed(backend: str, dtype: str) -> dict[str, Any] | None:
    command = [sys.executable, "-c", PROBE, backend, str(GPU_SIDE), dtype]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=START)
        return dict(json.loads(answer.stdout.splitlines()[-1]))
    except (subprocess.SubprocessError, ValueError, IndexError):
        return None
