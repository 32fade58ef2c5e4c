"""What clients do to a server that they should not: malformed requests, fuzz, slowness; and load while it changes.

Each attack returns what happened; the tests run short ones, benchmarks/hardening.py long ones.
"""

import asyncio
import http.client
import json
import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from servers import RunningServer, form, picture

PNG = picture()
DEEP = b"[" * 100_000
V2 = {"name": "images", "datatype": "FP32", "shape": [1, 16, 20, 3]}


def http_request(
    body: bytes, content_type: str | None = None, path: str = "/predict", method: str = "POST", **headers: Any
) -> bytes:
    """A request with its length; `headers` replace or add to what it has, with - for _."""
    lines = {"Host": "x", "Content-Length": str(len(body)), "Connection": "close"}
    if content_type is not None:
        lines["Content-Type"] = content_type
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def as_json(content: Any, path: str = "/predict", **headers: Any) -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return http_request(body, "application/json", path, **headers)


def multipart(body: bytes, content_type: str = "multipart/form-data; boundary=x") -> bytes:
    return http_request(body, content_type)


def infer(tensor: dict[str, Any], binary: bytes = b"", **extra: Any) -> bytes:
    head = json.dumps({"inputs": [V2 | tensor], **extra}).encode()
    return as_json(head + binary, "/v2/models/linear/infer", Inference_Header_Content_Length=len(head))


def malformed() -> dict[str, bytes]:
    """Requests that are to be refused with 4xx, whole or by closing the connection."""
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    files = "/v2/models/linear/infer"
    return {
        "no content type, a form": http_request(form(PNG)[0]),
        "no content type, JSON": http_request(b'{"image": "aaaa"}'),
        "an empty content type": http_request(b"text", ""),
        "a content type of 10,000 letters": http_request(b"text", "a" * 10_000),
        "a form without boundary": multipart(form(PNG)[0], "multipart/form-data"),
        "a form with another boundary": multipart(form(PNG)[0], "multipart/form-data; boundary=y"),
        "a form with a boundary of 10,000 letters": multipart(
            form(PNG)[0], f"multipart/form-data; boundary={'x' * 10_000}"
        ),
        "a form that does not end": multipart(form(PNG)[0][:-7]),
        "a form with half a header": multipart(b"--x\r\nContent-Disp"),
        "a form with a header of 1 MB": multipart(b"--x\r\n" + b"a" * 10**6 + b": b\r\n\r\n\r\n--x--\r\n"),
        "a form of 10,000 parts": multipart(part * 10_000 + b"--x--\r\n"),
        "a form in a form": multipart(part + form(PNG)[0] + b"\r\n--x--\r\n"),
        "a form without a file": multipart(
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n--x--\r\n'
        ),
        "a form without names": multipart(b"--x\r\n\r\ncontent\r\n--x--\r\n"),
        "half of JSON": as_json(b'{"image": "'),
        "JSON, nested deeply": as_json(DEEP),
        "JSON, nested deeply within": as_json(b'{"images": ' + DEEP + b"]" * 100_000 + b"}"),
        "JSON, objects nested deeply": as_json(b'{"image":' * 50_000),
        "JSON with NaN": as_json(b'{"image": "aaaa", "top_k": NaN}'),
        "JSON with Infinity": as_json(b'{"image": "aaaa", "unsure_below": -Infinity}'),
        "JSON with 1e999": as_json(b'{"image": "aaaa", "unsure_below": 1e999}'),
        "JSON with an integer of 5,000 digits": as_json(b'{"image": "a", "top_k": ' + b"9" * 5000 + b"}"),
        "JSON with half a surrogate": as_json(b'{"image": "\\ud800"}'),
        "JSON that is not UTF-8": as_json(b'{"image": "\xff"}'),
        "JSON with a byte order mark": as_json(b'\xef\xbb\xbf{"image": "aaaa"}'),
        "JSON null": as_json(None),
        "JSON with an unknown key": as_json({"image": "aaaa", "url": "http://127.0.0.1/"}),
        "base64 with a data: prefix": as_json({"image": "data:image/png;base64,aaaa"}),
        "images that are numbers": as_json({"images": [1, 2]}),
        "a thousand images": as_json({"images": ["aaaa"] * 1000}),
        "top_k of 5,000 digits": http_request(PNG, path=f"/predict?top_k={'9' * 5000}"),
        "top_k of NaN": http_request(PNG, path="/predict?top_k=nan"),
        "an unknown option": http_request(PNG, path="/predict?debug=1"),
        "v2: no inputs": as_json({}, files),
        "v2: a shape of 10¹⁸": infer({"shape": [10**18] * 4, "data": []}),
        "v2: a negative shape": infer({"shape": [-1, 16, 20, 3], "data": []}),
        "v2: a shape of floats": infer({"shape": [1.5], "data": []}),
        "v2: too few values": infer({"data": [0] * 5}),
        "v2: nested values": infer({"data": [[[[[0] * 100] * 3] * 3]]}),
        "v2: strings for numbers": infer({"data": ["x"] * 960}),
        "v2: NaN in binary": infer(
            {"parameters": {"binary_data_size": 3840}}, struct.pack("<f", float("nan")) * 960
        ),
        "v2: a binary size that is not there": infer({"parameters": {"binary_data_size": 10**12}}, b"abc"),
        "v2: parameters that are a list": infer({"parameters": [1]}),
        "v2: lengths beyond the end": infer(
            {"name": "files", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 8}},
            b"\xff\xff\xff\x7fabcd",
        ),
        "v2: a header length of 1,000 digits": as_json({}, files, Inference_Header_Content_Length="9" * 1000),
        "v2: a negative header length": as_json({}, files, Inference_Header_Content_Length="-1"),
        "v2: another model": as_json({}, "/v2/models/%2e%2e%2fetc/infer"),
        "no HTTP at all": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "an unknown method": b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n",
        "TRACE": http_request(b"", method="TRACE", path="/"),
        "a length of letters": http_request(PNG, Content_Length="many"),
        "a negative length": http_request(PNG, Content_Length="-1"),
        "a length of 1,000 digits": http_request(PNG, Content_Length="9" * 1000),
        "two lengths": b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "a length and chunks": http_request(b"0\r\n\r\n", Transfer_Encoding="chunked"),
        "chunks of no number": http_request(b"zz\r\nabc\r\n", Content_Length="", Transfer_Encoding="chunked"),
        "a header with a null": b"GET / HTTP/1.1\r\nHost: x\r\na: \0\r\n\r\n",
        "a header without a name": b"GET / HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
        "an address of 100,000 letters": http_request(b"", method="GET", path="/" + "a" * 100_000),
        "a path that climbs": http_request(b"", method="GET", path="/page/../../../etc/passwd"),
        "a path with nulls": http_request(b"", method="GET", path="/%00%ff%2e"),
    }


