"""Holds all limits of the server. The command line reads this module, so it imports little.

The limits on the content of an image file are in visionpipe/data/headers.py, because `prepare` has the same ones.
"""

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

from visionpipe.data.headers import CLIENT_PIXELS
from visionpipe.errors import ConfigError

# The environment variable with the bearer token. It is not an option: other users can see the options of a process.
TOKEN_VARIABLE = "VISIONPIPE_TOKEN"  # nosec B105

# Limits on requests that are not options.
MAX_HEADERS = 64 * 2**10  # bytes of a request's first line and headers, and of chunks without content
MAX_PART_HEADERS = 8 * 2**10  # bytes of the headers of each part of a form
MAX_JSON = 64 * 2**10  # bytes of JSON outside its strings
JSON_STRINGS = 8  # strings in the JSON of /predict besides the images
V2_STRINGS = 256  # strings in the JSON of the Open Inference Protocol besides the files

# Times.
LINGER_SECONDS = 2.0  # seconds for reading what a refused client is still sending
ACCEPT_SECONDS = 0.1  # seconds for taking over connections that the kernel has accepted, before a shutdown
LAST_REQUEST_SECONDS = 0.5  # seconds for the request of a client that connected just before a shutdown
RETRY_SECONDS = 60  # seconds before a refused version is loaded again
GATHER_SECONDS = 0.001  # seconds that an idle model waits for images being decoded, to run them in one batch

# Work that blocks the event loop, or all threads, is limited, so that other requests are answered meanwhile.
QUICK_BODY = 64 * 2**10  # bytes of a body that the event loop reads; a reader thread reads larger ones
QUICK_ANSWER = 20_000  # probabilities that the event loop writes; a reader thread writes more
READERS = 2  # threads that read large bodies and write large answers
SMALL_FILE = 16 * 2**10  # bytes of an image file that is decoded in a fraction of a millisecond
PARSE_STEP = 16 * 2**10  # bytes of HTTP that are parsed at a time
SEARCH_STEP = 2**20  # bytes that are searched, or decoded from base64, at a time
NUMBERS_STEP = 64 * 2**10  # bytes of numbers in JSON that are parsed at a time

VERSIONS_IN_METRICS = 2  # latest versions for which /metrics has predictions by class


def option(default: Any, text: str) -> Any:
    """Declares a field that is also an option of `visionpipe serve`, with its help text."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """The options of `visionpipe serve`, and the token. Times are in seconds, sizes in bytes."""

    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 means all addresses")
    port: int = option(8000, "port to listen on; 0 chooses a free port")
    threads: int = option(
        0, "cores for the model: threads of one run, or number of runs with one thread; 0 means all cores"
    )
    decoders: int = option(0, "maximum threads that decode images; 0 means one more than the cores")
    max_batch: int = option(32, "maximum images in one model run")
    batch_seconds: float = option(
        0.5, "approximate maximum seconds of a model run; slow models get smaller batches"
    )
    max_queue: int = option(
        128, "maximum images that wait for an answer, fewer if answers are slow; more get status 503"
    )
    max_body: int = option(20 * 2**20, "maximum bytes of a request's body; larger ones get status 413")
    max_pixels: int = option(CLIENT_PIXELS, "maximum pixels of an image; larger ones get status 413")
    max_images: int = option(64, "maximum images of a request; more get status 413")
    request_seconds: float = option(
        10.0, "maximum seconds from the end of a request to its answer; then status 504"
    )
    header_seconds: float = option(10.0, "maximum seconds for receiving a request's headers; then status 408")
    body_seconds: float = option(30.0, "maximum seconds for receiving a request's body; then status 408")
    keep_alive_seconds: float = option(20.0, "seconds until an idle connection is closed")
    drain_seconds: float = option(
        1.0, "seconds from SIGTERM, when the server stops being ready, until it stops listening"
    )
    shutdown_seconds: float = option(
        20.0, "seconds for running requests to finish after the server stopped listening"
    )
    follow_seconds: float = option(1.0, "seconds between two checks of the alias")
    cors_origin: tuple[str, ...] = option((), "web origin whose pages may call the server; may be repeated")
    token: str | None = field(default=None, repr=False)


def complete(settings: Settings, environment: Mapping[str, str]) -> Settings:
    """Checks the settings, adds the token, and normalises host and origins; raises ConfigError."""
    for one in fields(Settings):
        value, least = getattr(settings, one.name), int(one.name.startswith("max_"))
        if isinstance(value, int | float) and not least <= value < math.inf:
            raise ConfigError(
                f"--{one.name.replace('_', '-')} is {value}: give a finite number of at least {least}"
            )
    if settings.port > 65535:
        raise ConfigError(f"--port is {settings.port}: give a port up to 65535")
    return replace(
        settings,
        host=read_host(settings.host),
        cors_origin=tuple(read_origin(text) for text in settings.cors_origin),
        token=read_token(environment.get(TOKEN_VARIABLE)),
    )


def read_host(text: str) -> str:
    """Removes the brackets that an IPv6 address has in a URL. Raises ConfigError for an empty host."""
    host = text.strip().removeprefix("[").removesuffix("]")
    if not host:  # sockets would listen on all addresses
        raise ConfigError(
            "--host is empty: give 127.0.0.1 for this machine only, or 0.0.0.0 for all addresses"
        )
    return host


def read_origin(text: str) -> str:
    """Writes an origin as browsers do: scheme, host, and the port unless it is the scheme's default."""
    if text in ("*", "null"):
        return text
    refused = ConfigError(
        f"--cors-origin {text}: expected an origin such as https://example.org, without a path, or *"
    )
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
        host = f"[{ipaddress.IPv6Address(host)}]" if ":" in host else host.encode("idna").decode()
    except ValueError:
        raise refused from None
    more = parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc
    if more or not parts.scheme or not re.fullmatch(r"\[.+\]|[a-z0-9._-]+", host):
        raise refused
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, default) else "")


def read_token(text: str | None) -> str | None:
    """Checks the token, and strips a line end that came from a file; returns None if the variable is not set."""
    if text is None:
        return None
    token = text.strip()
    if not token:
        raise ConfigError(
            f"{TOKEN_VARIABLE} is empty: unset it for a server without a token, or give it a secret"
        )
    if token[0] == token[-1] and token[0] in "'\"":
        raise ConfigError(f"{TOKEN_VARIABLE} is in quotes, which clients would have to send too: remove them")
    scheme, *rest = token.split()
    if scheme.lower() == "bearer":
        what = "contains the scheme: give only the token" if rest else "is the scheme alone: give it a secret"
        raise ConfigError(f"{TOKEN_VARIABLE} {what}")
    if not token.isprintable():
        raise ConfigError(
            f"{TOKEN_VARIABLE} contains a character that headers cannot contain, such as a line end: remove it"
        )
    return token
