"""Sends load to a server from one process over raw sockets, and reports the CPU time of that process too.

    python -m benchmarks.serving.load PORT REQUEST_FILE closed CONCURRENCY SECONDS
    python -m benchmarks.serving.load PORT REQUEST_FILE open   RATE        SECONDS

REQUEST_FILE holds the bytes of one whole HTTP request. `closed`: so many connections, each of which sends its next
request when it has its answer. `open`: so many requests a second, however fast the server answers. Prints JSON:
`cpu` (seconds of this process), `wall`, and `answers`, a [status, seconds since the request was due, seconds since
the start] for each.
"""

import asyncio
import json
import re
import resource
import sys
import time
from pathlib import Path

import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
STATUS_OF_A_FAILURE = 0


class Client(asyncio.Protocol):
    """One connection; `ask` sends the request and waits for the status of the answer."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.answer: asyncio.Future[int] | None = None

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        end = self.received.find(b"\r\n\r\n")
        if end < 0 or self.answer is None or self.answer.done():
            return
        head = bytes(self.received[: end + 2])
        length = LENGTH.search(head)
        complete = (
            len(self.received) >= end + 4 + int(length[1]) if length else self.received.endswith(b"0\r\n\r\n")
        )
        if complete:
            self.received.clear()
            self.answer.set_result(int(head[9:12]))

    def connection_lost(self, error) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(STATUS_OF_A_FAILURE)

    async def ask(self, request: bytes) -> int:
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.answer


async def connect(port: int) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", port)
    return client


async def closed(port: int, request: bytes, concurrency: int, seconds: float) -> list:
    answers: list = []
    start = time.perf_counter()

    async def one() -> None:
        client = await connect(port)
        while (sent := time.perf_counter()) < start + seconds:
            if client.transport.is_closing():
                client = await connect(port)
            status = await client.ask(request)
            now = time.perf_counter()
            answers.append([status, now - sent, now - start])
        client.transport.close()

    await asyncio.gather(*(one() for _ in range(concurrency)))
    return answers


async def open_loop(port: int, request: bytes, rate: float, seconds: float) -> list:
    answers: list = []
    idle: list[Client] = []
    running = set()
    start = time.perf_counter()

    async def one(due: float) -> None:
        client = None
        while idle and (client is None or client.transport.is_closing()):
            client = idle.pop()
        try:
            if client is None or client.transport.is_closing():
                client = await connect(port)
            status = await client.ask(request)
            idle.append(client)
        except OSError:
            status = STATUS_OF_A_FAILURE
        now = time.perf_counter()
        answers.append([status, now - due, now - start])

    for number in range(int(rate * seconds)):
        due = start + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one(due))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    for client in idle:
        client.transport.close()
    return answers


def main() -> None:
    port, file, mode, amount, seconds = sys.argv[1:]
    request = Path(file).read_bytes()
    start = time.perf_counter()
    work = (
        closed(int(port), request, int(amount), float(seconds))
        if mode == "closed"
        else open_loop(int(port), request, float(amount), float(seconds))
    )
    answers = uvloop.run(work)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "cpu": usage.ru_utime + usage.ru_stime,
                "wall": time.perf_counter() - start,
                "answers": [[status, round(s, 6), round(at, 6)] for status, s, at in answers],
            }
        )
    )


if __name__ == "__main__":
    main()
