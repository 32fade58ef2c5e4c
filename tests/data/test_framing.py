"""How an image of another shape fits, and the warnings about what is lost."""

import json

import numpy as np
import pytest
from PIL import Image

from visionpipe.artifact.classifier import Classifier, preprocessing, read_preprocessing
from visionpipe.data.config import PrepareConfig
from visionpipe.data.decoding import Usable
from visionpipe.data.form import PixelFormat
from visionpipe.data.frame import RESAMPLING, frame
from visionpipe.data.headers import PADDING
from visionpipe.data.levels import OpenLevels
from visionpipe.data.losses import losses
from visionpipe.data.prepared import Prepared
from visionpipe.errors import ArtifactError

COLOR = (1, 200, 30)


def noise(height, width):
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize(
    ("shape", "shown", "corner"),
    [((20, 80), (10, 40), (15, 0)), ((80, 20), (40, 10), (0, 15)), ((40, 40), (40, 40), (0, 0))],
)  # fmt: skip
def test_pad_shows_the_whole_image_in_the_middle_of_the_colour(interpolation, shape, shown, corner):
    image = noise(*shape)
    expected = np.full((40, 40, 3), COLOR, np.uint8)
    inner = Image.fromarray(image).resize(shown[::-1], RESAMPLING[interpolation])
    rows, columns = (slice(start, start + side) for start, side in zip(corner, shown, strict=True))
    expected[rows, columns] = np.asarray(inner)
    received = frame(image, (40, 40), interpolation, framing="pad", pad_color=COLOR)
    np.testing.assert_array_equal(received, expected)


def test_stretch_is_a_plain_resize():
    image = noise(20, 80)
    expected = np.asarray(Image.fromarray(image).resize((33, 30), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(frame(image, (30, 33), framing="stretch"), expected)


@pytest.mark.parametrize("crop_ratio", [1.0, 0.8])
def test_an_image_of_the_right_shape_is_the_same_in_every_framing(crop_ratio):
    image = noise(30, 60)
    crop, pad, stretch = (
        frame(image, (20, 40), crop_ratio=crop_ratio, framing=kind) for kind in ("crop", "pad", "stretch")
    )
    np.testing.assert_array_equal(crop, pad)
    np.testing.assert_array_equal(crop, stretch)


def test_a_crop_ratio_takes_the_middle_of_the_padded_image():
    image = noise(40, 80)
    everything = frame(image, (80, 80), framing="pad")
    np.testing.assert_array_equal(
        frame(image, (40, 40), crop_ratio=0.5, framing="pad"), everything[20:60, 20:60]
    )


@pytest.mark.parametrize("framing", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 100_000), (100_000, 1), (7, 3)])
def test_any_shape_becomes_the_size(framing, shape):
    assert frame(np.zeros((*shape, 3), np.uint8), (16, 24), framing=framing).shape == (16, 24, 3)


# The artifact ------------------------------------------------------------------------------------------


def framing_of(folder, **content):
    (folder / "preprocessing.json").write_text(json.dumps(content))
    return read_preprocessing(folder)


def test_an_artifact_without_the_new_keys_crops(tmp_path):
    framing, decoding = framing_of(tmp_path, size=[8, 9], interpolation="bilinear", crop_ratio=0.9)
    assert framing["framing"] == "crop"
    assert PixelFormat(**decoding) == PixelFormat()
    assert preprocessing(framing, decoding) == {
        "size": (8, 9),
        "interpolation": "bilinear",
        "crop_ratio": 0.9,
    }


def test_what_differs_from_older_versions_is_written_and_read_again(tmp_path):
    written = {"size": [8, 9], "framing": "pad", "pad_color": list(COLOR), "levels": [0, 4095]}
    framing, decoding = framing_of(tmp_path, **written)
    assert (framing["framing"], framing["pad_color"], decoding["levels"]) == ("pad", COLOR, (0, 4095))
    assert preprocessing(framing, decoding).keys() == {*written, "interpolation", "crop_ratio"}


@pytest.mark.parametrize("damage", [{"framing": "fit"}, {"pad_color": [1, 2]}, {"levels": [3]}, {"other": 1}])
def test_an_unknown_framing_is_refused(tmp_path, damage):
    with pytest.raises(ArtifactError, match="unknown"):
        framing_of(tmp_path, size=[8, 9], **damage)


def test_a_manifest_without_the_new_keys_crops(tmp_path):
    prepared = Prepared(tmp_path, {"size": [8, 9], "interpolation": "bicubic", "crop_ratio": 1.0})
    assert prepared.framing == {
        "size": (8, 9), "interpolation": "bicubic", "crop_ratio": 1.0, "framing": "crop", "pad_color": PADDING
    }  # fmt: skip
    assert PixelFormat(**prepared.decoding) == PixelFormat()


def test_the_classifier_sees_what_prepare_saw(tmp_path):
    from onnx_models import write_artifact

    folder = write_artifact(tmp_path, ["a", "b"], (16, 20))
    (folder / "preprocessing.json").write_text(
        json.dumps({"size": [16, 20], "framing": "pad", "pad_color": COLOR, "levels": [0, 1023]})
    )
    levels = np.random.default_rng(1).integers(0, 1024, (30, 10), dtype=np.uint16)
    file = tmp_path / "deep.png"
    Image.fromarray(levels).save(file)
    grey = np.repeat((levels >> 2).astype(np.uint8)[..., None], 3, -1)
    expected = frame(grey, (16, 20), framing="pad", pad_color=COLOR)
    np.testing.assert_array_equal(Classifier(folder).preprocess(file.read_bytes()), expected)


# Warnings ----------------------------------------------------------------------------------------------


def usable(size=(100, 100), class_name="a", open_levels=None):
    return Usable(None, class_name, "file", b"", size, open_levels)


def config(**options):
    return PrepareConfig("folder", "x", **options)


WIDE, SQUARE = usable((20, 200)), usable()


@pytest.mark.parametrize(
    ("images", "options", "warned"),
    [
        ([WIDE] * 3 + [SQUARE] * 7, {}, True),
        ([WIDE] * 1 + [SQUARE] * 9, {}, False),
        ([usable((100, 160))] * 10, {}, False),
        ([WIDE] * 10, {"framing": "pad"}, False),
        ([WIDE] * 10, {"framing": "stretch"}, False),
        ([WIDE] * 10, {"size": (8, 80)}, False),
        ([SQUARE] * 10, {"size": (8, 80)}, True),
        ([usable((20, 200), "rare")] * 2 + [SQUARE] * 98, {}, True),
    ],
)
def test_a_crop_that_loses_most_of_many_images_or_of_a_class_is_warned_of(images, options, warned):
    warnings = losses(images, config(**options))
    assert len(warnings) == warned
    if warned:
        assert "prepare.framing: pad" in warnings[0]


@pytest.mark.parametrize(
    ("largest", "white"),
    [([250] * 10, 255), ([4000] * 10, 4095), ([900] * 99 + [65_535], 1023), ([60_000] * 10, None)],
)  # fmt: skip
def test_bits_that_no_image_uses_are_warned_of(largest, white):
    warnings = losses([usable(open_levels=OpenLevels(0, level, False)) for level in largest], config())
    assert len(warnings) == (white is not None)
    if white:
        assert f"prepare.levels: [0, {white}]" in warnings[0]


def test_images_that_are_stretched_by_themselves_are_warned_of():
    images = [usable(open_levels=OpenLevels(low, 7.5, True)) for low in (-1, -3)]
    (warning,) = losses(images, config())
    assert warning.startswith("2 images of floats")
    assert "prepare.levels: [-3, 7.5]" in warning
