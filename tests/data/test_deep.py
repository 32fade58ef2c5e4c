"""Images beyond 8-bit RGB: every format gives the stored values, scaled as stated, or one line that says why not."""

import contextlib
import io
import sys
import zlib

import numpy as np
import pytest
import tifffile
from deep_images import chunk, dicom, npy, png16
from PIL import Image

from visionpipe.data.decode import decode_image
from visionpipe.data.deep import decode_pixels, encoded, read_pixels
from visionpipe.data.form import PixelFormat, as_rgb, model_input
from visionpipe.data.frame import frame
from visionpipe.data.measures import as_picture
from visionpipe.data.prepared import channel_statistics
from visionpipe.errors import ImageError

random = np.random.default_rng(0)
DEEP = random.integers(0, 65536, (20, 30, 5), np.uint16)
GREY = DEEP[..., :1]
GREY_16, FIVE_16 = PixelFormat(channels=1, depth=16), PixelFormat(channels=5, depth=16)


def tiff(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def reason(data, form=GREY_16, **options):
    with pytest.raises(ImageError) as caught:
        decode_pixels(data, form, **options)
    assert "\n" not in caught.value.reason
    return caught.value.reason


# Every bit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_keeps_all_16_bits(channels):
    values = DEEP[..., :channels]
    form = PixelFormat(channels=channels, depth=16)
    np.testing.assert_array_equal(decode_pixels(png16(values), form), values)


@pytest.mark.parametrize("channels", [2, 4])
def test_opacity_of_a_png_is_composited_on_white_with_16_bits_or_is_a_channel(channels):
    values = DEEP[..., :channels]
    np.testing.assert_array_equal(
        decode_pixels(png16(values), PixelFormat(channels=channels, depth=16)), values
    )
    share = values[..., -1:] / 65535
    expected = values[..., :-1] * share + 65535 * (1 - share)
    form = PixelFormat(channels=channels - 1, depth=16)
    assert np.abs(decode_pixels(png16(values), form) - expected).max() <= 0.5001


def test_one_transparent_colour_of_a_png_becomes_white():
    colour = DEEP[3, 4, :3]
    data = png16(DEEP[..., :3], chunk(b"tRNS", colour.astype(">u2").tobytes()))
    expected = np.where((DEEP[..., :3] == colour).all(-1, keepdims=True), 65535, DEEP[..., :3])
    np.testing.assert_array_equal(decode_pixels(data, PixelFormat(channels=3, depth=16)), expected)


CONTIGUOUS = {"photometric": "minisblack", "planarconfig": "contig"}


@pytest.mark.parametrize(
    ("turned", "options"),
    [
        ((0, 1, 2), CONTIGUOUS),
        ((0, 1, 2), CONTIGUOUS | {"compression": "zlib", "predictor": True}),
        ((0, 1, 2), CONTIGUOUS | {"tile": (16, 16)}),
        ((0, 1, 2), CONTIGUOUS | {"bigtiff": True, "byteorder": ">"}),
        ((2, 0, 1), {"photometric": "minisblack", "planarconfig": "separate"}),
        ((2, 0, 1), {"photometric": "minisblack"}),  # five pages
    ],
)
def test_the_channels_of_a_tiff_are_samples_planes_or_pages(turned, options):
    data = tiff(DEEP.transpose(turned), **options)
    np.testing.assert_array_equal(decode_pixels(data, FIVE_16), DEEP)


def test_a_tiff_that_only_pillow_can_decompress_keeps_16_bits():
    data = saved(Image.fromarray(GREY[..., 0]), "TIFF", compression="tiff_lzw")
    np.testing.assert_array_equal(decode_pixels(data, GREY_16), GREY)


def test_white_is_zero_in_some_tiffs_and_other_tags_are_obeyed():
    data = tiff(GREY[..., 0], photometric="miniswhite", extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(decode_pixels(data, GREY_16)[..., 0], np.rot90(65535 - GREY[..., 0], -1))
    stated = tiff(GREY[..., 0] >> 4, photometric="minisblack", extratags=[(281, "H", 1, 4095, True)])
    expected = np.rint((GREY >> 4) / 4095 * 65535)
    np.testing.assert_array_equal(decode_pixels(stated, GREY_16), expected)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_an_array_is_read_in_every_order(order, dtype):
    data = npy(np.asarray(DEEP, dtype, order=order))
    np.testing.assert_array_equal(decode_pixels(data, FIVE_16), DEEP)


# Depths, channels and levels -----------------------------------------------------------------------------


def test_eight_bits_become_sixteen_by_257_and_back():
    eight = (GREY >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode_pixels(npy(eight), GREY_16), eight.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_pixels(npy(GREY), PixelFormat(channels=1)), GREY >> 8)
    np.testing.assert_array_equal(model_input(eight.astype(np.uint16) * 257), eight)


def test_colours_become_grey_as_pillow_does_and_grey_stays():
    picture = Image.fromarray((DEEP[..., :3] >> 8).astype(np.uint8))
    for data in (saved(picture, "PNG"), saved(picture, "JPEG"), saved(picture.convert("L"), "PNG")):
        expected = np.asarray(Image.fromarray(decode_image(data)).convert("L"))[..., None]
        np.testing.assert_array_equal(decode_pixels(data, PixelFormat(channels=1)), expected)
        sixteen = decode_pixels(data, GREY_16) / 257  # rounded to finer levels
        assert np.abs(sixteen - expected).max() <= 0.5


def test_a_grey_file_has_three_equal_channels_as_rgb():
    pixels = decode_pixels(npy(GREY), PixelFormat(depth=16))
    np.testing.assert_array_equal(pixels, np.repeat(GREY, 3, axis=-1))


@pytest.mark.parametrize(
    ("values", "levels", "expected"),
    [
        (np.array([[-1.0, 0, 0.5, 1, 2]]), (0.0, 1.0), [0, 0, 32768, 65535, 65535]),
        (np.array([[-500, 0, 500]], np.int32), "file", [0, 32768, 65535]),
        (np.array([[0.0, 0.25, 1]]), None, [0, 16384, 65535]),
        (np.array([[False, True]]), None, [0, 65535]),
        (np.array([[-32768, 0, 32767]], np.int16), None, [0, 32768, 65535]),
        (np.array([[7, 7]], np.uint16), "file", [0, 0]),
    ],
)
def test_levels_become_black_and_white(values, levels, expected):
    form = PixelFormat(levels, 1, 16)
    np.testing.assert_array_equal(decode_pixels(npy(values), form)[0, :, 0], expected)


def test_sixteen_bits_that_are_not_used_are_reported():
    used = (GREY >> 4).astype(np.uint16)
    pixels, open_levels = read_pixels(png16(used), GREY_16)
    np.testing.assert_array_equal(pixels, used)
    assert (open_levels.lowest, open_levels.highest) == (used.min(), used.max())
    assert read_pixels(png16(used), PixelFormat((0.0, 4095.0), 1, 16))[1] is None


@pytest.mark.parametrize(
    "form",
    [
        PixelFormat(),
        PixelFormat(channels=1),
        FIVE_16,
        PixelFormat(channels=4),
        PixelFormat((-1024.0, 3071.0), 1, 16),
        PixelFormat((0.0, 1.0), 2, 8),
    ],
)
def test_encoded_pixels_are_decoded_to_themselves(form):
    pixels = random.integers(0, form.most + 1, (9, 8, form.channels), form.dtype)
    np.testing.assert_array_equal(decode_pixels(encoded(pixels, form), form), pixels)


# Resizing, statistics, pictures --------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_a_grey_image_is_resized_as_it_would_be_in_rgb(interpolation, framing):
    grey = (GREY >> 8).astype(np.uint8)
    options = {"size": (12, 11), "interpolation": interpolation, "framing": framing}
    as_colours = frame(np.repeat(grey, 3, axis=-1), **options)
    one = frame(grey, **options)
    np.testing.assert_array_equal(one, as_colours[..., :1])
    sixteen = frame(grey.astype(np.uint16) * 257, **options)
    assert np.abs(sixteen / 257 - one).max() <= (0 if interpolation == "nearest" else 2)


def test_statistics_are_those_of_what_the_model_sees():
    mean, std = channel_statistics(DEEP[None], [0])
    seen = model_input(DEEP).astype(np.float64)
    np.testing.assert_allclose(mean, seen.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(std, seen.std((0, 1)), rtol=1e-6)


def test_pictures_show_the_first_three_channels_or_grey():
    np.testing.assert_array_equal(as_rgb(DEEP), np.rint(DEEP[..., :3] / 257))
    np.testing.assert_array_equal(as_rgb(DEEP[..., :2]), np.rint(DEEP[..., [0, 0, 0]] / 257))


def test_copies_are_sought_in_pictures_of_all_channels_and_levels():
    dark = (DEEP >> 8).astype(np.uint16)
    np.testing.assert_array_equal(as_picture(dark), as_picture(dark * 200))
    thirds = [DEEP[..., :2].mean(-1), DEEP[..., 2:4].mean(-1), DEEP[..., 4].astype(float)]
    low, high = min(part.min() for part in thirds), max(part.max() for part in thirds)
    expected = np.rint(255 * (np.stack(thirds, -1) - low) / (high - low))
    assert np.abs(as_picture(DEEP) - expected).max() <= 1


# Refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "form", "said"),
    [
        (npy(np.array([[None]])), GREY_16, "an array of object"),
        (npy(np.zeros((4, 4), complex)), GREY_16, "an array of complex128"),
        (npy(np.zeros((4, 4, 1, 1))), GREY_16, "an array of shape (4, 4, 1, 1): expected (height, width[, ch"),
        (npy(np.zeros((0, 4))), GREY_16, "an array of shape (0, 4)"),
        (npy(DEEP)[:-1], FIVE_16, "a .npy file that is cut off, or longer than its header says"),
        (npy(DEEP), GREY_16, "5 channels, but prepare.channels is 1"),
        (npy(GREY), FIVE_16, "1 channel, but prepare.channels is 5"),
        (npy(np.array([[np.nan]])), GREY_16, "contains pixels that are not finite numbers"),
        (npy(np.array([[0.0, 9.0]])), GREY_16, "set prepare.levels to file or [low, high]"),
        (npy(np.array([[0, 9]])), GREY_16, "int64 values from 0 to 9, whose type does not say what is black"),
        (npy(np.zeros((2, 2, 65), np.uint8)), GREY_16, "65 channels, more than 64"),
        (tiff(DEEP.transpose(2, 0, 1), photometric="minisblack"), GREY_16, "a TIFF file of 5 pages, but prepare.ch"),
        (b"no image at all", GREY_16, "not an image in one of the formats JPEG, PNG, GIF, BMP, TIFF, WEBP, PPM, NPY, "),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_refused_with_its_reason(data, form, said):
    assert said in reason(data, form)


def test_no_array_is_read_whose_header_says_more_than_the_file_has():
    header = npy(np.zeros((1, 1), np.uint16))[:-2].replace(b"(1, 1), }", b"(99, 99), }")
    assert "cut off" in reason(header)
    assert reason(npy(np.zeros((40, 40), np.uint8)), max_pixels=1000).startswith(
        "40 × 40 pixels, more than 1,000"
    )


def test_a_tiff_that_inflates_to_more_than_it_says_is_refused():
    data = tiff(GREY[..., 0], photometric="minisblack", compression="zlib", rowsperstrip=20)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        offset, length = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    bomb = zlib.compress(bytes(10**6), 9)
    assert len(bomb) <= length
    assert "more pixels than its header" in reason(
        data[:offset] + bomb.ljust(length, b"\0") + data[offset + length :]
    )


@pytest.mark.parametrize(
    ("data", "form"),
    [
        (png16(DEEP[..., :3]), PixelFormat(depth=16)),
        (png16(DEEP[..., :2]), GREY_16),
        (tiff(DEEP, **CONTIGUOUS), FIVE_16),
        (tiff(DEEP, **CONTIGUOUS, compression="zlib"), FIVE_16),
        (npy(DEEP), FIVE_16),
        (dicom(GREY[..., 0], WindowCenter=1000, WindowWidth=500), GREY_16),
    ],
)
def test_damaged_files_raise_no_other_error(data, form):
    for start in range(0, len(data), max(1, len(data) // 60)):
        changed = bytearray(data)
        changed[start] ^= random.integers(1, 256)
        for damaged in (data[:start], bytes(changed)):
            with contextlib.suppress(ImageError):
                decode_pixels(damaged, form)


# DICOM ---------------------------------------------------------------------------------------------------

HOUNSFIELD = {"RescaleSlope": 1, "RescaleIntercept": -1024}
CT = random.integers(0, 4096, (10, 12), np.uint16)


def windowed(values, centre, width):
    """DICOM PS3.3, C.11.2.1.2.1, onto [0, 65535]."""
    share = (values - (centre - 0.5)) / (width - 1) + 0.5
    below, above = values <= centre - 0.5 - (width - 1) / 2, values > centre - 0.5 + (width - 1) / 2
    return np.rint(65535 * np.where(below, 0, np.where(above, 1, share)))


def test_a_dicom_file_is_seen_through_its_window_in_its_units():
    data = dicom(CT, bits=12, **HOUNSFIELD, WindowCenter=[40, 500], WindowWidth=[400, 2000])
    np.testing.assert_array_equal(decode_pixels(data, GREY_16)[..., 0], windowed(CT - 1024.0, 40, 400))


@pytest.mark.parametrize("slope", [2, -2])
def test_without_a_window_all_stored_levels_are_seen(slope):
    data = dicom(CT, bits=12, RescaleSlope=slope, RescaleIntercept=-1024)
    share = CT / 4095 if slope > 0 else 1 - CT / 4095
    np.testing.assert_array_equal(decode_pixels(data, GREY_16)[..., 0], np.rint(65535 * share))


def test_levels_of_a_dicom_file_are_in_its_units_and_replace_the_window():
    data = dicom(CT, bits=12, **HOUNSFIELD, WindowCenter=40, WindowWidth=400)
    expected = np.rint(65535 * np.clip((CT - 1024.0 + 100) / 400, 0, 1))
    np.testing.assert_array_equal(decode_pixels(data, PixelFormat((-100.0, 300.0), 1, 16))[..., 0], expected)
    stretched = decode_pixels(data, PixelFormat("file", 1, 16))[..., 0]
    np.testing.assert_array_equal(stretched, np.rint(65535 * ((CT - CT.min()) / (CT.max() - CT.min()))))


def test_monochrome1_is_inverted_and_signed_values_are_read():
    plain, inverted = (dicom(CT, name, bits=12) for name in ("MONOCHROME2", "MONOCHROME1"))
    np.testing.assert_array_equal(decode_pixels(inverted, GREY_16), 65535 - decode_pixels(plain, GREY_16))
    signed = (CT.astype(np.int32) - 2048).astype(np.int16)
    np.testing.assert_array_equal(
        decode_pixels(dicom(signed, bits=12), GREY_16), decode_pixels(plain, GREY_16)
    )


def test_colours_of_dicom_files_become_rgb():
    colours = (DEEP[..., :3] >> 8).astype(np.uint8)
    rgb = dicom(colours, "RGB", bits=8)
    np.testing.assert_array_equal(decode_pixels(rgb, PixelFormat()), colours)
    ycbcr = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    converted = decode_pixels(dicom(ycbcr, "YBR_FULL", bits=8), PixelFormat())
    assert np.abs(converted.astype(int) - colours).max() <= 3
    table = random.integers(0, 256, (3, 256), np.uint8)
    channels = dict(zip(("Red", "Green", "Blue"), table, strict=True))
    palette = {f"{name}PaletteColorLookupTableData": row.tobytes() for name, row in channels.items()}
    palette |= {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 8] for name in channels}
    indices = (CT >> 4).astype(np.uint8)
    data = dicom(indices, "PALETTE COLOR", bits=8, **palette)
    np.testing.assert_array_equal(decode_pixels(data, PixelFormat()), table.T[indices])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            dicom(CT, NumberOfFrames=3),
            "a DICOM file of 3 frames: save the one that matters as a file of its own",
        ),
        (dicom(CT, "XYZ"), "a DICOM file with the photometric interpretation 'XYZ'"),
        (dicom(CT).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"), "deflated as a whole"),
    ],
)
def test_a_dicom_file_that_is_no_single_image_is_refused(data, said):
    assert said in reason(data)


def test_without_pydicom_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert reason(dicom_file) == "a DICOM file, which needs pydicom: pip install 'visionpipe[medical]'"


dicom_file = dicom(CT)
