"""Measures training and inference speed on a GPU in bfloat16, against stock Keras and compiled timm.

    pip install --no-deps -r benchmarks/speed/requirements.txt
    python -m benchmarks.speed.gpu --rounds 5

All contenders of a model start at once, each in its own process, which compiles for a minute. Then they take turns,
in the opposite order every second round. Their batches lie on the device beforehand, and every step is waited for.
Raw samples go to benchmarks/speed/gpu.json, the tables to docs/results/training.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.facts import ROOT
from benchmarks.speed.cases import CONTENDERS as ALL
from benchmarks.speed.cases import Model, gmac, library_versions, possible
from benchmarks.speed.models import rate, seconds

RESULT = Path(__file__).parent / "gpu.json"
MODELS = [Model("ResNet-50", 224, 1000, 128, 2), Model("ViT-B/16", 224, 1000, 128, 2)]
CONTENDERS = {
    name: parts
    for name, parts in ALL.items()
    if not any(mode in name for mode in ("TensorFlow", "eager", "inference compiled"))
} | {"visionpipe, JAX, again": ALL["visionpipe, JAX"]}
SECONDS = 0.6  # of a sample, and at least 8 steps
SAMPLE = "sample: "
Step = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=[model.name for model in MODELS])
    parser.add_argument("--measure", nargs=2, metavar=("CONTENDER", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        answer(options.measure[0], next(model for model in MODELS if model.name == options.measure[1]))
        return
    from benchmarks.tables import write_pages
    from visionpipe.artifact.hardware import hardware

    result: dict[str, Any] = {
        "threads": os.cpu_count(),
        "precision": "bfloat16",
        "versions": library_versions(),
    }
    result |= {"models": [asdict(model) | {"gmac": gmac(model)} for model in MODELS], "samples": []}
    for model in options.models:
        with ExitStack() as stack:
            workers = {
                name: stack.enter_context(process(name, model))
                for name in CONTENDERS
                if possible(name, model)
            }
            for worker in workers.values():
                ask(worker)
            # Of these samples, which are not counted, the compiling is what matters.
            running = [name for name, worker in workers.items() if receive(worker) is not None]
            for number in range(options.rounds):
                for name in running[:: -1 if number % 2 else 1]:
                    sample = {"round": number, "contender": name, "model": model, **turn(workers[name])}
                    result["hardware"] = f"{hardware()}, {sample.pop('device')}"
                    result["samples"].append(sample)
                    print(sample, flush=True)
                    results.write(RESULT, result)
    write_pages()


@contextmanager
def process(contender: str, model: str) -> Iterator[subprocess.Popen]:
    """Starts a process that measures whenever it is asked to; if it fails, its errors are printed."""
    backend = CONTENDERS[contender][1]
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *sys.path])
    variables["KERAS_BACKEND"] = backend if backend in ("jax", "torch") else "torch"
    command = [sys.executable, "-m", "benchmarks.speed.gpu", "--measure", contender, model]
    with tempfile.TemporaryFile("w+") as errors:
        worker = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            yield worker
        finally:
            worker.kill()
            if worker.wait() > 0:
                errors.seek(0)
                print(f"{contender}, {model}:\n{errors.read()[-3000:]}", file=sys.stderr, flush=True)


def ask(worker: subprocess.Popen) -> None:
    with suppress(BrokenPipeError):
        print("measure", file=worker.stdin, flush=True)


def receive(worker: subprocess.Popen) -> dict[str, Any] | None:
    """Returns a sample, or None if the process has ended."""
    for line in worker.stdout or []:
        if line.startswith(SAMPLE):
            sample: dict[str, Any] = json.loads(line.removeprefix(SAMPLE))
            return sample
    return None


def turn(worker: subprocess.Popen) -> dict[str, Any]:
    ask(worker)
    return receive(worker) or sys.exit("a contender that had measured before has ended")


def answer(contender: str, model: Model) -> None:
    """Prints a sample for every line on stdin; this is what a contender's process does."""
    library, mode = CONTENDERS[contender]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (model.batch, model.size, model.size, 3)).astype(np.float32)
    labels = random.integers(0, model.classes, model.batch)
    if library == "torch":
        steps = torch_steps(mode, model, images, labels)
    else:
        steps = keras_steps(library, model, images, labels, compiled=contender.endswith("compiled"))
    for _ in sys.stdin:
        rates = {name: round(rate(model, times(step)), 2) for name, step in steps.items()}
        memory = device_memory()
        print(SAMPLE + json.dumps(rates | memory | {"gemm_gflops": round(gemm_gflops(), 1)}), flush=True)


def times(step: Step) -> list[float]:
    measured: list[float] = []
    while len(measured) < 8 or sum(measured) < SECONDS:
        measured.append(seconds(step))
    return measured


def keras_steps(
    library: str, case: Model, images: np.ndarray, labels: np.ndarray, compiled: bool
) -> dict[str, Step]:
    """Returns Keras's own step functions, whose results are NumPy arrays, so that each step is waited for."""
    import keras

    from benchmarks.speed import peers

    keras.config.set_dtype_policy("mixed_bfloat16")
    if keras.backend.backend() == "torch":
        import torch

        torch.backends.cudnn.benchmark = True
    build = peers.ours if library == "visionpipe" else peers.stock_keras
    model = build(case.name, case.classes, case.size)
    model.compile(
        peers.adamw(library),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=compiled or "auto",
    )
    x, y = keras.ops.convert_to_tensor(images), keras.ops.convert_to_tensor(labels)
    return {
        "training": partial(model.train_on_batch, x, y),
        "inference": partial(model.predict_on_batch, x),
    }


def torch_steps(modes: str, case: Model, images: np.ndarray, labels: np.ndarray) -> dict[str, Step]:
    """Returns steps of timm's model under torch's autocast, with the fused optimizer."""
    import torch

    from benchmarks.speed import peers

    torch.backends.cudnn.benchmark = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory_format = torch.channels_last if "channels_last" in modes else torch.contiguous_format
    model = peers.torch_peer(case.name, case.classes, case.size).to(device, memory_format=memory_format)
    forward = torch.compile(model) if "compiled" in modes else model
    x = torch.tensor(images, device=device).permute(0, 3, 1, 2) / 127.5 - 1
    x, y = x.contiguous(memory_format=memory_format), torch.tensor(labels, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    loss_function = torch.nn.CrossEntropyLoss()

    def train() -> float:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16):
            loss = loss_function(forward(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    def predict() -> torch.Tensor:
        model.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            return forward(x).cpu()

    return {"training": train, "inference": predict}


def device_memory() -> dict[str, Any]:
    """Returns the device's name, and the most of its memory that this process had in use."""
    if "jax" in sys.modules and os.environ["KERAS_BACKEND"] == "jax":
        import jax

        device = jax.devices()[0]
        peak, name = (device.memory_stats() or {}).get("peak_bytes_in_use", 0), device.device_kind
    else:
        import torch

        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": name, "peak_memory_mib": round(peak / 2**20)}


def gemm_gflops() -> float:
    """Returns the rate of a bfloat16 matrix product in torch, whichever library was timed."""
    import torch

    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 512)
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    return 2 * size**3 / min(seconds(lambda: (a @ a)[0, 0].item()) for _ in range(8)) / 1e9


if __name__ == "__main__":
    main()
