"""Writes image files beyond 8-bit RGB without the code under test: PNG by hand, DICOM with pydicom."""

import io
import struct
import zlib

import numpy as np

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels → PNG's number


def npy(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def png16(values, extra=b""):
    """A 16-bit PNG of uint16 (height, width, channels), whose rows are filtered by Sub and Up in turn (PNG, 9.2)."""
    height, width, channels = values.shape
    rows = values.astype(">u2").view(np.uint8).reshape(height, -1)
    size = 2 * channels  # bytes of a pixel
    filtered = b""
    for number, row in enumerate(rows):
        before = np.zeros_like(row)
        if number % 2:
            before[:] = rows[number - 1]
        else:
            before[size:] = row[:-size]
        filtered += bytes([1 + number % 2]) + (row - before).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
    return data + chunk(b"IDAT", zlib.compress(filtered)) + chunk(b"IEND", b"")


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def dicom(values, photometric="MONOCHROME2", bits=16, **tags):
    """A DICOM file of uint8, uint16 or int16 (height, width) or (height, width, 3), with further tags by keyword."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * values.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.add_new(0x7FE00010, "OW" if values.itemsize == 2 else "OB", values.tobytes())
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
