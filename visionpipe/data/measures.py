"""Measures the pictures of a source while `prepare` has their original pixels: what copies, quality and shortcuts show.

`measure` makes one fixed-size record of each image, which remembered.py writes to a file. `derive` computes everything
else from the thumbnails of many records at once. measures-SPLIT.npz holds the result, see data/prepared.py.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from visionpipe.data.form import as_rgb
from visionpipe.data.formats import SIGNATURES
from visionpipe.data.levels import to_bytes

THUMBNAIL = 32  # height and width
SHARPNESS_SIDE = 256  # a larger picture is shrunk until its longer side has this length
HASH_SIDE = (
    16  # frequencies per axis; 16 × 16 without the mean are the 255 bits of a hash, and one bit that is 0
)
COLOUR_SIDE = 8
EDGE = 4  # thickness of the border, and side of the corners, in pixels of a thumbnail
FORMATS = tuple(SIGNATURES)
JPEG_TABLE_MEAN = 57.625  # of the luminance table in annex K of the JPEG standard
SMALL = 64  # pixels of the longer side
CHUNK = 256  # records that are worked on together
ALIGNABLE = 64  # pixels; the thumbnails of smaller pictures show too little to be aligned
GREY = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue (ITU-R BT.601)

RECORD = np.dtype(
    [
        ("height", "<i4"),
        ("width", "<i4"),
        ("bytes", "<i8"),
        ("format", "u1"),
        ("quantisation", "<f4"),
        ("sharpness", "<f4"),
        ("thumbnail", "u1", (THUMBNAIL, THUMBNAIL, 3)),
    ]
)


@dataclass(frozen=True, slots=True)
class Small:
    """A picture of at most SMALL pixels a side, uint8 (height, width, 3), that is measured together with others.

    Each call of Pillow or NumPy lets another thread run, which costs several times what such a call computes.
    """

    picture: np.ndarray
    of_file: tuple[int, int, float]


def measure(image: np.ndarray, data: bytes) -> bytes | Small:
    """Measures one picture; returns a RECORD as bytes, or a picture that `records` measures.

    Args:
        image: uint8 or uint16 (height, width, channels), before framing; `as_picture` says what is measured.
        data: the file that it was decoded from.
    """
    image = as_picture(image)
    of_file = len(data), FORMATS.index(image_format(data) or FORMATS[0]), quantisation(data)
    if max(image.shape) <= SMALL:
        return Small(image, of_file)
    # Pixels are left out, not averaged: that is an aliased picture, but costs a twentieth of decoding it.
    step = -(-max(image.shape) // SHARPNESS_SIDE)
    height, width = image.shape[:2]
    picture = Image.fromarray(image[::step])
    if step > 1:
        picture = picture.resize((-(-width // step), picture.height), Image.Resampling.NEAREST)
    grey = np.asarray(picture.convert("L"))
    averaged = picture.reduce(max(1, min(picture.size) // THUMBNAIL))
    thumbnail = averaged.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    values = (height, width, *of_file, sharpness(grey[None])[0], np.asarray(thumbnail))
    return np.array(values, RECORD).tobytes()


def records(measured: list[bytes | Small]) -> bytes:
    """Returns the RECORDs of what `measure` has returned for several pictures; small ones of one size are one batch."""
    result = np.zeros(len(measured), RECORD)
    rows_of: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row, one in enumerate(measured):
        if isinstance(one, Small):
            rows_of[one.picture.shape].append(row)
        else:
            result[row] = np.frombuffer(one, RECORD)[0]
    for (height, width, _), rows in rows_of.items():
        small = [one for one in map(measured.__getitem__, rows) if isinstance(one, Small)]
        pixels = np.stack([one.picture for one in small]).astype(np.float32)
        part = np.zeros(len(rows), RECORD)
        part["height"], part["width"] = height, width
        part["bytes"], part["format"], part["quantisation"] = zip(
            *(one.of_file for one in small), strict=True
        )
        part["sharpness"] = sharpness(np.rint(pixels @ GREY).astype(np.uint8))
        part["thumbnail"] = np.rint(resampled(pixels, THUMBNAIL)).astype(np.uint8)
        result[rows] = part
    return result.tobytes()


def resampled(pictures: np.ndarray, side: int) -> np.ndarray:
    """Resizes float32 (n, height, width, 3) to `side` × `side` pixels, linearly; averages where it shrinks."""
    count, height, width = pictures.shape[:3]
    rows, columns = (resampling(length, side) for length in (height, width))
    lower = (rows @ pictures.reshape(count, height, width * 3)).reshape(count, side, width, 3).swapaxes(1, 2)
    return (columns @ lower.reshape(count, width, side * 3)).reshape(count, side, side, 3).swapaxes(1, 2)


@cache
def resampling(source: int, target: int) -> np.ndarray:
    """Returns the weights of a linear resampling of one axis, which averages where it shrinks: (target, source)."""
    scale = source / target
    centre = (np.arange(target)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(source)[None] - centre) / max(scale, 1))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def as_picture(image: np.ndarray) -> np.ndarray:
    """Converts pixels of any number of channels and 8 or 16 bits to 8-bit RGB, in which copies look alike.

    Other images than 8-bit RGB are stretched to their extremes, because many use a few of their 16 bits only. More
    than three channels are averaged to three, and two to one.
    """
    channels = image.shape[2]
    if channels == 3 and image.dtype == np.uint8:
        return image
    if channels not in (1, 3):
        parts = np.array_split(image, 3 if channels > 3 else 1, axis=2)
        image = np.stack([part.mean(axis=2) for part in parts], axis=2)
    return as_rgb(to_bytes(image, float(image.min()), float(image.max())))


def image_format(data: bytes) -> str | None:
    """Names the format of a file by its first bytes; None for one that is not accepted."""
    return next((name for name, start in SIGNATURES.items() if re.match(start, data)), None)


def sharpness(grey: np.ndarray) -> np.ndarray:
    """Computes the variance of the Laplacian of uint8 (n, height, width), (n,); 0 for less than 3 pixels a side."""
    if min(grey.shape[1:]) < 3:
        return np.zeros(len(grey))
    levels = grey.astype(np.int16)
    laplacian = levels[:, 1:-1, :-2] + levels[:, 1:-1, 2:] + levels[:, :-2, 1:-1] + levels[:, 2:, 1:-1]
    laplacian -= 4 * levels[:, 1:-1, 1:-1]
    values = laplacian.astype(np.float32).reshape(len(grey), -1)
    return np.einsum("ij,ij->i", values, values) / values.shape[1] - values.mean(axis=1) ** 2


def quantisation(data: bytes) -> float:
    """Returns the mean of a JPEG file's first quantisation table, which follows from its quality; 0 for other files."""
    if not data.startswith(b"\xff\xd8"):
        return 0.0
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF:
        marker, length = data[place + 1], int.from_bytes(data[place + 2 : place + 4])
        if marker == 0xDB:  # DQT: a byte with precision and number, and 64 values
            deep = data[place + 4] >> 4 if length > 2 else 0
            table = np.frombuffer(
                data[place + 5 : place + 5 + (128 if deep else 64)], ">u2" if deep else "u1"
            )
            return float(table.mean()) if table.size == 64 else 0.0
        if marker == 0xDA:  # SOS: the pixels begin
            break
        place += 2 + length
    return 0.0


