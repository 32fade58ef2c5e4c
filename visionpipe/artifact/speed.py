"""Measures the speed and memory of an exported model, in a separate process and once per machine.

`python -m visionpipe.artifact.speed FOLDER THREADS` prints the measurement as JSON.
"""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.hardware import processor
from visionpipe.files import sha256_json, write_json

SECONDS = 0.6  # of predictions per batch size
BATCHES = (1, 8, 32)


def measure(folder: Path, artifact_sha256: str, threads: int, state: Path) -> dict[str, float]:
    """Measures the speed of the artifact in `folder`, or reads it if this machine has measured it before.

    Returns latency_p50_ms and latency_p95_ms (of one image, without decoding), images_per_second (at the fastest of
    a few batch sizes) and peak_memory_mib (of a process that loads the model and predicts).
    """
    path = measurement_path(artifact_sha256, threads, state)
    if not path.exists():
        command = [sys.executable, "-m", __name__, str(folder), str(threads)]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        write_json(path, json.loads(result.stdout))
    return json.loads(path.read_text())


def measurement_path(artifact_sha256: str, threads: int, state: Path) -> Path:
    """Returns the path of the file with the speed of an artifact on this CPU with `threads` threads."""
    key = sha256_json({"artifact": artifact_sha256, "cpu": processor(), "threads": threads})
    return state / "measurements" / f"{key}.json"


def speed(classifier: Classifier) -> dict[str, float]:
    """Measures predictions of noise: one image at a time, and in larger batches unless these would take too long."""
    noise = classifier.noise(max(BATCHES))
    latencies = run_times(classifier, noise[:1])
    median = float(np.median(latencies))
    affordable = [batch for batch in BATCHES[1:] if batch * median < SECONDS]
    rates = [batch / float(np.median(run_times(classifier, noise[:batch]))) for batch in affordable]
    return {
        "latency_p50_ms": round(median * 1000, 3),
        "latency_p95_ms": round(float(np.percentile(latencies, 95)) * 1000, 3),
        "images_per_second": round(max(1 / median, *rates), 1),
        "peak_memory_mib": round(peak_memory_mib(), 1),
    }


def run_times(classifier: Classifier, images: np.ndarray) -> list[float]:
    """Returns the seconds of each prediction, for as many as fit into SECONDS, at least one, after two for warm-up."""
    for _ in range(2):
        classifier.logits(images)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        classifier.logits(images)
        times.append(time.perf_counter() - start)
    return times


def peak_memory_mib() -> float:
    """Returns the peak resident memory of this process in MiB.

    On Linux it is read from /proc, because `ru_maxrss` there starts with the value of the parent process.
    """
    try:
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    print(json.dumps(speed(Classifier(Path(sys.argv[1]), int(sys.argv[2])))))
