"""Augmentation: each kind against a closed form or an independent one, all pure in (seed, step)."""

import os
import re

os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from visionpipe.data import operations, pixels
from visionpipe.data.augmentation import AUGMENTATIONS, make_augmentation
from visionpipe.data.draws import MOST_ENTRIES, MOST_STREAMS, Draws
from visionpipe.errors import ConfigError

random = np.random.default_rng(0)
# no zero: what a crop fills in can be told apart
IMAGES = random.integers(1, 256, (64, 12, 10, 3)).astype(np.uint8)
MANY = np.repeat(IMAGES, 30, axis=0)
EVERY_KIND = [{"name": name} for name in AUGMENTATIONS]


def classes_of(images):
    """One-hot labels, neighbours in different classes."""
    return np.eye(7, dtype=np.float32)[np.arange(len(images)) % 7]


def augmenter(*entries, seed=4, steps_per_epoch=10):
    """Images and a step to augmented images and soft labels."""
    augment = make_augmentation(entries, seed, steps_per_epoch)

    def run(images, step=0):
        output = augment(tf.constant(images), tf.constant(classes_of(images)), tf.constant(step, tf.int64))
        return [tensor.numpy() for tensor in output]

    return run


def batch(*images):
    return tf.constant(np.stack(images).astype(np.float32))


def numbers(*values):
    return tf.constant(values, tf.float32)


# What every kind has in common


@pytest.mark.parametrize("entry", EVERY_KIND, ids=lambda entry: entry["name"])
def test_an_augmentation_depends_on_seed_and_step_alone(entry):
    one, again, other = (augmenter(entry, seed=seed) for seed in (1, 1, 2))
    first, _ = one(IMAGES, 7)
    later, _ = one(IMAGES, 8)
    np.testing.assert_array_equal(again(IMAGES, 7)[0], first)
    np.testing.assert_array_equal(one(IMAGES, 7)[0], first)
    assert (other(IMAGES, 7)[0] != first).any()
    assert (later != first).any()


@pytest.mark.parametrize("entry", [*EVERY_KIND, None], ids=lambda entry: entry["name"] if entry else "all")
def test_images_stay_between_0_and_255_and_labels_sum_to_one(entry):
    images, targets = augmenter(*([entry] if entry else EVERY_KIND))(IMAGES)
    assert images.shape == IMAGES.shape
    assert images.dtype == targets.dtype == np.float32
    assert images.min() >= 0
    assert images.max() <= 255
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)


def test_no_augmentation_gives_the_pixels_themselves():
    images, targets = augmenter()(IMAGES)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(targets, classes_of(IMAGES))


def test_two_entries_of_one_kind_draw_different_numbers():
    once, _ = augmenter({"name": "crop", "padding": 3})(IMAGES)
    second, _ = augmenter({"name": "crop", "padding": 0}, {"name": "crop", "padding": 3})(IMAGES)
    assert (once != second).any()


def test_a_mixed_precision_policy_of_the_model_changes_no_pixel():
    import keras

    expected, _ = augmenter(*EVERY_KIND)(IMAGES)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        np.testing.assert_array_equal(augmenter(*EVERY_KIND)(IMAGES)[0], expected)
    finally:
        keras.config.set_dtype_policy("float32")


# The random draws


def draws(step=0, count=20_000, position=0, seed=1):
    return Draws(seed, position, tf.constant(step, tf.int64), count)


def test_no_two_entries_streams_or_seeds_share_a_key():
    keys = {
        tuple(draws(seed=seed, position=position).key(stream).numpy())
        for seed in (0, 1, 2**31 - 1)
        for position in (0, 1, MOST_ENTRIES - 1)
        for stream in (0, 1, MOST_STREAMS - 1)
    }
    assert len(keys) == 27


@pytest.mark.parametrize("step", [0, 1, 10**9])
def test_draws_are_uniform_and_columns_independent(step):
    one, two = (column.numpy() for column in draws(step).uniform(2))
    counts = np.histogram2d(one, two, bins=10, range=[[0, 1], [0, 1]])[0].ravel()
    chi_squared = ((counts - counts.mean()) ** 2).sum() / counts.mean()
    assert 99 - 4 * 198**0.5 < chi_squared < 99 + 4 * 198**0.5
    assert abs(np.corrcoef(one, draws(step + 1).uniform(2)[0].numpy())[0, 1]) < 0.03


