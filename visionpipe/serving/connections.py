"""Adds to uvicorn what it lacks: one request at a time, deadlines for slow clients, limits, and an orderly shutdown."""

import asyncio
import ctypes
import re
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import httptools
import orjson
import uvicorn
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from visionpipe.serving.chunks import Chunks
from visionpipe.serving.service import Service
from visionpipe.serving.settings import (
    ACCEPT_SECONDS,
    LAST_REQUEST_SECONDS,
    LINGER_SECONDS,
    MAX_HEADERS,
    PARSE_STEP,
    Settings,
)

END = b"\r\n\r\n"
ABSOLUTE = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]+")  # a URL without a path, which means /


class Connection(HttpToolsProtocol):
    """A client's connection, which answers one request at a time.

    The parser gets the bytes of the next request only after the answer to the present one. So memory stays bounded, and
    answers are sent in the order of their requests. A request whose headers or body take too long gets status 408.
    """

    settings = Settings()  # `make_server` replaces it by the server's settings
    flow: "Flow"
    transport: "Lingering"  # type: ignore[assignment]

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._waiting = bytearray()  # received but not parsed yet
        self._tail = b""  # end of the parsed bytes, which may be the beginning of END
        self._in_headers = True
        self._received = 0  # bytes of the present request's headers, then of its body
        self._length: int | None = None  # bytes that the body still lacks; None for a chunked body
        self._chunks = Chunks()
        self._empty = 0  # bytes of a chunked body since its last content
        self._upgrade = self._refused = False
        self._ended = False  # the client has closed its half of the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport, self.flow = Lingering(transport, self._is_sending, self._linger), Flow(transport)
        self._expect("headers", self.settings.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        self._waiting.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self.transport.is_closing():
            return self._discard(data)
        if self._waiting:  # earlier bytes must be parsed first
            self._waiting += data
            return
        for _ in range(2):  # headers and a body, which is almost always everything
            if data and not self._answering() and not self.transport.is_closing():
                data = data[self._take(data) :]
        if data and not self.transport.is_closing():
            self._waiting += data
            self.flow.full = True
            self.flow.pause_reading()
            self._feed()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Handles the end of the client's half. A client may close it after its request, and is still answered."""
        self._ended = True
        if self.transport.is_closing():
            self.transport.finish()
        elif not self._waiting:
            if self._answering():
                self.cycle.keep_alive = False
            else:
                self._finish()
        return True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.expect_100_continue and not self._in_headers and not self._received:
            self.transport.close()  # refused before its body; whether the client still sends it is unknown
        if self._waiting or self._ended:
            self._feed()

    def _feed(self) -> None:
        """Parses waiting bytes up to the end of a request; after PARSE_STEP bytes other connections have their turn."""
        left = PARSE_STEP
        while self._waiting and left > 0 and not self._answering() and not self.transport.is_closing():
            end = self._take(self._waiting)
            del self._waiting[:end]
            left -= end
        if self.transport.is_closing():
            return
        if self._waiting and not self._answering():
            self.loop.call_soon(self._feed)
        elif not self._waiting:
            self.flow.full = False
            if self.cycle is None or len(self.cycle.body) <= HIGH_WATER_LIMIT:
                self.flow.resume_reading()
            if self._ended and not self._answering():
                self._finish()

    def _take(self, data: bytes | bytearray) -> int:
        """Parses the beginning of `data`, at most to the end of the request's headers or body; returns its length."""
        if self._deadline is None:  # the first byte of another request
            self._expect("headers", self.settings.header_seconds)
        if self._in_headers:
            seen = self._tail + data[:PARSE_STEP]
            position = seen.find(END)
            end = (len(seen) if position < 0 else position + len(END)) - len(self._tail)
            self._tail = bytes(seen[1 - len(END) :]) if position < 0 else b""
        elif self._length is None:
            end = self._chunks.end(data[:PARSE_STEP])
        else:
            end = min(self._length, len(data))
            self._length -= end
        if self._has_room(end):
            self._parse(data if end == len(data) else data[:end])
        return end

    def _has_room(self, size: int) -> bool:
        """Whether the request may have `size` more bytes; refuses the request if not."""
        self._received += size
        if self._in_headers:
            if self._received > MAX_HEADERS:
                self.refuse(431, "headers_too_large", f"more than {MAX_HEADERS} bytes of headers")
                return False
        elif self.cycle.response_complete:
            if self._received > 2 * self.settings.max_body:
                self.transport.finish()  # the client ignores that its request was refused
                return False
        elif self._length is None:
            self._empty += size
            if self._empty > MAX_HEADERS:
                self.refuse(
                    400, "invalid_request", f"more than {MAX_HEADERS} bytes of chunks without content"
                )
                return False
        return True

    def _discard(self, data: bytes) -> None:
        """Drops what a client sends after the last answer; closes the connection after too many bytes."""
        self._received += len(data)
        if self._received > 2 * self.settings.max_body:
            self.transport.finish()

    def _parse(self, piece: bytes | bytearray) -> None:
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._parse_without_upgrade()
        except httptools.HttpParserError:
            self.refuse(400, "invalid_request", "not a valid HTTP request")

    def _parse_without_upgrade(self) -> None:
        """Parses headers again without Upgrade, which a server may ignore (RFC 9110, 7.8).

        After a request for another protocol the parser would not read the body.
        """
        self._upgrade, method, version = False, self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            return self.refuse(405, "method_not_allowed", "this server is not a proxy")
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self._parse(b"\r\n".join(lines) + END)

    def on_headers_complete(self) -> None:
        self._upgrade = self.parser.should_upgrade()
        if self._upgrade:
            return
        if not self.url.startswith(b"/") and ABSOLUTE.fullmatch(self.url):
            self.url += b"/"
        super().on_headers_complete()
        self._in_headers, self._received, self._empty, self._length = False, 0, 0, None
        for name, value in self.headers:
            if name == b"content-length":
                self._length = int(value)
        if self._length is None:
            self._chunks = Chunks()
        self.headers = []  # collects the trailer fields of a chunked body, which are ignored
        self._expect("body", self.settings.body_seconds)

    def on_body(self, body: bytes) -> None:
        self._empty = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._upgrade:
            return
        super().on_message_complete()
        self._in_headers, self._received = True, 0
        self._stop_deadline()

    def shutdown(self) -> None:
        """Closes the connection like uvicorn, but waits for the first request of a new connection."""
        if self.transport.is_closing():
            self.transport.finish()
        elif self.cycle is None:
            self._expect("headers", LAST_REQUEST_SECONDS)
        else:
            super().shutdown()

    def refuse(self, status: int, code: str, reason: str) -> None:
        """Answers a request that never reaches the application, and closes the connection."""
        self._refused = True
        self._expect("end", LINGER_SECONDS)
        if not self._in_headers:
            if self.cycle.response_started:  # a request has one answer
                return self.transport.close()
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        content = orjson.dumps({"code": code, "reason": reason, "request_id": secrets.token_hex(8)})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(
            content
        )
        self.transport.write(STATUS_LINE[status] + head + content)
        self.transport.close()

    def _answering(self) -> bool:
        """Whether a request is complete and its answer is not."""
        return self._in_headers and self.cycle is not None and not self.cycle.response_complete

    def _is_sending(self) -> bool:
        """Whether the client may still be sending a request."""
        return not self._ended and (self._refused or not self._in_headers)

    def _linger(self) -> None:
        """Reads what the client still sends, without parsing it."""
        self._waiting.clear()
        self.flow.full = False
        self.flow.resume_reading()

    def _finish(self) -> None:
        """Closes the connection after the client's last byte; refuses a request that is incomplete."""
        if self._in_headers and not self._received:
            self.transport.close()
        else:
            self.refuse(400, "invalid_request", "the request is incomplete")

    def _expect(self, what: str, seconds: float) -> None:
        """Sets the deadline for a part of the request."""
        self._stop_deadline()
        self._deadline = self.loop.call_later(seconds, self._expire, what)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self, what: str) -> None:
        idle = self._in_headers and not self._received  # there is no request to answer
        if idle or self.transport.is_closing():
            self.transport.finish()
        else:
            self.refuse(408, "timeout", f"the request's {what} took too long")


