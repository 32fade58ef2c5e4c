"""Starts the servers that are compared, on a free port, and sends requests to them."""

import base64
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import facts
from benchmarks.facts import ROOT
from benchmarks.processes import in_new_process

SCRATCH = Path(tempfile.gettempdir()) / "visionpipe-serving"
STORE = f"sqlite:///{SCRATCH / 'mlflow.db'}"
MODELS = {"ResNet-14, 28 px": 28, "ResNet-50, 224 px": 224}
FOLDERS = {"ResNet-14, 28 px": "resnet14", "ResNet-50, 224 px": "resnet50", "ViT-S/16, 224 px": "vit-s16"}
OURS, PYFUNC, KERAS, LITSERVE, BENTOML = (
    "visionpipe serve",
    "mlflow, pyfunc",
    "mlflow, mlflow.keras",
    "LitServe",
    "BentoML",
)


def folder_of(model: str) -> Path:
    return SCRATCH / FOLDERS[model]


def make_models() -> None:
    """Makes the artifacts, the MLflow models, the registry and the requests, once, in a process that imports Keras."""
    if all((folder_of(model) / "image.jpg").exists() for model in MODELS):
        return
    command = [sys.executable, "-m", "benchmarks.serving.artifacts", str(SCRATCH)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for model in MODELS:
        (folder_of(model) / "image.jpg").write_bytes(jpeg(MODELS[model]))


def jpeg(size: int, seed: int = 0) -> bytes:
    """Returns a photo-like picture: 28 × 28, or 500 × 375 (some 70 KB) for the model that takes 224 × 224."""
    width, height = (size, size) if size < 100 else (500, 375)
    random = np.random.default_rng(seed)
    file = io.BytesIO()
    coarse = Image.fromarray(random.integers(0, 256, (height // 6, width // 6, 3), np.uint8))
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


def request(contender: str, model: str, port: int, body: bytes | None = None) -> bytes:
    """Returns the bytes of one request as this server wants it."""
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


TUNED: dict[tuple[str, str], dict[str, str]] = {}  # by contender and model


def tune(samples: list[dict[str, Any]]) -> None:
    """Gives each peer the settings that were fastest, from here on."""
    TUNED.update({(s["contender"], s["model"]): s["fastest"] for s in samples if s["task"] == "tune"})


@contextmanager
def running(
    contender: str,
    model: str,
    peers: str | None,
    *options: str,
    target: str = "folder",
    settings: dict[str, str] | None = None,
) -> Iterator[tuple[int, int, float]]:
    """Starts a server and waits for its first answer; gives port, process id, and seconds until that answer.

    target: whether ours is started with the artifact's folder or with the model's alias.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = folder_of(model)
    artifact = str(folder / "artifact") if target == "folder" else f"models:/{FOLDERS[model]}@champion"
    commands = {
        OURS: [sys.executable, "-m", "visionpipe", "serve", artifact, "--port", str(port)],
        PYFUNC: mlflow_command(folder / "pyfunc", port),
        KERAS: mlflow_command(folder / "mlflow-keras", port),
    }
    peer = [str(peers), str(ROOT / "benchmarks" / "serving" / "peer_server.py"), contender.lower()]
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
        "MLFLOW_TRACKING_URI": STORE,
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


def move_champion(model: str, number: int) -> None:
    """Moves the alias to version 1 or 2, two versions of the same artifact."""
    import mlflow

    mlflow.MlflowClient(STORE, STORE).set_registered_model_alias(FOLDERS[model], "champion", str(number))


def present_version(port: int) -> str:
    """Returns the version that answers."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/model") as answer:
        return str(json.load(answer)["version"])


def batches(port: int) -> tuple[float, float]:
    """Returns how many batches our server has run, and their seconds in all."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = dict(line.rsplit(None, 1) for line in answer.read().decode().splitlines())
    return float(lines["visionpipe_batch_seconds_count"]), float(lines["visionpipe_batch_seconds_sum"])


def mlflow_command(model: Path, port: int) -> list[str]:
    serve = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    return [*serve, "--model-uri", str(model), "--host", "127.0.0.1", "--port", str(port)]


def load(port: int, content: bytes, mode: str, amount: float, seconds: float) -> dict[str, Any]:
    """Returns what benchmarks/serving/load.py reports."""
    file, answers = SCRATCH / "request", SCRATCH / "answers.json"
    file.write_bytes(content)
    command = [sys.executable, "-m", "benchmarks.serving.load", str(port), str(file)]
    command += [mode, f"{amount:g}", f"{seconds:g}"]
    with answers.open("w") as output:
        subprocess.run(command, stdout=output, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return dict(json.loads(answers.read_text()))


def summary(report: dict[str, Any]) -> dict[str, float]:
    """Returns latencies in milliseconds, requests per second, and the client's share of all cores."""
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


def load_n(port: int, body: bytes, count: int) -> list[int]:
    """Sends so many requests, eight at a time; returns their statuses."""
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


def without_server(option: str, model: str) -> dict[str, Any]:
    """Returns what benchmarks/serving/artifacts.py measures with this option."""
    return in_new_process("benchmarks.serving.artifacts", option, str(folder_of(model)))


def library_versions(peers: str | None) -> dict[str, str]:
    ours = facts.versions("mlflow", "fastapi", "uvicorn", "onnxruntime", "pillow", "tensorflow", "keras")
    theirs = facts.versions("litserve", "bentoml", python=peers) if peers else {}
    return dict(sorted((ours | theirs).items()))


def seconds_of_predict(model: str, path: Path) -> float:
    command = [sys.executable, "-m", "visionpipe", "predict", str(path), "--model"]
    command += [str(folder_of(model) / "artifact"), "--output", str(SCRATCH / "predictions.csv")]
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return time.perf_counter() - begin
