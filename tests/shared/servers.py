"""Runs `visionpipe serve` in a separate process, and sends requests to it."""

import contextlib
import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from repository import CHECKOUT

CLASSES = ["cat", "dog", "owl", "fox", "hen", "bee", "ant"]
SIZE = (16, 20)
TIMEOUT = 60


@dataclass
class Answer:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RunningServer:
    process: subprocess.Popen
    port: int
    first_line: str
    log: list[str] = field(default_factory=list)

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)
        with contextlib.closing(connection):
            connection.request(
                method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
            )
            response = connection.getresponse()
            return Answer(response.status, response.read(), {k.lower(): v for k, v in response.getheaders()})

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def predict(self, body: Any, query: str = "", **headers: str) -> Answer:
        return self.request("POST", f"/predict{query}", body, **headers)

    def metric(self, line: str) -> float:
        """Returns the value of one line of /metrics; 0 if there is no such line."""
        match = re.search(rf"^{re.escape(line)} (\S+)$", self.get("/metrics").body.decode(), re.MULTILINE)
        return float(match[1]) if match else 0.0

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT)


@contextlib.contextmanager
def running(target: Any, *options: str, **variables: str) -> Iterator[RunningServer]:
    """Starts a server on a free port, which ends without a delay unless the options demand one."""
    command = [sys.executable, "-m", "visionpipe", "serve", str(target), "--port", "0"]
    command += ["--drain-seconds", "0", "--follow-seconds", "0.1", *options]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)} | variables
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    log: list[str] = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
    reader.start()
    try:
        line = process.stdout.readline()
        match = re.search(r"http://[^:]+:(\d+)/", line)
        if match is None:
            process.wait(TIMEOUT)
            reader.join(TIMEOUT)
            raise AssertionError(f"the server did not start: {line}{''.join(log)}")
        yield RunningServer(process, int(match[1]), line, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(TIMEOUT)
        reader.join(TIMEOUT)
        process.stdout.close()
        process.stderr.close()


def picture(form: str = "PNG", mode: str = "RGB", width: int = 31, height: int = 40) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def big_jpeg() -> bytes:
    """Makes a JPEG file of 36 million pixels and 0.6 MB, which takes most of a second to decode."""
    file = io.BytesIO()
    Image.new("RGB", (6000, 6000), "green").save(file, "JPEG")
    return file.getvalue()


def form(*files: bytes, **fields: str) -> tuple[bytes, str]:
    """Makes a multipart body; returns it and its content type."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="file"; filename="{i}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for i, data in enumerate(files)
    ]
    parts += [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    return b"".join([*parts, b"--x--\r\n"]), "multipart/form-data; boundary=x"


def artifact_folder(path: Path, seed: int = 0) -> Path:
    from onnx_models import write_artifact

    weights = np.random.default_rng(seed).normal(0, 0.002, (SIZE[0] * SIZE[1] * 3, len(CLASSES)))
    return write_artifact(path, CLASSES, SIZE, weights - weights.mean(axis=0))