def jpeg_quality(quantisation: np.ndarray) -> np.ndarray:
    """Estimates the quality, 1 to 100, at which libjpeg writes a first table of this mean, (n,); 0 for other files.

    libjpeg scales the table of the JPEG standard, annex K, whose mean is 57.6, by 50 / quality below 50, and by
    2 - quality / 50 above. Below 20 the table's largest values are cut off, and the estimate is too high.
    """
    scale = np.maximum(quantisation, 1e-9) / JPEG_TABLE_MEAN
    quality = np.where(scale > 1, 50 / scale, 100 - 50 * scale)
    return np.where(quantisation > 0, np.clip(np.rint(quality), 1, 100), 0).astype(np.int64)


def cosines() -> np.ndarray:
    """Returns the first HASH_SIDE rows of the discrete cosine transform of THUMBNAIL values, float32."""
    frequency, place = np.arange(HASH_SIDE)[:, None], np.arange(THUMBNAIL)[None]
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * THUMBNAIL)).astype(np.float32)


def hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Computes perceptual hashes, uint8 (n, 32), of grey thumbnails, float32 (n, THUMBNAIL, THUMBNAIL).

    A bit is the sign of one frequency of the cosine transform. The usual hash (Zauner 2010, pHash) compares with the
    median instead; with the sign, the hash of the mirrored or turned picture follows from the bits alone.
    """
    basis = cosines()
    bits = np.matmul(np.matmul(basis, thumbnails), basis.T) > 0
    bits[:, 0, 0] = False
    return np.packbits(bits.reshape(len(bits), HASH_SIDE**2), axis=1)


def derive(records: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the stored measures of RECORD (n,); data/prepared.py lists them."""
    thumbnails = records["thumbnail"].astype(np.float32)
    grey = thumbnails @ GREY
    step = THUMBNAIL // COLOUR_SIDE
    rows = thumbnails.reshape(-1, COLOUR_SIDE, step, THUMBNAIL * 3).sum(axis=2)
    blocks = rows.reshape(-1, COLOUR_SIDE, COLOUR_SIDE, step, 3).sum(axis=3) / step**2
    edges = (edge_weights() @ thumbnails.reshape(-1, THUMBNAIL**2, 3)).reshape(-1, 5, 3)
    numbers = {
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        "border": edges[:, 0],
        "corners": edges[:, 1:],
        "sharpness": records["sharpness"],
        "quantisation": records["quantisation"],
    }
    return {
        "hash": hashes(grey),
        "colour": np.rint(blocks).astype(np.uint8),
        **{name: np.round(values, 3).astype(np.float32) for name, values in numbers.items()},
        **{name: records[name] for name in ("height", "width", "bytes", "format")},
    }


