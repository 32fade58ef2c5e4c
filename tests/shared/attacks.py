"""Attacks a running server: with fuzzing, slow clients, endless bodies, and load during shutdown or a version change.

Each attack returns what happened. The tests run short attacks, benchmarks/robustness/battery.py long ones.
"""

import asyncio
import contextlib
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from hostile_requests import PNG, damage, http_request, seeds
from servers import RunningServer, running

from visionpipe.serving.page import FILES


def send(port: int, data: bytes, patience: float = 0.5) -> bytes:
    """Sends bytes; returns the answer, until the server closes or sends nothing for `patience` seconds."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
        try:
            client.sendall(data)
            while chunk := client.recv(65536):
                received += chunk
        except OSError:
            pass  # closed while sending, reset, or silent: the bytes received so far count
    return received


def status_of(answer: bytes) -> int:
    """Returns the status of the first answer; 0 if the connection was closed without one."""
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(match[1]) if match else 0


def converse(port: int, parts: list[bytes], half: bool = False, patience: float = 0.5) -> list[int]:
    """Sends each part in a packet; returns the statuses of all answers. `half`: closes the client's half at the end."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for part in parts:
                client.sendall(part)
                time.sleep(0.01 if len(parts) < 5 else 0)
            if half:
                client.shutdown(socket.SHUT_WR)
            while chunk := client.recv(65536):
                received += chunk
        except TimeoutError:
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


# Fuzz --------------------------------------------------------------------------------------------------


def fuzz(server: RunningServer, count: int, seed: int = 0) -> dict[str, Any]:
    """Sends damaged requests to every route over raw sockets; counts the statuses of all answers."""
    document = server.get("/openapi.json").json
    version = server.get("/model").json["version"]
    routes = [
        (method.upper(), path.replace("{name}", "linear").replace("{version}", version))
        for path, methods in document["paths"].items()
        for method in methods
    ]
    generator, whole = random.Random(seed), seeds([*routes, *(("GET", file) for file in FILES)])
    requests = [damage(whole[number % len(whole)], generator) for number in range(count)]
    with ThreadPoolExecutor(8) as clients:  # a request without an end waits for the server's deadline
        answers = list(clients.map(lambda data: send(server.port, data, patience=0.2), requests))
    statuses = Counter(
        int(status) for answer in answers for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer) or [0]
    )
    return {"requests": count, "seeds": len(whole), "statuses": dict(sorted(statuses.items()))}


