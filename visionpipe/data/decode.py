"""Decodes and resizes images, in the same way for preparing and for serving.

This module is copied into the served artifact, so it imports NumPy, Pillow, headers.py and visionpipe.errors only.
"""

import contextlib
import functools
import io
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from visionpipe.data.headers import (
    CLIENT_PIXELS,
    MAX_PIXELS,
    PADDING,
    check_gif,
    check_jpeg,
    check_png,
    check_size,
    check_tiff,
    check_webp,
)
from visionpipe.errors import ImageError

BACKGROUND = (255, 255, 255)
LUMA = (19595, 38470, 7471)  # of 65536: ITU-R BT.601, as Pillow converts RGB to grey
MAX_PROFILE = 4 * 2**20  # bytes of a colour profile; larger ones are ignored
MAX_SAMPLE_VALUE = 281  # a tag of TIFF
SRGB_WITHIN = 2  # levels in [0, 255] that a profile may differ from sRGB to be taken for it
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

# Pillow's readers. They are called directly, because Image.open refuses images of more than 179 million pixels.
READERS = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
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
_large = threading.Lock()  # held while an image of more than CLIENT_PIXELS is decoded, which takes gigabytes


@dataclass(frozen=True, slots=True)
class OpenLevels:
    """The least and largest level of a deep grey image that does not say which level is white.

    `stretched`: whether the image was scaled by these levels of its own, and not by those that its type can hold.
    """

    lowest: float
    highest: float
    stretched: bool


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
            the file states, else all of 16 bits; `_eight_bits` says what becomes of floats and 32-bit integers.

    Raises:
        ImageError: the bytes cannot be decoded. No other exception is raised, whatever the bytes are.
    """
    return read_image(data, max_pixels, levels)[0]


def read_image(
    data: bytes, max_pixels: int = MAX_PIXELS, levels: tuple[float, float] | None = None
) -> tuple[NDArray[np.uint8], OpenLevels | None]:
    """Decodes an image as `decode_image` does, and returns its levels too where neither file nor `levels` say white.

    Raises:
        ImageError: the bytes cannot be decoded.
    """
    image_format = format_of(data)
    try:
        return _decode(data, image_format, max_pixels, levels)
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


def format_of(data: bytes) -> str:
    """Returns the format of a file, as Pillow calls it, by its first bytes; raises ImageError for any other."""
    for name, start in SIGNATURES.items():
        if re.match(start, data):
            return name
    raise ImageError("unsupported", not_read(data))


def open_image(data: bytes, image_format: str) -> ImageFile.ImageFile:
    """Reads the header of an image file, without its pixels; raises any error of Pillow's parsers."""
    return READERS[image_format](io.BytesIO(data), "")