def send(port: int, data: bytes, patience: float = 0.5) -> bytes:
    """All that comes back for these bytes, until the server closes or says nothing more for `patience` seconds."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=patience) as client:
        try:
            client.sendall(data)
            while chunk := client.recv(65536):
                received += chunk
        except OSError:
            pass  # closed while sending, reset, or silent: what came until then counts
    return received


def status_of(answer: bytes) -> int:
    """The status of the first answer; 0 where the connection was closed without one."""
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    return int(found[1]) if found else 0


# Fuzz --------------------------------------------------------------------------------------------------


def seeds(routes: list[tuple[str, str]]) -> list[bytes]:
    """Well-formed requests of every route and every way to ask, to be damaged."""
    plain = [http_request(PNG, path=path, method=method) for method, path in routes]
    tensor = infer({"datatype": "UINT8", "parameters": {"binary_data_size": 960}}, bytes(960))
    return [*plain, multipart(form(PNG, top_k="2")[0]), as_json({"image": "aaaa", "top_k": 1}), tensor]


def damage(data: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, repeated, moved, cut or put in."""
    found = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        position = dice.randrange(len(found) or 1)
        match dice.randrange(5):
            case 0:
                found[position : position + 1] = dice.randbytes(1)
            case 1:
                del found[position : position + dice.randint(1, 40)]
            case 2:
                found[position:position] = found[position : position + 30] * dice.randint(1, 50)
            case 3:
                found[position:position] = dice.choice(
                    [b"\r\n", b"\0", b"%", b"\xff", b"9" * 400, b"\r\n\r\n"]
                )
            case 4:
                other = dice.randrange(len(found) or 1)
                found[position:position] = found[other : other + 60]
    return bytes(found)


def fuzz(server: RunningServer, count: int, seed: int = 0) -> dict[str, Any]:
    """Sends damaged requests to every route over raw sockets; counts the statuses of all that come back."""
    document = server.get("/openapi.json").json
    routes = [(m.upper(), p.replace("{name}", "linear").replace("{version}", "1"))
              for p, methods in document["paths"].items() for m in methods]  # fmt: skip
    dice, whole = random.Random(seed), seeds([*routes, ("GET", "/"), ("GET", "/page/main.js")])
    requests = [damage(whole[number % len(whole)], dice) for number in range(count)]
    with ThreadPoolExecutor(8) as clients:  # a request without an end waits, and others need not
        answers = list(clients.map(lambda data: send(server.port, data, patience=0.2), requests))
    statuses = Counter(
        int(status) for answer in answers for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer) or [0]
    )
    return {"requests": count, "seeds": len(whole), "statuses": dict(sorted(statuses.items()))}


# Slowness ----------------------------------------------------------------------------------------------


async def drip(port: int, head: bytes, closed: list[float]) -> None:
    """Sends a request's beginning, then one byte a second, and notes when the server closes."""
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
    """Asks, waits a little, and asks again, over one connection."""
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
    """`count` slow headers and as many slow bodies beside good clients, whose time is measured before and with them."""
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
    return sorted(values)[int(share * (len(values) - 1))]


# Load --------------------------------------------------------------------------------------------------


class Load:
    """Clients that ask until they are stopped: every second one keeps its connection. Only connecting may fail.

    `answered`: (index of the body, answer) of every 200; `lost`: status or error of everything else.
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


def open_files_and_threads(server: RunningServer) -> tuple[int, int]:
    process = Path("/proc") / str(server.process.pid)
    return len(list((process / "fd").iterdir())), len(list((process / "task").iterdir()))
