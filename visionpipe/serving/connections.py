"""What uvicorn leaves out: one request at a time, deadlines for slow clients, limits, and an orderly end."""

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
from visionpipe.serving.settings import Settings

MAX_HEADERS = 64 * 2**10  # bytes of a request's line and headers
TURN = 16 * 2**10  # bytes that are parsed before other connections have their turn
END = b"\r\n\r\n"
ABSOLUTE = re.compile(rb"[a-zA-Z][a-zA-Z0-9+.-]*://[^/?#]+")  # an address without a path, which is that of /
LINGER = 2.0  # seconds for what a client goes on sending when it was refused
ACCEPT = 0.1  # seconds to take what the kernel has accepted, before the socket is closed
LAST_CALL = 0.5  # seconds for the request of a client that had just connected when the server ended


class Connection(HttpToolsProtocol):
    """A client's connection: one request at a time, each with one answer.

    The parser gets the bytes of a request, and those of the next one after the answer: so nothing piles up, and no
    answer overtakes another. A request whose headers or body take too long is answered with 408.
    """

    settings = Settings()  # of the server: `make_server` sets it
    flow: "Flow"
    transport: "Lingering"  # type: ignore[assignment]

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._waiting = bytearray()  # received, and not parsed yet
        self._tail = b""  # of what was parsed, which may be the beginning of END
        self._in_headers = True
        self._received = 0  # bytes of the present request's headers, then of its body
        self._length: int | None = None  # bytes that the body still lacks; None: it comes in chunks
        self._chunks = Chunks()
        self._empty = 0  # bytes of a body in chunks since its last content
        self._upgrade = self._refused = False
        self._ended = False  # the client sends nothing more

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
        if self._waiting:  # it is parsed later, and so is this
            self._waiting += data
            return
        for _ in range(2):  # a head and a body: almost always that is all
            if data and not self._answering() and not self.transport.is_closing():
                data = data[self._take(data) :]
        if data and not self.transport.is_closing():
            self._waiting += data
            self.flow.full = True
            self.flow.pause_reading()
            self._feed()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has asked may close its half of the connection, and is answered."""
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
            self.transport.close()  # refused before its body, which may come or not
        if self._waiting or self._ended:
            self._feed()

    def _feed(self) -> None:
        """Parses what waits up to the end of a request, and no more than TURN bytes before others have their turn."""
        left = TURN
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
        """Parses the beginning of `data`, no further than this request, whose head ends with an empty line; returns
        how many bytes that were.
        """
        if self._deadline is None:  # the first byte of another request
            self._expect("headers", self.settings.header_seconds)
        if self._in_headers:
            seen = self._tail + data[:TURN]
            found = seen.find(END)
            end = (len(seen) if found < 0 else found + len(END)) - len(self._tail)
            self._tail = bytes(seen[1 - len(END) :]) if found < 0 else b""
        elif self._length is None:
            end = self._chunks.end(data[:TURN])
        else:
            end = min(self._length, len(data))
            self._length -= end
        if self._has_room(end):
            self._parse(data if end == len(data) else data[:end])
        return end

    def _has_room(self, size: int) -> bool:
        """Whether the request may have so many bytes more; refuses it where not."""
        self._received += size
        if self._in_headers:
            if self._received > MAX_HEADERS:
                self.refuse(431, "headers_too_large", f"more than {MAX_HEADERS} bytes of headers")
                return False
        elif self.cycle.response_complete:
            if self._received > 2 * self.settings.max_body:
                self.transport.finish()  # it was refused long ago, and goes on sending
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
        """What a client goes on sending after the last answer."""
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
        """Parses a head again without its wish for another protocol, which a server may ignore (RFC 9110, 7.8)
        and after which the parser would not read the body.
        """
        self._upgrade, method, version = False, self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            return self.refuse(405, "method_not_allowed", "this is no proxy")
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
        self.headers = []  # for what follows a body in chunks, which is ignored
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
        """As uvicorn's, but a request that is on its way is still taken."""
        if self.transport.is_closing():
            self.transport.finish()
        elif self.cycle is None:
            self._expect("headers", LAST_CALL)
        else:
            super().shutdown()

    def refuse(self, status: int, code: str, reason: str) -> None:
        """Answers from here, where no application is there to do so, and closes."""
        self._refused = True
        self._expect("end", LINGER)
        if not self._in_headers:
            if self.cycle.response_started:  # one answer is enough
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
        """Whether a request is complete, and its answer is not."""
        return self._in_headers and self.cycle is not None and not self.cycle.response_complete

    def _is_sending(self) -> bool:
        return not self._ended and (self._refused or not self._in_headers)

    def _linger(self) -> None:
        """Reads what the client goes on sending, and parses no more."""
        self._waiting.clear()
        self.flow.full = False
        self.flow.resume_reading()

    def _finish(self) -> None:
        """The client has sent its last byte and waits for nothing, unless that byte was amid a request."""
        if self._in_headers and not self._received:
            self.transport.close()
        else:
            self.refuse(400, "invalid_request", "the request ended early")

    def _expect(self, what: str, seconds: float) -> None:
        self._stop_deadline()
        self._deadline = self.loop.call_later(seconds, self._expire, what)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self, what: str) -> None:
        silent = self._in_headers and not self._received  # an idle client: nothing to answer
        if silent or self.transport.is_closing():
            self.transport.finish()
        else:
            self.refuse(408, "timeout", f"the request's {what} took too long")


class Flow(FlowControl):
    """Reads on only where nothing waits to be parsed."""

    full = False

    def resume_reading(self) -> None:
        if not self.full:
            super().resume_reading()


class Lingering:
    """A transport that closes its own half only while the client is sending: the kernel would answer what still comes
    with a reset, and the client might never read its answer.
    """

    def __init__(
        self, transport: asyncio.Transport, is_sending: Callable[[], bool], linger: Callable[[], None]
    ):
        self._transport, self._is_sending, self._linger = transport, is_sending, linger
        self._lingers = False
        self.write = transport.write  # what every answer calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
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
