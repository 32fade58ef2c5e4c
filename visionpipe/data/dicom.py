"""Reads the values of DICOM files with pydicom: rescaled to their units, through their window, upright in meaning.

Sources: DICOM PS3.3, C.7.6.3 (pixels), C.11.1 (modality LUT: rescale slope and intercept) and C.11.2 (VOI LUT: window).
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from visionpipe.data.deep import Samples, check_dimensions
from visionpipe.data.form import PixelFormat
from visionpipe.data.formats import warnings_ignored
from visionpipe.errors import ImageError

DEFLATED = b"1.2.840.10008.1.2.1.99"  # a transfer syntax
READABLE = ("MONOCHROME1", "MONOCHROME2", "RGB", "PALETTE COLOR")  # and YBR_…
HEADER = 4096  # bytes that hold the transfer syntax


def read_dicom(data: bytes, form: PixelFormat, max_pixels: int) -> Samples:
    """Reads the values of a DICOM file of one frame.

    Grey values are rescaled to their units, such as Hounsfield units. They pass through the first window (or VOI
    LUT) of the file, if it has one, unless `form` has levels of its own, which are in these units. MONOCHROME1 is dark
    where values are large. Palettes and YBR become RGB.

    Raises:
        ImageError: pydicom is not installed, or the file has several frames, no pixels, or a compression that is not
            installed.
    """
    with opened(data) as dataset:
        frames = int(dataset.get("NumberOfFrames") or 1)
        if "PixelData" not in dataset:
            raise ImageError("unsupported", "a DICOM file without an image")
        if frames > 1:
            raise ImageError(
                "unsupported",
                f"a DICOM file of {frames} frames: save the one that matters as a file of its own",
            )
        photometric = str(dataset.PhotometricInterpretation)
        if photometric not in READABLE and not photometric.startswith("YBR_"):
            raise ImageError(
                "unsupported", f"a DICOM file with the photometric interpretation {photometric[:20]!r}"
            )
        sides = int(dataset.Rows), int(dataset.Columns)
        check_dimensions(*sides, int(dataset.SamplesPerPixel), max_pixels, len(data))
        return samples(dataset, stored_values(dataset), form)


@contextlib.contextmanager
def opened(data: bytes, **options: Any) -> Iterator[Any]:
    """Opens a DICOM file, without warnings; raises ImageError where pydicom is not installed."""
    try:
        import pydicom
    except ImportError:
        raise ImageError(
            "unsupported", "a DICOM file, which needs pydicom: pip install 'visionpipe[medical]'"
        ) from None
    if DEFLATED in data[:HEADER]:
        raise ImageError("unsupported", "a DICOM file that is deflated as a whole: save it uncompressed")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # remarks on odd metadata
    with warnings_ignored(module=""):
        yield pydicom.dcmread(io.BytesIO(data), **options)


def dicom_form(data: bytes) -> tuple[int, int, PixelFormat]:
    """Reads height, width and the format of the values; raises ImageError, or any error of pydicom."""
    with opened(data, stop_before_pixels=True) as dataset:
        colours = int(dataset.SamplesPerPixel) == 3 or dataset.PhotometricInterpretation == "PALETTE COLOR"
        depth = 8 if int(dataset.BitsStored) <= 8 else 16
        return int(dataset.Rows), int(dataset.Columns), PixelFormat(None, 3 if colours else 1, depth)


def stored_values(dataset: Any) -> np.ndarray:
    """Returns the stored values, (height, width) or RGB (height, width, 3)."""
    from pydicom.pixels import pixel_array

    try:
        return pixel_array(dataset)
    except (RuntimeError, NotImplementedError, ImportError):
        syntax = dataset.file_meta.TransferSyntaxUID
        if not syntax.is_compressed:
            raise
        raise ImageError(
            "unsupported",
            f"a DICOM file compressed by {syntax.name}, which is damaged or needs a library: pip install pylibjpeg "
            "pylibjpeg-libjpeg pylibjpeg-openjpeg, or save it uncompressed",
        ) from None


def samples(dataset: Any, values: np.ndarray, form: PixelFormat) -> Samples:
    """Returns stored values as `read_dicom` describes."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

    photometric = str(dataset.PhotometricInterpretation)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(values, dataset)
        return Samples(colours, (0, np.iinfo(colours.dtype).max))
    bits = int(dataset.BitsStored)
    if values.ndim == 3:
        return Samples(values, (0, 2**bits - 1))
    rescaled = apply_modality_lut(values, dataset)
    signed = dataset.PixelRepresentation == 1
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    if "ModalityLUTSequence" in dataset:
        ends = np.array([0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1])
    elif "RescaleSlope" in dataset and "RescaleIntercept" in dataset:
        ends = ends * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    windowed = dataset.get("VOILUTSequence") or "WindowWidth" in dataset
    if form.levels is None and windowed:
        rescaled = apply_voi_lut(rescaled, dataset)
        if dataset.get("VOILUTSequence"):
            ends = np.array([0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1])
    elif (
        ends[0] > ends[1]
    ):  # a negative slope; a window maps its lower end to the first, also where that is larger
        ends = ends[::-1]
    low, high = map(float, ends)
    return Samples(rescaled[..., None], (low, high), white_is_zero=photometric == "MONOCHROME1")
