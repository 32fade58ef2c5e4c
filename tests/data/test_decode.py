"""Any bytes become upright RGB pixels, or an ImageError."""

import io
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hostile import TURNS
from PIL import Image, ImageDraw, ImageFile

from visionpipe.data.decode import decode_image
from visionpipe.data.formats import open_image
from visionpipe.data.frame import RESAMPLING, frame
from visionpipe.data.headers import CLIENT_PIXELS, MAX_PIXELS, check_size
from visionpipe.errors import ImageError

ORIENTATION = 0x0112
PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
OTHER = 255 - PICTURE


def encode(image, image_format, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, image_format, **options
    )
    return buffer.getvalue()


def grey(levels):
    """A grey RGB picture of the given levels."""
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=-1)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, depth, colour, scanlines, *extra):
    """A PNG file written by hand; `scanlines` includes the filter bytes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, content)
        for kind, content in [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(scanlines)), (b"IEND", b"")]
    )


def code_of(data):
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    assert "0x" not in caught.value.reason, "a memory address would differ from run to run"
    assert "\n" not in caught.value.reason
    return caught.value.code


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
def test_a_lossless_format_gives_the_stored_pixels(image_format, options):
    decoded = decode_image(encode(PICTURE, image_format, **options))
    np.testing.assert_array_equal(decoded, PICTURE)
    assert decoded.dtype == np.uint8


def test_a_jpeg_of_a_flat_colour_gives_that_colour():
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(decode_image(encode(flat, "JPEG", quality=95)).astype(int), flat, atol=2)


def test_a_single_pixel_is_an_image():
    pixel = np.array([[[1, 2, 3]]], np.uint8)
    np.testing.assert_array_equal(decode_image(encode(pixel, "PNG")), pixel)


def test_grey_levels_become_equal_channels():
    np.testing.assert_array_equal(decode_image(encode(PICTURE[..., 0], "PNG")), grey(PICTURE[..., 0]))


def test_one_bit_becomes_black_and_white():
    bits = PICTURE[..., 0] > 127
    np.testing.assert_array_equal(decode_image(encode(Image.fromarray(bits), "PNG")), grey(bits * 255))


def test_cmyk_is_ink_on_white_paper():
    ink = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    cyan_magenta_yellow, black = 255.0 - ink[..., :3], 255.0 - ink[..., 3:]
    decoded = decode_image(encode(Image.fromarray(ink, "CMYK"), "TIFF"))
    np.testing.assert_allclose(decoded, cyan_magenta_yellow * black / 255, atol=1)


def test_a_cmyk_jpeg_is_not_inverted():
    ink = np.broadcast_to(np.array([0, 255, 255, 0], np.uint8), (16, 16, 4))
    red = np.broadcast_to([255, 0, 0], (16, 16, 3))
    decoded = decode_image(encode(Image.fromarray(ink.copy(), "CMYK"), "JPEG", quality=95))
    np.testing.assert_allclose(decoded.astype(int), red, atol=4)


@pytest.mark.parametrize("ink", [(0, 255, 255, 0), (200, 30, 90, 40), (0, 0, 0, 0), (10, 20, 30, 220)])
@pytest.mark.parametrize("transform", [0, 2])
def test_a_jpeg_of_adobe_has_inverted_ink_as_it_is_or_as_ycck(ink, transform):
    """ITU-T T.872, 6.5.3: with transform 2 the first three channels are the YCbCr of the ink, with black as it is."""
    stored = np.array(ink)
    if transform == 2:
        stored[:3] = Image.new("RGB", (1, 1), ink[:3]).convert("YCbCr").getpixel((0, 0))
        stored[:3] = 255 - stored[:3]
    planes = np.broadcast_to(stored.astype(np.uint8), (16, 16, 4)).copy()
    data = encode(
        Image.fromarray(planes, "CMYK"), "JPEG", quality=100
    )  # Pillow inverts, and writes transform 0
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    decoded = decode_image(data[:place] + bytes([transform]) + data[place + 1 :])
    expected = (255.0 - np.array(ink[:3])) * (255 - ink[3]) / 255
    np.testing.assert_allclose(decoded, np.broadcast_to(expected, (16, 16, 3)), atol=4)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_alpha_is_composited_on_white(image_format):
    rgba = np.random.default_rng(2).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    alpha = rgba[..., 3:] / 255
    expected = rgba[..., :3] * alpha + 255 * (1 - alpha)
    options = {"lossless": True, "exact": True} if image_format == "WEBP" else {}
    np.testing.assert_allclose(decode_image(encode(rgba, image_format, **options)), expected, atol=0.51)


def test_grey_with_alpha_is_composited_on_white():
    levels_alpha = np.array([[[0, 0], [0, 255], [100, 51]]], np.uint8)
    decoded = decode_image(encode(Image.fromarray(levels_alpha, "LA"), "PNG"))
    np.testing.assert_array_equal(decoded, grey([[255, 0, 224]]))  # 100 × 0.2 + 255 × 0.8 = 224


def test_transparent_palette_entries_become_white():
    paletted = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    paletted.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    one_clear = decode_image(encode(paletted, "PNG", transparency=1))
    np.testing.assert_array_equal(one_clear, [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]])
    table = decode_image(encode(paletted, "PNG", transparency=bytes([255, 0, 51])))
    np.testing.assert_array_equal(table, [[[255, 0, 0], [255, 255, 255], [204, 204, 255]]])


@pytest.mark.parametrize(
    ("depth", "scanline", "key", "expected"),
    [
        (8, bytes([0, 7, 9]), 7, [0, 255, 9]),
        (16, struct.pack(">xHHH", 7, 0x0900, 0x0907), 0x0900, [0, 255, 9]),
    ],
)
def test_a_transparent_grey_level_becomes_white(depth, scanline, key, expected):
    scanline = scanline if depth == 16 else b"\0" + scanline
    data = png(3, 1, depth, 0, scanline, (b"tRNS", struct.pack(">H", key)))
    np.testing.assert_array_equal(decode_image(data), grey([expected]))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_keeps_its_high_byte(image_format):
    levels = np.array([[0, 255, 256, 12345, 32768, 65535]], np.uint16)
    data = (
        b"P5 6 1 65535\n" + levels.astype(">u2").tobytes()
        if image_format == "PPM"
        else encode(levels, image_format)
    )
    np.testing.assert_array_equal(decode_image(data), grey(levels >> 8))


def test_sixteen_bit_colour_keeps_its_high_byte():
    levels = np.array([[[0, 255, 256], [12345, 32768, 65535]]], np.uint16)
    data = png(2, 1, 16, 2, b"\0" + levels.astype(">u2").tobytes())
    np.testing.assert_array_equal(decode_image(data), levels >> 8)


def test_twelve_bit_grey_is_scaled_by_its_own_white():
    packed = bytes([0x00, 0x08, 0x00, 0xFF, 0xF0, 0x10])  # 0x000, 0x800, 0xFFF, 0x010
    tags = {256: 4, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(packed)}
    directory = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    data = struct.pack("<4sI6s2xH", b"II*\0", 16, packed, len(tags)) + directory + bytes(4)
    np.testing.assert_array_equal(decode_image(data), grey([[0, 128, 255, 1]]))


def test_floats_between_zero_and_one_are_multiplied_by_255():
    levels = np.array([[0.0, 0.25, 0.5, 1.0]], np.float32)
    np.testing.assert_array_equal(decode_image(encode(levels, "TIFF")), grey([[0, 64, 128, 255]]))


def test_other_floats_are_stretched_from_least_to_largest():
    levels = np.array([[-100.0, 0.0, 100.0, 300.0]], np.float32)
    np.testing.assert_array_equal(decode_image(encode(levels, "TIFF")), grey([[0, 64, 128, 255]]))


def test_a_flat_float_image_of_any_level_decodes():
    np.testing.assert_array_equal(
        decode_image(encode(np.full((2, 2), 7.5, np.float32), "TIFF")), grey(np.zeros((2, 2)))
    )


def test_floats_that_are_not_numbers_are_refused():
    assert code_of(encode(np.array([[0.0, np.nan]], np.float32), "TIFF")) == "broken"


def test_a_grey_tiff_whose_zero_is_white_is_not_shown_as_a_negative():
    levels = np.array([[0, 65535]], np.uint16)
    data = encode(levels, "TIFF").replace(
        struct.pack("<HHIHH", 262, 3, 1, 1, 0), struct.pack("<HHIHH", 262, 3, 1, 0, 0)
    )
    np.testing.assert_array_equal(decode_image(data), grey([[255, 0]]))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(image_format, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options = {"lossless": True} if image_format == "WEBP" else {}
    decoded = decode_image(encode(PICTURE, image_format, exif=exif, **options))
    np.testing.assert_array_equal(decoded, TURNS[orientation](PICTURE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_of_a_jpeg_is_applied(orientation):
    quarters = np.kron(np.array([[250, 180, 120], [60, 20, 90]], np.uint8), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    decoded = decode_image(encode(quarters, "JPEG", quality=95, exif=exif))
    np.testing.assert_allclose(decoded.astype(int), TURNS[orientation](grey(quarters)), atol=3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_impossible_orientation_leaves_the_pixels_as_stored(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    np.testing.assert_array_equal(decode_image(encode(PICTURE, "PNG", exif=exif)), PICTURE)


def jpeg_with_damaged_metadata():
    """A flat grey file that Pillow alone warns about."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010E] = "a description that is cut off"
    return encode(grey(np.full((8, 8), 77)), "JPEG", exif=exif.tobytes()[:-20])


