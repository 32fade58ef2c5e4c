"""Reads the values of TIFF files with tifffile: any number of channels, as samples of a page or as pages."""

import io
import logging
import math
import zlib
from typing import Any, Literal

import numpy as np

from visionpipe.data.decode import UPRIGHT, load, one_large, open_checked, read_image
from visionpipe.data.deep import Samples, check_dimensions, turned, type_limits
from visionpipe.data.form import PixelFormat
from visionpipe.data.headers import check_tiff
from visionpipe.data.levels import MAX_SAMPLE_VALUE
from visionpipe.errors import ImageError

NONE, DEFLATE = 1, (8, 32946)  # compressions
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # photometric interpretations
OPACITY = 2  # an extra sample that is opacity, and is not multiplied into the colours
ORIENTATION = 274  # a tag
SLACK = 2**16  # bytes that a compressed segment may inflate to beyond its size
MAX_PAGES = 1_000


def read_tiff(data: bytes, form: PixelFormat, max_pixels: int) -> Samples:
    """Reads the values of a TIFF file. Smaller copies of its image and masks are ignored.

    Palettes, CMYK and other colour spaces are converted to RGB as in `decode_image`.

    Raises:
        ImageError: the file has several pages that are not the channels, or a compression that is not installed.
    """
    import tifffile

    check_tiff(data)
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # remarks on odd metadata
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) > MAX_PAGES:
            raise ImageError("too_large", f"a TIFF file of more than {MAX_PAGES:,} pages")
        every: list[Any] = list(file.pages)
        pages = [page for page in every if not (page.is_reduced or page.is_mask)] or every[:1]
        first = pages[0]
        if first.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
            return Samples(read_image(data, max_pixels)[0], (0, 255))
        if len(pages) > 1 and (
            len(pages) != form.channels or any(page.samplesperpixel > 1 for page in pages)
        ):
            raise ImageError(
                "unsupported",
                f"a TIFF file of {len(pages)} pages, but prepare.channels is {form.channels}: save the page that "
                "matters as a file of its own",
            )
        if first.compression != NONE and first.compression not in DEFLATE:
            return compressed(data, first, len(pages), max_pixels)
        values = np.concatenate([page_values(page, data, len(pages), max_pixels) for page in pages], axis=-1)
        orientation = first.tags.get(ORIENTATION)
        turn = UPRIGHT.get(orientation.value) if orientation else None
        alpha = tuple(first.extrasamples) == (OPACITY,) and values.shape[-1] in (2, 4)
        return described(turned(values, turn), first, alpha)


def tiff_form(data: bytes) -> tuple[int, int, PixelFormat]:
    """Reads height, width and the format of the values off the first page; raises any error of tifffile."""
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first: Any = file.pages[0]
        channels = first.samplesperpixel if first.samplesperpixel > 1 else len(file.pages)
        levels: Literal["file"] | None = (
            None if first.dtype.kind == "u" and first.bitspersample <= 16 else "file"
        )
        form = PixelFormat(levels, channels, 8 if first.bitspersample <= 8 else 16)
        return first.imagelength, first.imagewidth, form


def page_values(page: Any, data: bytes, pages: int, max_pixels: int) -> np.ndarray:
    """Reads a page, (height, width, samples), after checks that it is no larger than it says; raises ImageError."""
    check_dimensions(page.imagelength, page.imagewidth, page.samplesperpixel * pages, max_pixels, len(data))
    segment = math.prod(page.chunks)
    if page.axes not in ("YX", "YXS", "SYX") or segment > 4 * max_pixels:
        raise ImageError("unsupported", f"a TIFF page of unusual dimensions, {page.shape}")
    if page.compression in DEFLATE:
        for offset, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            inflate = zlib.decompressobj()
            most = segment * page.dtype.itemsize + SLACK
            inflate.decompress(data[offset : offset + length], most)
            if inflate.unconsumed_tail:
                raise ImageError("too_large", "a TIFF file with more pixels than its header says")
    values: np.ndarray = page.asarray(maxworkers=1)
    if page.axes == "SYX":
        values = values.transpose(1, 2, 0)
    return values.reshape(*values.shape[:2], -1)


def compressed(data: bytes, page: Any, pages: int, max_pixels: int) -> Samples:
    """Reads a file with a compression of which tifffile leaves the decoding to other libraries, with Pillow."""
    name, plain = (
        getattr(page.compression, "name", page.compression),
        page.samplesperpixel == 1 and pages == 1,
    )
    if not plain and not (page.samplesperpixel == 3 and page.bitspersample == 8):
        raise ImageError(
            "unsupported",
            f"a TIFF file of {page.samplesperpixel * pages} channels that is compressed by {name}: save it without "
            "compression, or compressed by deflate",
        )
    image = open_checked(data, "TIFF", max_pixels)
    with one_large(image):
        _, turn = load(image, data)
        values = np.asarray(image)
        return described(turned(values.reshape(*values.shape[:2], -1), turn), page)


def described(values: np.ndarray, page: Any, alpha: bool = False) -> Samples:
    """Returns values with the limits that the tags of their page state, or that their type has."""
    limits, bits = type_limits(values), page.bitspersample
    largest = page.tags.get(MAX_SAMPLE_VALUE)
    white = min(np.atleast_1d(largest.value)) if largest and bits == 16 else 2**bits - 1
    stated = values.dtype.kind == "u" and 255 <= white < 65535 and (white + 1) & white == 0 and bits > 8
    if stated:
        limits = (0.0, float(white))
    return Samples(values, limits, stated, page.photometric == WHITE_IS_ZERO, alpha)
