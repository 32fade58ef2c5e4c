"""Decodes images for models beyond 8-bit RGB: any number of channels, 8 or 16 bits, NumPy arrays, TIFF and DICOM.

This module is copied into the served artifact, as decode.py is. It imports tiff.py and dicom.py, and these import
their libraries, only for a file that needs them.
"""

import io
import re
import struct
import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from visionpipe.data.decode import load, one_large, open_checked, read_image
from visionpipe.data.form import PixelFormat
from visionpipe.data.formats import SIGNATURES
from visionpipe.data.frame import luma
from visionpipe.data.headers import MAX_CHANNELS, MAX_PIXELS, check_size
from visionpipe.data.levels import OpenLevels, has_two_bytes, sixteen_bits, to_bytes
from visionpipe.errors import ImageError

MAX_NPY_HEADER = 10_000  # bytes
ARRAY, DICOM = "NPY", "DICOM"


@dataclass(frozen=True)
class Samples:
    """The values of an image file, (height, width, channels), of any real dtype.

    `limits` are the smallest and largest value of their type; None where the type does not say. With `stated` the file
    says so itself. With `white_is_zero` larger values are darker. With `alpha` the last channel is opacity.
    """

    values: np.ndarray
    limits: tuple[float, float] | None
    stated: bool = False
    white_is_zero: bool = False
    alpha: bool = False


