"""JPEG files that are decoded at a fraction of their size: the same in prepare and in serving, and nearly the same."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from visionpipe.artifact.classifier import preprocessing, read_preprocessing
from visionpipe.data.config import PrepareConfig
from visionpipe.data.decoding import decode
from visionpipe.data.deep import decode_pixels
from visionpipe.data.form import PixelFormat
from visionpipe.data.frame import frame
from visionpipe.data.listing import Record


def photograph(height: int, width: int, seed: int = 0) -> Image.Image:
    """Returns a picture with the spectrum of photographs: amplitudes fall with the frequency."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    waves = random.normal(size=(3, *frequency.shape)) + 1j * random.normal(size=(3, *frequency.shape))
    pixels = np.fft.irfft2(waves / frequency, (height, width))
    pixels = pixels[:1] * 0.8 + pixels * 0.2  # colours differ less than brightness
    return Image.fromarray(
        (128 + 45 * pixels / pixels.std()).clip(0, 255).astype(np.uint8).transpose(1, 2, 0).copy()
    )


def encoded(image: Image.Image, image_format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


PHOTOGRAPH = photograph(600, 840)


@pytest.mark.parametrize(
    ("reduced_to", "divisor"), [(601, 1), (301, 1), (300, 2), (151, 2), (150, 4), (75, 8), (20, 8)]
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_is_reduced_as_long_as_both_sides_stay_large_enough(reduced_to, divisor, options):
    data = encoded(PHOTOGRAPH, quality=90, **options)
    pixels = decode_pixels(data, PixelFormat(reduced_to=reduced_to))
    assert pixels.shape == (600 // divisor, 840 // divisor, 3)
    averaged = np.asarray(Image.open(io.BytesIO(data)).reduce(divisor)).astype(float)
    assert np.abs(pixels - averaged).mean() < 1.5  # libjpeg leaves out frequencies, which is nearly the mean


def test_grey_cmyk_and_turned_jpegs_are_reduced_too_and_other_formats_are_not():
    reduced = PixelFormat(reduced_to=150)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(PHOTOGRAPH, exif=exif)
    assert decode_pixels(turned, reduced).shape == (210, 150, 3)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(turned))).reduce(4)
    assert np.abs(decode_pixels(turned, reduced) - np.asarray(upright).astype(float)).mean() < 1.5
    for mode in ("L", "CMYK"):
        assert decode_pixels(encoded(PHOTOGRAPH.convert(mode)), reduced).shape == (150, 210, 3)
    assert decode_pixels(encoded(PHOTOGRAPH), PixelFormat(channels=1, reduced_to=150)).shape == (150, 210, 1)
    for image_format in ("PNG", "BMP", "WEBP"):
        data = encoded(PHOTOGRAPH, image_format)
        np.testing.assert_array_equal(decode_pixels(data, reduced), decode_pixels(data, PixelFormat()))


def config(**options) -> PrepareConfig:
    return PrepareConfig("folder", "photos", size=(48, 64), **options)


@pytest.mark.parametrize("framing", ["crop", "pad", "stretch"])
def test_what_the_artifact_sees_is_what_prepare_made_and_differs_little_from_the_full_size(tmp_path, framing):
    data = encoded(PHOTOGRAPH, quality=92)
    reduced, full = (
        decode(
            Record(None, "rose", "rose/1.jpg", lambda: data),
            config(framing=framing, crop_ratio=0.9, reduced_decode=on),
        ).picture.pixels
        for on in (True, False)
    )
    options = config(framing=framing, crop_ratio=0.9, reduced_decode=True)
    assert options.decode_options["reduced_to"] == 143  # 2 · 64 / 0.9
    written = preprocessing(options.frame_options, options.decode_options)
    (tmp_path / "preprocessing.json").write_text(json.dumps(written))
    frame_options, decode_options = read_preprocessing(tmp_path)
    served = frame(decode_pixels(data, PixelFormat(**decode_options)), **frame_options)
    np.testing.assert_array_equal(served, reduced)
    difference = np.abs(reduced.astype(float) - full)
    assert 0 < difference.mean() < 1
    assert difference.max() < 16


def test_by_default_nothing_is_reduced_and_the_artifact_says_nothing_of_it():
    options = config()
    assert options.decode_options["reduced_to"] is None
    assert "reduced_to" not in preprocessing(options.frame_options, options.decode_options)
