"""Checks image files for damage, decompression bombs and thumbnails that Pillow lets pass.

Pillow decodes missing PNG rows as black, ignores the checksums of pixels, stores up to 64 MB of inflated texts, and
decodes any number of scans of a JPEG. It decodes zeros that stand where a download ended, and takes the thumbnail in a
camera's raw file for the picture. Like decode.py, this module is copied into the served artifact.
"""

import bisect
import struct
import zlib
from collections.abc import Iterator
from typing import cast

from visionpipe.errors import ImageError

MAX_PIXELS = 300_000_000  # pixels of an image, width times height; cameras have up to 200 million
CLIENT_PIXELS = 50_000_000  # pixels of an image that a client sends to a server
PADDING = (
    114,
    114,
    114,
)  # around an image; the mean grey of photographs, as in YOLO, is near 0 after normalisation
MOST_PIXELS_OF_A_BYTE = (
    2_000  # of an image of more than CLIENT_PIXELS; a flat picture of 8 bits has half of it as PNG
)
MAX_CHANNELS = 64  # channels of an image
MAX_TEXT = 2**20  # bytes of one inflated text or colour profile; Pillow has the same limit
MAX_TEXTS = 16 * 2**20  # bytes of all inflated texts of a file
MAX_SCANS = 100  # scans of a JPEG; each costs a pass over the whole image, and encoders make about ten
MAX_FRAMES = 1_000  # frames of a GIF; only the first is used, and a file with more is no photograph
MAX_BLOCKS = (
    500_000  # data blocks of a GIF, each of up to 255 bytes; going through so many takes a tenth of a second
)
SLACK = 2**20  # bytes allowed behind the last row, because some encoders write a few
JPEG_ZEROS = bytes(512)  # never among compressed pixels where the code of zeros is a coefficient
RAW_PHOTO = "a camera's raw photo: export it as JPEG, TIFF or PNG"
MAX_IMAGES = 100  # of a TIFF that are looked at
# Tags of TIFF, and values of PHOTOMETRIC.
KIND_OF_IMAGE, WIDTH, HEIGHT, PHOTOMETRIC, INNER_IMAGES, DNG_VERSION = 254, 256, 257, 262, 330, 50706
SENSOR, LINEAR_SENSOR = 32803, 34892
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG's colour type → channels
# The passes of PNG's interlacing, Adam7: first column, first row, and the steps to the next column and row.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def check_size(width: int, height: int, max_pixels: int, size: int) -> None:
    """Raises ImageError for an image with more than `max_pixels`, or of CLIENT_PIXELS in a file of far too few bytes.

    size: bytes of the file.
    """
    pixels = width * height
    if pixels > max_pixels:
        option = ": visionpipe serve --max-pixels sets the limit" if max_pixels < MAX_PIXELS else ""
        raise ImageError("too_large", f"{width} × {height} pixels, more than {max_pixels:,} in all{option}")
    if pixels > CLIENT_PIXELS and pixels > MOST_PIXELS_OF_A_BYTE * size:
        raise ImageError("too_large", f"{width} × {height} pixels in only {size:,} bytes")


def check_jpeg(data: bytes) -> None:
    """Raises ImageError for a JPEG with more than MAX_SCANS scans, or with zeros in the place of compressed pixels.

    Compressed pixels contain no marker but restarts. So the pixels of a file whose end is missing run to the end of
    the file, and Pillow would decode any zeros there. Zeros in the middle are noticed where the Huffman code for AC
    coefficients of zeros alone is no end of a block, as in the tables of the standard (ITU-T T.81, K.3), because then
    no picture has many of them.
    """
    markers = jpeg_markers(data)
    if sum(data[marker + 1] == 0xDA for marker in markers) > MAX_SCANS:
        raise ImageError("too_large", f"a JPEG with more than {MAX_SCANS} scans")
    position, sequential, zeros_are_coefficients = 2, False, False
    while (index := bisect.bisect_left(markers, position)) < len(markers):
        kind, start = data[markers[index] + 1], markers[index] + 2
        if kind == 0xD9:  # the end of the image
            return
        position = start
        if kind in (0x01, 0xD8):  # without content
            continue
        position += int.from_bytes(data[start : start + 2])
        if kind in (0xC0, 0xC1):
            sequential = True
        elif kind == 0xC4:
            zeros_are_coefficients |= any(first_ac_symbols(data[start + 2 : position]))
        elif kind == 0xDA and sequential and zeros_are_coefficients:
            following = bisect.bisect_left(markers, position)
            end = markers[following] if following < len(markers) else len(data)
            if data.find(JPEG_ZEROS, position, end) >= 0:
                raise ImageError("broken", "a JPEG with zeros in the place of pixels")
    rest = "has zeros in the place of its end" if data.endswith(bytes(16)) else "is cut off"
    raise ImageError("broken", f"a JPEG that {rest}")


