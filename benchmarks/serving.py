"""The server beside others: same model, same machine, JPEG bodies, real sockets.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install -r benchmarks/requirements-serving.txt
    python benchmarks/serving.py --peers /tmp/peers/bin/python --rounds 3

Two models with random weights, exported by visionpipe's own code: the sample's ResNet (28 px, 10 classes)
and ResNet-50 (224 px, 1000 classes). Every sample starts its server afresh; contenders take turns, in the
opposite order every second round. The load generator (benchmarks/load.py) is one process on the same cores,
and reports its own CPU time. Tasks:

tune      once: images per second of each peer with each of its settings; it is measured with the fastest
bare      what decoding and ONNX Runtime alone take, in a process of their own: the floor
latency   one connection
load      32 connections
overload  new requests at five times the capacity just measured, then the recovery
start     seconds until the server answers, and what it imported
memory    anonymous memory after 1,000 and after 21,000 requests, a third of them bad
predict   `visionpipe predict` on 10,000 files (1,000 for ResNet-50)
int8      ONNX Runtime's time per image in int8 and in fp32

Samples go to benchmarks/serving.json as they come, and an interrupted run goes on from there.
"""

import argparse
import base64
import io
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "serving.json"
SCRATCH = Path(tempfile.gettempdir()) / "visionpipe-serving"
SECONDS = 6.0  # of one sample's measuring
MODELS = {"ResNet-14, 28 px": 28, "ResNet-50, 224 px": 224}
FOLDERS = {"ResNet-14, 28 px": "resnet14", "ResNet-50, 224 px": "resnet50", "ViT-S/16, 224 px": "vit-s16"}
OURS, PYFUNC, KERAS, LITSERVE, BENTOML = (
    "visionpipe serve",
    "mlflow, pyfunc",
    "mlflow, mlflow.keras",
    "LitServe",
    "BentoML",
)
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
TUNED: dict[tuple[str, str], dict[str, str]] = {}  # by contender and model
TASKS = {
    "tune": [LITSERVE, BENTOML],
    "bare": [OURS],
    "latency": [OURS, PYFUNC, KERAS, LITSERVE, BENTOML],
    "load": [OURS, PYFUNC, LITSERVE, BENTOML],
    "overload": [OURS],
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
    parser.add_argument("--contenders", nargs="+", help="default: all that are there")
    parser.add_argument(
        "--seconds", type=float, default=280, help="stop after so long; the next call goes on"
    )
    parser.add_argument("--fresh", action="store_true", help="throw the samples away that are there")
    options = parser.parse_args()
    from visionpipe.tracking.runs import hardware

    begin = time.perf_counter()
    result = {"samples": []} if options.fresh or not RESULT.exists() else json.loads(RESULT.read_text())
    result |= {"hardware": hardware(), "versions": versions(options.peers)}
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
            TUNED.update(
                {(s["contender"], s["model"]): s["fastest"] for s in result["samples"] if s["task"] == "tune"}
            )
            measured = globals()[f"measure_{task}"](contender, model, options.peers)
            result["samples"].append(sample | {"load": os.getloadavg()[0]} | measured)
            print(result["samples"][-1], flush=True)
            RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    from serving_tables import write_page

    write_page()


def wanted(contender: str, options: argparse.Namespace) -> bool:
    there = options.peers or contender not in (LITSERVE, BENTOML)
    return bool(there and (not options.contenders or contender in options.contenders))


def versions(peers: str | None) -> dict[str, str]:
    kept = {
        "mlflow",
        "fastapi",
        "uvicorn",
        "onnxruntime",
        "pillow",
        "tensorflow",
        "keras",
        "litserve",
        "bentoml",
    }
    found = {}
    for python in (sys.executable, peers):
        if python:
            command = [python, "-m", "pip", "list", "--format=json"]
            listed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            found |= {p["name"].lower(): p["version"] for p in listed if p["name"].lower() in kept}
    return dict(sorted(found.items()))


# Models and requests -----------------------------------------------------------------------------------


def folder_of(model: str) -> Path:
    return SCRATCH / FOLDERS[model]


def make_models() -> None:
    """Artifacts, the two MLflow models and the requests, once, in a process that may import Keras."""
    if all((folder_of(model) / "image.jpg").exists() for model in MODELS):
        return
    command = [sys.executable, str(ROOT / "benchmarks" / "serving_models.py"), str(SCRATCH)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for model in MODELS:
        (folder_of(model) / "image.jpg").write_bytes(jpeg(MODELS[model]))


def jpeg(size: int, seed: int = 0) -> bytes:
    """A photo-like picture: 28 × 28, or 500 × 375 (some 70 KB) for the model that takes 224 × 224."""
    width, height = (size, size) if size < 100 else (500, 375)
    random = np.random.default_rng(seed)
    file = io.BytesIO()
    coarse = Image.fromarray(random.integers(0, 256, (height // 6, width // 6, 3), np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def request(contender: str, model: str, port: int, body: bytes | None = None) -> bytes:
    """The bytes of one request as this server wants it."""
    size, image = MODELS[model], body or (folder_of(model) / "image.jpg").read_bytes()
    text = base64.b64encode(image).decode()
    path, kind, content = "/predict", "application/json", b""
    if contender == PYFUNC:
        content = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[text]]}}).encode()
    elif contender == KERAS:  # takes pixels only: the client has decoded and resized
        pixels = np.random.default_rng(0).integers(0, 256, (1, size, size, 3)).tolist()
        content = json.dumps({"inputs": pixels}).encode()
    elif contender == LITSERVE:
        content = json.dumps({"image": text}).encode()
    elif contender == BENTOML:
        content = json.dumps({"images": [text]}).encode()
    else:
        kind, content = "image/jpeg", image
    if contender in (PYFUNC, KERAS):
        path = "/invocations"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


# Servers and load --------------------------------------------------------------------------------------


@contextmanager
def running(
    contender: str, model: str, peers: str | None, *options: str, settings: dict[str, str] | None = None
) -> Iterator[tuple[int, int, float]]:
    """A server that has answered once: port, process id, and seconds until then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = folder_of(model)
    commands = {
        OURS: [sys.executable, "-m", "visionpipe", "serve", str(folder / "artifact"), "--port", str(port)],
        PYFUNC: mlflow_command(folder / "pyfunc", port),
        KERAS: mlflow_command(folder / "mlflow-keras", port),
    }
    peer = [str(peers), str(ROOT / "benchmarks" / "serving_peers.py"), contender.lower()]
    command = [*commands.get(contender, [*peer, str(folder / "artifact"), str(port)]), *options]
    # The .keras file names layers of ours, which mlflow.keras does not import by itself.
    (SCRATCH / "layers").mkdir(exist_ok=True)
    (SCRATCH / "layers" / "sitecustomize.py").write_text("import visionpipe.models.layers\n")
    ours = [str(ROOT), *([str(SCRATCH / "layers")] if contender == KERAS else [])]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {
        "PATH": path,
        "PYTHONPATH": "" if contender in (LITSERVE, BENTOML) else os.pathsep.join(ours),
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "KERAS_BACKEND": "tensorflow",
        "BENTOML_DO_NOT_TRACK": "True",
        **(settings or TUNED.get((contender, model), {})),
    }
    start = time.perf_counter()
    with (SCRATCH / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=SCRATCH, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while True:
            if process.poll() is not None or time.perf_counter() - start > 120:
                sys.exit(f"{contender} does not answer:\n{(SCRATCH / 'server.log').read_text()[-3000:]}")
            try:
                with socket.create_connection(("127.0.0.1", port), 60) as client:
                    client.sendall(request(contender, model, port))
                    if client.recv(65536)[9:12] == b"200":
                        break
            except OSError:
                pass
            time.sleep(0.02)
        yield port, process.pid, time.perf_counter() - start
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def mlflow_command(model: Path, port: int) -> list[str]:
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    return [*serve, "--model-uri", str(model), "--host", "127.0.0.1", "--port", str(port)]


def load(port: int, content: bytes, mode: str, amount: float, seconds: float) -> dict[str, Any]:
    """What benchmarks/load.py reports."""
    file, answers = SCRATCH / "request", SCRATCH / "answers.json"
    file.write_bytes(content)
    command = [sys.executable, str(ROOT / "benchmarks" / "load.py"), str(port), str(file)]
    command += [mode, f"{amount:g}", f"{seconds:g}"]
    with answers.open("w") as output:
        subprocess.run(command, stdout=output, check=True)
    return dict(json.loads(answers.read_text()))


def summary(report: dict[str, Any]) -> dict[str, float]:
    """Milliseconds, requests per second, and the client's share of all cores."""
    good = [seconds for status, seconds, _ in report["answers"] if status == 200]
    p50, p95, p99 = np.percentile(good, [50, 95, 99]) * 1000
    end = max(at for _, _, at in report["answers"])
    return {
        "answers": len(report["answers"]),
        "failed": len(report["answers"]) - len(good),
        "per_second": round(len(good) / end, 2),
        "p50_ms": round(p50, 3),
        "p95_ms": round(p95, 3),
        "p99_ms": round(p99, 3),
        "client_cpu_ms": round(report["cpu"] / len(report["answers"]) * 1000, 4),
        "client_share": round(report["cpu"] / report["wall"] / (os.cpu_count() or 1), 4),
    }


# Tasks -------------------------------------------------------------------------------------------------


def measure_bare(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Milliseconds per image: decoding in one thread; one image and the best batch in ONNX Runtime."""
    return in_new_process("--bare", model)


def measure_int8(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Milliseconds per image in batches of eight, and the largest difference of a logit, relative."""
    return in_new_process("--int8", model)


def in_new_process(option: str, model: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks" / "serving_models.py"), option, str(folder_of(model))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return dict(json.loads(output.splitlines()[-1]))


def measure_tune(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Images per second of each setting, and the fastest one."""
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
    with running(contender, model, peers) as (port, _, _):
        content = request(contender, model, port)
        load(port, content, "closed", 1, 1)
        return summary(load(port, content, "closed", 1, SECONDS))


def measure_load(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """With what the cores could do, measured right before and after: a neighbour's minute changes it by a tenth."""
    seconds = SECONDS if MODELS[model] < 100 else 3 * SECONDS
    floor = [measure_bare(contender, model, peers)] if contender == OURS else []
    with running(contender, model, peers) as (port, _, _):
        content = request(contender, model, port)
        load(port, content, "closed", 32, 2)
        report = summary(load(port, content, "closed", 32, seconds))
    floor += [measure_bare(contender, model, peers)] if contender == OURS else []
    return report | {"bare": floor}


def measure_overload(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """`goodput`: answers per second under five times the peak, of the peak. Refusals in milliseconds."""
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


def measure_start(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    times = []
    for _ in range(3):
        with running(contender, model, peers, "--drain-seconds", "0") as (_, _, seconds):
            times.append(seconds)
    return {"seconds": round(statistics.median(times), 3)}


def measure_memory(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """MiB of anonymous memory; ResNet-50 with a tenth of the requests."""
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


def load_n(port: int, body: bytes, count: int) -> list[int]:
    """Statuses of so many requests, eight at a time."""
    import http.client
    from concurrent.futures import ThreadPoolExecutor

    def several(number: int) -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        statuses = []
        for _ in range(number):
            connection.request("POST", "/predict", body)
            response = connection.getresponse()
            response.read()
            statuses.append(response.status)
        connection.close()
        return statuses

    with ThreadPoolExecutor(8) as clients:
        return list(itertools.chain(*clients.map(several, [max(1, count // 8)] * 8)))


def anonymous_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.split("RssAnon:")[1].split()[0]) / 1024, 2)


def measure_predict(contender: str, model: str, peers: str | None) -> dict[str, Any]:
    """Images per second of the whole command, and without its start (measured with no more than one file)."""
    folder = folder_of(model) / "files"
    count = 10_000 if MODELS[model] < 100 else 1_000
    folder.mkdir(exist_ok=True)
    for index in range(len(list(folder.iterdir())), count):
        (folder / f"{index:05d}.jpg").write_bytes(jpeg(MODELS[model], index % 50))
    start = ["-m", "visionpipe", "predict", "--model", str(folder_of(model) / "artifact")]
    floor, times = [measure_bare(contender, model, peers)], []
    for paths in (str(folder / "00000.jpg"), str(folder)):
        begin = time.perf_counter()
        output = str(SCRATCH / "predictions.csv")
        subprocess.run(
            [sys.executable, *start, paths, "--output", output],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        times.append(time.perf_counter() - begin)
    return {
        "files": count,
        "seconds": round(times[1], 2),
        "per_second": round((count - 1) / (times[1] - times[0]), 1),
        "bare": [*floor, measure_bare(contender, model, peers)],
    }


if __name__ == "__main__":
    main()
