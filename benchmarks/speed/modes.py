"""Compares threads, compilation and steps per call: which of them train a small model fastest on each backend.

    python -m benchmarks.speed.modes --rounds 3

The default ResNet and ViT run this project's training step, in fresh processes that take turns. Raw samples go to
benchmarks/speed/modes.json, the table to docs/results/training.md.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.facts import ROOT
from benchmarks.processes import in_new_process
from benchmarks.speed import trainer

RESULT = Path(__file__).parent / "modes.json"
MODELS: dict[str, dict[str, Any]] = {"ResNet-14": {"filters": 32, "stem_stride": 2}, "ViT-Mi/4": {}}
MODES: dict[str, dict[str, Any]] = {
    "two threads": {},
    "two threads, again": {},
    "one thread": {"threads": 1},
    "compiled": {"jit_compile": True},
    "8 steps per call": {"steps_per_execution": 8},
}
EPOCHS = 4
# XLA is all that JAX has. Keras's torch trainer makes one step per call whatever it is told.
LEFT_OUT = {("jax", "compiled"), ("torch", "8 steps per call")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=3, metavar=("BACKEND", "MODEL", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    from benchmarks.tables import write_pages
    from visionpipe.artifact.hardware import hardware

    samples = []
    for number in range(options.rounds):
        for model in MODELS:
            for backend in trainer.BACKENDS:
                for mode in list(MODES)[:: -1 if number % 2 else 1]:
                    if (backend, mode) in LEFT_OUT:
                        continue
                    sample = {"round": number, "backend": backend, "model": model, "mode": mode}
                    samples.append(sample | measured(backend, model, mode))
                    print(samples[-1], flush=True)
                    results.write(RESULT, {"hardware": hardware(), "samples": samples})
    write_pages()


def measured(backend: str, model: str, mode: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return in_new_process(
            "benchmarks.speed.modes", "--measure", backend, model, mode, folder=Path(folder)
        )


def measure(backend: str, name: str, mode: str) -> dict[str, float]:
    """Returns milliseconds per step of the median epoch after the first one, which compiles."""
    from dataclasses import replace

    from visionpipe.project.backend import start_backend
    from visionpipe.project.params import load_params

    options = dict(MODES[mode])
    params = replace(
        load_params(ROOT / "params.yaml"), backend=backend, threads=options.pop("threads", trainer.THREADS)
    )
    start_backend(params)
    from visionpipe.models import build_model

    model, batches = trainer.compiled_with_batches(build_model(name, 10, 28, **MODELS[name]), params)
    model.compile(model.optimizer, model.loss, **{"jit_compile": "auto"} | options)
    seconds = []
    for epoch in range(EPOCHS):
        start = time.perf_counter()
        model.fit(batches(epoch), verbose=0)
        seconds.append(time.perf_counter() - start)
    return {"milliseconds_per_step": round(1000 * statistics.median(seconds[1:]) / trainer.STEPS, 3)}


if __name__ == "__main__":
    main()