def decode_pixels(data: bytes, form: PixelFormat, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decodes an image file and turns it upright: uint8 or uint16 (height, width, channels), as `form` says.

    Colours become grey by their luma, and transparency is composited on white. A grey file becomes RGB with three
    equal channels. Pictures become 8 bits of one or three channels as in `decode_image`.

    Raises:
        ImageError: the bytes cannot be decoded, or do not fit `form`. No other exception is raised, whatever the
            bytes are.
    """
    return read_pixels(data, form, max_pixels)[0]


def read_pixels(
    data: bytes, form: PixelFormat, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, OpenLevels | None]:
    """Decodes an image as `decode_pixels` does, and returns its levels too where nothing says which is white.

    Raises:
        ImageError: the bytes cannot be decoded, or do not fit `form`.
    """
    kind = kind_of(data)
    if kind not in (ARRAY, DICOM) and form.depth == 8 and form.channels in (1, 3) and form.levels != "file":
        image, open_levels = read_image(data, max_pixels, form.levels, form.reduced_to)
        return image if form.channels == 3 else luma(image), open_levels
    if kind is None:
        formats = ", ".join([*SIGNATURES, ARRAY, DICOM])
        raise ImageError("unsupported", f"not an image in one of the formats {formats}")
    try:
        samples = read_samples(data, kind, form, max_pixels)
        return converted(samples, form), open_levels_of(samples, form)
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise ImageError("too_large", "needs too much memory to decode") from None
    except Exception:  # parsers raise errors of any class
        raise ImageError("broken", f"damaged, truncated or unusual {kind} data") from None


def open_levels_of(samples: Samples, form: PixelFormat) -> OpenLevels | None:
    """Returns the levels of 16-bit values, whose type states a white that they may not reach; else None."""
    integers = samples.values.dtype.kind in "ui"  # a window of DICOM makes floats
    if form.levels is not None or samples.stated or samples.limits != (0, 65535) or not integers:
        return None
    return OpenLevels(int(samples.values.min()), int(samples.values.max()), False)


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
    shape, fortran, dtype = array_header(file)
    height, width, channels = (*shape, 1)[:3]
    check_dimensions(height, width, channels, max_pixels, len(data))
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) - file.tell() != count * dtype.itemsize:
        raise ImageError("broken", "a .npy file that is cut off, or longer than its header says")
    values = np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")
    return Samples(values.reshape(*shape[:2], -1), type_limits(values))


def array_header(file: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Reads the shape, the order (Fortran's or not) and the type of a `.npy` file; raises ImageError or ValueError."""
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
    return shape, fortran, dtype


def stored_form(data: bytes, kind: str) -> tuple[int, int, PixelFormat]:
    """Reads height, width and the format of the values off an array, a DICOM file or a TIFF; raises any error."""
    if kind == ARRAY:
        shape, _, dtype = array_header(io.BytesIO(data))
        height, width, channels = (*shape, 1)[:3]
        levels: Literal["file"] | None = None if dtype.kind in "bu" and dtype.itemsize <= 2 else "file"
        return height, width, PixelFormat(levels, channels, 8 if dtype in (np.bool_, np.uint8) else 16)
    if kind == DICOM:
        from visionpipe.data.dicom import dicom_form

        return dicom_form(data)
    from visionpipe.data.tiff import tiff_form

    return tiff_form(data)


def read_picture(data: bytes, kind: str, form: PixelFormat, max_pixels: int) -> Samples:
    """Reads a picture that Pillow opens, with all 16 bits of a PNG or PPM file, without its profile."""
    if kind == "PNG" and data[24:26] == b"\x10\4":
        return read_grey_with_opacity(data, max_pixels)
    image = open_checked(data, kind, max_pixels)
    deep = kind in ("PNG", "PPM") and (image.mode.startswith("I") or has_two_bytes(image, data))
    if not deep and form.channels in (1, 3):
        return Samples(read_image(data, max_pixels)[0], (0, 255))
    with one_large(image):
        white, turn = load(image, data)
        if not deep:
            colours = np.asarray(image.convert("RGBA") if image.mode == "P" else image)
            return Samples(turned(colours.reshape(*colours.shape[:2], -1), turn), (0, 255))
        if image.mode.startswith("I"):
            # Pillow scales the levels of a PPM file to 65535.
            levels: np.ndarray | None = np.rint(np.asarray(image)[..., None] * ((white or 65535) / 65535))
        else:
            levels = sixteen_bits(data, kind)
        if levels is None:
            raise ImageError("unsupported", f"a {kind} of 16-bit colours of an unusual layout")
        samples = with_transparency(levels.astype(np.uint16), image)
        values = turned(samples.values, turn)
        return replace(samples, values=values, limits=(0, white or 65535), stated=white is not None)


def with_transparency(values: np.ndarray, image: Image.Image) -> Samples:
    """Returns 16-bit values, with a channel of opacity if the PNG says that one value or colour is transparent."""
    transparent = image.info.get("transparency")
    if transparent is None:
        return Samples(values, None, alpha=values.shape[-1] == 4)
    opaque = (values != np.array(transparent, np.uint16)).any(axis=-1, keepdims=True)
    return Samples(np.concatenate([values, opaque * np.uint16(65535)], axis=-1), None, alpha=True)


def read_grey_with_opacity(data: bytes, max_pixels: int) -> Samples:
    """Reads a PNG of 16-bit grey and opacity, of which Pillow returns the high bytes only.

    Filters of PNG work on bytes. So the file is read as one of 8-bit RGBA, whose pixels have as many.
    """
    header = data[12:24] + b"\x08\x06" + data[26:29]
    as_rgba = b"".join([data[:12], header, struct.pack(">I", zlib.crc32(header)), data[33:]])
    image = open_checked(as_rgba, "PNG", max_pixels)
    with one_large(image):
        _, turn = load(image, as_rgba)
        halves = turned(np.asarray(image), turn).astype(np.uint16)
        return Samples(halves[..., ::2] << 8 | halves[..., 1::2], (0, 65535), alpha=True)


def turned(values: np.ndarray, turn: Image.Transpose | None) -> np.ndarray:
    """Applies one of Pillow's transpositions to values (height, width, channels)."""
    match turn:
        case Image.Transpose.FLIP_LEFT_RIGHT:
            return values[:, ::-1]
        case Image.Transpose.FLIP_TOP_BOTTOM:
            return values[::-1]
        case Image.Transpose.ROTATE_90:
            return np.rot90(values)
        case Image.Transpose.ROTATE_180:
            return np.rot90(values, 2)
        case Image.Transpose.ROTATE_270:
            return np.rot90(values, 3)
        case Image.Transpose.TRANSPOSE:
            return values.transpose(1, 0, 2)
        case Image.Transpose.TRANSVERSE:
            return values[::-1, ::-1].transpose(1, 0, 2)
    return values


def check_dimensions(height: int, width: int, channels: int, max_pixels: int, size: int) -> None:
    """Raises ImageError for an image of too many pixels or channels, before it is read from a file of `size` bytes."""
    check_size(width, height, max_pixels, size)
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
        raise ImageError("unsupported", f"{counted(channels)}, but prepare.channels is {form.channels}")
    return np.ascontiguousarray(pixels)


def counted(channels: int) -> str:
    """Returns a number of channels in words: "1 channel", "3 channels"."""
    return f"{channels} channel{'' if channels == 1 else 's'}"


def limits(samples: Samples, values: np.ndarray, form: PixelFormat) -> tuple[float, float]:
    """Returns the values that become 0 and the largest; raises ImageError where nothing says which.

    `values` are those of the samples without opacity. Stated limits that the values exceed are those of all 16 bits.
    """
    if isinstance(form.levels, tuple) and samples.limits != (0, 255):
        return form.levels
    if form.levels != "file" and samples.limits is not None:
        beyond = samples.stated and values.max() > samples.limits[1]
        return (0, 65535) if beyond else samples.limits
    low, high = float(values.min()), float(values.max())
    if form.levels == "file":
        return low, high
    raise ImageError(
        "unsupported",
        f"{values.dtype} values from {low:g} to {high:g}, whose type does not say what is black and white: set "
        f"prepare.levels to file or [low, high]",
    )


def quantized(values: np.ndarray, low: float, high: float, form: PixelFormat) -> np.ndarray:
    """Maps [low, high] linearly to the whole numbers from 0 to the largest of `form`, and clips other values."""
    if values.dtype == form.dtype and (low, high) == (0, form.most):
        return values
    pixels = np.empty(values.shape, form.dtype)
    for channel in range(values.shape[-1]):  # one at a time, because float64 takes eight times the memory
        levels = values[..., channel]
        if form.depth == 8:
            pixels[..., channel] = to_bytes(levels, low, high)
        else:
            shares = np.clip((levels.astype(np.float64) - low) / ((high - low) or 1.0), 0, 1)
            pixels[..., channel] = np.rint(shares * form.most)
    return pixels


def on_white(pixels: np.ndarray, opacity: np.ndarray, most: int) -> np.ndarray:
    """Composites pixels on white."""
    opacity, white = opacity.astype(np.uint64), np.uint64(most)
    blended = (pixels * opacity + white * (white - opacity) + white // np.uint64(2)) // white
    return blended.astype(pixels.dtype)


def encoded(pixels: np.ndarray, form: PixelFormat) -> bytes:
    """Encodes prepared pixels (height, width, channels) as an image file that is decoded to them.

    With the levels of each file, that holds only for pixels that reach 0 and the largest value.
    """
    file = io.BytesIO()
    if form.is_rgb and form.levels is None:
        Image.fromarray(pixels).save(file, "PNG")
    elif isinstance(form.levels, tuple):
        low, high = form.levels
        np.save(file, low + pixels.astype(np.float64) * ((high - low) / form.most), allow_pickle=False)
    else:
        np.save(file, pixels, allow_pickle=False)
    return file.getvalue()
