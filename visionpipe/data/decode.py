"""Image files to RGB pixels, the same way for preparing and for serving.

This module travels into the served artifact: it needs NumPy, Pillow, headers.py and visionpipe.errors only.
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

# The accepted formats, as Pillow calls them, and how their files begin.
SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "WEBP": rb"(?s)RIFF.{4}WEBP",
    "PPM": rb"P[1-6f]\s",
}

# What turns the stored pixels upright, by EXIF orientation.
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
    """Decodes the first frame of an image file, upright: uint8 (height, width, 3), RGB.

    Transparency is composited on BACKGROUND, CMYK becomes RGB without a colour profile, and deep grey
    levels are scaled as `_eight_bit_grey` says. 16-bit colour keeps its high byte.

    Raises ImageError, and nothing else, for whatever the bytes are.
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
    except Exception:  # the parsers fail with OSError, SyntaxError, struct.error, zlib.error and more
        raise ImageError("broken", f"damaged, truncated or unusual {image_format} data") from None


def resize_and_crop(
    image: NDArray[np.uint8], size: tuple[int, int], interpolation: str = "bicubic", crop_ratio: float = 1.0
) -> NDArray[np.uint8]:
    """Resizes to just cover `size`, (height, width), divided by `crop_ratio`, and cuts the centre out.

    uint8 (h, w, 3) to uint8 (height, width, 3), both RGB. An image of that size already comes
    back unchanged at crop ratio 1. `interpolation`: one of RESAMPLING.
    """
    (height, width), (source_height, source_width) = size, image.shape[:2]
    if image.shape[:2] == (height, width) and crop_ratio == 1:
        return image
    scale = max(height / source_height, width / source_width) / crop_ratio
    left = max(0.0, (source_width - width / scale) / 2)
    top = max(0.0, (source_height - height / scale) / 2)
    # Resizing only what the crop keeps: a strip of 1 × 1,000,000 pixels never becomes a huge image.
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
        if image_format == "TIFF":  # reads tags, and warns about them, while loading
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
    """Keeps Pillow's remarks on odd metadata from being printed, or raised where warnings are errors.

    Python's warning filters belong to the whole process: hence a lock, held for headers only, so that
    threads still decode pixels side by side.
    """
    with _warning_filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the metadata cannot be read, as image viewers do."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as above: any parser error
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
    """Deep grey levels as mode L, or LA if one level stands for "transparent". Pillow alone would clip them.

    16-bit integers keep their high byte. Floats and 32-bit integers have no white of their own: values
    within [0, 1] are multiplied by 255, all others stretched from their least and largest to 0 and 255.
    """
    levels = np.asarray(image)
    tags = getattr(image, "tag_v2", {})  # of TIFF files
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        grey = levels >> (4 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 8)
    elif not np.isfinite(levels).all():
        raise ImageError("broken", "holds pixels that are not finite numbers")
    else:
        levels = levels.astype(np.float64)
        low, high = levels.min(), levels.max()
        if low < 0 or high > 1:
            levels = (levels - low) / ((high - low) or 1)
        grey = np.rint(levels * 255)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # white is zero
        grey = 255 - grey
    deep = Image.fromarray(grey.astype(np.uint8))
    if "transparency" not in image.info:
        return deep
    opaque = np.asarray(image) != image.info["transparency"]
    return Image.merge("LA", (deep, Image.fromarray(opaque.astype(np.uint8) * 255)))
