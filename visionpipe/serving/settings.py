"""What the server allows itself and its clients, in one place. Light, because the command line reads it."""

from dataclasses import dataclass, field
from typing import Any

from visionpipe.data.headers import MAX_PIXELS

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