def test_damaged_metadata_neither_warns_nor_spoils_the_image():
    with pytest.warns(UserWarning, match="Truncated File Read"):
        Image.open(io.BytesIO(jpeg_with_damaged_metadata())).getexif()
    np.testing.assert_allclose(decode_image(jpeg_with_damaged_metadata()).astype(int), 77, atol=1)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several_is_taken(image_format):
    first, second = (Image.fromarray(np.full((4, 6), level, np.uint8)) for level in (40, 200))
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(first, image_format, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(decode_image(data), grey(np.full((4, 6), 40)))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("kept_fraction", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(image_format, kept_fraction):
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(noise, image_format)
    assert code_of(data[: int(len(data) * kept_fraction)]) == "broken"


@pytest.mark.parametrize(
    "data", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"BM", b"II*\0", b"RIFF\0\0\0\0WEBP", b"P6 "]
)
def test_a_bare_signature_is_a_broken_file(data):
    assert code_of(data) == "broken"


def test_a_flipped_bit_in_a_png_is_noticed():
    data = bytearray(encode(PICTURE, "PNG"))
    data[data.index(b"IDAT") + 20] ^= 1
    assert code_of(bytes(data)) == "broken"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"just some text\n",
        b"<!DOCTYPE html><html><body>404</body></html>",
        b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"%PDF-1.7\n",
        b"\0\0\1\0\1\0",
        b"RIFF\x24\0\0\0WAVEfmt ",
        b"PK\3\4",
    ],
    ids=["empty", "text", "html", "svg", "eps", "pdf", "ico", "wav", "zip"],
)
def test_anything_else_is_unsupported(data):
    assert code_of(data) == "unsupported"


