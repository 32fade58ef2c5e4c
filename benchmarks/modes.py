"""Threads, compilation and steps per call: which of them train a small model fastest on each backend.

    python benchmarks/modes.py --rounds 3

The default ResNet and ViT in this project's training step, in fresh processes that take turns. Raw samples go to
benchmarks/modes.json, the table to docs/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fit as trainer

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "modes.json"
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
    from tables import write_page

    from visionpipe.tracking.runs import hardware

    samples = []
    for number in range(options.rounds):
        for model in MODELS:
            for backend in trainer.BACKENDS:
                for mode in list(MODES)[:: -1 if number % 2 else 1]:
                    if (backend, mode) in LEFT_OUT:
                        continue
                    sample = {"round": number, "backend": backend, "model": model, "mode": mode}
                    samples.append(sample | in_new_process(backend, model, mode))
                    print(samples[-1], flush=True)
                    RESULT.write_text(
                        json.dumps({"hardware": hardware(), "samples": samples}, indent=1) + "\n"
                    )
    write_page()


def in_new_process(backend: str, model: str, mode: str) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", backend, model, mode]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        output = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if output.returncode:
        sys.exit(f"{backend}, {model}, {mode}:\n{output.stderr}")
    sample: dict[str, float] = json.loads(output.stdout.splitlines()[-1])
    return sample


def measure(backend: str, name: str, mode: str) -> dict[str, float]:
    """Milliseconds per step: the median epoch after the first one, which compiles."""
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
