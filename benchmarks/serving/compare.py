"""Measures the server beside others: the same model, the same machine, JPEG bodies, real sockets.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install -r benchmarks/serving/requirements.txt
    python -m benchmarks.serving.compare --peers /tmp/peers/bin/python --rounds 3

Two models with random weights, exported by visionpipe's own code: the sample's ResNet (28 px, 10 classes) and
ResNet-50 (224 px, 1000 classes). Every sample starts its server afresh. Contenders take turns, in the opposite order
every second round. The load generator (benchmarks/serving/load.py) is one process on the same cores, and reports its
CPU time. Tasks:

tune      once: images per second of each peer with each of its settings; the fastest setting is used from then on
bare      the floor: what decoding and ONNX Runtime alone take, in a fresh process
latency   one connection
load      32 connections
overload  new requests at five times the capacity just measured, then the recovery
swap      the slowest answers while the alias moves to another version
start     seconds from the command to the first answer, from a folder and from an alias
memory    anonymous memory after 1,000 and after 21,000 requests, a third of them bad
predict   `visionpipe predict` on 10,000 files (1,000 for ResNet-50)
int8      ONNX Runtime's time per image in int8 and in fp32

Samples go to benchmarks/serving/compare.json as they come, and an interrupted run continues from there. The tables go
to docs/results/serving.md.
"""

import argparse
import itertools
import os
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.serving.contenders import (
    BENTOML,
    FOLDERS,
    KERAS,
    LITSERVE,
    MODELS,
    OURS,
    PYFUNC,
    anonymous_mib,
    batches,
    folder_of,
    jpeg,
    library_versions,
    load,
    load_n,
    make_models,
    move_champion,
    present_version,
    request,
    running,
    seconds_of_predict,
    summary,
    tune,
    without_server,
)

RESULT = Path(__file__).parent / "compare.json"
SECONDS = 6.0  # of one sample's measuring
# What is tried of the peers' settings; the fastest at 32 connections is what they are measured with.
SETTINGS: dict[str, list[dict[str, str]]] = {
    LITSERVE: [
        {"WORKERS": workers, "MAX_BATCH": batch, "LITSERVE_TIMEOUT": timeout}
        for workers in "12"
        for batch in ("16", "32")
        for timeout in ("0", "0.005", "0.02")
    ],
    BENTOML: [{"WORKERS": workers, "MAX_BATCH": batch} for workers in "12" for batch in ("16", "32")],
}
TASKS = {
    "tune": [LITSERVE, BENTOML],
    "bare": [OURS],
    "latency": [OURS, PYFUNC, KERAS, LITSERVE, BENTOML],
    "load": [OURS, PYFUNC, LITSERVE, BENTOML],
    "overload": [OURS],
    "swap": [OURS],
    "start": [OURS],
    "memory": [OURS],
    "predict": [OURS],
    "int8": [OURS],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help="the Python that LitServe and BentoML are installed for")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--models", nargs="+", help="default: all")
    parser.add_argument(
        "--contenders", nargs="+", help="default: all, without --peers those of this environment"
    )
    parser.add_argument(
        "--seconds", type=float, default=280, help="stop after so long; the next call continues"
    )
    parser.add_argument("--fresh", action="store_true", help="measure all anew, instead of continuing")
    options = parser.parse_args()
    from benchmarks.tables import write_pages
    from visionpipe.artifact.hardware import hardware

    begin = time.perf_counter()
    result = {"samples": []} if options.fresh or not RESULT.exists() else results.read(RESULT)
    result |= {"hardware": hardware(), "versions": library_versions(options.peers)}
    make_models()
    done = {(s["round"], s["task"], s["model"], s["contender"]) for s in result["samples"]}
    for number, task, model in itertools.product(range(options.rounds), options.tasks, FOLDERS):
        known = FOLDERS if task == "int8" else MODELS
        if model not in known or model not in (options.models or known):
            continue
        contenders = [c for c in TASKS[task] if wanted(c, options)]
        for contender in contenders[:: -1 if number % 2 else 1]:
            if (number, task, model, contender) in done or (task == "tune" and number):
                continue
            if time.perf_counter() - begin > options.seconds:
                sys.exit("to be continued: run the same command again")
            sample = {"round": number, "task": task, "model": model, "contender": contender}
            tune(result["samples"])
            measured = globals()[f"measure_{task}"](contender, model, options.peers)
            result["samples"].append(sample | {"load": os.getloadavg()[0]} | measured)
            print(result["samples"][-1], flush=True)
            results.write(RESULT, result)
    write_pages()


