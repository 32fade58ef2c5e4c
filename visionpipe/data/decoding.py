"""Decodes all images of a source in threads, and writes their pixels to one file, unless an earlier run has done so."""

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
from visionpipe.data.measures import measure
from visionpipe.data.remembered import Memory, Picture, remembering
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
    """A decoded and resized image, and the key by which a `Memory` knows its picture."""

    image: Usable
    picture: Picture
    key: bytes


def decode_into(
    folder: Path, listing: Listing, config: PrepareConfig, threads: int | None
) -> tuple[list[Usable], list[Rejected], np.ndarray, np.ndarray]:
    """Decodes all images of which `folder` does not remember the pictures, and remembers those of all usable images.

    Returns:
        The usable images and the others; and memory maps of the pixels and of the measures (RECORD) of all usable
        images, in the listing's order.
    """
    usable: list[Usable] = []
    quarantined: list[Rejected] = []
    with remembering(folder, config) as memory:
        decoded = decode_all(listing.entries, config, threads, memory)
        for image in tqdm(decoded, "prepare", listing.total, unit=" images", disable=None):
            if isinstance(image, Rejected):
                quarantined.append(image)
            else:
                memory.write(image.key, image.picture)
                usable.append(image.image)
        return usable, quarantined, *memory.rows()


def decode_all(
    entries: Iterable[Record | Rejected],
    config: PrepareConfig,
    threads: int | None,
    memory: Memory | None = None,
) -> Iterator[Decoded | Rejected]:
    """Decodes in threads and yields in order, at most DECODED_AHEAD images ahead."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Decoded | Rejected]] = deque()
        for entry in entries:
            ahead.append(pool.submit(decode, entry, config, memory))
            if len(ahead) > DECODED_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def decode(
    entry: Record | Rejected, config: PrepareConfig, memory: Memory | None = None
) -> Decoded | Rejected:
    """Reads one image, and recalls, or decodes and resizes it; returns the reason where that is impossible."""
    if isinstance(entry, Rejected):
        return entry
    try:
        data = entry.read()
        key = memory.key(data) if memory else b""
        picture = (memory.recall(key) if memory else None) or decode_picture(data, config)
    except ImageError as error:
        return Rejected(entry.file, error.reason, entry.class_name)
    usable = Usable(
        entry.split,
        entry.class_name,
        entry.file,
        picture.digest,
        picture.size,
        picture.open_levels,
        entry.group,
        entry.weight,
        entry.metadata,
        entry.labels,
    )
    return Decoded(usable, picture, key)


def decode_picture(data: bytes, config: PrepareConfig) -> Picture:
    """Decodes, measures and resizes the picture in an image file; raises ImageError."""
    image, open_levels = read_pixels(data, PixelFormat(**config.decode_options))
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(image.data)
    pixels = np.ascontiguousarray(frame(image, **config.frame_options))
    pixels_digest = hashlib.sha256(pixels.data).digest()
    return Picture(pixels, pixels_digest, measure(image, data), digest.digest(), image.shape[:2], open_levels)
