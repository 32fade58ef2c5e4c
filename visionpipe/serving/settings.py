"""What the server allows itself and its clients, in one place. Light, because the command line reads it."""

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

from visionpipe.data.headers import MAX_PIXELS
from visionpipe.errors import ConfigError

TOKEN_VARIABLE = "VISIONPIPE_TOKEN"  # nosec B105: the bearer token, where one is wanted; never an argument, which others see


def option(default: Any, text: str) -> Any:
    """A field that is also an option of `visionpipe serve`, with this help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """Times in seconds, sizes in bytes, queue and batches in images."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 for all")
    port: int = option(8000, "port to listen on; 0 for any free one")
    threads: int = option(
        0, "cores for the model: the threads of one run, or so many runs of one thread; 0: all"
    )
    decoders: int = option(0, "threads that decode images, at most; 0: one more than the cores")
    max_batch: int = option(32, "images in one model run, at most")
    batch_seconds: float = option(
        0.5, "time of one model run, about at most: heavy models get smaller batches"
    )
    max_queue: int = option(
        128, "images accepted and not answered yet, fewer where they take too long; beyond: 503"
    )
    max_body: int = option(20 * 2**20, "bytes of a request's body; beyond: 413")
    max_pixels: int = option(MAX_PIXELS, "pixels of an image; beyond: 413")
    max_images: int = option(64, "images of one request; beyond: 413")
    request_seconds: float = option(10.0, "from the last byte of a request to its answer; beyond: 504")
    header_seconds: float = option(
        10.0, "from the first byte of a request to the end of its headers; beyond: 408"
    )
    body_seconds: float = option(30.0, "for a request's body; beyond: 408")
    keep_alive_seconds: float = option(20.0, "that an idle connection stays open")
    drain_seconds: float = option(1.0, "between not ready and not listening, after SIGTERM")
    shutdown_seconds: float = option(20.0, "for the requests that are still running after that")
    follow_seconds: float = option(1.0, "between two looks at the alias")
    cors_origin: tuple[str, ...] = option((), "a web origin whose pages may call the server; may be repeated")
    token: str | None = field(default=None, repr=False)


def complete(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """Adds the token, and writes addresses as sockets and browsers do; raises ConfigError where that cannot be."""
    for one in fields(Settings):
        value, least = getattr(settings, one.name), int(one.name.startswith("max_"))
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise ConfigError(f"--{one.name.replace('_', '-')} is {value}: at least {least} is needed")
    if settings.port > 65535:
        raise ConfigError(f"--port is {settings.port}: ports end at 65535")
    return replace(
        settings,
        host=read_host(settings.host),
        cors_origin=tuple(read_origin(text) for text in settings.cors_origin),
        token=read_token(environment.get(TOKEN_VARIABLE)),
    )


def read_host(text: str) -> str:
    """Without the brackets that an IPv6 address has in a URL. Sockets take an empty host for all of them."""
    host = text.strip().removeprefix("[").removesuffix("]")
    if not host:
        raise ConfigError(
            "--host is empty: give 127.0.0.1 for this machine alone, 0.0.0.0 for all that reach it"
        )
    return host


def read_origin(text: str) -> str:
    """As browsers write it: scheme, host, and a port that is not the scheme's own."""
    if text in ("*", "null"):
        return text
    refused = ConfigError(
        f"--cors-origin {text}: expected an origin like https://example.org, without a path, or *"
    )
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
        host = f"[{ipaddress.IPv6Address(host)}]" if ":" in host else host.encode("idna").decode()
    except ValueError:
        raise refused from None
    beside = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if beside or not parts.scheme or not re.fullmatch(r"\[.+\]|[a-z0-9._-]+", host):
        raise refused
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, usual) else "")


def read_token(text: str | None) -> str | None:
    """None where the variable is not set. A line's end that a file has after the secret is not part of it."""
    if text is None:
        return None
    token = text.strip()
    if not token:
        raise ConfigError(
            f"{TOKEN_VARIABLE} is empty: unset it for a server without a token, or give it a secret"
        )
    if token[0] == token[-1] and token[0] in "'\"":
        raise ConfigError(
            f"{TOKEN_VARIABLE} holds quotes, which clients would have to send too: leave them out"
        )
    scheme, *rest = token.split()
    if scheme.lower() == "bearer":
        what = (
            "the scheme too: give the token alone"
            if rest
            else "the scheme's word and no token: give it a secret"
        )
        raise ConfigError(f"{TOKEN_VARIABLE} holds {what}")
    if not token.isprintable():
        raise ConfigError(f"{TOKEN_VARIABLE} holds a character that no header carries, such as a line's end")
    return token
