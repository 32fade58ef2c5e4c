"""Decodes all images of a source in threads, and writes their pixels to one file."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from visionpipe.data.config import PrepareConfig
from visionpipe.data.deep import read_pixels
from visionpipe.data.form import PixelFormat
from visionpipe.data.frame import frame
from visionpipe.data.labels import Labels
from visionpipe.data.levels import OpenLevels
from visionpipe.data.listing import Listing, Record, Rejected
from visionpipe.data.measures import CHUNK, Small, measure, records
from visionpipe.errors import ImageError

DECODED_AHEAD = 64


@dataclass(frozen=True, slots=True)
class Usable:
    """An image that was decoded, without its pixels.

    `digest` is the sha256 of the picture before resizing, `size` its height and width, and `open_levels` its levels
    where nothing says which is white. The other fields are those of its `Record`.
    """

    split: str | None
    class_name: str
    file: str
    digest: bytes
    size: tuple[int, int]
    open_levels: OpenLevels | None
    group: str | None = None
    weight: float = 1.0
    metadata: tuple[str, ...] = ()
    labels: Labels | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that the image has: one, or with `task: multi` any number."""
        return (self.class_name,) if self.labels is None else self.labels.present

    def contradicts(self, copy: "Usable") -> bool:
        """Whether not both labels can be right, where both images are copies of one picture."""
        if self.labels is None or copy.labels is None:
            return self.class_name != copy.class_name
        return self.labels.contradicts(copy.labels)


@dataclass(frozen=True)
class Decoded:
    """A decoded and resized image.

    `pixels`: uint8 or uint16 (height, width, channels); `measured`: of `measures.measure`.
    """

    image: Usable
    pixels: np.ndarray
    measured: bytes | Small


def decode_into(
    spool: Path, measured: Path, listing: Listing, config: PrepareConfig, threads: int | None
) -> tuple[list[Usable], list[Rejected]]:
    """Writes the pixels of all usable images to `spool` and their measures to `measured`, in the listing's order."""
    usable: list[Usable] = []
    quarantined: list[Rejected] = []
    unwritten: list[bytes | Small] = []
    decoded = decode_all(listing.entries, config, threads)
    with spool.open("wb") as file, measured.open("wb") as record_file:
        for image in tqdm(decoded, "prepare", listing.total, unit=" images", disable=None):
            if isinstance(image, Rejected):
                quarantined.append(image)
            else:
                file.write(image.pixels.data)
                unwritten.append(image.measured)
                usable.append(image.image)
            if len(unwritten) == CHUNK:
                record_file.write(records(unwritten))
                unwritten.clear()
        record_file.write(records(unwritten))
    return usable, quarantined


def decode_all(
    entries: Iterable[Record | Rejected], config: PrepareConfig, threads: int | None
) -> Iterator[Decoded | Rejected]:
    """Decodes in threads and yields in order, at most DECODED_AHEAD images ahead."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Decoded | Rejected]] = deque()
        for entry in entries:
            ahead.append(pool.submit(decode, entry, config))
            if len(ahead) > DECODED_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def decode(entry: Record | Rejected, config: PrepareConfig) -> Decoded | Rejected:
    """Reads, decodes and resizes one image; returns the reason where that is impossible."""
    if isinstance(entry, Rejected):
        return entry
    try:
        data = entry.read()
        image, open_levels = read_pixels(data, PixelFormat(**config.decode_options))
    except ImageError as error:
        return Rejected(entry.file, error.reason, entry.class_name)
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(image.data)
    usable = Usable(
        entry.split,
        entry.class_name,
        entry.file,
        digest.digest(),
        image.shape[:2],
        open_levels,
        entry.group,
        entry.weight,
        entry.metadata,
        entry.labels,
    )
    return Decoded(usable, frame(image, **config.frame_options), measure(image, data))