SIDE = 30_000  # 900 megapixels
BOMBS = {
    "png": png(SIDE, SIDE, 1, 0, b"\0"),
    "gif": b"GIF89a"
    + struct.pack("<HH", SIDE, SIDE)
    + b"\0\0\0,\0\0\0\0"
    + struct.pack("<HH", SIDE, SIDE)
    + b"\0\2\0;",
    "bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, SIDE, SIDE, 1, 24, 0, 0, 0, 0, 0, 0),
    "ppm": b"P6 %d %d 255\n" % (SIDE, SIDE),
    "jpeg": b"\xff\xd8\xff\xc0\0\x0b\x08"
    + struct.pack(">HH", SIDE, SIDE)
    + b"\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0?\0",
    "tiff": encode(np.zeros((1, 1), np.uint8), "TIFF")
    .replace(struct.pack("<HHII", 256, 4, 1, 1), struct.pack("<HHII", 256, 4, 1, SIDE))
    .replace(struct.pack("<HHII", 257, 4, 1, 1), struct.pack("<HHII", 257, 4, 1, SIDE)),
}


@pytest.mark.parametrize("image_format", BOMBS)
def test_a_bomb_is_refused_from_its_header(image_format):
    assert code_of(BOMBS[image_format]) == "too_large"


def test_an_image_one_row_over_the_limit_is_refused():
    assert code_of(b"P5 10000 %d 255\n" % (MAX_PIXELS // 10_000 + 1)) == "too_large"


def test_a_photo_of_any_camera_has_no_more_pixels_than_the_limit():
    """200 million pixels; Image.open refuses more than 179 million. Only the header is read here."""
    width, height = 16_320, 12_240
    data = encode(Image.new("L", (width, height)), "JPEG")
    check_size(width, height, MAX_PIXELS, len(data))
    assert open_image(data, "JPEG").size == (width, height)
    with pytest.raises(ImageError, match=r"visionpipe serve --max-pixels"):
        decode_image(data, CLIENT_PIXELS)


MEASURE_DECODING = r"""
import re, sys
from pathlib import Path
from visionpipe.data.decode import decode_image
from visionpipe.errors import ImageError

def peak_kibibytes():
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])

data = sys.stdin.buffer.read()
decode_image(b"P5 1 1 255\n0")
before = peak_kibibytes()
try:
    decode_image(data)
except ImageError as error:
    print(error.code, peak_kibibytes() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_real_bomb_takes_little_memory():
    bomb = png(13_000, 13_000, 1, 0, bytes(13_000 * (1 + 13_000 // 8)))
    assert len(bomb) < 30_000
    command = [sys.executable, "-c", MEASURE_DECODING]
    code, kibibytes = subprocess.run(command, input=bomb, capture_output=True, check=True).stdout.split()
    assert code == b"too_large"
    assert int(kibibytes) < 10_000


def test_random_damage_never_causes_anything_but_an_image_error():
    generator = np.random.default_rng(4)
    originals = [encode(PICTURE, name) for name in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "PPM")]
    outcomes = set()
    for _ in range(1500):
        data = bytearray(originals[generator.integers(len(originals))])
        for position in generator.integers(0, len(data), generator.integers(1, 6)):
            data[position] = generator.integers(256)
        try:
            decoded = decode_image(bytes(data))
        except ImageError as error:
            outcomes.add(error.code)
        else:
            assert decoded.ndim == 3
            outcomes.add("decoded")
    assert outcomes >= {"decoded", "broken", "unsupported"}


def test_threads_decode_side_by_side_and_leave_the_warning_filters_alone():
    data, before = jpeg_with_damaged_metadata(), list(warnings.filters)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads interrupt each other everywhere
    try:
        with ThreadPoolExecutor(8) as pool:
            for decoded in pool.map(decode_image, [data] * 2000):
                np.testing.assert_allclose(decoded.astype(int), 77, atol=1)
    finally:
        sys.setswitchinterval(interval)
    assert warnings.filters == before


def test_an_image_of_the_wanted_size_comes_back_unchanged():
    np.testing.assert_array_equal(frame(PICTURE, (5, 7)), PICTURE)


def test_the_middle_of_a_flat_block_keeps_its_colour_when_shrunk():
    blocks = PICTURE.repeat(60, axis=0).repeat(60, axis=1)
    shrunk = frame(blocks, (15, 21))  # three pixels for each block; the filter blurs the outer ones
    np.testing.assert_allclose(shrunk[1::3, 1::3].astype(int), PICTURE, atol=12)


def test_the_middle_is_kept_and_the_sides_are_cut():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = PICTURE[0, 0]
    np.testing.assert_array_equal(frame(wide, (10, 10)), wide[:, 10:20])
    tall = wide.swapaxes(0, 1)
    np.testing.assert_array_equal(frame(tall, (10, 10)), tall[10:20])


def test_the_aspect_ratio_is_kept():
    disc = Image.new("L", (300, 200))
    ImageDraw.Draw(disc).ellipse((110, 60, 190, 140), fill=255)
    resized = frame(decode_image(encode(disc, "PNG")), (50, 50))[..., 0] > 127
    assert abs(int(resized.any(axis=0).sum()) - 20) <= 1
    assert abs(int(resized.any(axis=1).sum()) - 20) <= 1


def test_resizing_agrees_with_resizing_everything_and_cutting_afterwards():
    image = np.random.default_rng(5).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    everything = np.asarray(Image.fromarray(image).resize((40, 30), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(frame(image, (30, 30)).astype(int), everything[:, 5:35], atol=1)


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize("crop_ratio", [0.75, 0.5])  # such that the sides are whole numbers and even
def test_a_crop_of_a_ratio_is_the_middle_of_a_larger_resize(interpolation, crop_ratio):
    """As published checkpoints are evaluated: the short side to size / ratio, then a central square."""
    image = np.random.default_rng(5).integers(0, 256, (90, 135, 3), dtype=np.uint8)
    height, width = round(30 / crop_ratio), round(45 / crop_ratio)
    resampling = Image.Resampling[interpolation.upper()]
    everything = np.asarray(Image.fromarray(image).resize((width, height), resampling))
    top, left = (height - 30) // 2, (width - 30) // 2
    expected = everything[top : top + 30, left : left + 30]
    received = frame(image, (30, 30), interpolation, crop_ratio)
    np.testing.assert_allclose(received.astype(int), expected, atol=1)


def test_an_image_of_the_wanted_size_is_cropped_where_that_is_asked_for():
    assert (frame(PICTURE, (5, 7), crop_ratio=0.8) != PICTURE).any()


def test_a_very_long_strip_is_resized_without_becoming_huge():
    strip = np.zeros((1, 1_000_000, 3), np.uint8)
    tracemalloc.start()
    try:
        assert frame(strip, (64, 64)).shape == (64, 64, 3)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_pillow_global_settings_are_left_alone():
    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    decode_image(encode(PICTURE, "PNG"))
    code_of(BOMBS["png"])
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
