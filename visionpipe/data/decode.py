"""Decodes and resizes images, in the same way for preparing and for serving.

This module is copied into the served artifact, so it imports NumPy, Pillow, headers.py and visionpipe.errors only.
"""

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from visionpipe.data.headers import MAX_PIXELS, check_gif, check_jpeg, check_png
from visionpipe.errors import ImageError

BACKGROUND = (255, 255, 255)
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# The accepted formats by Pillow's names → how their files begin.
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "WEBP": rb"(?s)RIFF.{4}WEBP",
    "PPM": rb"P[1-6f]\s",
}

# Formats of pictures that are not accepted, by the names that people know → how their files begin.
UNREAD = {
    "HEIC": rb"(?s).{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)",
    "AVIF": rb"(?s).{4}ftypavi[fs]",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "PSD": rb"8BPS",
    "SVG": rb"(?s)\s*(<\?xml.{,500}?)?<svg",
    "PDF": rb"%PDF",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "an icon (ICO)": rb"\0\0\x01\0",
}

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

_warning_filters = threading.Lock()


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decodes the first frame of an image file and turns it upright: uint8 (height, width, 3), RGB.

    Transparency is composited on BACKGROUND, and CMYK becomes RGB without a colour profile. Of 16-bit colours the high
    byte is used; `_eight_bit_grey` says how deep grey levels are scaled.

    Raises:
        ImageError: the bytes cannot be decoded. No other exception is raised, whatever the bytes are.
    """
    image_format = next((name for name, start in SIGNATURES.items() if re.match(start, data)), None)
    if image_format is None:
        raise ImageError("unsupported", not_read(data))
    try:
        return _decode(data, image_format, max_pixels)
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise ImageError("too_large", "needs too much memory to decode") from None
    except Exception:  # Pillow's parsers raise OSError, SyntaxError, struct.error, zlib.error and more
        raise ImageError("broken", f"damaged, truncated or unusual {image_format} data") from None


def not_read(data: bytes) -> str:
    """Says why a file is not read that does not begin like one of the accepted formats."""
    accepted = ", ".join(SIGNATURES)
    name = next((name for name, start in UNREAD.items() if re.match(start, data)), None)
    if name is None:
        return f"{'' if data else 'empty, '}not an image in one of the formats {accepted}"
    return f"{name} is not an image in one of the formats {accepted}: convert it, for example to JPEG"


def resize_and_crop(
    image: NDArray[np.uint8], size: tuple[int, int], interpolation: str = "bicubic", crop_ratio: float = 1.0
) -> NDArray[np.uint8]:
    """Resizes an image until it just covers `size` divided by `crop_ratio`, and cuts `size` out of the centre.

    At crop ratio 1 an image that already has this size is returned unchanged.

    Args:
        image: uint8 (h, w, 3).
        size: (height, width) of the result, in pixels.
        interpolation: one of RESAMPLING.
        crop_ratio: side of the crop, relative to the short side of the resized image.

    Returns:
        uint8 (height, width, 3).
    """
    (height, width), (source_height, source_width) = size, image.shape[:2]
    if image.shape[:2] == (height, width) and crop_ratio == 1:
        return image
    scale = max(height / source_height, width / source_width) / crop_ratio
    left = max(0.0, (source_width - width / scale) / 2)
    top = max(0.0, (source_height - height / scale) / 2)
    # Only the cropped part is resized, so that a strip of 1 × 1,000,000 pixels never becomes a huge image.
    box = (left, top, source_width - left, source_height - top)
    return np.array(Image.fromarray(image).resize((width, height), RESAMPLING[interpolation], box=box))


def _decode(data: bytes, image_format: str, max_pixels: int) -> NDArray[np.uint8]:
    if image_format == "PNG":
        check_png(data, max_pixels)
    elif image_format == "JPEG":
        check_jpeg(data)
    elif image_format == "GIF":
        check_gif(data)
    with _pillow_warnings_ignored():
        image = Image.open(io.BytesIO(data), formats=[image_format])
        if image.width * image.height > max_pixels:
            raise ImageError(
                "too_large", f"{image.width} × {image.height} pixels, more than {max_pixels:,} in all"
            )
        if (
            image_format == "TIFF"
        ):  # Pillow reads a TIFF's tags, and warns about them, while it loads the pixels
            image.load()
    image.load()
    with _pillow_warnings_ignored():
        orientation = _orientation(image)
    upright = _rgb(image)
    if orientation != 1:
        upright = upright.transpose(UPRIGHT[orientation])
    return np.array(upright)


@contextlib.contextmanager
def _pillow_warnings_ignored() -> Iterator[None]:
    """Ignores Pillow's warnings about odd metadata, which would be raised as errors where warnings are errors.

    Python's warning filters belong to the whole process and need a lock. It is held while headers are read, so that
    threads still decode pixels in parallel.
    """
    with _warning_filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; like image viewers it assumes 1 where the metadata cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow's parsers raise errors of many classes
        return 1
    return int(orientation) if orientation in UPRIGHT else 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bit_grey(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(rgba, mask=rgba)
    return canvas


def _eight_bit_grey(image: Image.Image) -> Image.Image:
    """Converts deep grey levels to mode L, or to LA if one level means "transparent". Pillow would clip the levels.

    Of 16-bit integers the high byte is used. Floats and 32-bit integers do not say which level is white. Images whose
    levels lie within [0, 1] are multiplied by 255. All others are stretched so that their smallest level becomes 0 and
    their largest 255.
    """
    levels = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # only TIFF files have them
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        grey = levels >> (4 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 8)
    elif not np.isfinite(levels).all():
        raise ImageError("broken", "contains pixels that are not finite numbers")
    else:
        levels = levels.astype(np.float64)
        low, high = levels.min(), levels.max()
        if low < 0 or high > 1:
            levels = (levels - low) / ((high - low) or 1)
        grey = np.rint(levels * 255)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # 0 is white
        grey = 255 - grey
    deep = Image.fromarray(grey.astype(np.uint8))
    if "transparency" not in image.info:
        return deep
    opaque = np.asarray(image) != image.info["transparency"]
    return Image.merge("LA", (deep, Image.fromarray(opaque.astype(np.uint8) * 255)))