def wanted(contender: str, options: argparse.Namespace) -> bool:
    there = options.peers or contender not in (LITSERVE, BENTOML)
    return bool(there and (not options.contenders or contender in options.contenders))


# Tasks -------------------------------------------------------------------------------------------------


def measure_bare(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Returns milliseconds per image: decoding in one thread; one image and the best batch in ONNX Runtime."""
    return without_server("--bare", model)


def measure_int8(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Returns milliseconds per image in batches of eight, and the largest difference of a logit, relative."""
    return without_server("--int8", model)


def measure_tune(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Returns images per second of each setting, and the fastest one."""
    tried = []
    for settings in SETTINGS[contender]:
        with running(contender, model, peers, settings=settings) as (port, _, _):
            content = request(contender, model, port)
            load(port, content, "closed", 32, 2)
            report = summary(load(port, content, "closed", 32, SECONDS))
        tried.append({"settings": settings, "per_second": report["per_second"], "failed": report["failed"]})
    sound = [attempt for attempt in tried if not attempt["failed"]] or tried
    return {"tried": tried, "fastest": max(sound, key=lambda attempt: attempt["per_second"])["settings"]}


def measure_latency(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    return beside_floor(contender, model, peers, 1, SECONDS)


def measure_load(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    return beside_floor(contender, model, peers, 32, SECONDS if MODELS[model] < 100 else 3 * SECONDS)


def beside_floor(
    contender: str, model: str, peers: str | None, connections: int, seconds: float
) -> dict[str, Any]:
    """Adds what the cores could do, measured right before and after: a neighbour's work changes it by a tenth."""
    floor = [measure_bare(contender, model, peers)] if contender == OURS else []
    with running(contender, model, peers) as (port, _, _):
        content = request(contender, model, port)
        load(port, content, "closed", connections, 2)
        before = batches(port) if contender == OURS else (0, 0)
        report = summary(load(port, content, "closed", connections, seconds))
        if contender == OURS:
            runs, total = (now - then for now, then in zip(batches(port), before, strict=True))
            report["batch_run_ms"] = round(1000 * total / runs, 3)
    floor += [measure_bare(contender, model, peers)] if contender == OURS else []
    return report | {"bare": floor}


def measure_overload(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Returns answers per second under five times the peak, as a share of it (`goodput`), and times of refusals."""
    with running(contender, model, peers) as (port, _, _):
        content = request(contender, model, port)
        load(port, content, "closed", 32, 2)
        peak = summary(load(port, content, "closed", 32, SECONDS))
        before = summary(load(port, content, "closed", 1, 2))
        # The load generator's own process cannot send more than some thousand a second.
        rate = min(5 * peak["per_second"], 4000)
        report = load(port, content, "open", rate, SECONDS)
        after = [summary(load(port, content, "closed", 1, 1)) for _ in range(5)]
    within = [a for a in report["answers"] if 1 < a[2] < SECONDS]
    good = sum(status == 200 for status, _, _ in within) / (SECONDS - 1)
    refused = [seconds * 1000 for status, seconds, _ in report["answers"] if status == 503]
    others = sum(status not in (200, 503) for status, _, _ in report["answers"])
    normal = next((i + 1 for i, s in enumerate(after) if s["p50_ms"] < 1.5 * before["p50_ms"]), None)
    return {
        "peak_per_second": peak["per_second"],
        "offered_per_second": round(rate, 1),
        "goodput": round(good / peak["per_second"], 3),
        "refused": len(refused),
        "refused_p50_ms": round(float(np.percentile(refused, 50)), 2) if refused else None,
        "refused_p99_ms": round(float(np.percentile(refused, 99)), 2) if refused else None,
        "other_answers": others,
        "normal_after_seconds": normal,
        "client_share": round(report["cpu"] / report["wall"] / (os.cpu_count() or 1), 4),
    }


def measure_swap(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Returns the slowest answers of one connection, in ms: three seconds before the alias moves, and after it.

    After it means until the new version answers; "seconds" says how long that took.
    """
    move_champion(model, 1)
    with running(contender, model, peers, target="alias") as (port, _, _):
        content = request(contender, model, port)
        load(port, content, "closed", 1, 1)
        times: list[float] = []

        def move() -> None:
            time.sleep(3)
            times.append(time.perf_counter() - start)
            move_champion(model, 2)
            while present_version(port) != "2" and time.perf_counter() - start < 20:
                time.sleep(0.05)
            times.append(time.perf_counter() - start)

        mover = threading.Thread(target=move)
        start = time.perf_counter()
        mover.start()
        report = load(port, content, "closed", 1, 9)
        mover.join()
    moved, swapped = times
    # The load generator's clock starts once its interpreter has: what it reports is that much later.
    late = time.perf_counter() - start - report["wall"]
    answers = [(at, seconds * 1000) for status, seconds, at in report["answers"] if status == 200]
    during = [ms for at, ms in answers if moved - late <= at <= swapped + 0.1]
    return {
        "failed": len(report["answers"]) - len(answers),
        "p50_ms": round(float(np.median([ms for _, ms in answers])), 3),
        "slowest_before_ms": round(max(ms for at, ms in answers if at < moved - late), 3),
        "slowest_during_ms": round(max(during), 3),
        "during_p50_ms": round(float(np.median(during)), 3),
        "seconds": round(swapped - moved, 2),
    }


def measure_start(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Returns medians of three starts each, in turns."""
    times: dict[str, list[float]] = {"folder": [], "alias": []}
    for _ in range(3):
        for target, seconds_until_answer in times.items():
            with running(contender, model, peers, "--drain-seconds", "0", target=target) as (_, _, seconds):
                seconds_until_answer.append(seconds)
    return {f"{target}_seconds": round(statistics.median(seconds), 3) for target, seconds in times.items()}


def measure_memory(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Returns MiB of anonymous memory; ResNet-50 gets a tenth of the requests."""
    scale = 1 if MODELS[model] < 100 else 10
    images = [jpeg(MODELS[model], seed) for seed in range(4)]
    bodies = [*images, images[0][:300], b"no image at all"]
    grown, sent = [], 0
    with running(contender, model, peers) as (port, pid, _):
        for goal in (1000 // scale, 21000 // scale):
            while sent < goal:
                for body in bodies:
                    sent += len(load_n(port, body, min(50, goal // len(bodies))))
            grown.append(anonymous_mib(pid))
    first, last = grown
    return {"requests": sent, "first_mib": first, "last_mib": last, "grown_mib": round(last - first, 2)}


def measure_predict(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Returns images per second without the command's start: the median of three for small images.

    The start is measured with one file. Takes turns with what decoding and ONNX Runtime alone allow.
    """
    folder, small = folder_of(model) / "files", MODELS[model] < 100
    count = 10_000 if small else 1_000
    folder.mkdir(exist_ok=True)
    for index in range(len(list(folder.iterdir())), count):
        (folder / f"{index:05d}.jpg").write_bytes(jpeg(MODELS[model], index % 50))
    floor, rates = [measure_bare(contender, model, peers)], []
    for _ in range(3 if small else 1):
        start = seconds_of_predict(model, folder / "00000.jpg")
        rates.append((count - 1) / (seconds_of_predict(model, folder) - start))
        floor.append(measure_bare(contender, model, peers))
    return {"files": count, "per_second": round(statistics.median(rates), 1), "bare": floor}


if __name__ == "__main__":
    main()
