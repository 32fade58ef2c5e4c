"""Decodes images for models beyond 8-bit RGB: any number of channels, 8 or 16 bits, NumPy arrays, TIFF and DICOM.

This module is copied into the served artifact, as decode.py is. It imports tiff.py and dicom.py, and these import
their libraries, only for a file that needs them.
"""

import io
import re
import struct
import zlib
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from visionpipe.data.decode import SIGNATURES, decode_image, pillow_image
from visionpipe.data.headers import MAX_CHANNELS, MAX_PIXELS
from visionpipe.errors import ImageError

MAX_NPY_HEADER = 10_000  # bytes
LUMA = (19595, 38470, 7471)  # of 65536: ITU-R BT.601, as Pillow converts RGB to grey
ARRAY, DICOM = "NPY", "DICOM"


@dataclass(frozen=True)
class PixelFormat:
    """Describes the pixels of a model's images.

    Attributes:
        channels: 1 is grey, 3 is RGB; of another number, the files must have exactly so many.
        depth: the bits of a value, 8 or 16.
        range: the values of a file that become the smallest and the largest: those of its `type`, the extremes of
            each `file`, or (low, high).
    """

    channels: int = 3
    depth: int = 8
    range: Literal["type", "file"] | tuple[float, float] = "type"

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of prepared pixels: uint8 or uint16."""
        return np.dtype(f"u{self.depth // 8}")

    @property
    def most(self) -> int:
        """The largest value of a prepared pixel."""
        return int(2**self.depth - 1)

    def stated(self) -> dict[str, Any]:
        """Returns the attributes for JSON; nothing for 8-bit RGB, which files of older versions do not state."""
        return {} if self == PixelFormat() else asdict(self)


RGB = PixelFormat()


@dataclass(frozen=True)
class Samples:
    """The values of an image file, (height, width, channels), of any real dtype.

    `limits` are the smallest and largest value of their type; None where the type does not say. With `white_is_zero`
    larger values are darker. With `alpha` the last channel is opacity.
    """

    values: np.ndarray
    limits: tuple[float, float] | None
    white_is_zero: bool = False
    alpha: bool = False


def decode_pixels(data: bytes, form: PixelFormat, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image file and turns it upright: uint8 or uint16 (height, width, channels), as `form` says.

    Colours become grey by their luma, and transparency is composited on white. A grey file becomes RGB with three
    equal channels. For 8 bits of the type's range, pictures are decoded by `decode_image`.

    Raises:
        ImageError: the bytes cannot be decoded, or do not fit `form`. No other exception is raised, whatever the
            bytes are.
    """
    kind = kind_of(data)
    if kind not in (ARRAY, DICOM) and form.depth == 8 and form.range == "type" and form.channels in (1, 3):
        image: np.ndarray = decode_image(data, max_pixels)
        return image if form.channels == 3 else luma(image)
    if kind is None:
        formats = ", ".join([*SIGNATURES, ARRAY, DICOM])
        raise ImageError("unsupported", f"not an image in one of the formats {formats}")
    try:
        return converted(read_samples(data, kind, form, max_pixels), form)
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise ImageError("too_large", "needs too much memory to decode") from None
    except Exception:  # parsers raise errors of any class
        raise ImageError("broken", f"damaged, truncated or unusual {kind} data") from None


def kind_of(data: bytes) -> str | None:
    """Returns the format that the first bytes announce, or None."""
    if data.startswith(b"\x93NUMPY"):
        return ARRAY
    if data[128:132] == b"DICM":  # may begin with anything, also with the signature of a TIFF
        return DICOM
    return next((name for name, start in SIGNATURES.items() if re.match(start, data)), None)


def read_samples(data: bytes, kind: str, form: PixelFormat, max_pixels: int) -> Samples:
    """Reads the values of a file of the format `kind`; raises ImageError, or any error of a parser."""
    if kind == ARRAY:
        return read_array(data, max_pixels)
    if kind == DICOM:
        from visionpipe.data.dicom import read_dicom

        return read_dicom(data, form, max_pixels)
    if kind == "TIFF":
        from visionpipe.data.tiff import read_tiff

        return read_tiff(data, form, max_pixels)
    return read_picture(data, kind, form, max_pixels)