def frame(
    image: np.ndarray,
    size: tuple[int, int],
    interpolation: str = "bicubic",
    crop_ratio: float = 1.0,
    framing: str = "crop",
    pad_color: tuple[int, int, int] = PADDING,
) -> np.ndarray:
    """Resizes an image onto a canvas of `size` divided by `crop_ratio`, and cuts `size` out of the centre.

    At crop ratio 1 an image that already has this size is returned unchanged.

    Args:
        image: uint8 or uint16 (h, w, channels).
        size: (height, width) of the result, in pixels.
        interpolation: one of RESAMPLING.
        crop_ratio: side of the crop, relative to the side of the canvas.
        framing: "crop" covers the canvas, so that the longer side is cut off on both ends; "pad" shows all of the
            image in the middle of the canvas, surrounded by `pad_color`; "stretch" changes the ratio of the sides.
        pad_color: red, green and blue, in [0, 255]. Images of other channels are surrounded by its grey.

    Returns:
        (height, width, channels), of the type of `image`.
    """
    (height, width), (source_height, source_width) = size, image.shape[:2]
    if image.shape[:2] == (height, width) and crop_ratio == 1:
        return image
    down, across = height / source_height, width / source_width  # the scales that stretch would have
    if framing != "stretch":
        down = across = max(down, across) if framing == "crop" else min(down, across)
    down, across = down / crop_ratio, across / crop_ratio
    left = max(0.0, (source_width - width / across) / 2)
    top = max(0.0, (source_height - height / down) / 2)
    # Only the visible part is resized, so that a strip of 1 × 1,000,000 pixels never becomes a huge image.
    box = (left, top, source_width - left, source_height - top)
    shown = (
        min(height, max(1, round(source_height * down))),
        min(width, max(1, round(source_width * across))),
    )
    resized = resize(image, shown, RESAMPLING[interpolation], box)
    if shown == (height, width):
        return resized
    margin = np.array(pad_color, image.dtype)[None, None]
    if image.shape[2] != 3:
        margin = luma(margin)
    canvas = np.full(
        (height, width, image.shape[2]), margin * (257 if image.dtype == np.uint16 else 1), image.dtype
    )
    top, left = (height - shown[0]) // 2, (width - shown[1]) // 2
    canvas[top : top + shown[0], left : left + shown[1]] = resized
    return canvas


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    resampling: Image.Resampling,
    box: tuple[float, float, float, float],
) -> np.ndarray:
    """Resizes the part `box` (left, top, right, bottom) of an image to `size`, (height, width), in pixels.

    Takes uint8 or uint16 (h, w, channels). The channels of other images than 8-bit RGB are resized one by one, those
    of 16 bits as float32. So a grey image gets the pixels that it would get as RGB.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize(size[::-1], resampling, box=box))
    result = np.empty((*size, image.shape[2]), image.dtype)
    for channel in range(image.shape[2]):
        values = image[..., channel] if image.dtype == np.uint8 else image[..., channel].astype(np.float32)
        pixels = np.asarray(Image.fromarray(values).resize(size[::-1], resampling, box=box))
        # Bicubic and Lanczos interpolation overshoot. Pillow clips 8 bits itself.
        result[..., channel] = pixels if image.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 65535)
    return result


def luma(pixels: np.ndarray) -> np.ndarray:
    """Converts RGB to grey, (height, width, 1), with the weights and the rounding of Pillow. Grey stays unchanged."""
    total = sum(pixels[..., channel].astype(np.uint32) * np.uint32(LUMA[channel]) for channel in range(3))
    grey: np.ndarray = ((total + np.uint32(0x8000)) >> np.uint32(16)).astype(pixels.dtype)[..., None]
    return grey


def _decode(
    data: bytes, image_format: str, max_pixels: int, levels: tuple[float, float] | None
) -> tuple[NDArray[np.uint8], OpenLevels | None]:
    image = open_checked(data, image_format, max_pixels)
    with one_large(image):
        white, turn = load(image, data)
        eight_bits, open_levels = _eight_bits(image, data, levels, white)
        upright = _rgb(eight_bits, image.info.get("icc_profile"))
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
        white = _stated_white(image, data)
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


def _rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts 8-bit pixels to RGB in sRGB, by the colour profile if there is one, without transparency."""
    mask = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
        mask = image.getchannel("A")
    transform = _transform(image.mode, profile) if profile else None
    if transform is not None:
        colours = transform.apply(image.convert(transform.input_mode))
    else:
        colours = image if image.mode == "RGB" else image.convert("RGB")
    if mask is None:
        return colours
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(colours, mask=mask)
    return canvas


def _transform(mode: str, profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Returns the conversion of pixels of a mode to sRGB; None if they need none, or the profile does not fit them."""
    kind = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}.get(profile[16:20])
    grey = mode in ("1", "L", "LA")  # a profile of colours fits grey pixels too
    if (
        kind is None
        or len(profile) > MAX_PROFILE
        or (kind == "CMYK") != (mode == "CMYK")
        or (kind == "L") > grey
    ):
        return None
    return _to_srgb(profile, kind)


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the conversion of a profile's colours to sRGB, or None if the profile is sRGB or damaged.

    The intent is relative colorimetric with compensation of the black point. Image viewers ignore damaged profiles
    too. A profile is sRGB if no colour of a grid changes by more than SRGB_WITHIN.
    """
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = (
        levels[:, None]
        if mode == "L"
        else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(16, -1, 3)
    )
    colours = Image.fromarray(grid)
    converted = np.asarray(ImageCms.applyTransform(colours, transform), int)
    change = np.abs(converted - np.asarray(colours.convert("RGB"))).max()
    return None if change <= SRGB_WITHIN else transform


# Levels of more than 8 bits ----------------------------------------------------------------------------


def _stated_white(image: ImageFile.ImageFile, data: bytes) -> int | None:
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


def _eight_bits(
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
