"""Scales the levels of deep images to 8 bits.

This module is copied into the served artifact.
"""

import re
import sys
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from visionpipe.data.formats import open_image, warnings_ignored
from visionpipe.errors import ImageError

MAX_SAMPLE_VALUE = 281  # a tag of TIFF


@dataclass(frozen=True, slots=True)
class OpenLevels:
    """The least and largest level of a deep grey image that does not say which level is white.

    `stretched`: whether the image was scaled by these levels of its own, and not by those that its type can hold.
    """

    lowest: float
    highest: float
    stretched: bool


def stated_white(image: ImageFile.ImageFile, data: bytes) -> int | None:
    """Returns the level that a file with 16 bits for a level states to be white, before its pixels are loaded.

    PPM has its largest value. TIFF has the bits of a sample, and MaxSampleValue, which cameras set to the largest
    value of their sensor. PNG's sBIT states no white: its levels are scaled up to 16 bits (PNG, section 11.3.2.4).
    """
    if image.format == "PPM" and image.mode in ("I", "RGB"):
        largest = _largest_of_ppm(data)
        return None if largest == 65535 else largest
    if image.format == "TIFF":
        tags = _tags(image)
        bits = tags.get(ExifTags.Base.BitsPerSample, (8,))[0]
        largest = min(np.atleast_1d(tags.get(MAX_SAMPLE_VALUE, 65535)))
        if bits < 16:
            return 2**bits - 1
        if bits == 16 and 255 <= largest < 65535 and (largest + 1) & largest == 0:
            return int(largest)
    return None


def eight_bits(
    image: ImageFile.ImageFile, data: bytes, given: tuple[float, float] | None, white: int | None
) -> tuple[Image.Image, OpenLevels | None]:
    """Converts deep levels to 8 bits, with alpha if one level means "transparent". Pillow would clip grey levels.

    The levels `given` become black and white. By default those are 0 and the stated `white`, else 0 and 65535 of
    16-bit levels. Floats and 32-bit integers do not say which level is white. Images whose levels lie within [0, 1]
    are multiplied by 255. All others are stretched so that their smallest level becomes 0 and their largest 255.
    """
    if not (image.mode == "F" or image.mode.startswith("I")):
        return _eight_bit_colours(image, data, given, white)
    stored = np.asarray(image)
    levels, open_levels = stored, None
    lowest, highest = given or (0, white or 65535)
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        if image.format == "PPM" and white:  # Pillow has scaled the levels to 65535
            levels = np.rint(levels * (white / 65535)).astype(np.int64)
        if given is None and (white is None or levels.max() > white):
            highest, open_levels = 65535, OpenLevels(int(levels.min()), int(levels.max()), False)
    elif not np.isfinite(levels).all():
        raise ImageError("broken", "contains pixels that are not finite numbers")
    elif given is None:
        levels = levels.astype(np.float64)
        lowest, highest = float(levels.min()), float(levels.max())
        if lowest >= 0 and highest <= 1:
            lowest, highest = 0, 1
        else:
            open_levels = OpenLevels(lowest, highest, True)
    grey = to_bytes(levels, lowest, highest)
    tags = _tags(image)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 is white
        grey = 255 - grey
    deep = Image.fromarray(grey)
    if "transparency" in image.info:
        opaque = stored != image.info["transparency"]
        deep = Image.merge("LA", (deep, Image.fromarray(opaque.astype(np.uint8) * 255)))
    return deep, open_levels


def _eight_bit_colours(
    image: ImageFile.ImageFile, data: bytes, given: tuple[float, float] | None, white: int | None
) -> tuple[Image.Image, OpenLevels | None]:
    """Scales 16-bit colours, of which Pillow has loaded the high bytes only."""
    if image.mode not in ("RGB", "RGBA") or not has_two_bytes(image, data):
        return image, None
    if given is None and (image.format == "PPM" if white else _brightest(image) >= 64):
        return image, None  # Pillow has scaled a PPM file; and no camera leaves one bit of 16 unused, or two
    colours = sixteen_bits(data, str(image.format))
    if colours is None:
        return image, None
    levels, open_levels = colours[..., :3], None
    if given is None and (white is None or levels.max() > white):
        open_levels, white = OpenLevels(int(levels.min()), int(levels.max()), False), 65535
    lowest, highest = given or (0, white or 65535)
    scaled = Image.fromarray(to_bytes(levels, lowest, highest))
    if image.mode == "RGBA":
        scaled.putalpha(image.getchannel("A"))
    elif "transparency" in image.info:
        scaled.info["transparency"] = image.info["transparency"]
    return scaled, open_levels


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {})  # only TIFF files have them


def to_bytes(levels: NDArray[np.generic], lowest: float, highest: float) -> NDArray[np.uint8]:
    """Scales levels so that `lowest` becomes 0 and `highest` 255; whole bytes of them keep their highest 8 bits."""
    span = highest - lowest
    if np.issubdtype(levels.dtype, np.integer) and (span + 1) % 256 == 0:
        within = np.clip(levels.astype(np.int64), int(lowest), int(highest)) - int(lowest)
        return (within * 256 // int(span + 1)).astype(np.uint8)
    shares = np.clip((levels.astype(np.float64) - lowest) / (span or 1), 0, 1)
    return np.rint(shares * 255).astype(np.uint8)


def _brightest(image: Image.Image) -> int:
    return max(int(high) for _, high in cast(Any, image.getextrema())[:3])


def has_two_bytes(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether a colour image stores each level in two bytes."""
    if image.format == "PNG":
        return data[24] == 16
    if image.format == "TIFF":
        return bool(_tags(image).get(ExifTags.Base.BitsPerSample, (8,))[0] == 16)
    return image.format == "PPM" and data[:2] == b"P6" and _largest_of_ppm(data) > 255


def _largest_of_ppm(data: bytes) -> int:
    """Returns the level that a PPM file states to be white."""
    return int(re.sub(rb"#[^\r\n]*", b"", data[:1024]).split(maxsplit=4)[3])


def sixteen_bits(data: bytes, image_format: str) -> NDArray[np.uint16] | None:
    """Decodes colours of two bytes, uint16 (height, width, channels); None where Pillow cannot.

    Pillow takes the high bytes. Told that the two are in the other order, it takes the low ones.
    """
    halves = []
    for swapped in (False, True):
        with warnings_ignored():
            image = open_image(data, image_format)
            if image_format == "PPM":
                levels = np.frombuffer(data, ">u2", image.width * image.height * 3, image.tile[0].offset)
                return levels.reshape(image.height, image.width, 3).astype(np.uint16)
            if swapped:
                image.tile = [tile._replace(args=_other_order(tile.args)) for tile in image.tile]
            try:
                image.load()
            except (OSError, ValueError, SystemError):  # no such raw mode
                return None
        halves.append(np.asarray(image).astype(np.uint16))
    return np.asarray(halves[0] << 8 | halves[1], np.uint16)


def _other_order(arguments: Any) -> Any:
    """Replaces the order of bytes in the arguments of one of Pillow's decoders."""
    if not isinstance(arguments, str):
        return (_other_order(arguments[0]), *arguments[1:])
    native = "L" if sys.byteorder == "little" else "B"
    order = native if arguments[-1] == "N" else arguments[-1]
    return arguments[:-1] + {"L": "B", "B": "L"}[order]
