"""Measures what progress, checkpoints and tracking cost: the trainer beside a bare loop and beside stock `fit`.

    python -m benchmarks.speed.trainer --rounds 2

Three loops train the default ResNet with the same optimizer and batches, on as many images as the sample has, on each
backend: this project's `fit` with a tracking store and its default checkpoints; stock `fit` with MLflow's Keras
callback and a checkpoint callback per epoch; and a bare loop, which shows the noise. The bare loop calls Keras's
compiled step and does nothing else.

Each of the three runs in a fresh process and takes turns, epoch by epoch, with a bare loop in the same process,
because two processes of the very same loop differ by up to 7 %. Whole epochs count from the second one on, so that
whatever happens between two epochs is included; validation is not, which the bare loop does not have. Each epoch is
compared with the mean of the bare epochs before and after it. A clock around the calls of the trainer's progress,
checkpoints and tracking counts their time too.
Raw samples go to benchmarks/speed/trainer.json, the table to docs/results/training.md.
"""

import argparse
import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.facts import ROOT

RESULT = Path(__file__).parent / "trainer.json"
BACKENDS = ("tensorflow", "jax", "torch")
LOOPS = ("bare loop", "visionpipe", "stock fit, MLflow's callback")
IMAGES, BATCH, EPOCHS, THREADS = 4480, 32, 6, 2
STEPS = IMAGES // BATCH


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", nargs=2, metavar=("BACKEND", "LOOP"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    from benchmarks.tables import write_pages
    from visionpipe.artifact.hardware import hardware

    samples = []
    for number in range(options.rounds):
        for backend in BACKENDS:
            for loop in LOOPS[:: -1 if number % 2 else 1]:
                samples.append(
                    {"round": number, "backend": backend, "loop": loop} | on_a_terminal(backend, loop)
                )
                print(samples[-1], flush=True)
                results.write(RESULT, {"hardware": hardware(), "samples": samples})
    write_pages()


def on_a_terminal(backend: str, loop: str) -> dict[str, list[float]]:
    """Measures in a fresh process whose stderr is a terminal, so that the progress bar is drawn and its time counts."""
    command = [sys.executable, "-m", "benchmarks.speed.trainer", "--measure", backend, loop]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryDirectory() as folder:
        terminal, end = pty.openpty()
        shown: list[bytes] = []
        threading.Thread(target=read_all, args=(terminal, shown), daemon=True).start()
        output = subprocess.run(
            command, cwd=folder, env=variables, stdout=subprocess.PIPE, stderr=end, text=True
        )
        os.close(end)
    if output.returncode:
        sys.exit(f"{backend}, {loop}:\n{b''.join(shown).decode()}")
    sample: dict[str, list[float]] = json.loads(output.stdout.splitlines()[-1])
    return sample


def read_all(terminal: int, shown: list[bytes]) -> None:
    """Reads until the end: a terminal that nobody reads from blocks the process that writes to it."""
    with suppress(OSError):  # the end, on Linux
        while content := os.read(terminal, 2**16):
            shown.append(content)


def measure(backend: str, loop: str) -> dict[str, list[float]]:
    """Returns milliseconds per step: of each epoch after the first one, and of the bare loop's epochs around these.

    "spent" is what the trainer's own progress, checkpoints and tracking took of them.
    """
    from dataclasses import replace

    from visionpipe.project.backend import start_backend
    from visionpipe.project.params import load_params

    params = replace(load_params(ROOT / "params.yaml"), backend=backend, threads=THREADS)
    Path(".dvc").mkdir()
    start_backend(params)
    bare = BareLoop(params)
    between: list[float] = []
    spent = [0.0]
    kinds = dict(zip(LOOPS, (again, partial(ours, spent=spent), stock_fit), strict=True))
    seconds = kinds[loop](params, lambda: between.append(bare.epoch()))
    measured = {"milliseconds_per_step": seconds, "bare": between, "spent": spent[1:-1]}
    return {
        name: [round(1000 * epoch / STEPS, 3) for epoch in epochs]
        for name, epochs in measured.items()
        if epochs
    }


def new_model() -> Any:
    from visionpipe.models import build_model

    return build_model("ResNet-14", 10, 28, filters=32, stem_stride=2)


def recipe() -> Any:
    from visionpipe.training.recipe import TrainConfig

    flip = ({"name": "flip"},)
    return TrainConfig(epochs=EPOCHS, batch_size=BATCH, augmentation=flip)