class Flow(FlowControl):
    """Flow control that does not resume reading while received bytes wait to be parsed."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class Lingering:
    """A transport that closes only the server's half while the client is still sending.

    If both halves were closed, the kernel would reset the connection, and the client might lose its answer.
    """

    def __init__(
        self, transport: asyncio.Transport, is_sending: Callable[[], bool], linger: Callable[[], None]
    ):
        self._transport, self._is_sending, self._linger = transport, is_sending, linger
        self._lingers = False
        self.write = transport.write  # every answer calls `write`, so it bypasses `__getattr__`

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
        """Closes the connection, or only the server's half while the client is sending."""
        if self.is_closing():
            return
        if not self._is_sending():
            return self.finish()
        self._lingers = True
        self._transport.write_eof()
        self._linger()

    def finish(self) -> None:
        """Closes both halves."""
        self._transport.close()


class Server(uvicorn.Server):
    """Shuts down in order: it stops being ready, then stops listening, then waits for the running requests."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self.service = service
        self._end: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._end is not None:  # the second signal
            self.should_exit = self.force_exit = True
        self.service.draining = True
        self._end = time.monotonic() + self.service.settings.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        if self._end is not None and time.monotonic() > self._end:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes over the connections that the kernel has already accepted: closing the socket would reset them."""
        for listening in sockets or []:
            drop_new_connections(listening)
        await asyncio.sleep(ACCEPT_SECONDS)
        await super().shutdown(sockets)


def drop_new_connections(listening: socket.socket) -> None:
    """Makes the kernel ignore new connections, while those that it has accepted can still be taken over.

    This uses a socket filter that drops all packets, which only Linux has. Clients try again a second later and are
    refused, because the socket is closed by then.
    """
    if sys.platform == "linux":
        drop = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET: pass 0 bytes
        program = struct.pack("HP", 1, ctypes.addressof(drop))
        listening.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


def make_server(app: Any, service: Service) -> Server:
    """Makes the uvicorn server of an application."""
    settings = service.settings
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=type("Connection", (Connection,), {"settings": settings}),
        loop="auto",
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