def jpeg_markers(data: bytes) -> list[int]:
    """Returns where a byte 0xFF is neither stuffing nor a restart within pixels, four times as fast as a pattern."""
    import numpy as np

    values = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(values[:-1] == 0xFF)
    kinds = values[places + 1]
    chosen = (kinds != 0) & (kinds != 0xFF) & ((kinds < 0xD0) | (kinds > 0xD7))
    return cast(list[int], places[chosen].tolist())


def first_ac_symbols(tables: bytes) -> Iterator[int]:
    """Yields the symbol of the shortest code, which is all zeros, of each Huffman table for AC coefficients."""
    position = 0
    while position + 17 < len(tables):
        if tables[position] >= 16:  # the high digit is 1 for AC
            yield tables[position + 17]
        position += 17 + sum(tables[position + 1 : position + 17])


def check_webp(data: bytes, pixels: int) -> None:
    """Raises ImageError for a WebP with more zeros in a row than any picture of this number of pixels has.

    libwebp writes a byte for about 10,000 flat pixels of a lossy picture, and for 64 of a lossless one.
    """
    position = 12
    while position + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, position)
        each = {b"VP8 ": 4096, b"VP8L": 32, b"ALPH": 32, b"ANMF": 32}.get(kind)
        if each and data.find(bytes(64 + pixels // each), position + 8, position + 8 + size) >= 0:
            raise ImageError("broken", "a WebP with zeros in the place of pixels")
        position += 8 + size + size % 2


def check_tiff(data: bytes) -> None:
    """Raises ImageError for a camera's raw file, of which Pillow would decode the thumbnail.

    Raw files are TIFF files whose first image is a preview. They are told by an image of a sensor's colours (TIFF/EP,
    ISO 12234-2), by the version of DNG, or by the marks of CR2 and IIQ. Any other TIFF whose first image says that it
    is a smaller version of another one is refused too.
    """
    if data[8:10] == b"CR" or data[8:12] in (b"IIII", b"MMMM"):
        raise ImageError("unsupported", RAW_PHOTO)
    images = list(tiff_images(data))
    for tags in images:
        if DNG_VERSION in tags or tags.get(PHOTOMETRIC) in (SENSOR, LINEAR_SENSOR):
            raise ImageError("unsupported", RAW_PHOTO)
    if images and images[0].get(KIND_OF_IMAGE, 0) & 1:
        area = [tags.get(WIDTH, 0) * tags.get(HEIGHT, 0) for tags in images]
        if max(area) > area[0]:
            raise ImageError(
                "unsupported", "a TIFF whose first image is a thumbnail: save the large one alone"
            )


def tiff_images(data: bytes) -> Iterator[dict[int, int]]:
    """Yields tag → first value of each image of a TIFF, at most MAX_IMAGES, those within another one included.

    Only tags of whole numbers of 2, 4 or 8 bytes are there, and DNG_VERSION. Damage ends the list.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    entry, number, count_bytes = (20, "Q", 8) if big else (12, "I", 2)
    waiting, seen = [struct.unpack_from(order + number, data, 8 if big else 4)[0]], set[int]()
    while waiting and len(seen) < MAX_IMAGES:
        offset = waiting.pop(0)
        if offset in seen or not 0 < offset <= len(data) - count_bytes:
            continue
        seen.add(offset)
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
        first = offset + count_bytes
        tags: dict[int, int] = {}
        for place in range(first, min(first + count * entry, len(data) - entry + 1), entry):
            tag, kind, values = struct.unpack_from(f"{order}HH{number}", data, place)
            letter = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}.get(kind)
            inline = place + (12 if big else 8)
            if tag == DNG_VERSION:
                tags[tag] = 1
            if letter is None or not values:
                continue
            form = f"{order}{min(values, MAX_IMAGES)}{letter}"
            if struct.calcsize(form) > (8 if big else 4):
                (inline,) = struct.unpack_from(order + number, data, inline)
            if inline + struct.calcsize(form) > len(data):
                continue
            numbers = struct.unpack_from(form, data, inline)
            tags[tag] = numbers[0]
            if tag == INNER_IMAGES:
                waiting += numbers
        yield tags
        link = first + count * entry
        if link + struct.calcsize(number) <= len(data):
            waiting += struct.unpack_from(order + number, data, link)


def check_gif(data: bytes) -> None:
    """Raises ImageError for a GIF with more than MAX_FRAMES frames or MAX_BLOCKS blocks. Pillow detects damage."""
    position, frames, blocks = 13 + colour_table_size(data[10:11]), 0, 0
    while (kind := data[position : position + 1]) in (b",", b"!"):  # a frame, an extension
        frames += kind == b","
        position += 11 + colour_table_size(data[position + 9 : position + 10]) if kind == b"," else 2
        while position < len(data) and (length := data[position]):
            position += 1 + length
            blocks += 1
            if blocks > MAX_BLOCKS:
                raise ImageError("too_large", f"a GIF with more than {MAX_BLOCKS:,} blocks")
        position += 1
        if frames > MAX_FRAMES:
            raise ImageError("too_large", f"a GIF with more than {MAX_FRAMES:,} frames")


def colour_table_size(flags: bytes) -> int:
    """Returns the size of the colour table that the flags announce, in bytes."""
    value = int.from_bytes(flags)
    return 3 * 2 ** (value % 8 + 1) if value & 0x80 else 0


def check_png(data: bytes, max_pixels: int) -> None:
    """Raises ImageError for a PNG with a wrong checksum, missing or extra rows, or too large pixels or texts.

    A file with an unknown header passes, which is refused later.
    """
    texts, rows = 0, RowCounter()
    for kind, content in chunks(memoryview(data)):
        if kind == b"IHDR":
            header = struct.unpack_from(">IIBBBBB", bytes(content).ljust(13, b"\0"))
            check_size(header[0], header[1], max_pixels, len(data))
            if header[3] not in CHANNELS:
                return
            rows.expected = rows_size(header)
        elif kind == b"IDAT":
            rows.add(content)
        elif kind in (b"zTXt", b"iCCP", b"iTXt"):
            size = inflated_size(kind, bytes(content))
            texts += size
            if size > MAX_TEXT or texts > MAX_TEXTS:
                raise ImageError("too_large", f"texts or a colour profile of more than {MAX_TEXT:,} bytes")
    if rows.inflated < rows.expected:
        raise ImageError("broken", "a PNG that lacks some of its rows")


def chunks(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields the kind and content of each chunk up to IEND, and checks the checksums of chunks that affect pixels."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        content, end = data[position + 8 : position + 8 + length], position + 12 + length
        if end > len(data):
            raise ImageError("broken", "a PNG that is cut off")
        if (kind[:1].isupper() or kind == b"tRNS") and zlib.crc32(
            content, zlib.crc32(kind)
        ) != int.from_bytes(data[end - 4 : end]):
            raise ImageError("broken", "a PNG with a wrong checksum")
        if kind == b"IEND":
            return
        yield kind, content
        position = end


class RowCounter:
    """Counts the bytes of the inflated rows without storing them."""

    def __init__(self) -> None:
        self.expected = self.inflated = 0
        self._inflate = zlib.decompressobj()

    def add(self, content: memoryview) -> None:
        """Counts the next compressed bytes; raises ImageError if they are damaged or inflate to too much."""
        rest: bytes | memoryview = content
        try:
            while rest and not self._inflate.eof:
                self.inflated += len(self._inflate.decompress(rest, SLACK))
                rest = self._inflate.unconsumed_tail
                if self.inflated > self.expected + SLACK:
                    raise ImageError("too_large", "a PNG with more pixels than its header says")
        except zlib.error:
            raise ImageError("broken", "a PNG with damaged pixels") from None


def rows_size(header: tuple[int, ...]) -> int:
    """Returns the size of all rows, each with the byte that names its filter, in bytes."""
    width, height, depth, colour, _, _, interlaced = header
    total = 0
    for left, top, across, down in PASSES if interlaced else ((0, 0, 1, 1),):
        columns, lines = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and lines > 0:
            total += lines * (1 + -(-columns * depth * CHANNELS[colour] // 8))
    return total


def inflated_size(kind: bytes, content: bytes) -> int:
    """Returns the inflated size of a compressed chunk in bytes, at most MAX_TEXT + 1; 0 if it is not compressed."""
    _, _, rest = content.partition(b"\0")  # after the keyword
    if kind == b"iTXt":
        compressed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
        if not compressed:
            return 0
    else:
        rest = rest[1:]
    try:
        return len(zlib.decompressobj().decompress(rest, MAX_TEXT + 1))
    except zlib.error:
        return 0
