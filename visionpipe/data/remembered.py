"""Remembers decoded pictures from one `prepare` to the next, so that only new and changed files are decoded.

A folder has two files with a row for each picture: its pixels in one file, and everything else in the other, as INDEX.
The key of a row covers the bytes of the image file and all that decides what they become, and each row has a checksum.
So rows of other settings are never taken, damaged rows are decoded again, and a run that was stopped leaves rows that
serve.
"""

import contextlib
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import features

from visionpipe.data.config import PrepareConfig
from visionpipe.data.form import PixelFormat
from visionpipe.data.levels import OpenLevels
from visionpipe.data.measures import CHUNK, RECORD, Small, records
from visionpipe.files import sha256_json, temporary_beside

INDEX = np.dtype(
    [
        ("key", "V32"),
        ("checksum", "V32"),  # sha256 of the row in which this field is 0
        ("pixels", "V32"),  # sha256 of the pixels
        ("digest", "V32"),
        ("size", "<i4", 2),
        ("levels", "<f8", 2),
        ("stretched", "i1"),  # -1: no levels
        ("record", RECORD),
    ]
)
FILES = ("index", "pixels")
ROOM = 3  # times the size of the files must be free: for prepared data now, and for files and data of the next run
LIBRARIES = ("numpy", "pillow", "tifffile", "imagecodecs", "pydicom")


@dataclass(frozen=True)
class Picture:
    """What becomes of an image file.

    `pixels`: uint8 or uint16 (height, width, channels), resized; `pixels_digest`: their sha256; `measured`: of
    `measures.measure`. `digest`, `size` and `open_levels` are those of a `Usable`.
    """

    pixels: np.ndarray
    pixels_digest: bytes
    measured: bytes | Small
    digest: bytes
    size: tuple[int, int]
    open_levels: OpenLevels | None


