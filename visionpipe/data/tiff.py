"""Reads the values of TIFF files with tifffile: any number of channels, as samples of a page or as pages."""

import io
import logging
import math
import zlib
from typing import Any

import numpy as np
from PIL import Image

from visionpipe.data.decode import UPRIGHT, decode_image, pillow_image
from visionpipe.data.deep import PixelFormat, Samples, check_size, type_limits, upright
from visionpipe.errors import ImageError

NONE, DEFLATE = 1, (8, 32946)  # compressions
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2  # photometric interpretations
OPACITY = 2  # an extra sample that is opacity, and is not multiplied into the colours
ORIENTATION = 274  # a tag
SLACK = 2**16  # bytes that a compressed segment may inflate to beyond its size
MAX_PAGES = 1_000


def read_tiff(data: bytes, form: PixelFormat, max_pixels: int) -> Samples:
    """Reads the values of a TIFF file. Smaller copies of its image and masks are ignored.

    Palettes, CMYK and other colour spaces are converted to RGB by `decode_image`.

    Raises:
        ImageError: the file has several pages that are not the channels, or a compression that is not installed.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # remarks on odd metadata
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        if len(file.pages) > MAX_PAGES:
            raise ImageError("too_large", f"a TIFF file of more than {MAX_PAGES:,} pages")
        every: list[Any] = list(file.pages)
        pages = [page for page in every if not (page.is_reduced or page.is_mask)] or every[:1]
        first = pages[0]
        if first.photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
            return Samples(decode_image(data, max_pixels), (0, 255))
        if len(pages) > 1 and (
            len(pages) != form.channels or any(page.samplesperpixel > 1 for page in pages)
        ):
            raise ImageError(
                "unsupported",
                f"a TIFF file of {len(pages)} pages, but {form.channels} channels are expected: save the page that "
                "matters as a file of its own",
            )
        if first.compression != NONE and first.compression not in DEFLATE:
            return compressed(data, first, len(pages), max_pixels)
        values = np.concatenate([page_values(page, data, len(pages), max_pixels) for page in pages], axis=-1)
        orientation = first.tags.get(ORIENTATION)
        turn = UPRIGHT.get(orientation.value) if orientation else None
        bits = first.bitspersample
        limits = (0.0, 2.0**bits - 1) if values.dtype.kind == "u" and bits <= 16 else type_limits(values)
        alpha = tuple(first.extrasamples) == (OPACITY,) and values.shape[-1] in (2, 4)
        return Samples(transposed(values, turn), limits, first.photometric == WHITE_IS_ZERO, alpha)


def page_values(page: Any, data: bytes, pages: int, max_pixels: int) -> np.ndarray:
    """Reads a page, (height, width, samples), after checks that it is no larger than it says; raises ImageError."""
    check_size(page.imagelength, page.imagewidth, page.samplesperpixel * pages, max_pixels)
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
    image, turn = pillow_image(data, "TIFF", max_pixels)
    values = upright(image, turn)
    limits = (0.0, 2.0**page.bitspersample - 1) if image.mode.startswith("I;16") else type_limits(values)
    return Samples(values, limits, page.photometric == WHITE_IS_ZERO and image.mode != "L")


def transposed(values: np.ndarray, turn: Image.Transpose | None) -> np.ndarray:
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
