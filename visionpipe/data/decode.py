"""Decodes images, in the same way for preparing and for serving.

This module is copied into the served artifact, so it imports NumPy, Pillow and other copied modules only.
"""

import contextlib
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from visionpipe.data.colours import rgb
from visionpipe.data.formats import format_of, open_image, warnings_ignored
from visionpipe.data.headers import (
    CLIENT_PIXELS,
    MAX_PIXELS,
    check_gif,
    check_jpeg,
    check_png,
    check_size,
    check_tiff,
    check_webp,
)
from visionpipe.data.levels import OpenLevels, eight_bits, stated_white
from visionpipe.errors import ImageError

# EXIF orientation → the operation that turns the stored pixels upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_large = threading.Lock()  # held while an image of more than CLIENT_PIXELS is decoded, which takes gigabytes


def decode_image(
    data: bytes, max_pixels: int = MAX_PIXELS, levels: tuple[float, float] | None = None
) -> NDArray[np.uint8]:
    """Decodes the first frame of an image file and turns it upright: uint8 (height, width, 3), RGB.

    Colours are converted to sRGB where the file has a colour profile. Transparency is composited on BACKGROUND. CMYK
    without a profile becomes RGB by its ink.

    Args:
        data: the content of the file.
        max_pixels: the most pixels, width times height, that are decoded.
        levels: the levels that become black and white in images of more than 8 bits. By default they are those that
            the file states, else all of 16 bits; `eight_bits` says what becomes of floats and 32-bit integers.

    Raises:
        ImageError: the bytes cannot be decoded. No other exception is raised, whatever the bytes are.
    """
    return read_image(data, max_pixels, levels)[0]


def read_image(
    data: bytes,
    max_pixels: int = MAX_PIXELS,
    levels: tuple[float, float] | None = None,
    reduced_to: int | None = None,
) -> tuple[NDArray[np.uint8], OpenLevels | None]:
    """Decodes an image as `decode_image` does, and returns its levels too where neither file nor `levels` say white.

    Args:
        data, max_pixels, levels: as for `decode_image`.
        reduced_to: JPEG files are decoded at a half, a quarter or an eighth of their sides, the smallest at which both
            have at least so many pixels.

    Raises:
        ImageError: the bytes cannot be decoded.
    """
    image_format = format_of(data)
    try:
        return _decode(data, image_format, max_pixels, levels, reduced_to)
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise ImageError("too_large", "needs too much memory to decode") from None
    except Exception:  # Pillow's parsers raise OSError, SyntaxError, struct.error, zlib.error and more
        raise ImageError("broken", f"damaged, truncated or unusual {image_format} data") from None


def _decode(
    data: bytes,
    image_format: str,
    max_pixels: int,
    levels: tuple[float, float] | None,
    reduced_to: int | None,
) -> tuple[NDArray[np.uint8], OpenLevels | None]:
    image = open_checked(data, image_format, max_pixels)
    if reduced_to is not None:
        image.draft(None, (reduced_to, reduced_to))  # libjpeg leaves out frequencies; other formats ignore it
    with one_large(image):
        white, turn = load(image, data)
        shallow, open_levels = eight_bits(image, data, levels, white)
        upright = rgb(shallow, image.info.get("icc_profile"))
        return np.asarray(upright if turn is None else upright.transpose(turn)), open_levels


def open_checked(data: bytes, image_format: str, max_pixels: int) -> ImageFile.ImageFile:
    """Opens an image file after checks of its size and for damage; raises ImageError, or any error of Pillow's."""
    if image_format == "PNG":  # before Pillow inflates its texts
        check_png(data, max_pixels)
    elif image_format == "GIF":
        check_gif(data)
    elif image_format == "TIFF":
        check_tiff(data)
    with warnings_ignored():
        image = open_image(data, image_format)
    check_size(image.width, image.height, max_pixels, len(data))
    if image_format == "JPEG":
        check_jpeg(data)
    elif image_format == "WEBP":
        check_webp(data, image.width * image.height)
    return image


def one_large(image: Image.Image) -> contextlib.AbstractContextManager[Any]:
    """Waits while another thread decodes an image of more than CLIENT_PIXELS, if this image is one."""
    return _large if image.width * image.height > CLIENT_PIXELS else contextlib.nullcontext()


def load(image: ImageFile.ImageFile, data: bytes) -> tuple[int | None, Image.Transpose | None]:
    """Loads the pixels; returns the stated white level, and the operation that turns the image upright, or None.

    Raises ImageError, or any error of Pillow's parsers.
    """
    with warnings_ignored():
        white = stated_white(image, data)
        if (
            image.format == "TIFF"
        ):  # Pillow reads a TIFF's tags, and warns about them, while it loads the pixels
            image.load()
    image.load()
    if data.endswith(bytes(512)) and _ends_within_a_row(image):
        raise ImageError("broken", f"a {image.format} with zeros in the place of pixels")
    with warnings_ignored():
        return white, UPRIGHT.get(_orientation(image))


def _ends_within_a_row(image: ImageFile.ImageFile) -> bool:
    """Whether the pixels of an uncompressed image break off within a row, and the rest are zeros.

    Only then a missing end can be told from a black margin: the row above is not black where this one is.
    """
    raw = image.format in ("BMP", "PPM") or image.info.get("compression") == "raw"
    if not raw or image.height < 3:
        return False
    rows = np.asarray(image).reshape(image.height, -1) != 0
    rows = rows[::-1] if image.format == "BMP" else rows  # its last row comes first in the file
    full = np.flatnonzero(rows.any(axis=1))
    last = full[-1] if len(full) else 0
    if not 0 < last < len(rows) - 1:
        return False
    begin = int(np.flatnonzero(rows[last])[-1]) + 1
    above, before = rows[last - 1, begin:], rows[last, :begin]
    return len(above) >= 16 and len(before) >= 16 and above.mean() > 0.9 and before.mean() > 0.9


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; like image viewers it assumes 1 where the metadata cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's parsers raise errors of many classes
        return 1
    return int(orientation) if orientation in UPRIGHT else 1
