"""Checks PNG, JPEG and GIF files for damage and decompression bombs that Pillow lets pass.

Pillow decodes missing PNG rows as black, ignores the checksums of pixels, stores up to 64 MB of inflated texts, and
decodes any number of scans of a JPEG. Like decode.py, this module is copied into the served artifact.
"""

import struct
import zlib
from collections.abc import Iterator

from visionpipe.errors import ImageError

MAX_PIXELS = 50_000_000  # pixels of an image: width times height
MAX_CHANNELS = 64  # of an image
MAX_TEXT = 2**20  # bytes of one inflated text or colour profile; Pillow has the same limit
MAX_TEXTS = 16 * 2**20  # bytes of all inflated texts of a file
MAX_SCANS = 100  # scans of a JPEG; each costs a pass over the whole image, and encoders make about ten
MAX_FRAMES = 1_000  # frames of a GIF; only the first is used, and a file with more is no photograph
MAX_BLOCKS = (
    500_000  # data blocks of a GIF, each of up to 255 bytes; going through so many takes a tenth of a second
)
SLACK = 2**20  # bytes allowed behind the last row, because some encoders write a few
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG's colour type → channels
# The passes of PNG's interlacing, Adam7: first column, first row, and the steps to the next column and row.
PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def check_jpeg(data: bytes) -> None:
    """Raises ImageError for a JPEG with more than MAX_SCANS scans. Compressed pixels cannot contain a scan's marker."""
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise ImageError("too_large", f"a JPEG with more than {MAX_SCANS} scans")


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
    """Raises ImageError for a PNG with a wrong checksum, missing or extra rows, or texts that inflate to too much.

    A file that is refused later passes: one with an unknown header, or with more pixels than `max_pixels`.
    """
    texts, rows = 0, RowCounter()
    for kind, content in chunks(memoryview(data)):
        if kind == b"IHDR":
            header = struct.unpack_from(">IIBBBBB", bytes(content).ljust(13, b"\0"))
            if header[3] not in CHANNELS or header[0] * header[1] > max_pixels:
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
