"""Measures how long `prepare` takes when ten photographs are added to 2,000.

    python -m benchmarks.speed.growth --rounds 3

The pictures have the spectrum of photographs and 0.8 megapixels, and become 224 px. Every round prepares 2,000, then
2,010 with what was remembered, then 2,010 without, each in a fresh process, with the files in the cache of the system.
The prepared data must be the same with and without. Raw samples go to benchmarks/speed/growth.json.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import results
from benchmarks.facts import versions
from benchmarks.processes import in_new_process, thread_variables
from benchmarks.speed.prepare import cpu_seconds, photograph

FILE = Path(__file__).parent / "growth.json"
THREADS, SIZE = 2, 224
HEIGHT, WIDTH = 768, 1024
BEFORE, ADDED, DIFFERENT = 2000, 10, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(options.measure)))
        return
    from visionpipe.artifact.hardware import hardware

    result = {
        "hardware": hardware(),
        "threads": THREADS,
        "versions": versions("numpy", "pillow"),
        "samples": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        root, later = Path(folder), Path(folder, "later")
        (root / ".dvc").mkdir()
        write_photos(root)
        for number in range(options.rounds):
            for path in (root / "images").rglob("new*"):
                path.rename(later / path.name)
            shutil.rmtree(root / ".visionpipe", ignore_errors=True)
            digests = []
            for run in ("first", "ten more", "ten more, nothing remembered"):
                if run == "ten more":
                    for path in later.iterdir():
                        path.rename(root / "images" / "ab"[int(path.stem[3:]) % 2] / path.name)
                elif run != "first":
                    shutil.rmtree(root / ".visionpipe")
                shutil.rmtree(root / "data", ignore_errors=True)  # as DVC does
                sample = in_new_process(
                    "benchmarks.speed.growth", "--measure", folder, **thread_variables(THREADS)
                )
                digests.append(sample.pop("digest"))
                print(sample := {"round": number, "run": run, **sample}, flush=True)
                result["samples"].append(sample)
            assert digests[0] != digests[1] == digests[2], digests
    results.write(FILE, result)


def write_photos(root: Path) -> None:
    for name in ("images/a", "images/b", "later"):
        (root / name).mkdir(parents=True)
    pictures = [np.asarray(photograph(HEIGHT, WIDTH, seed)) for seed in range(DIFFERENT)]
    for number in range(BEFORE + ADDED):
        moved = np.roll(pictures[number % DIFFERENT], 37 * (number // DIFFERENT), axis=1)
        folder = f"images/{'ab'[number % 2]}" if number < BEFORE else "later"
        name = f"{'' if number < BEFORE else 'new'}{number}.jpg"
        Image.fromarray(moved).save(root / folder / name, quality=90)


def measured(folder: str) -> dict[str, float | str]:
    """Returns the seconds and CPU seconds of a `prepare`, and the sha256 of all that it prepared."""
    from visionpipe.data.config import PrepareConfig
    from visionpipe.data.prepared import PREPARED
    from visionpipe.project.params import Params
    from visionpipe.stages.prepare import prepare

    os.chdir(folder)
    params = Params(PrepareConfig("folder", "images", size=(SIZE, SIZE)), models={}, threads=THREADS)
    before, start = cpu_seconds(), time.perf_counter()
    prepare(params)
    seconds, used = time.perf_counter() - start, cpu_seconds() - before
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(PREPARED.iterdir())))
    return {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2), "digest": digest.hexdigest()}


if __name__ == "__main__":
    sys.exit(main())
