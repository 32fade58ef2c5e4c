"""The sampler and the augmentation: pure functions of (seed, step)."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import pytest
import tensorflow as tf

from visionpipe.config import AUGMENTATIONS
from visionpipe.data.augmentation import KINDS, make_augmentation
from visionpipe.data.batches import ValidationBatches, batch_indices, steps_per_epoch, training_batches

random = np.random.default_rng(0)
IMAGES = random.integers(
    1, 256, (64, 12, 10, 3), np.uint8
)  # no zero: what a shift fills in can be told apart


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (7, 7), (5, 8), (100, 32)])
def test_every_image_is_drawn_once_in_each_round_whatever_the_batch_size(count, batch_size):
    stream = np.concatenate([batch_indices(3, step, batch_size, count) for step in range(4 * count)])
    rounds = stream[: len(stream) // count * count].reshape(-1, count)
    assert (np.sort(rounds, axis=1) == np.arange(count)).all()
    assert len({tuple(order) for order in rounds.tolist()}) > 1


def test_a_batch_needs_no_batch_before_it():
    alone = batch_indices(3, 17, 8, 50)
    in_order = [batch_indices(3, step, 8, 50) for step in range(18)]
    np.testing.assert_array_equal(alone, in_order[17])


def test_another_seed_gives_another_order():
    assert (batch_indices(1, 0, 50, 50) != batch_indices(2, 0, 50, 50)).any()


def test_batches_from_the_middle_are_those_of_the_whole_stream():
    def take(steps):
        stream = training_batches(
            IMAGES,
            np.arange(64) % 3,
            classes=3,
            batch_size=20,
            seed=9,
            augment=make_augmentation(({"name": "shift", "pixels": 2},), 9),
            steps=steps,
        )
        return list(stream.as_numpy_iterator())

    whole, part = take(range(6)), take(range(4, 6))
    assert len(whole) == 6
    for (images, labels), (images_again, labels_again) in zip(whole[4:], part, strict=True):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(labels, labels_again)


def test_labels_belong_to_their_images():
    images = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None], (50, 4, 4, 3))
    labels, augment = np.arange(50) % 7, make_augmentation((), 0)
    batches = training_batches(
        images, labels, classes=7, batch_size=16, seed=0, augment=augment, steps=range(1)
    )
    ((x, y),) = batches.as_numpy_iterator()
    np.testing.assert_array_equal(y.argmax(1), x[:, 0, 0, 0].astype(int) % 7)
    assert y.sum() == 16


def test_validation_batches_hold_every_image_once_in_order():
    images = np.broadcast_to(np.arange(251, dtype=np.uint8)[:251, None, None, None], (251, 2, 2, 3))
    batches = ValidationBatches(images, np.arange(251) % 5, 5)
    x = np.concatenate([batches[index][0] for index in range(len(batches))])
    np.testing.assert_array_equal(x, images)


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(4000, 64, 62), (10, 64, 1), (96, 64, 2)])
def test_an_epoch_is_about_one_round(count, batch_size, steps):
    assert steps_per_epoch(count, batch_size) == steps


def augmenter(*entries, seed):
    augment = make_augmentation(entries, seed)
    return lambda images, step: augment(tf.constant(images), tf.constant(step, tf.int64)).numpy()


def test_every_kind_of_augmentation_can_be_configured():
    assert AUGMENTATIONS.keys() == KINDS.keys()


@pytest.mark.parametrize(
    "entry",
    [
        {"name": "flip", "probability": 0.5},
        {"name": "shift", "pixels": 3},
        {"name": "cutout", "fraction": 0.4},
    ],
    ids=lambda entry: entry["name"],
)
def test_an_augmentation_depends_on_seed_and_step_alone(entry):
    one, again, other = (augmenter(entry, seed=seed) for seed in (1, 1, 2))
    first = one(IMAGES, 7)
    one(IMAGES, 8)
    np.testing.assert_array_equal(again(IMAGES, 7), first)
    np.testing.assert_array_equal(one(IMAGES, 7), first)
    assert (other(IMAGES, 7) != first).any()
    assert (one(IMAGES, 8) != first).any()
    assert first.dtype == np.float32


def test_two_entries_of_one_kind_roll_different_dice():
    once = augmenter({"name": "shift", "pixels": 3}, seed=1)(IMAGES, 0)
    second = augmenter({"name": "shift", "pixels": 0}, {"name": "shift", "pixels": 3}, seed=1)(IMAGES, 0)
    assert (once != second).any()


def test_flip_mirrors_about_its_share_of_the_images_and_leaves_the_rest():
    images = np.repeat(IMAGES, 30, axis=0)
    flipped = augmenter({"name": "flip", "probability": 0.25}, seed=4)(images, 0)
    mirrored = (flipped == images[:, :, ::-1]).all(axis=(1, 2, 3))
    untouched = (flipped == images).all(axis=(1, 2, 3))
    assert (mirrored ^ untouched).all()
    assert mirrored.mean() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / len(images)) ** 0.5)


def test_shift_moves_whole_pixels_up_to_its_limit_and_fills_with_zeros():
    shifted = augmenter({"name": "shift", "pixels": 2}, seed=4)(np.repeat(IMAGES, 8, axis=0), 0)
    padded = np.pad(np.repeat(IMAGES, 8, axis=0), ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, wide in zip(shifted, padded, strict=True):
        moves = [(y, x) for y in range(5) for x in range(5) if (wide[y : y + 12, x : x + 10] == image).all()]
        assert len(moves) == 1
        seen.add(moves[0])
    assert len(seen) == 25


def test_cutout_blanks_one_rectangle_of_its_size_or_what_of_it_lies_inside():
    images = np.full((200, 20, 20, 3), 10, np.uint8)
    cut = augmenter({"name": "cutout", "fraction": 0.5}, seed=4)(images, 0)
    blank = (cut == 127.5).all(axis=-1)
    assert ((cut == 10).all(axis=-1) | blank).all()
    areas = blank.sum(axis=(1, 2))
    assert areas.max() == 100
    assert areas.min() >= 25
    rows, columns = blank.any(axis=2).sum(axis=1), blank.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(areas, rows * columns)
