"""Measures training and inference speed of the models against stock Keras, plain torch and timm.

    pip install --no-deps -r benchmarks/speed/requirements.txt
    python -m benchmarks.speed.models --rounds 5

Every measurement runs in a fresh process with two threads. Contenders take turns, round after round, in the opposite
order every second time, so that a slow minute hits all of them. A sample's rate is that of the slowest step of its
fastest quarter: on a shared machine the work of neighbours lengthens steps. Our TensorFlow model is measured twice,
under two names: a difference between contenders must exceed the difference of those two. Of the torch peer's modes,
those below 0.8 of the fastest in the first round are left out of the others. Raw samples go to
benchmarks/speed/models_PROCESSOR.json as they come, and an interrupted run continues from there. The tables go to
docs/results/training.md.
"""

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.processes import in_new_process, thread_variables
from benchmarks.speed.cases import CONTENDERS, MODELS, Model, code, gmac, library_versions, possible

THREADS, SECONDS = 2, 3.0
Rates = tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", help="default: all")
    parser.add_argument("--contenders", nargs="+", help="default: all")
    parser.add_argument("--fresh", action="store_true", help="measure these anew, instead of continuing")
    parser.add_argument("--measure", nargs=2, metavar=("CONTENDER", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        contender, name = options.measure
        print(json.dumps(measure(contender, next(model for model in MODELS if model.name == name))))
        return
    from benchmarks.speed.tables import models_of
    from benchmarks.tables import write_pages
    from visionpipe.artifact.hardware import hardware

    processor = re.sub(r"\W+", "_", hardware().split(",")[0].lower())
    file = Path(__file__).parent / f"models_{processor}.json"
    result = results.read(file) if file.exists() else {"samples": [], "models": []}
    names = options.models or [model.name for model in MODELS]
    contenders = options.contenders or list(CONTENDERS)
    if options.fresh:
        result["samples"] = [
            s for s in result["samples"] if s["model"] not in names or s["contender"] not in contenders
        ]
    models = {model.name: model for model in MODELS}
    made_of = {
        (contender, name): {"code": code(models[name], CONTENDERS[contender][1])}
        if CONTENDERS[contender][0] == "visionpipe"
        else {}
        for contender in contenders
        for name in names
    }
    setting = {
        "hardware": hardware(),
        "threads": THREADS,
        "precision": "float32",
        "versions": library_versions(),
    }
    changed = [key for key, value in setting.items() if result["samples"] and result.get(key) != value]
    for sample in result["samples"]:
        kind = (sample["contender"], sample["model"])
        if sample.get("code") != made_of.get(kind, sample).get("code"):
            changed.append(f"code of {', '.join(kind)}")
    if changed:
        sys.exit(
            f"{file.name} is of other {'; '.join(dict.fromkeys(changed))}: add --fresh for these, or for all"
        )
    result |= setting | {"models": [asdict(model) | {"gmac": gmac(model)} for model in MODELS]}
    for number in range(options.rounds):
        for name in names:
            for contender in contenders[:: -1 if number % 2 else 1]:
                if wanted(result["samples"], number, name, contender):
                    sample = {"round": number, "contender": contender, "model": name}
                    sample |= made_of[contender, name]
                    result["samples"].append(sample | measured(contender, name))
                    print(result["samples"][-1], flush=True)
                    results.write(file, result)
    write_pages()
    print(models_of(result))


def wanted(samples: list[dict], number: int, model: str, contender: str) -> bool:
    """Returns whether this is not measured yet, possible, and no torch mode that was slow in the first round."""
    library = CONTENDERS[contender][0]
    if not possible(contender, model):
        return False
    if any((s["round"], s["model"], s["contender"]) == (number, model, contender) for s in samples):
        return False
    if number == 0 or library != "torch":
        return True
    first = [s for s in samples if s["round"] == 0 and s["model"] == model]
    peers = {s["contender"]: s for s in first if CONTENDERS[s["contender"]][0] == "torch"}
    return any(
        peers[contender][task] >= 0.8 * max(sample[task] for sample in peers.values())
        for task in ("training", "inference")
    )


def measured(contender: str, model: str) -> dict[str, float]:
    library, backend = CONTENDERS[contender]
    variables = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "1"} | thread_variables(THREADS)
    if library != "torch":
        variables["KERAS_BACKEND"] = backend
    return in_new_process("benchmarks.speed.models", "--measure", contender, model, **variables)


def measure(contender: str, model: Model) -> dict[str, float]:
    """Returns images per second in training and inference after warm-up, and GFLOP/s of a matrix product then."""
    from visionpipe.artifact.speed import peak_memory_mib

    library, backend = CONTENDERS[contender]
    random = np.random.default_rng(0)
    count = model.batch * model.steps
    images = random.integers(0, 256, (count, model.size, model.size, 3)).astype(np.float32)
    labels = random.integers(0, model.classes, count)
    training, inference = (
        measure_torch(backend, model, images, labels)
        if library == "torch"
        else measure_keras(contender, model, images, labels)
    )
    memory = peak_memory_mib()
    return {
        "training": round(training, 2),
        "inference": round(inference, 2),
        "peak_memory_mib": round(memory),
        "gemm_gflops": round(gemm_gflops(), 1),
    }


def measure_keras(contender: str, case: Model, images: np.ndarray, labels: np.ndarray) -> Rates:
    import keras

    library, backend = CONTENDERS[contender]
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    elif backend == "torch":
        import torch

        torch.set_num_threads(THREADS)
    from benchmarks.speed import peers

    build = peers.ours if library == "visionpipe" else peers.stock_keras
    model = build(case.name, case.classes, case.size)
    model.compile(
        peers.adamw(library),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=contender.endswith(", compiled") or "auto",
    )

    class Steps(keras.callbacks.Callback):
        """Measures the seconds between the ends of two batches, each waited for.

        Whole epochs would include the seconds that tf.data takes to stop its autotuner between them.
        """

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_epoch_begin(self, epoch: int = 0, logs: Any = None) -> None:
            self.last: float | None = None

        on_predict_begin = on_epoch_begin

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            keras.tree.map_structure(keras.ops.convert_to_numpy, logs)
            now = time.perf_counter()
            self.times += [now - self.last] if self.last else []
            self.last = now

        on_predict_batch_end = on_train_batch_end

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = enough(self.times)

    training, inference = Steps(), Steps()
    feed = {"batch_size": case.batch, "verbose": 0}
    model.fit(images, labels, epochs=10**6, shuffle=False, callbacks=[training], **feed)
    if contender.endswith("inference compiled"):
        model.compile(jit_compile=True)
    while not enough(inference.times):
        model.predict(images, callbacks=[inference], **feed)
    return rate(case, training.times), rate(case, inference.times)


def measure_torch(modes: str, case: Model, images: np.ndarray, labels: np.ndarray) -> Rates:
    import torch

    from benchmarks.speed import peers

    torch.set_num_threads(THREADS)
    memory_format = torch.channels_last if "channels_last" in modes else torch.contiguous_format
    model = peers.torch_peer(case.name, case.classes, case.size).to(memory_format=memory_format)
    forward = torch.compile(model) if "compiled" in modes else model
    x = (torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1).contiguous(memory_format=memory_format)
    y = torch.tensor(labels)
    batches = list(zip(x.split(case.batch), y.split(case.batch), strict=True))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    loss_function = torch.nn.CrossEntropyLoss()

    def train(batch: torch.Tensor, targets: torch.Tensor) -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        loss_function(forward(batch), targets).backward()
        optimizer.step()

    def predict(batch: torch.Tensor, targets: torch.Tensor) -> None:
        model.eval()
        with torch.inference_mode():
            forward(batch)

    def timed(step: Callable[[torch.Tensor, torch.Tensor], None]) -> float:
        times: list[float] = []
        while not enough(times):
            times += [seconds(partial(step, *batch)) for batch in batches]
        return rate(case, times)

    return timed(train), timed(predict)


def enough(times: Sequence[float]) -> bool:
    """Returns whether these step times are enough for a rate; the first ones compile."""
    return len(times) >= 8 and statistics.median(times[2:]) * len(times) > SECONDS


def rate(case: Model, times: Sequence[float]) -> float:
    """Returns images per second."""
    return case.batch / float(np.percentile(times, 25))


def gemm_gflops() -> float:
    """Returns the rate of a matrix product in NumPy, which says how busy the machine is at this minute."""
    a = np.ones((2048, 2048), np.float32)
    return 2 * len(a) ** 3 / min(seconds(lambda: a @ a) for _ in range(8)) / 1e9


def seconds(function: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
