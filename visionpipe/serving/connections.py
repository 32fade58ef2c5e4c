"""What uvicorn leaves out: deadlines for slow clients, a limit for headers, and an orderly end."""

import asyncio
import ctypes
import secrets
import socket
import struct
import sys
import time
from types import FrameType
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from visionpipe.serving.service import Service
from visionpipe.serving.settings import Settings

MAX_HEADERS = 64 * 2**10  # bytes of a request's line and headers
ACCEPT = 0.1  # seconds to take what the kernel has accepted, before the socket is closed
LAST_CALL = 0.5  # seconds for the request of a client that had just connected when the server ended


class Connection(HttpToolsProtocol):
    """A client's connection, closed with 408 when a request's headers or body take too long."""

    settings = Settings()  # of the server: `connection_class` sets it

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._in_headers, self._received = True, 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect("headers", self.settings.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:  # the first byte of another request
            self._expect("headers", self.settings.header_seconds)
        self._received += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_headers and self._received > MAX_HEADERS:
            self.refuse(431, "headers_too_large", f"more than {MAX_HEADERS} bytes of headers")
        elif self._answered() and self._received > 2 * self.settings.max_body:
            self.transport.close()  # it was refused long ago, and goes on sending

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._in_headers = False
        self._expect("body", self.settings.body_seconds)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_headers, self._received = True, 0
        self._stop_deadline()

    def shutdown(self) -> None:
        """As uvicorn's, but a request that is on its way is still taken."""
        if self.cycle is None:
            self._expect("headers", LAST_CALL)
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, "invalid_request", "not a valid HTTP request")

    def refuse(self, status: int, code: str, reason: str) -> None:
        """Answers from here, where no application is there to do so, and closes."""
        content = orjson.dumps({"code": code, "reason": reason, "request_id": secrets.token_hex(8)})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            content
        )
        self.transport.write(STATUS_LINE[status] + head + content)
        self.transport.close()

    def _answered(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _expect(self, what: str, seconds: float) -> None:
        self._stop_deadline()
        self._deadline = self.loop.call_later(seconds, self._expire, what)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self, what: str) -> None:
        if self.transport.is_closing():
            return
        silent = self._in_headers and not self._received  # an idle client: nothing to answer
        if silent or (what == "body" and self.cycle.response_started):
            self.transport.close()
        else:
            self.refuse(408, "timeout", f"the request's {what} took too long")


class Server(uvicorn.Server):
    """Ends in order: first it is not ready, then it stops listening, then it waits for what is running."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service
        self._end: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._end is not None:  # asked twice
            self.should_exit = self.force_exit = True
        self.service.draining = True
        self._end = time.monotonic() + self.service.settings.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        if self._end is not None and time.monotonic() > self._end:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes the connections that the kernel has accepted already: closing the socket would reset them."""
        for listening in sockets or []:
            drop_new_connections(listening)
        await asyncio.sleep(ACCEPT)
        await super().shutdown(sockets)


def drop_new_connections(listening: socket.socket) -> None:
    """From here on the kernel ignores attempts to connect, and what it had accepted can still be taken.

    A socket filter that lets no packet pass, which Linux alone has. The clients try again a second later and
    are refused, as the socket is closed by then.
    """
    if sys.platform == "linux":
        drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET: keep 0 bytes
        program = struct.pack("HP", 1, ctypes.addressof(drop))
        listening.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


def make_server(app: Any, service: Service) -> Server:
    settings = service.settings
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=type("Connection", (Connection,), {"settings": settings}),
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="error",
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
        timeout_graceful_shutdown=settings.shutdown_seconds,  # type: ignore[arg-type]
    )
    return Server(config, service)
