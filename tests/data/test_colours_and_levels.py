"""Colour profiles, levels of more than 8 bits, files whose rest is zeros, and cameras' raw files."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from visionpipe.data.colours import SRGB_WITHIN
from visionpipe.data.decode import decode_image, read_image
from visionpipe.data.headers import CLIENT_PIXELS, MOST_PIXELS_OF_A_BYTE, check_size
from visionpipe.errors import ImageError

RANDOM = np.random.default_rng(0)
NOISE = RANDOM.integers(0, 256, (200, 200, 3), dtype=np.uint8)


def encode(image, image_format, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        buffer, image_format, **options
    )
    return buffer.getvalue()


def refusal(data):
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    return caught.value


# Colour profiles ---------------------------------------------------------------------------------------

# Chromaticities of red, green and blue, and the exponent of the transfer function, None for sRGB's. White is D65.
SPACES = {
    "sRGB": ([(0.64, 0.33), (0.30, 0.60), (0.15, 0.06)], None),
    "Display P3": ([(0.68, 0.32), (0.265, 0.69), (0.15, 0.06)], None),
    "Adobe RGB": ([(0.64, 0.33), (0.21, 0.71), (0.15, 0.06)], 563 / 256),
}
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D65, D50 = np.array([0.95047, 1, 1.08883]), np.array([0.9642, 1, 0.8249])


def to_xyz(primaries):
    """RGB → XYZ under D65, from chromaticities (SMPTE RP 177)."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, D65)


def linear(values, exponent):
    if exponent:
        return values**exponent
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def expected_in_srgb(pixels, name):
    """The formulas of IEC 61966-2-1, without a profile."""
    primaries, exponent = SPACES[name]
    matrix = np.linalg.inv(to_xyz(SPACES["sRGB"][0])) @ to_xyz(primaries)
    light = np.clip(linear(pixels / 255, exponent) @ matrix.T, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def profile(name, space=b"RGB "):
    """Writes an ICC profile of version 2 with a matrix, or of grey levels (ICC.1:2001-04)."""
    primaries, exponent = SPACES[name]
    adaptation = np.linalg.inv(BRADFORD) @ np.diag(BRADFORD @ D50 / (BRADFORD @ D65)) @ BRADFORD
    xyz = (adaptation @ to_xyz(primaries)).T

    def fixed(values):
        return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    if exponent:
        curve = b"curv\0\0\0\0" + struct.pack(">IH2x", 1, round(exponent * 256))
    else:
        points = np.rint(65535 * linear(np.linspace(0, 1, 1024), None)).astype(">u2")
        curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + points.tobytes()
    text = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    tags = {b"desc": text + bytes(-len(text) % 4), b"cprt": b"text\0\0\0\0x\0\0\0", b"wtpt": fixed(D50)}
    if space == b"RGB ":
        tags |= {colour + b"XYZ": fixed(row) for colour, row in zip((b"r", b"g", b"b"), xyz, strict=True)}
        tags |= {colour + b"TRC": curve for colour in (b"r", b"g", b"b")}
    else:
        tags[b"kTRC"] = curve
    table, content = struct.pack(">I", len(tags)), b""
    for kind, value in tags.items():
        table += kind + struct.pack(">II", 132 + 12 * len(tags) + len(content), len(value))
        content += value
    head = struct.pack(
        ">I4sI4s4s4s12s4s4sIIII12s4s44x", 132 + 12 * len(tags) + len(content), b"", 0x02400000, b"mntr", space,
        b"XYZ ", bytes([7, 208, 0, 1, 0, 1] + [0] * 6), b"acsp", b"", 0, 0, 0, 0,
        b"\0" * 4 + b"\0\0\0\1" + fixed(D50)[8:12], b"",
    )[:68] + fixed(D50)[8:] + bytes(48)  # fmt: skip
    return head + table + content


@pytest.mark.parametrize("name", ["Display P3", "Adobe RGB"])
@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "WEBP"])
def test_a_wide_gamut_becomes_srgb(name, image_format):
    options = {"lossless": True} if image_format == "WEBP" else {}
    decoded = decode_image(encode(NOISE, image_format, icc_profile=profile(name), **options))
    assert np.abs(decoded - expected_in_srgb(NOISE, name)).max() <= 2
    assert np.abs(decoded.astype(int) - NOISE).max() > 50