def read_array(data: bytes, max_pixels: int) -> Samples:
    """Reads a `.npy` file of shape (height, width) or (height, width, channels). Its pickles are never loaded."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        read_header = np.lib.format.read_array_header_1_0
    elif version == (2, 0):
        read_header = np.lib.format.read_array_header_2_0
    else:
        raise ImageError("unsupported", f"a .npy file of version {'.'.join(map(str, version))}")
    shape, fortran, dtype = read_header(file, max_header_size=MAX_NPY_HEADER)
    if dtype.kind not in "buif":
        raise ImageError("unsupported", f"an array of {dtype}: expected whole numbers or floats")
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ImageError("unsupported", f"an array of shape {shape}: expected (height, width[, channels])")
    check_size(shape[0], shape[1], shape[2] if len(shape) == 3 else 1, max_pixels)
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) - file.tell() != count * dtype.itemsize:
        raise ImageError("broken", "a .npy file that is cut off, or longer than its header says")
    values = np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")
    return Samples(values.reshape(*shape[:2], -1), type_limits(values))


def read_picture(data: bytes, kind: str, form: PixelFormat, max_pixels: int) -> Samples:
    """Reads a picture that Pillow opens, with all 16 bits of a PNG or PPM file."""
    if kind == "PNG" and data[24:25] == b"\x10" and data[25:26] in (b"\2", b"\4", b"\6"):
        return read_deep_png(data, max_pixels)
    if kind in ("PNG", "PPM", "WEBP") or form.channels not in (1, 3):
        image, turn = pillow_image(data, kind, max_pixels)
        if image.mode.startswith("I"):
            return with_transparency(upright(image, turn).astype(np.uint16), image)
        if form.channels not in (1, 3):
            return Samples(upright(image.convert("RGBA") if image.mode == "P" else image, turn), (0, 255))
    return Samples(decode_image(data, max_pixels), (0, 255))


def read_deep_png(data: bytes, max_pixels: int) -> Samples:
    """Reads a 16-bit PNG in colour or with opacity, of which Pillow returns the high bytes only.

    Filters of PNG work on bytes. So one with two values a pixel is read as 8-bit RGBA, whose pixels are as long; and
    one with three or four is read twice, the second time as if it were little endian, which returns the low bytes.
    """
    if data[25] == 4:
        header = data[12:24] + b"\x08\x06" + data[26:29]
        as_rgba = b"".join([data[:12], header, struct.pack(">I", zlib.crc32(header)), data[33:]])
        halves = upright(*pillow_image(as_rgba, "PNG", max_pixels)).astype(np.uint16)
        return Samples(halves[..., ::2] << 8 | halves[..., 1::2], (0, 65535), alpha=True)
    image, turn = pillow_image(data, "PNG", max_pixels)
    low = upright(*pillow_image(data, "PNG", max_pixels, rawmode=f"{image.mode};16L"))
    values = upright(image, turn).astype(np.uint16) << 8 | low
    return Samples(values, (0, 65535), alpha=True) if data[25] == 6 else with_transparency(values, image)


def with_transparency(values: np.ndarray, image: Image.Image) -> Samples:
    """Returns 16-bit values, with a channel of opacity if the PNG says that one value or colour is transparent."""
    transparent = image.info.get("transparency")
    if transparent is None:
        return Samples(values, (0, 65535))
    opaque = (values != np.array(transparent, np.uint16)).any(axis=-1, keepdims=True)
    return Samples(np.concatenate([values, opaque * np.uint16(65535)], axis=-1), (0, 65535), alpha=True)


def upright(image: Image.Image, turn: Image.Transpose | None) -> np.ndarray:
    """Returns the pixels of an image after the operation that turns it upright, (height, width, channels)."""
    values = np.asarray(image if turn is None else image.transpose(turn))
    return values.reshape(*values.shape[:2], -1)


def check_size(height: int, width: int, channels: int, max_pixels: int) -> None:
    """Raises ImageError for an image of too many pixels or channels, before its values are read."""
    if height * width > max_pixels:
        raise ImageError("too_large", f"{width} × {height} pixels, more than {max_pixels:,} in all")
    if channels > MAX_CHANNELS:
        raise ImageError("unsupported", f"{channels:,} channels, more than {MAX_CHANNELS}")
    if height * width * channels > 4 * max_pixels:
        raise ImageError("too_large", f"{width} × {height} pixels of {channels} channels")


def type_limits(values: np.ndarray) -> tuple[float, float] | None:
    """Returns the smallest and largest value of an integer type; (0, 1) for floats and booleans in this range.

    Integers of more than 16 bits and other floats do not say which values they use: None.
    """
    if values.dtype.kind in "ui" and values.dtype.itemsize <= 2:
        info = np.iinfo(values.dtype)
        return float(info.min), float(info.max)
    if values.dtype.kind == "b" or (values.dtype.kind == "f" and values.min() >= 0 and values.max() <= 1):
        return 0.0, 1.0
    return None


def converted(samples: Samples, form: PixelFormat) -> np.ndarray:
    """Scales the values of a file to the depth of `form`, and converts them to its channels; raises ImageError."""
    values = samples.values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ImageError("broken", "contains pixels that are not finite numbers")
    colours = values[..., :-1] if samples.alpha else values
    pixels = quantized(colours, *limits(samples, colours, form), form)
    if samples.white_is_zero:
        pixels = form.most - pixels
    if samples.alpha and samples.limits:
        opacity = quantized(values[..., -1:], *samples.limits, form)
        pixels = (
            on_white(pixels, opacity, form.most)
            if form.channels in (1, 3)
            else np.concatenate([pixels, opacity], axis=-1)
        )
    channels = pixels.shape[-1]
    if form.channels == 1 and channels == 3:
        pixels = luma(pixels)
    elif form.channels == 3 and channels == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    elif channels != form.channels:
        raise ImageError(
            "unsupported", f"{count(channels)}, but {form.channels} are expected (prepare.channels)"
        )
    return np.ascontiguousarray(pixels)


def count(channels: int) -> str:
    return f"{channels} channel{'' if channels == 1 else 's'}"


def limits(samples: Samples, values: np.ndarray, form: PixelFormat) -> tuple[float, float]:
    """Returns the values that become 0 and the largest; raises ImageError where nothing says which.

    `values` are those of the samples without opacity.
    """
    if isinstance(form.range, tuple):
        return form.range
    if form.range == "type" and samples.limits is not None:
        return samples.limits
    low, high = float(values.min()), float(values.max())
    if form.range == "file":
        return low, high
    raise ImageError(
        "unsupported",
        f"{values.dtype} values from {low:g} to {high:g}, whose type does not say what is black and white: set "
        f"prepare.range to file or [low, high]",
    )


def quantized(values: np.ndarray, low: float, high: float, form: PixelFormat) -> np.ndarray:
    """Maps [low, high] linearly to the whole numbers from 0 to the largest of `form`, and clips other values."""
    if values.dtype == form.dtype and (low, high) == (0, form.most):
        return values
    pixels = np.empty(values.shape, form.dtype)
    scale = form.most / ((high - low) or 1.0)
    for channel in range(values.shape[-1]):  # one at a time, because float64 takes eight times the memory
        scaled = np.rint((values[..., channel].astype(np.float64) - low) * scale)
        pixels[..., channel] = np.clip(scaled, 0, form.most)
    return pixels


def on_white(pixels: np.ndarray, opacity: np.ndarray, most: int) -> np.ndarray:
    """Composites pixels on white."""
    opacity, white = opacity.astype(np.uint64), np.uint64(most)
    blended = (pixels * opacity + white * (white - opacity) + white // np.uint64(2)) // white
    return blended.astype(pixels.dtype)


def luma(pixels: np.ndarray) -> np.ndarray:
    """Converts RGB to grey, (height, width, 1), with the weights and the rounding of Pillow. Grey stays unchanged."""
    total = sum(pixels[..., channel].astype(np.uint32) * np.uint32(LUMA[channel]) for channel in range(3))
    return ((total + np.uint32(0x8000)) >> np.uint32(16)).astype(pixels.dtype)[..., None]


def model_input(images: np.ndarray) -> np.ndarray:
    """Converts prepared images to the model's input, float32 in [0, 255]; uint16 are divided by 257."""
    floats = np.asarray(images, np.float32)
    return floats / np.float32(257) if images.dtype == np.uint16 else floats


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Converts prepared pixels (…, height, width, channels) to 8-bit RGB for pictures.

    Three or more channels show the first three, fewer show the first as grey.
    """
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)


def encoded(pixels: np.ndarray, form: PixelFormat) -> bytes:
    """Encodes prepared pixels (height, width, channels) as an image file that is decoded to them.

    With the range of each file, that holds only for pixels that reach 0 and the largest value.
    """
    file = io.BytesIO()
    if form == RGB:
        Image.fromarray(pixels).save(file, "PNG")
    elif isinstance(form.range, tuple):
        low, high = form.range
        np.save(file, low + pixels.astype(np.float64) * ((high - low) / form.most), allow_pickle=False)
    else:
        np.save(file, pixels, allow_pickle=False)
    return file.getvalue()
