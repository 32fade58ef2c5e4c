"""Makes hostile image files: files that are no images, broken images, bombs, and unusual but valid images.

Each file has one correct outcome, which is known without a decoder: the code of an ImageError, or all pixels. The
pixels of the valid images follow from how they are made, even in lossy formats, because they are flat or have inks that
are either full or absent.
"""

import gzip
import io
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
PICTURE = NOISE[:5, :7]
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
SIDE = 20_000
TURNS = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@dataclass(frozen=True)
class Case:
    """A file and its correct outcome. `expected`: the code of an ImageError, or pixels uint8 (height, width, 3)."""

    kind: str
    name: str
    data: bytes
    expected: Any
    suffix: str = ".png"

    @property
    def file(self) -> str:
        return f"{self.kind}, {self.name}{self.suffix}".replace("/", "∕")


def encode(image: Any, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def grey(levels: Any) -> np.ndarray:
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=-1)


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    crc = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join([header, *chunks, chunk(b"IEND", b"")])


def idat(scanlines: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(scanlines, 9))


def tiff(**tags: int) -> bytes:
    """Makes a grey TIFF of one strip from its tags, with the directory first."""
    numbers = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262}
    numbers |= {"offset": 273, "samples": 277, "rows": 278, "bytes": 279}
    values = {"width": 1, "height": 1, "bits": 8, "compression": 1, "photometric": 1, "samples": 1}
    values |= {"rows": 2**31 - 1, "offset": 8, "bytes": 1} | tags
    entries = sorted((numbers[name], value) for name, value in values.items())
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4)


def gif(width: int, height: int, frame: tuple[int, int] | None = None, frames: int = 1) -> bytes:
    """Makes a black GIF. `frame`: width and height of each frame, by default 1 × 1."""
    across, down = frame or (1, 1)
    one = b"," + struct.pack("<HHHHB", 0, 0, across, down, 0) + b"\x02\x02\x44\x01\x00"
    table = b"\0\0\0\xff\xff\xff"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + table + one * frames + b";"


def scans(count: int) -> bytes:
    """Makes a flat grey, progressive JPEG that repeats its last scan, which refines nothing, `count` times."""
    data = encode(np.full((16, 16), 128, np.uint8), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")  # the last scan
    return data[:start] + data[start:-2] * count + data[-2:]


BYTES = {
    "nothing at all": (b"", ".png"),
    "text": (b"just some text\n", ".txt"),
    "text called .jpg": (b"just some text\n", ".jpg"),
    "zeros": (bytes(1000), ".bin"),
    "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", ".html"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>', ".svg"),
    "SVG that asks for a file": (
        b'<!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>',
        ".svg",
    ),
    "PDF": (b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", ".pdf"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", ".eps"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), ".heic"),
    "AVIF": (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(64), ".avif"),
    "FITS": (b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800), ".fits"),
    "ICNS": (b"icns\0\0\0\x10ic07\0\0\0\x08", ".icns"),
    "ICO": (b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + bytes(40), ".ico"),
    "PSD": (b"8BPS\0\1" + bytes(60), ".psd"),
    "WAV": (b"RIFF\x24\0\0\0WAVEfmt ", ".wav"),
    "a zip archive": (b"PK\3\4" + bytes(60), ".zip"),
    "a gzipped PNG": (gzip.compress(encode(PICTURE, "PNG"), mtime=0), ".png"),
}


def no_images() -> list[Case]:
    return [Case("not an image", name, data, "unsupported", end) for name, (data, end) in BYTES.items()]