def test_srgb_changes_no_pixel_whoever_wrote_its_profile():
    ours = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for srgb in (profile("sRGB"), ours):
        np.testing.assert_array_equal(decode_image(encode(NOISE, "PNG", icc_profile=srgb)), NOISE)
    assert np.abs(expected_in_srgb(NOISE, "sRGB") - NOISE).max() < SRGB_WITHIN


def test_a_grey_profile_applies_to_grey_pixels_and_alpha_remains():
    levels = np.arange(256, dtype=np.uint8)[None]
    data = encode(levels, "PNG", icc_profile=profile("Adobe RGB", b"GRAY"))
    expected = expected_in_srgb(np.repeat(levels[..., None], 3, -1), "Adobe RGB")
    assert np.abs(decode_image(data) - expected).max() <= 2
    clear = np.dstack([levels, 0 * levels])
    data = encode(Image.fromarray(clear, "LA"), "PNG", icc_profile=profile("Adobe RGB", b"GRAY"))
    assert (decode_image(data) == 255).all()
    data = encode(
        np.dstack([NOISE, np.full((200, 200), 255, np.uint8)]), "PNG", icc_profile=profile("Display P3")
    )
    assert np.abs(decode_image(data) - expected_in_srgb(NOISE, "Display P3")).max() <= 2


@pytest.mark.parametrize(
    "damage", [lambda p: p[:100], lambda p: p[:16] + b"GRAY" + p[20:], lambda p: b"no profile"]
)
def test_a_profile_that_is_damaged_or_of_other_pixels_is_ignored(damage):
    data = encode(NOISE, "PNG", icc_profile=damage(profile("Display P3")))
    np.testing.assert_array_equal(decode_image(data), NOISE)


def test_ink_is_converted_by_its_profile_only_if_it_has_one():
    """No profile of ink is at hand; one of colours does not fit ink."""
    ink = Image.fromarray(RANDOM.integers(0, 256, (9, 9, 4), dtype=np.uint8), "CMYK")
    plain, other = encode(ink, "TIFF"), encode(ink, "TIFF", icc_profile=profile("Display P3"))
    np.testing.assert_array_equal(decode_image(plain), decode_image(other))


# Levels of more than 8 bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_given_levels_become_black_and_white(image_format, bits):
    levels = RANDOM.integers(0, 2**bits, (8, 9), dtype=np.uint16)
    levels[0, :2] = 0, 2**bits - 1
    pgm = b"P5 9 8 65535\n" + levels.astype(">u2").tobytes()
    data = pgm if image_format == "PPM" else encode(levels, image_format)
    decoded, open_levels = read_image(data, levels=(0, 2**bits - 1))
    np.testing.assert_array_equal(decoded[..., 0], levels >> (bits - 8))
    assert open_levels is None
    _, open_levels = read_image(data)
    assert (open_levels.lowest, open_levels.highest, open_levels.stretched) == (0, 2**bits - 1, False)


def test_levels_outside_the_given_ones_are_clipped():
    levels = np.array([[0, 100, 150, 200, 65535]], np.uint16)
    np.testing.assert_array_equal(
        decode_image(encode(levels, "PNG"), levels=(100, 200))[0, :, 0], [0, 0, 128, 255, 255]
    )
    floats = np.array([[-2.0, 0.0, 2.0]], np.float32)
    np.testing.assert_array_equal(
        decode_image(encode(floats, "TIFF"), levels=(-2, 2))[0, :, 0], [0, 128, 255]
    )