def test_integers_reach_both_ends_equally_often():
    (drawn,) = draws().integers(1, -2, 2)
    values, counts = np.unique(drawn.numpy(), return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert np.abs(counts - 4000).max() < 4 * (4000 * 0.8) ** 0.5


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 8.0])
def test_beta_has_the_moments_of_its_distribution(alpha):
    drawn = draws().beta(alpha, stream=1).numpy()
    assert np.isfinite(drawn).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    variance = 1 / (4 * (2 * alpha + 1))
    assert drawn.mean() == pytest.approx(0.5, abs=4 * (variance / len(drawn)) ** 0.5)
    assert drawn.var() == pytest.approx(variance, rel=0.05)


@pytest.mark.parametrize(
    ("sides", "ratio"), [((20, 30), (0.5, 2)), ((20, 30), (3, 4)), ((64, 8), (0.3, 3.3))]
)
def test_rectangles_lie_inside_have_the_drawn_areas_and_ratios_that_fit(sides, ratio):
    top, left, height, width = (x.numpy() for x in draws().rectangles(sides, (0.1, 0.6), ratio))
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= sides[0] + 1e-3
    assert (left + width).max() <= sides[1] + 1e-3
    share = height * width / (sides[0] * sides[1])
    deciles = np.quantile(share, np.arange(0.1, 1, 0.1))
    np.testing.assert_allclose(deciles, 0.1 + 0.5 * np.arange(0.1, 1, 0.1), atol=0.01)
    fits = ~(np.isclose(height, sides[0]) | np.isclose(width, sides[1]))
    drawn = (width / height)[fits]
    assert drawn.size == 0 or ratio[0] * 0.999 <= drawn.min() <= drawn.max() <= ratio[1] * 1.001


# Kinds that move pixels


def test_flip_mirrors_about_its_share_of_the_images_and_leaves_the_rest():
    flipped, _ = augmenter({"name": "flip", "probability": 0.25})(MANY)
    mirrored = (flipped == MANY[:, :, ::-1]).all(axis=(1, 2, 3))
    untouched = (flipped == MANY).all(axis=(1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert mirrored.mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(MANY)) ** 0.5)