@dataclass
class Memory:
    """The pictures of earlier runs, and the files to which those of this run are written.

    Attributes:
        settings: the part of all keys that is the same for all files.
        shape, dtype: those of the pixels of a picture.
        places: key → index file, pixel file and row of a picture of an earlier run.
        folder: where this run's files are until all is written.
        unwritten: rows of pictures whose pixels are written, and measures that `records` completes together.
    """

    settings: bytes
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    places: dict[bytes, tuple[BinaryIO, BinaryIO, int]]
    folder: Path
    index: BinaryIO
    pixels: BinaryIO
    unwritten: list[tuple[np.ndarray, bytes | Small]]

    def key(self, data: bytes) -> bytes:
        """Returns the key of the picture in an image file with the content `data`."""
        return hashlib.sha256(self.settings + hashlib.sha256(data).digest()).digest()

    def recall(self, key: bytes) -> Picture | None:
        """Reads the picture of an earlier run, in any thread; returns None if there is none, or if it is damaged."""
        if key not in self.places:
            return None
        index, pixel_file, row = self.places[key]
        length = int(np.prod(self.shape)) * self.dtype.itemsize
        try:
            stored = os.pread(index.fileno(), INDEX.itemsize, row * INDEX.itemsize)
            pixels = os.pread(pixel_file.fileno(), length, row * length)
        except OSError:
            return None
        if len(stored) < INDEX.itemsize or len(pixels) < length:
            return None
        entry = np.frombuffer(stored, INDEX)[0]
        pixels_digest = hashlib.sha256(pixels).digest()
        expected = (key, checksum(entry), pixels_digest)
        if tuple(entry[name].tobytes() for name in ("key", "checksum", "pixels")) != expected:
            return None
        height, width = entry["size"].tolist()
        lowest, highest = entry["levels"].tolist()
        return Picture(
            np.frombuffer(pixels, self.dtype).reshape(self.shape),
            pixels_digest,
            entry["record"].tobytes(),
            entry["digest"].tobytes(),
            (height, width),
            OpenLevels(lowest, highest, bool(entry["stretched"])) if entry["stretched"] >= 0 else None,
        )

    def write(self, key: bytes, picture: Picture) -> None:
        """Writes the next picture of this run."""
        self.pixels.write(picture.pixels.data)
        levels, row = picture.open_levels, np.zeros(1, INDEX)
        row["key"], row["pixels"], row["digest"] = key, picture.pixels_digest, picture.digest
        row["size"] = picture.size
        row["levels"] = (levels.lowest, levels.highest) if levels else (0, 0)
        row["stretched"] = levels.stretched if levels else -1
        self.unwritten.append((row, picture.measured))
        if len(self.unwritten) == CHUNK:
            self.write_index()

    def write_index(self) -> None:
        """Completes the rows of the pictures whose pixels are written, and writes them to the index."""
        if self.unwritten:
            rows = np.concatenate([row for row, _ in self.unwritten])
            rows["record"] = np.frombuffer(records([measured for _, measured in self.unwritten]), RECORD)
            rows["checksum"] = [checksum(row) for row in rows]
            self.index.write(rows.data)
            self.unwritten.clear()

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Completes the files and maps them: pixels (n, height, width, channels), and their measures, RECORD (n,)."""
        self.write_index()
        self.index.flush()
        self.pixels.flush()
        if not self.pixels.tell():
            return np.empty((0, *self.shape), self.dtype), np.empty(0, RECORD)
        pixels = np.memmap(self.folder / "pixels", self.dtype, "r").reshape(-1, *self.shape)
        return pixels, np.memmap(self.folder / "index", INDEX, "r")["record"]


def checksum(entry: Any) -> bytes:
    """Computes the checksum of a row of the index."""
    stored = entry.tobytes()
    return hashlib.sha256(stored[:32] + bytes(32) + stored[64:]).digest()


@contextlib.contextmanager
def remembering(folder: Path, config: PrepareConfig) -> Iterator[Memory]:
    """Opens the pictures in `folder`, which those of this run replace when the block ends.

    If the block is interrupted or the process is killed, the next run takes the pictures from both. Nothing is left
    where the disk has too little room. What the block has mapped stays readable.
    """
    form = PixelFormat(**config.decode_options)
    places: dict[bytes, tuple[BinaryIO, BinaryIO, int]] = {}
    with contextlib.ExitStack() as stack:
        for former in (folder, *folder.parent.glob(f".{folder.name}.*.tmp")):
            with contextlib.suppress(OSError):
                old, of_old = (stack.enter_context((former / name).open("rb")) for name in FILES)
                places |= {key: (old, of_old, row) for row, key in enumerate(keys(old))}
        partial = temporary_beside(folder)  # removes folders of killed runs, whose open files stay readable
        remove(partial)
        partial.mkdir()
        try:
            index, pixels = (stack.enter_context((partial / name).open("xb")) for name in FILES)
            shape = (*config.size, form.channels)
            yield Memory(fingerprint(config), shape, form.dtype, places, partial, index, pixels, [])
        except OSError:  # perhaps the disk is full
            remove(partial)
            raise
        remove(folder)
        if ROOM * (index.tell() + pixels.tell()) > shutil.disk_usage(partial).free:
            remove(partial)
            return
        try:
            partial.rename(folder)
        except OSError:  # another run was faster
            remove(partial)


def keys(index: BinaryIO) -> Iterator[bytes]:
    """Yields the keys of an index, in the order of its rows."""
    while block := index.read(CHUNK * INDEX.itemsize):
        whole = len(block) // INDEX.itemsize
        yield from (key.tobytes() for key in np.frombuffer(block, INDEX, whole)["key"])


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def fingerprint(config: PrepareConfig) -> bytes:
    """Hashes what decides what a file becomes: options, all code beside this module, libraries and what these bring."""
    libraries: dict[str, str | None] = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            libraries[name] = metadata.version(name)
    for name in (*features.modules, *features.codecs, *features.features):
        libraries[f"Pillow {name}"] = features.version(name)
    code = {path.name: path.read_bytes().hex() for path in sorted(Path(__file__).parent.glob("*.py"))}
    options = config.decode_options | config.frame_options
    machine = [platform.machine(), platform.system()]
    return sha256_json([code, libraries, options, machine]).encode()