def broken_images() -> list[Case]:
    whole = {name: encode(NOISE, name) for name in FORMATS}
    heads = {"JPEG": 200, "PNG": 33, "GIF": 13, "BMP": 54, "TIFF": 8, "WEBP": 20, "PPM": 13}
    row = b"\0" + bytes(64)
    full = zlib.compress(row * 64)
    cases = {f"half a {name}": data[: len(data) // 2] for name, data in whole.items()}
    cases |= {f"the head of a {name}": data[: heads[name]] for name, data in whole.items()}
    cases |= {
        "PNG with a wrong checksum of its header": whole["PNG"][:29] + b"abcd" + whole["PNG"][33:],
        "PNG with a wrong checksum of its pixels": png(64, 64, 8, 0, chunk(b"IDAT", full, 1)),
        "PNG without pixels": png(64, 64, 8, 0),
        "PNG with empty pixels": png(64, 64, 8, 0, chunk(b"IDAT", b"")),
        "PNG with half of its rows": png(64, 64, 8, 0, idat(row * 32)),
        "PNG whose pixels are not compressed": png(64, 64, 8, 0, chunk(b"IDAT", row * 64)),
        "PNG whose pixels claim 2 GiB": png(64, 64, 8, 0)[:33] + b"\x7f\xff\xff\xffIDAT" + full,
        "PNG with an unknown colour type": png(64, 64, 8, 5, idat(row * 64)),
        "PNG of no width": png(0, 64, 8, 0, idat(row * 64)),
        "PNG of no height": png(64, 0, 8, 0, idat(row * 64)),
        "GIF of no size": gif(0, 0, (0, 0)),
        "BMP of no size": whole["BMP"][:18] + bytes(8) + whole["BMP"][26:],
        "PPM of no size": b"P6 0 0 255\n",
        "PPM of negative size": b"P6 -5 5 255\n" + bytes(75),
        "PPM with letters for a size": b"P6 five 5 255\n" + bytes(75),
        "PPM with a size of 5,000 digits": b"P6 " + b"9" * 5000 + b" 1 255\n",
        "TIFF of no size": tiff(width=0, height=0),
        "TIFF whose directory lies beyond its end": b"II*\0\xff\xff\xff\x7f",
        "TIFF whose directory is cut off": tiff()[:40],
        "TIFF whose pixels lie beyond its end": tiff(width=64, height=64, offset=2**31, bytes=4096),
        "TIFF with an unknown compression": tiff(compression=4242),
        "JPEG without a scan": whole["JPEG"][: whole["JPEG"].index(b"\xff\xda")] + b"\xff\xd9",
        "JPEG with tables that are missing": whole["JPEG"].replace(b"\xff\xdb", b"\xff\xfe"),
    }
    return [Case("broken", name, data, "broken", ".png") for name, data in cases.items()]


def bombs() -> list[Case]:
    """Makes small files that demand much time or memory. The last two contain a small, cheap picture."""
    zeros = zlib.compress(bytes(200_000_000), 9)
    million = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1_000_000), 9))
    pixel = idat(b"\0\0")
    large = struct.pack("<I", SIDE)
    cases = {
        "PNG of 20,000 × 20,000": png(SIDE, SIDE, 8, 2, idat(bytes(1000))),
        "PNG of 2³¹ × 2³¹": png(2**31, 2**31, 8, 2, pixel),
        "PNG of 2³¹ − 1 × 1": png(2**31 - 1, 1, 8, 0, pixel),
        "PNG of 13,000 × 13,000 bits": png(13_000, 13_000, 1, 0, idat(bytes(13_000 * 1626))),
        "PNG with a text of 200 MB": png(1, 1, 8, 0, chunk(b"zTXt", b"k\0\0" + zeros), pixel),
        "PNG with a text of 200 MB after the pixels": png(
            1, 1, 8, 0, pixel, chunk(b"zTXt", b"k\0\0" + zeros)
        ),
        "PNG with an international text of 200 MB": png(
            1, 1, 8, 0, chunk(b"iTXt", b"k\0\1\0\0\0" + zeros), pixel
        ),
        "PNG with sixty texts of 1 MB": png(1, 1, 8, 0, *[million] * 60, pixel),
        "PNG with a colour profile of 200 MB": png(1, 1, 8, 0, chunk(b"iCCP", b"k\0\0" + zeros), pixel),
        "PNG of one pixel with 200 MB of them": png(1, 1, 8, 0, chunk(b"IDAT", zeros)),
        "GIF of 60,000 × 60,000": gif(60_000, 60_000),
        "GIF whose frame is larger than itself": gif(1, 1, (60_000, 60_000)),
        "GIF of 10,000 frames": gif(1, 1, frames=10_000),
        "GIF of a million blocks": gif(1, 1)[:-1] + b"!\xfe" + b"\x01 " * 1_000_000,
        "BMP of 20,000 × 20,000": b"BM"
        + bytes(8)
        + struct.pack("<II", 54, 40)
        + large * 2
        + b"\1\0\x18\0"
        + bytes(24),
        "JPEG of 65,500 × 65,500": b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xdc\xff\xdc\x01\x01\x11\0"
        b"\xff\xda\0\x08\x01\x01\0\0?\0",
        "JPEG of a thousand scans": scans(1000),
        "TIFF of 20,000 × 20,000": tiff(width=SIDE, height=SIDE),
        "TIFF of 2³¹ − 1 × 2³¹ − 1": tiff(width=2**31 - 1, height=2**31 - 1),
        "WebP of 16,777,216 × 16,777,216": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff" * 6,
        "PPM of 20,000 × 20,000": b"P6 20000 20000 255\n",
    }
    found = [Case("bomb", name, data, "too_large") for name, data in cases.items()]
    black = np.zeros((1, 1, 3), np.uint8)
    return [
        *found,
        Case("bomb", "GIF of 1,000 frames", gif(1, 1, frames=1_000), black, ".gif"),
        Case("bomb", "TIFF of 10,000 pages", pages(10_000), black, ".tif"),
    ]