def edge_weights() -> np.ndarray:
    """Returns the shares of a thumbnail's pixels in the means of the border and of the corners: float32 (5, pixels)."""
    weights = np.zeros((5, THUMBNAIL, THUMBNAIL), np.float32)
    weights[0] = 1
    weights[0, EDGE:-EDGE, EDGE:-EDGE] = 0
    ends = (slice(None, EDGE), slice(-EDGE, None))
    for index, (y, x) in enumerate((y, x) for y in ends for x in ends):
        weights[1 + index, y, x] = 1
    return (weights / weights.sum(axis=(1, 2), keepdims=True)).reshape(5, -1)


def read_measured(records: np.ndarray, thumbnails: Path) -> dict[str, np.ndarray]:
    """Derives the measures of RECORD (n,), which may be a memory map.

    Writes the grey thumbnails to the file `thumbnails`, and adds them to the measures as a memory map `thumbnail`,
    unless all pictures are too small to be aligned.
    """
    parts = [derive(records[start : start + CHUNK]) for start in range(0, max(len(records), 1), CHUNK)]
    measures = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if alignable(measures).any():
        with thumbnails.open("wb") as file:
            for start in range(0, len(records), CHUNK):
                grey = records["thumbnail"][start : start + CHUNK] @ GREY
                file.write(np.rint(grey).astype(np.uint8).data)
        measures["thumbnail"] = np.memmap(thumbnails, np.uint8, "r", shape=(len(records), *[THUMBNAIL] * 2))
    return measures


def alignable(measures: dict[str, np.ndarray]) -> np.ndarray:
    """Whether pictures are large enough to be aligned, bool (n,)."""
    return np.minimum(measures["height"], measures["width"]) >= ALIGNABLE
