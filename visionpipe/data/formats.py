"""The image formats: how their files begin, and who reads them.

This module is copied into the served artifact.
"""

import contextlib
import io
import re
import threading
import warnings
from collections.abc import Iterator

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from visionpipe.errors import ImageError

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

_warning_filters = threading.Lock()


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


@contextlib.contextmanager
def warnings_ignored(module: str = r"PIL\.") -> Iterator[None]:
    """Ignores a module's warnings about odd metadata, which would be raised as errors where warnings are errors.

    Python's warning filters belong to the whole process and need a lock. It is held while headers are read, so that
    threads still decode pixels in parallel.
    """
    with _warning_filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=module)
        yield