def prepared() -> Any:
    import numpy as np

    from visionpipe.data.prepared import SPLITS, open_prepared, write_manifest, write_split

    folder, random = Path("prepared"), np.random.default_rng(0)
    if folder.exists():
        return open_prepared(folder, verify=False)
    folder.mkdir()
    for split, count in zip(SPLITS, (IMAGES, 64, 64), strict=True):
        images = random.integers(0, 256, (count, 28, 28, 3), np.uint8)
        write_split(folder, split, images, list(range(count)), [i % 10 for i in range(count)], [""] * count)
    statistics_of_channels = {"channel_mean": [127.5] * 3, "channel_std": [73.6] * 3}
    classes = [f"class {number}" for number in range(10)]
    write_manifest(
        folder, size=(28, 28), classes=classes, **statistics_of_channels, quarantined=[], warnings=[]
    )
    return open_prepared(folder, verify=False)


def compiled_with_batches(model: Any, params: Any) -> tuple[Any, Callable[[int], Any]]:
    """Returns the model ready to train as `fit` trains it, and what makes the batches of an epoch."""
    from visionpipe.training.checkpoint import Checkpoint
    from visionpipe.training.fit import Training
    from visionpipe.training.teacher import Teacher

    training = Training(model, prepared(), recipe(), params.seed, Checkpoint(Path("unused")), Teacher())
    training.start_phase(0)
    return training.trained, lambda epoch: training.batches(range(epoch * STEPS, (epoch + 1) * STEPS))


class BareLoop:
    """Calls Keras's compiled step for each batch of an epoch."""

    def __init__(self, params: Any):
        import keras

        self.model, self.batches = compiled_with_batches(new_model(), params)
        self.model.fit(self.batches(0), verbose=0)  # builds and compiles
        self.backend, self.done = keras.backend.backend(), 1
        if self.backend == "jax":
            kinds = ("trainable", "non_trainable", "optimizer", "metrics")
            self.state = self.model._get_jax_state(**{f"{kind}_variables": True for kind in kinds})

    def epoch(self) -> float:
        """Trains one epoch; returns its seconds."""
        start = time.perf_counter()
        iterator = iter(self.batches(self.done))
        self.done += 1
        if self.backend == "jax":
            arrays = ((x.numpy(), y.numpy(), None) for x, y in iterator)
            for _ in range(STEPS):
                logs, self.state = self.model.train_function(self.state, arrays)
        elif self.backend == "torch":
            for x, y in iterator:
                logs = self.model.train_function([(x.numpy(), y.numpy(), None)])
        else:
            for _ in range(STEPS):
                logs = self.model.train_function(iterator)
        float(logs["loss"])  # waits for the device
        return time.perf_counter() - start


def again(params: Any, between: Callable[[], None]) -> list[float]:
    loop, seconds = BareLoop(params), []
    between()
    for _ in range(EPOCHS - 1):
        seconds.append(loop.epoch())
        between()
    return seconds


def count(owner: type, name: str, spent: list[float]) -> None:
    """Makes calls of this method add their seconds to the last of `spent`."""
    method = getattr(owner, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return method(*arguments, **options)
        finally:
            spent[-1] += time.perf_counter() - start

    setattr(owner, name, counted)


def ours(params: Any, between: Callable[[], None], spent: list[float]) -> list[float]:
    from visionpipe.tracking.runs import LiveRun
    from visionpipe.training.checkpoint import Checkpoint
    from visionpipe.training.fit import Training, fit
    from visionpipe.training.watch import Watch

    identity = {
        "params": {"model": {"family": "resnet"}, "backend": "x"},
        "data_sha256": "",
        "code": {},
        "versions": {},
    }
    run = LiveRun(params.tracking, "benchmark", "key", identity)
    for owner, name in ((Watch, "on_train_batch_begin"), (Training, "save"), (LiveRun, "log_epoch")):
        count(owner, name, spent)
    seconds: list[float] = []
    start = 0.0

    def report(row: dict[str, float]) -> None:
        nonlocal start
        run.log_epoch(row)
        validation = row["seconds"] - STEPS * BATCH / row["images_per_second"]
        seconds.append(time.perf_counter() - start - validation)
        spent.append(0.0)
        between()
        start = time.perf_counter()

    fit(new_model(), prepared(), recipe(), params.seed, Checkpoint(Path("checkpoint")), report)
    return seconds[1:]


def stock_fit(params: Any, between: Callable[[], None]) -> list[float]:
    import keras
    import mlflow

    model, batches = compiled_with_batches(new_model(), params)
    mlflow.set_tracking_uri(f"sqlite:///{Path('mlflow.db').resolve()}")

    seconds: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seconds.append(time.perf_counter() - self.start)

    with mlflow.start_run() as run:
        for epoch in range(EPOCHS):
            callbacks = [
                mlflow.keras.MlflowCallback(run),
                keras.callbacks.ModelCheckpoint("model.keras"),
                Clock(),  # last, so that what the others do at the end of an epoch counts
            ]
            model.fit(batches(epoch), callbacks=callbacks, verbose=0, initial_epoch=epoch, epochs=epoch + 1)
            between()
    return seconds[1:]


if __name__ == "__main__":
    main()