def pages(count: int) -> bytes:
    """Makes a TIFF of `count` directories of one black pixel. All share the pixel, which is the last byte."""
    size = len(tiff()) - 8
    end = 8 + size * count
    directories = []
    for number in range(count):
        directory = tiff(offset=end)[8:-4]
        following = 8 + size * (number + 1) if number + 1 < count else 0
        directories.append(directory + struct.pack("<I", following))
    return b"II*\0" + struct.pack("<I", 8) + b"".join(directories) + b"\0"


def interlaced(pixels: np.ndarray) -> bytes:
    """Makes an Adam7 PNG, which Pillow can read but not write."""
    height, width, _ = pixels.shape
    steps = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = [
        b"\0" + pixels[row, left::across].tobytes()
        for left, top, across, down in steps
        for row in range(top, height, down)
        if left < width
    ]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + header + idat(b"".join(rows)) + chunk(b"IEND", b"")


def odd_images() -> list[Case]:
    on_off = np.where(NOISE[:6, :8] > 127, 255, 0).astype(np.uint8)
    ink = np.concatenate([255 - on_off, np.zeros((6, 8, 1), np.uint8)], axis=2)
    rgba = np.concatenate([PICTURE, np.where(PICTURE[..., :1] > 127, 255, 0).astype(np.uint8)], axis=2)
    on_white = np.where(rgba[..., 3:] == 255, rgba[..., :3], 255)
    paletted = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    paletted.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    deep = np.array([[0, 255, 256, 12345, 32768, 65535]], np.uint16)
    first, second = (
        Image.fromarray(np.full((4, 6), 40, np.uint8)),
        Image.fromarray(np.full((4, 6), 9, np.uint8)),
    )
    frames: dict[str, Any] = {"save_all": True, "append_images": [second]}
    flat = grey(np.full((16, 16), 128))
    wide = np.arange(65_500, dtype=np.uint32).astype(np.uint8)[None]
    plain = encode(PICTURE, "PNG")
    red = np.full((16, 16, 3), (255, 0, 0), np.uint8)
    red_ink = np.concatenate([255 - red, np.zeros((16, 16, 1), np.uint8)], axis=2)
    cases: dict[str, tuple[bytes, np.ndarray, str]] = {
        "CMYK TIFF": (encode(Image.fromarray(ink, "CMYK"), "TIFF"), on_off, ".tif"),
        "CMYK JPEG": (encode(Image.fromarray(red_ink, "CMYK"), "JPEG", quality=100), red, ".jpg"),
        "grey PNG": (encode(PICTURE[..., 0], "PNG"), grey(PICTURE[..., 0]), ".png"),
        "grey JPEG": (encode(np.full((16, 16), 128, np.uint8), "JPEG"), flat, ".jpg"),
        "grey PNG with alpha": (
            encode(Image.fromarray(np.array([[[0, 0], [0, 255], [100, 51]]], np.uint8), "LA"), "PNG"),
            grey([[255, 0, 224]]),
            ".png",
        ),
        "PNG with alpha": (encode(rgba, "PNG"), on_white, ".png"),
        "WebP with alpha": (encode(rgba, "WEBP", lossless=True, exact=True), on_white, ".webp"),
        "palette with a transparent colour": (
            encode(paletted, "PNG", transparency=1),
            np.array([[[255, 0, 0], [255, 255, 255], [0, 0, 255]]], np.uint8),
            ".png",
        ),
        "palette GIF with a transparent colour": (
            encode(paletted, "GIF", transparency=1),
            np.array([[[255, 0, 0], [255, 255, 255], [0, 0, 255]]], np.uint8),
            ".gif",
        ),
        "1-bit PNG": (
            encode(Image.fromarray(PICTURE[..., 0] > 127), "PNG"),
            grey((PICTURE[..., 0] > 127) * 255),
            ".png",
        ),
        "16-bit grey PNG": (encode(deep, "PNG"), grey(deep >> 8), ".png"),
        "16-bit grey TIFF": (encode(deep, "TIFF"), grey(deep >> 8), ".tif"),
        "16-bit colour PNG": (
            png(2, 1, 16, 2, idat(b"\0" + deep.astype(">u2").tobytes())),
            (deep >> 8).astype(np.uint8).reshape(1, 2, 3),
            ".png",
        ),
        "16-bit PGM": (b"P5 6 1 65535\n" + deep.astype(">u2").tobytes(), grey(deep >> 8), ".pgm"),
        "float TIFF": (
            encode(np.array([[0, 0.25, 0.5, 1]], np.float32), "TIFF"),
            grey([[0, 64, 128, 255]]),
            ".tif",
        ),
        "animated GIF": (encode(first, "GIF", **frames), grey(np.full((4, 6), 40)), ".gif"),
        "animated PNG": (encode(first, "PNG", **frames), grey(np.full((4, 6), 40)), ".png"),
        "animated WebP": (encode(first, "WEBP", lossless=True, **frames), grey(np.full((4, 6), 40)), ".webp"),
        "1 × 1": (encode(PICTURE[:1, :1], "PNG"), PICTURE[:1, :1], ".png"),
        "65,500 × 1": (encode(wide, "PNG"), grey(wide), ".png"),
        "1 × 65,500": (encode(wide.T, "PNG"), grey(wide.T), ".png"),
        "JPEG of 65,500 × 1": (
            encode(np.full((1, 65_500), 128, np.uint8), "JPEG"),
            grey(np.full((1, 65_500), 128)),
            ".jpg",
        ),
        "PNG with data after its end": (plain + b"<script>" * 100, PICTURE, ".png"),
        "JPEG with data after its end": (encode(flat, "JPEG") + plain, flat, ".jpg"),
        "interlaced PNG": (interlaced(PICTURE), PICTURE, ".png"),
        "interlaced PNG of one column": (interlaced(NOISE[:, :1]), NOISE[:, :1], ".png"),
        "PNG called .jpg": (plain, PICTURE, ".jpg"),
    }
    exif = Image.Exif()
    for turn, upright in TURNS.items():
        exif[0x0112] = turn
        cases[f"PNG with EXIF orientation {turn}"] = (
            encode(PICTURE, "PNG", exif=exif),
            upright(PICTURE),
            ".png",
        )
    return [Case("odd", name, data, pixels, end) for name, (data, pixels, end) in cases.items()]


def every_case() -> list[Case]:
    return [*no_images(), *broken_images(), *bombs(), *odd_images()]