def sixteen_bit_png(levels):
    """An RGB, RGBA or grey-and-alpha PNG of 16 bits, which Pillow cannot write."""
    import zlib

    height, width, channels = levels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def sixteen_bit_tiff(levels):
    """An uncompressed RGB TIFF of 16 bits."""
    height, width, _ = levels.shape
    pixels = levels.astype("<u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8), (259, 3, 1, 1), (262, 3, 1, 2)]
    tags += [(273, 4, 1, 14), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels))]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return (
        struct.pack("<4sI3H", b"II*\0", 14 + len(pixels), 16, 16, 16)
        + pixels
        + struct.pack("<H", len(tags))
        + directory
        + bytes(4)
    )


@pytest.mark.parametrize(
    "write",
    [
        sixteen_bit_png,
        sixteen_bit_tiff,
        lambda levels: b"P6 9 8 65535\n" + levels.astype(">u2").tobytes(),
    ],
)
def test_colours_of_twelve_bits_keep_them(write):
    levels = RANDOM.integers(0, 4096, (8, 9, 3), dtype=np.uint16)
    levels[0, 0] = 4095
    decoded, open_levels = read_image(write(levels), levels=(0, 4095))
    np.testing.assert_array_equal(decoded, levels >> 4)
    assert open_levels is None
    assert read_image(write(levels))[1].highest == 4095
    bright = levels * 16
    decoded, open_levels = read_image(write(bright))
    assert np.abs(decoded.astype(int) - (bright >> 8)).max() <= (1 if write(bright).startswith(b"P6") else 0)
    assert open_levels is None


def test_a_white_that_the_file_states_is_used():
    levels = RANDOM.integers(0, 1024, (8, 9), dtype=np.uint16)
    decoded, open_levels = read_image(b"P5\n# camera\n9 8 1023\n" + levels.astype(">u2").tobytes())
    assert np.abs(decoded[..., 0] - levels / 1023 * 255).max() <= 1
    assert open_levels is None
    info = {281: 4095}
    levels[0, 0] = 4095
    decoded, open_levels = read_image(encode(levels, "TIFF", tiffinfo=info))
    np.testing.assert_array_equal(decoded[..., 0], levels >> 4)
    assert open_levels is None
    levels[0, 0] = 5000  # the statement is wrong
    assert read_image(encode(levels, "TIFF", tiffinfo=info))[1].highest == 5000


def test_floats_that_say_no_white_are_reported():
    floats = np.array([[-1.0, 3.0]], np.float32)
    _, open_levels = read_image(encode(floats, "TIFF"))
    assert (open_levels.lowest, open_levels.highest, open_levels.stretched) == (-1, 3, True)
    assert read_image(encode(np.array([[0.0, 1.0]], np.float32), "TIFF"))[1] is None


# Files whose rest is zeros -----------------------------------------------------------------------------

SMOOTH = np.asarray(Image.fromarray(NOISE[::10, ::10]).resize((400, 400), Image.Resampling.BICUBIC))
WRITTEN = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("JPEG", {"optimize": True}),
    ("PNG", {}),
    ("GIF", {}),
    ("BMP", {}),
    ("WEBP", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "packbits"}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("PPM", {}),
]


@pytest.mark.parametrize(("image_format", "options"), WRITTEN)
@pytest.mark.parametrize("pixels", [NOISE, np.clip(SMOOTH, 1, 255)], ids=["noise", "smooth"])
@pytest.mark.parametrize("received", [0.343, 0.617])
def test_a_download_whose_rest_is_zeros_is_refused(image_format, options, pixels, received):
    data = encode(pixels, image_format, **options)
    decode_image(data)
    length = int(len(data) * received)
    assert refusal(data[:length] + bytes(len(data) - length)).code == "broken"


def test_a_hole_in_the_middle_of_a_jpeg_is_noticed():
    data = encode(SMOOTH, "JPEG", quality=90)
    middle = len(data) // 2
    assert refusal(data[:middle] + bytes(2048) + data[middle + 2048 :]).code == "broken"


@pytest.mark.parametrize(("image_format", "options"), WRITTEN)
def test_black_and_flat_pictures_and_margins_are_no_missing_pixels(image_format, options):
    margin = SMOOTH.copy()
    margin[:130], margin[-150:] = 0, 0
    disc = np.hypot(*np.mgrid[-200:200, -200:200])[..., None] < 150
    for pixels in (
        np.zeros((900, 900, 3), np.uint8),
        np.full((900, 900, 3), 77, np.uint8),
        margin,
        SMOOTH * disc,
    ):
        decoded = decode_image(encode(pixels, image_format, **options))
        assert decoded.shape == pixels.shape


