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
        raise ImageError("unsupported", f"not an image in one of the formats {', '.join(SIGNATURES)}")
    try:
        return _decode(data, image_format, max_pixels)
    except ImageError:
        raise
    except (Image.DecompressionBombError, MemoryError):
        raise ImageError("too_large", "needs too much memory to decode") from None
    except Exception:  # Pillow's parsers raise OSError, SyntaxError, struct.error, zlib.error and more
        raise ImageError("broken", f"damaged, truncated or unusual {image_format} data") from None


def resize_and_crop(
    image: np.ndarray, size: tuple[int, int], interpolation: str = "bicubic", crop_ratio: float = 1.0
) -> np.ndarray:
    """Resizes an image until it just covers `size` divided by `crop_ratio`, and cuts `size` out of the centre.

    At crop ratio 1 an image that already has this size is returned unchanged.

    Args:
        image: uint8 or uint16 (h, w, channels).
        size: (height, width) of the result, in pixels.
        interpolation: one of RESAMPLING.
        crop_ratio: side of the crop, relative to the short side of the resized image.

    Returns:
        (height, width, channels), of the image's type.
    """
    (height, width), (source_height, source_width) = size, image.shape[:2]
    if image.shape[:2] == (height, width) and crop_ratio == 1:
        return image
    scale = max(height / source_height, width / source_width) / crop_ratio
    left = max(0.0, (source_width - width / scale) / 2)
    top = max(0.0, (source_height - height / scale) / 2)
    # Only the cropped part is resized, so that a strip of 1 × 1,000,000 pixels never becomes a huge image.
    box = (left, top, source_width - left, source_height - top)
    return resized(image, size, RESAMPLING[interpolation], box)


def resized(
    image: np.ndarray,
    size: tuple[int, int],
    resampling: Image.Resampling,
    box: tuple[float, float, float, float],
) -> np.ndarray:
    """Resizes the part `box` (left, top, right, bottom) of an image to `size`, (height, width), in pixels.

    image: uint8 or uint16 (h, w, channels). RGB is resized in 8 bits. Of other images each channel is, as float32 if
    it has 16 bits, so that a grey image gets the pixels that it would get as RGB.
    """
    width_and_height = size[1], size[0]
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize(width_and_height, resampling, box=box))
    result = np.empty((*size, image.shape[2]), image.dtype)
    for channel in range(image.shape[2]):
        values = image[..., channel]
        plane = Image.fromarray(values if image.dtype == np.uint8 else values.astype(np.float32))
        pixels = np.asarray(plane.resize(width_and_height, resampling, box=box))
        result[..., channel] = (
            pixels if image.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 65535)
        )  # Lanczos and bicubic interpolation overshoot
    return result


def pillow_image(
    data: bytes, image_format: str, max_pixels: int, rawmode: str | None = None
) -> tuple[Image.Image, Image.Transpose | None]:
    """Checks, opens and loads the first frame of an image; returns it, and the operation that turns it upright.

    `rawmode` replaces Pillow's choice of how the stored bytes become pixels. Raises ImageError, and any error of
    Pillow's parsers.
    """
    if image_format == "PNG":
        check_png(data, max_pixels)
    elif image_format == "JPEG":
        check_jpeg(data)
    elif image_format == "GIF":
        check_gif(data)
    with warnings_ignored():
        image = Image.open(io.BytesIO(data), formats=[image_format])
        if image.width * image.height > max_pixels:
            raise ImageError(
                "too_large", f"{image.width} × {image.height} pixels, more than {max_pixels:,} in all"
            )
        if (
            image_format == "TIFF"
        ):  # Pillow reads a TIFF's tags, and warns about them, while it loads the pixels
            image.load()
    if rawmode:
        image.tile = [tile._replace(args=rawmode) for tile in image.tile]
    image.load()
    with warnings_ignored():
        return image, UPRIGHT.get(_orientation(image))


def _decode(data: bytes, image_format: str, max_pixels: int) -> NDArray[np.uint8]:
    image, turn = pillow_image(data, image_format, max_pixels)
    upright = _rgb(image)
    return np.array(upright if turn is None else upright.transpose(turn))


@contextlib.contextmanager
def warnings_ignored(module: str = r"PIL\.") -> Iterator[None]:
    """Ignores a module's warnings about odd metadata, which would be raised as errors where warnings are errors.

    Python's warning filters belong to the whole process and need a lock. It is held while headers are read, so that
    threads still decode pixels in parallel.
    """
    with _warning_filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=module)
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