def schemathesis(server: RunningServer, cases: int, folder: Path) -> tuple[int, list[str]]:
    """Runs schemathesis, seed after seed, with and without the model's name, until it has sent `cases` cases.

    Returns the number of cases, and the output of each run that got a status of 5xx.
    """
    version = server.get("/model").json["version"]
    config = folder / "schemathesis.toml"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
    command += [f"http://127.0.0.1:{server.port}/openapi.json", "--checks", "not_a_server_error"]
    command += ["--phases", "coverage,fuzzing", "--generation-database", "none", "--no-color"]
    made, seed = 0, 0
    failures: list[str] = []
    while made < cases and not failures:
        names = f'"path.name" = "linear"\n"path.version" = "{version}"\n' if seed % 2 == 0 else ""
        config.write_text(f"[parameters]\n{names}")
        examples = ["--max-examples", str(min(200, cases // 30)), "--seed", str(seed)]
        result = subprocess.run([*command, *examples], cwd=folder, capture_output=True, text=True)
        match = re.search(r"([\d,]+) generated", result.stdout)
        made, seed = made + int(match[1].replace(",", "") if match else 0), seed + 1
        if result.returncode != 0 or match is None:
            failures.append(result.stdout + result.stderr)
    return made, failures


# Slowness ----------------------------------------------------------------------------------------------


async def drip(port: int, head: bytes, closed: list[float]) -> None:
    """Sends the beginning of a request, then one byte a second; records the seconds until the server closes."""
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head)

    async def go_on() -> None:
        while True:
            await asyncio.sleep(1)
            writer.write(b"a")

    sender = asyncio.create_task(go_on())
    try:
        while await reader.read(4096):
            pass
    except ConnectionError:
        pass
    closed.append(time.perf_counter() - start)
    sender.cancel()
    writer.close()


async def good_client(port: int, times: list[float], until: Callable[[], bool]) -> None:
    """Sends requests over one connection with short pauses, and records the seconds of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = http_request(PNG, Connection="keep-alive")
    while not until():
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]
        times.append(time.perf_counter() - start)
        await asyncio.sleep(0.01)
    writer.close()


def slow_clients(port: int, count: int, quiet_seconds: float, clients: int = 4) -> dict[str, Any]:
    """Sends `count` slow headers and `count` slow bodies; measures good clients before and meanwhile."""
    alone: list[float] = []
    beside: list[float] = []
    headers: list[float] = []
    bodies: list[float] = []

    async def run() -> None:
        end = time.perf_counter() + quiet_seconds
        await asyncio.gather(
            *(good_client(port, alone, lambda: time.perf_counter() > end) for _ in range(clients))
        )
        half = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
        slow = [drip(port, half + b"a: ", headers) for _ in range(count)]
        slow += [drip(port, half + b"Content-Length: 9000\r\n\r\n", bodies) for _ in range(count)]
        good = [
            good_client(port, beside, lambda: len(headers) + len(bodies) == 2 * count) for _ in range(clients)
        ]
        await asyncio.gather(*slow, *good)

    asyncio.run(run())
    return {
        "slow headers": count,
        "slow bodies": count,
        "headers closed after, at most": max(headers),
        "bodies closed after, at most": max(bodies),
        "p99 ms, alone": 1000 * percentile(alone, 0.99),
        "p99 ms, beside them": 1000 * percentile(beside, 0.99),
        "good requests": len(alone) + len(beside),
    }


def percentile(values: list[float], share: float) -> float:
    """Returns the value below which `share` of the values are."""
    return sorted(values)[int(share * (len(values) - 1))]


# Load --------------------------------------------------------------------------------------------------


class Load:
    """Clients that send requests until they are stopped. Every second client reuses its connection.

    `answered`: (index of the body, answer) of every status 200. `lost`: status or error of every
    other request, apart from failures to connect.
    """

    def __init__(self, port: int, bodies: list[bytes], clients: int = 8):
        self.port, self.bodies = port, bodies
        self.answered: list[tuple[int, bytes]] = []
        self.lost: list[Any] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n % 2 == 0,)) for n in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, keep: bool) -> None:
        connection, asked = None, 0
        while not self._stop.is_set():
            try:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
                    connection.connect()
            except OSError:
                connection = None
                time.sleep(0.01)
                continue
            index, asked = asked % len(self.bodies), asked + 1
            try:
                connection.request("POST", "/predict", self.bodies[index])
                response = connection.getresponse()
                body = response.read()
                if response.status == 200:
                    self.answered.append((index, body))
                else:
                    self.lost.append(response.status)
                closing = response.getheader("connection") == "close"
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(repr(error))
                closing = True
            if closing or not keep:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()


def end_under_load(artifact: Path) -> dict[str, Any]:
    """Sends SIGTERM to a server with eight clients."""
    with running(artifact, "--drain-seconds", "0.5") as server, Load(server.port, [PNG]) as load:
        time.sleep(0.5)
        code = server.stop()
    return {"answered": len(load.answered), "lost": load.lost, "exit code": code}


def move_under_load(
    server: RunningServer,
    move: Callable[[str], None],
    numbers: list[str],
    bodies: list[bytes],
    tables: dict[str, Any],
) -> dict[str, Any]:
    """Moves the alias from version to version under load.

    tables: version → probabilities of all bodies, (n, classes).

    In the result, `wrong` counts the answers that differ from those of the version that they name.
    """
    longest = 0.0
    with Load(server.port, bodies, clients=4) as load:
        for number in numbers:
            start = time.perf_counter()
            move(number)
            while server.get("/model").json["version"] != number:
                assert time.perf_counter() - start < 10, f"version {number} never came"
                time.sleep(0.02)
            longest = max(longest, time.perf_counter() - start)
    wrong, seen = 0, set()
    classes = server.get("/model").json["classes"]
    for index, body in load.answered:
        answer = json.loads(body)
        probabilities = [answer["predictions"][0]["probabilities"][label] for label in classes]
        seen.add(answer["model"]["version"])
        wrong += not np.allclose(probabilities, tables[answer["model"]["version"]][index], atol=1e-6)
    return {
        "moves": len(numbers),
        "answered": len(load.answered),
        "lost": load.lost,
        "wrong": wrong,
        "versions": sorted(seen),
        "slowest move, seconds": longest,
    }


def beside(server: RunningServer, requests: dict[str, bytes]) -> dict[str, dict[str, float]]:
    """Sends one request after the other, and measures /healthz every few milliseconds meanwhile."""
    results = {}
    for name, request in requests.items():
        answers: list[bytes] = []
        sender = threading.Thread(
            target=lambda data, to: to.append(send(server.port, data, 60)), args=(request, answers)
        )
        connection, times = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60), []
        sender.start()
        while sender.is_alive():
            start = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            times.append(time.perf_counter() - start)
            time.sleep(0.003)
        connection.close()
        results[name] = {
            "status": status_of(answers[0]),
            "p99 ms": 1000 * percentile(times, 0.99),
            "slowest ms": 1000 * max(times),
        }
    return results


def pipeline(server: RunningServer, connections: int, seconds: float) -> dict[str, Any]:
    """Sends requests on each connection without reading an answer."""
    before, slowest, peak = memory(server, "VmRSS"), 0.0, 0.0
    block = http_request(b"", method="GET", path="/page/main.js", Connection="keep-alive") * 5000
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(connections)]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for client in clients:
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.send(block)
        start = time.perf_counter()
        server.get("/healthz")
        slowest, peak = max(slowest, time.perf_counter() - start), max(peak, memory(server, "VmRSS"))
    for client in clients:
        client.close()
    return {"connections": connections, "extra memory MiB": peak - before, "slowest ms": 1000 * slowest}


def send_too_much(server: RunningServer, mebibytes: int) -> dict[str, Any]:
    """Sends a long chunked body; measures how much the server reads, and how much memory it takes for it."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # resets the peak
    before, sent, block = memory(server, "VmRSS"), 0, b"10000\r\n" + bytes(2**16) + b"\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        try:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            while sent < mebibytes * 16:
                client.sendall(block)
                sent += 1
        except OSError:
            pass  # the server has closed the connection
    return {"taken MiB": sent / 16, "extra memory MiB": memory(server, "VmHWM") - before}


def memory(server: RunningServer, field: str) -> float:
    """Returns one field of the process's status, in MiB."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def open_files_and_threads(server: RunningServer) -> tuple[int, int]:
    """Counts the open files and the threads of the server."""
    process = Path("/proc") / str(server.process.pid)
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))