def test_bytes_behind_a_complete_jpeg_do_no_harm():
    data = encode(SMOOTH, "JPEG")
    expected = decode_image(data)
    for rest in (bytes(4096), b"MotionPhoto_Data" + encode(NOISE, "JPEG")[:500]):
        np.testing.assert_array_equal(decode_image(data + rest), expected)


# Raw files and bombs -----------------------------------------------------------------------------------


def tiff(*images, inner=(), mark=b""):
    """A TIFF of black grey images: (width, height, more tags) each; `inner` ones lie in the first one's SubIFDs."""
    start = 16 if mark else 8
    data = bytearray(b"II*\0" + struct.pack("<I", start) + mark.ljust(start - 8, b"\0"))
    links = [4]
    offsets = []

    def write(width, height, more, subimages):
        tags = {
            254: 0,
            256: width,
            257: height,
            258: 8,
            259: 1,
            262: 1,
            277: 1,
            278: height,
            279: width * height,
        } | more
        if subimages:
            tags[330] = subimages[0]
        place = len(data)
        tags[273] = place + 2 + 12 * (len(tags) + 1) + 4
        data.extend(struct.pack("<H", len(tags)))
        for tag, value in sorted(tags.items()):
            data.extend(struct.pack("<HHII", tag, 4, 1, value))
        links.append(len(data))
        data.extend(bytes(4) + bytes(width * height))
        return place

    for width, height, more in inner:
        offsets.append(write(width, height, more, ()))
    previous = 4
    for number, (width, height, more) in enumerate(images):
        place = write(width, height, more, offsets if number == 0 else ())
        struct.pack_into("<I", data, previous, place)
        previous = links[-1]
    return bytes(data)


CFA = {262: 32803}
RAW = {
    "NEF or ARW": tiff((16, 12, {254: 1}), inner=[(64, 48, CFA)]),
    "DNG": tiff((16, 12, {254: 1, 50706: 0x401}), inner=[(64, 48, {262: 34892})]),
    "second image": tiff((16, 12, {}), (64, 48, CFA)),
    "CR2": tiff((16, 12, {}), (64, 48, {}), mark=b"CR\2\0"),
    "IIQ": tiff((16, 12, {}), mark=b"IIII"),
}


@pytest.mark.parametrize("name", RAW)
def test_the_thumbnail_of_a_raw_photo_is_not_taken_for_the_photo(name):
    assert decode_image(tiff((16, 12, {}))).shape == (12, 16, 3)
    error = refusal(RAW[name])
    assert error.code == "unsupported"
    assert "raw photo" in error.reason


def test_a_thumbnail_before_its_image_is_refused_and_a_pyramid_is_not():
    assert "thumbnail" in refusal(tiff((16, 12, {254: 1}), (64, 48, {}))).reason
    assert decode_image(tiff((64, 48, {}), inner=[(16, 12, {254: 1})])).shape == (48, 64, 3)
    assert decode_image(tiff((64, 48, {}), (16, 12, {254: 1}))).shape == (48, 64, 3)
    assert decode_image(tiff((64, 48, {254: 1}))).shape == (48, 64, 3)


def test_a_tiff_whose_images_lead_in_a_circle_ends():
    data = bytearray(tiff((16, 12, {})))
    struct.pack_into("<I", data, data.index(struct.pack("<HHII", 279, 4, 1, 192)) + 12, 8)
    assert decode_image(bytes(data)).shape == (12, 16, 3)


def test_many_pixels_need_a_file_of_some_size():
    side = 10_000
    assert side**2 > CLIENT_PIXELS
    check_size(side, side, 2 * side**2, side**2 // MOST_PIXELS_OF_A_BYTE + 1)
    with pytest.raises(ImageError, match="in only 1,000 bytes"):
        check_size(side, side, 2 * side**2, 1000)