@pytest.mark.parametrize("flips", [False, True])
def test_crop_moves_whole_pixels_up_to_its_padding_and_fills_with_black(flips):
    entries = [{"name": "crop", "padding": 2}, *([{"name": "flip", "probability": 1.0}] if flips else [])]
    cropped, _ = augmenter(*entries)(MANY)
    cropped = cropped[:, :, ::-1] if flips else cropped
    padded = np.pad(MANY, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = []
    for image, wide in zip(cropped, padded, strict=True):
        moves = [(y, x) for y in range(5) for x in range(5) if (wide[y : y + 12, x : x + 10] == image).all()]
        assert len(moves) == 1
        seen.append(moves[0])
    counts = np.unique(seen, axis=0, return_counts=True)[1]
    assert len(counts) == 25
    assert np.abs(counts - len(MANY) / 25).max() < 5 * (len(MANY) / 25) ** 0.5


def test_moves_in_one_gather_are_those_of_their_entries_one_after_the_other():
    flip, crop = {"name": "flip"}, {"name": "crop", "padding": 2}
    nothing = {"name": "erasing", "probability": 0.0}
    for run in ([flip, crop], [crop, flip]):
        together, _ = augmenter(*run)(IMAGES)
        first, _ = augmenter(run[0])(IMAGES)
        # The second alone, at its place in the list.
        second, _ = augmenter(nothing, run[1])(first.astype(np.uint8))
        np.testing.assert_array_equal(together, second)


def test_a_crop_beyond_the_image_is_black():
    cropped, _ = augmenter({"name": "crop", "padding": 40})(MANY)
    assert (cropped == 0).all(axis=(1, 2, 3)).mean() > 0.5


# Kinds that change pixels


def test_resized_crop_is_what_pillow_resizes():
    box = [1.3, 2.2, 6.4, 7.5]  # top, left, height, width
    output = pixels.resized(batch(*IMAGES), *(numbers(*[value] * 64) for value in box)).numpy()
    top, left, height, width = box
    for image, ours in zip(IMAGES, output, strict=True):
        for channel in range(3):
            whole = Image.fromarray(image[..., channel].astype(np.float32))
            # At its edge Pillow does not see the pixels outside of the box, and we do.
            theirs = whole.resize(
                (10, 12), Image.Resampling.BILINEAR, (left, top, left + width, top + height)
            )
            np.testing.assert_allclose(
                ours[1:-1, 1:-1, channel], np.asarray(theirs)[1:-1, 1:-1], rtol=1e-4, atol=0.05
            )


def test_resized_crop_of_everything_is_the_image():
    output, _ = augmenter({"name": "resized_crop", "scale": (1, 1), "ratio": (10 / 12, 10 / 12)})(IMAGES)
    np.testing.assert_allclose(output, IMAGES, atol=1e-2)


def erased(images):
    return (images == 127.5).all(axis=-1)


@pytest.mark.parametrize("fill", ["grey", "noise"])
def test_erasing_overwrites_one_rectangle_of_its_share_of_the_images(fill):
    images = np.full((2000, 40, 30, 3), 10, np.uint8)
    output, _ = augmenter({"name": "erasing", "probability": 0.5, "scale": [0.1, 0.4], "fill": fill})(images)
    changed = (output != 10).any(axis=-1)
    hit = changed.any(axis=(1, 2))
    assert hit.mean() == pytest.approx(0.5, abs=4 * (0.25 / 2000) ** 0.5)
    rows, columns = changed.any(axis=2).sum(axis=1)[hit], changed.any(axis=1).sum(axis=1)[hit]
    np.testing.assert_array_equal(changed.sum(axis=(1, 2))[hit], rows * columns)
    share = rows * columns / 1200
    np.testing.assert_allclose(np.quantile(share, [0.1, 0.5, 0.9]), [0.13, 0.25, 0.37], atol=0.015)
    values = output[changed]
    if fill == "grey":
        assert (values == 127.5).all()
    else:
        assert np.abs(np.histogram(values, 10, (0, 255))[0] / values.size - 0.1).max() < 0.005


def test_cutout_greys_out_one_rectangle_of_its_size_or_what_of_it_lies_inside():
    images = np.full((400, 20, 20, 3), 10, np.uint8)
    cut, _ = augmenter({"name": "cutout", "fraction": 0.5})(images)
    grey = erased(cut)
    assert ((cut == 10).all(axis=-1) | grey).all()
    areas = grey.sum(axis=(1, 2))
    assert areas.max() == 100
    assert areas.min() >= 25
    rows, columns = grey.any(axis=2).sum(axis=1), grey.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(areas, rows * columns)
    assert (grey.mean(axis=0) > 0).all()  # every pixel is cut sometimes


def test_colour_jitter_of_nothing_changes_nothing():
    entry = {"name": "color_jitter", "brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    np.testing.assert_allclose(augmenter(entry)(IMAGES)[0], IMAGES, atol=1e-3)


def test_brightness_jitter_multiplies_by_factors_that_are_uniform():
    entry = {"name": "color_jitter", "brightness": 0.4, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    images = np.full((3000, 4, 4, 3), 100, np.uint8)
    factors = augmenter(entry)(images)[0].mean(axis=(1, 2, 3)) / 100
    np.testing.assert_allclose(
        np.quantile(factors, [0.01, 0.25, 0.5, 0.75, 0.99]), [0.608, 0.8, 1, 1.2, 1.392], atol=0.03
    )


def test_hue_turns_red_to_green_in_a_third_of_the_circle():
    red = np.broadcast_to(np.float32([200, 20, 20]), (1, 4, 4, 3))
    turned = pixels.hue(batch(red[0]), numbers(1 / 3)).numpy()
    np.testing.assert_allclose(turned, np.broadcast_to([20, 200, 20], turned.shape), atol=0.01)


PICTURE = np.asarray(
    Image.fromarray(random.integers(20, 200, (6, 5, 3)).astype(np.uint8)).resize(
        (40, 48), Image.Resampling.BICUBIC
    )
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (pixels.auto_contrast, ImageOps.autocontrast),
        (pixels.equalize, ImageOps.equalize),
        (lambda x: pixels.solarize(x, numbers(100)), lambda image: ImageOps.solarize(image, 100)),
        (lambda x: pixels.posterize(x, numbers(0.75)), lambda image: ImageOps.posterize(image, 5)),
    ],
)
def test_an_operation_is_pillows(ours, theirs):
    expected = np.asarray(theirs(Image.fromarray(PICTURE))).astype(float)
    np.testing.assert_allclose(ours(batch(PICTURE)).numpy()[0], expected, atol=1.01)  # it rounds
    assert np.abs(expected - PICTURE).max() > 5


@pytest.mark.parametrize("factor", [0.1, 0.3, 1.6, 1.9])
@pytest.mark.parametrize("name", ["Color", "Contrast", "Brightness", "Sharpness"])
def test_an_enhancement_is_pillows(name, factor):
    ours = pixels.saturation if name == "Color" else getattr(pixels, name.lower())
    expected = np.asarray(getattr(ImageEnhance, name)(Image.fromarray(PICTURE)).enhance(factor)).astype(float)
    # Pillow rounds the other image before it takes `factor` of the way from there.
    np.testing.assert_allclose(ours(batch(PICTURE), numbers(factor)).numpy()[0], expected, atol=1.5)
    assert np.abs(expected - PICTURE).max() > 2.5


def test_equalize_leaves_an_image_of_one_colour():
    plain = np.full((8, 8, 3), 77, np.uint8)
    np.testing.assert_array_equal(pixels.equalize(batch(plain)).numpy()[0], plain)


# The pixel (x, y) of the output is the input's at (a x + b y + c, d x + e y + f).
SINE, COSINE = np.sin(0.3), np.cos(0.3)
MATRICES = [
    (lambda x: pixels.shear(x, numbers(0.2), None), (1, 0.2, 0, 0, 1, 0)),
    (lambda x: pixels.shear(x, None, numbers(-0.2)), (1, 0, 0, -0.2, 1, 0)),
    (lambda x: pixels.translate(x, numbers(0.1), numbers(0)), (1, 0, -4, 0, 1, 0)),
    (lambda x: pixels.translate(x, numbers(0), numbers(-0.25)), (1, 0, 0, 0, 1, 12)),
    (
        lambda x: pixels.rotate(x, numbers(0.3)),
        (COSINE, -SINE, 19.5 - COSINE * 19.5 + SINE * 23.5, SINE, COSINE, 23.5 - SINE * 19.5 - COSINE * 23.5),
    ),
]


@pytest.mark.parametrize(("ours", "matrix"), MATRICES)
def test_a_geometric_operation_is_pillows_affine_transform(ours, matrix):
    a, b, c, d, e, f = matrix
    # Pillow counts from the corners of pixels, we from their centres.
    corners = (a, b, c + (1 - a - b) / 2, d, e, f + (1 - d - e) / 2)
    image = Image.fromarray(PICTURE).transform(
        (40, 48), Image.Transform.AFFINE, corners, Image.Resampling.BILINEAR, fillcolor=(127, 127, 127)
    )
    x, y = np.meshgrid(np.arange(40), np.arange(48))
    source = np.stack([a * x + b * y + c, d * x + e * y + f])
    within = ((source >= 0) & (source <= np.array([39, 47])[:, None, None])).all(axis=0)
    output = ours(batch(PICTURE)).numpy()[0]
    assert within.mean() > 0.6
    np.testing.assert_allclose(output[within], np.asarray(image)[within], atol=1.01)
    beyond = ((source < -1) | (source > np.array([40, 48])[:, None, None])).any(axis=0)
    assert (output[beyond] == 127.5).all()


def test_randaugment_deals_every_operation_to_its_share_of_the_images_and_each_image_keeps_its_place():
    count = len(operations.OPERATIONS)
    which = np.arange(280) * 5 % count
    images = batch(*np.repeat(IMAGES, 5, axis=0)[:280])
    level = numbers(*np.linspace(0, 1, 280))
    output = operations.operate(
        images, numbers(*(which + 0.5) / count), level, numbers(*np.arange(280) % 2 * 0.9)
    )
    for index in range(0, 280, 3):
        operation = list(operations.OPERATIONS.values())[which[index]]
        alone = operation(
            images[index : index + 1], level[index : index + 1], numbers(1.0 if index % 2 else -1.0)
        )
        np.testing.assert_allclose(output[index], alone[0], atol=1e-3)


def test_randaugment_draws_its_operations_equally_often():
    images = np.repeat(PICTURE[None], 2800, axis=0)
    output, _ = augmenter({"name": "rand_augment", "count": 1, "magnitude_std": 0.0})(images)
    kinds, counts = np.unique(output.round(2).reshape(2800, -1), axis=0, return_counts=True)
    # Identity, auto-contrast, equalize, posterize and solarize know no sign; the nine others do.
    assert len(kinds) == 5 + 9 * 2
    sums = np.sort(counts)
    assert np.abs(sums[:18] - 100).max() < 45
    assert np.abs(sums[18:] - 200).max() < 60


# Kinds that mix images


def test_mixup_blends_pixels_and_labels_by_one_share_with_the_image_half_a_batch_on():
    images, targets = augmenter({"name": "mixup", "alpha": 1.0})(IMAGES)
    one_hot, other = classes_of(IMAGES), np.roll(IMAGES, 32, axis=0).astype(np.float32)
    share = targets[np.arange(64), one_hot.argmax(1)]  # 32 is no multiple of 7: its label is another
    np.testing.assert_allclose(
        targets, share[:, None] * one_hot + (1 - share[:, None]) * np.roll(one_hot, 32, axis=0), atol=1e-6
    )
    expected = share[:, None, None, None] * IMAGES + (1 - share[:, None, None, None]) * other
    np.testing.assert_allclose(images, expected, atol=1e-3)
    assert share.std() == pytest.approx(12**-0.5, abs=0.05)


def test_cutmix_pastes_one_rectangle_and_the_label_is_its_share_of_the_pixels():
    images, targets = augmenter({"name": "cutmix"})(IMAGES)
    other = np.roll(IMAGES, 32, axis=0)
    own, pasted = (images == IMAGES).all(axis=-1), (images == other).all(axis=-1)
    assert (own | pasted).all()
    foreign = ~own
    rows, columns = foreign.any(axis=2).sum(axis=1), foreign.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(foreign.sum(axis=(1, 2)), rows * columns)
    share = 1 - foreign.mean(axis=(1, 2))
    one_hot = classes_of(IMAGES)
    expected = share[:, None] * one_hot + (1 - share[:, None]) * np.roll(one_hot, 32, axis=0)
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    assert 0.3 < share.mean() < 0.8


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_images_are_mixed_with_their_probability(name):
    images, targets = augmenter({"name": name, "alpha": 1.0, "probability": 0.3})(MANY)
    untouched = (images == MANY).all(axis=(1, 2, 3))
    assert 1 - untouched.mean() == pytest.approx(0.3, abs=0.05)
    np.testing.assert_array_equal(targets[untouched].max(axis=1), 1)


def blended_and_pasted(images):
    """Which images hold values of neither source, and which hold pixels of the other source."""
    other = np.roll(MANY, len(MANY) // 2, axis=0)
    own, pasted = images == MANY, images == other
    blended = ~(own | pasted).all(axis=(1, 2, 3))
    return blended, ~blended & ~own.all(axis=(1, 2, 3))


def test_of_mixup_and_cutmix_each_image_draws_one():
    images, _ = augmenter({"name": "mixup", "alpha": 1.0}, {"name": "cutmix"})(MANY)
    blended, pasted = blended_and_pasted(images)
    assert blended.mean() == pytest.approx(0.5, abs=0.05)
    assert pasted.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("step", "blends", "pastes"), [(0, 0.5, 0.5), (29, 0.5, 0.5), (30, 0, 0.99), (49, 0, 0.99), (50, 0, 0)]
)
def test_from_its_off_epoch_on_a_kind_of_mixing_leaves_the_images_to_the_other(step, blends, pastes):
    entries = ({"name": "mixup", "alpha": 1.0, "off_epoch": 3}, {"name": "cutmix", "off_epoch": 5})
    images, targets = augmenter(*entries, steps_per_epoch=10)(MANY, step)
    blended, pasted = blended_and_pasted(images)
    assert blended.mean() == pytest.approx(blends, abs=0.05 if blends else 0)
    assert pasted.mean() == pytest.approx(pastes, abs=0.05 if pastes else 0)
    if step == 50:
        np.testing.assert_array_equal(images, MANY)
        np.testing.assert_array_equal(targets, classes_of(MANY))


# Ranges


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("flip", {"probability": 1.5}, "probability: must be between 0 and 1; received 1.5"),
        ("flip", {"probability": float("nan")}, "probability: must be between 0 and 1; received nan"),
        ("crop", {"padding": -1}, "padding: must be at least 0; received -1"),
        (
            "resized_crop",
            {"scale": [0.5, 0.1]},
            "scale: must be between 0.001 and 1, the smaller value first",
        ),
        ("erasing", {"ratio": [0, 1]}, "ratio: must be between 0.01 and 100"),
        ("rand_augment", {"magnitude": 11}, "magnitude: must be between 0 and 10; received 11"),
        ("rand_augment", {"count": 0}, "count: must be between 1 and 32; received 0"),
        ("color_jitter", {"hue": 0.6}, "hue: must be between 0 and 0.5; received 0.6"),
        ("mixup", {"alpha": 0}, "alpha: must be between 0.05 and 1000; received 0"),
        ("cutmix", {"off_epoch": -1}, "off_epoch: must be at least 0; received -1"),
    ],
)
def test_a_parameter_out_of_its_range_is_refused(name, parameters, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        AUGMENTATIONS[name](**parameters)
