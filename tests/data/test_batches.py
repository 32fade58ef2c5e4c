"""The sampler: batches are pure functions of (seed, step)."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import hashlib
import time
from functools import partial

import numpy as np
import pytest

from visionpipe.data.augmentation import make_augmentation
from visionpipe.data.batches import (
    batch_indices,
    class_order,
    evaluation_batches,
    permutation,
    steps_per_epoch,
    training_batches,
)
from visionpipe.errors import ConfigError
from visionpipe.tasks.single import Single

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 12, 10, 3), np.uint8)


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


UNEVEN = np.random.default_rng(2).permutation(np.repeat([0, 1, 3, 4], [300, 70, 7, 1]))  # no image of class 2


@pytest.mark.parametrize(
    ("sampler", "shares"), [("balanced", [1, 1, 0, 1, 1]), ("sqrt", np.sqrt([300, 70, 0, 7, 1]))]
)
def test_classes_are_drawn_by_their_shares_and_no_image_again_before_all_of_its_class(sampler, shares):
    order, count = class_order(UNEVEN, sampler), len(UNEVEN)
    drawn = np.concatenate([batch_indices(3, step, 27, count, order=order) for step in range(14 * 12)])
    for rounds in range(1, 13):
        of_classes = np.bincount(UNEVEN[drawn[: rounds * count]], minlength=5)
        np.testing.assert_allclose(of_classes, rounds * count * np.array(shares) / np.sum(shares), atol=1)
    orders = set()
    for label in (0, 1, 3, 4):
        images = np.flatnonzero(label == UNEVEN)
        whole = rounds_of(drawn[UNEVEN[drawn] == label], len(images))
        assert (np.sort(whole, axis=1) == images).all()
        orders |= {tuple(order) for order in whole[:, :5].tolist()} if label == 1 else set()
    assert len(orders) > 3, "each permutation is another one"


def rounds_of(drawn, length):
    return drawn[: len(drawn) // length * length].reshape(-1, length)


def test_a_drawn_batch_needs_no_batch_before_it_and_depends_on_the_seed():
    alone = batch_indices(3, 40, 30, len(UNEVEN), 3, class_order(UNEVEN, "sqrt"))
    order = class_order(UNEVEN, "sqrt")
    in_order = [batch_indices(3, step, 30, len(UNEVEN), 3, order) for step in range(41)]
    np.testing.assert_array_equal(alone, in_order[40])
    np.testing.assert_array_equal(alone.reshape(10, 3), np.repeat(alone[::3, None], 3, axis=1))
    assert (batch_indices(4, 40, 30, len(UNEVEN), 3, order) != alone).any()


def test_a_round_of_a_million_uneven_images_takes_about_a_second():
    labels = np.random.default_rng(0).zipf(1.5, 1_000_000) % 1000
    start = time.perf_counter()
    batch_indices(3, 0, 32, len(labels), order=class_order(labels, "balanced"))
    assert time.perf_counter() - start < 5


def stream(steps, entries, **options):
    return training_batches(
        IMAGES,
        np.arange(64, dtype=np.int32) % 3,
        targets=partial(Single.targets, classes=3),
        batch_size=20,
        seed=9,
        augment=make_augmentation(entries, 9, 3),
        steps=steps,
        **options,
    )


def test_batches_from_the_middle_are_those_of_the_whole_stream():
    entries = ({"name": "crop", "padding": 2}, {"name": "cutmix"})
    whole, part = (list(stream(steps, entries).as_numpy_iterator()) for steps in (range(6), range(4, 6)))
    assert len(whole) == 6
    for (images, labels), (images_again, labels_again) in zip(whole[4:], part, strict=True):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(labels, labels_again)


def test_a_mixed_image_has_the_weights_of_both_by_their_shares():
    labels = np.arange(64, dtype=np.int32)  # a class for each image, so that a target names the images in it
    weights = np.random.default_rng(1).uniform(0, 3, 64).astype(np.float32)
    weights[::2] = 0
    mixing = [{"name": "mixup", "probability": 0.5}, {"name": "cutmix", "probability": 0.5}]
    batches = [
        list(
            training_batches(
                IMAGES, labels, targets=partial(Single.targets, classes=64), batch_size=20, seed=9, steps=range(4),
                weights=given,
                augment=make_augmentation(mixing, 9, 3),
            ).as_numpy_iterator()
        )
        for given in (None, weights)
    ]  # fmt: skip
    for (images, targets), (same_images, weighted, factors) in zip(*batches, strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_allclose(factors, targets @ weights, rtol=1e-5)
        shares = np.where(
            factors[:, None] > 0, targets * weights / np.maximum(factors, 1e-9)[:, None], targets
        )
        np.testing.assert_allclose(weighted, shares, atol=1e-6)
    assert (factors == 0).any()


def test_labels_belong_to_their_images():
    images = np.broadcast_to(np.arange(50, dtype=np.uint8)[:, None, None, None], (50, 4, 4, 3))
    labels, augment = np.arange(50, dtype=np.int32) % 7, make_augmentation((), 0, 1)
    batches = training_batches(
        images,
        labels,
        targets=partial(Single.targets, classes=7),
        batch_size=16,
        seed=0,
        augment=augment,
        steps=range(1),
    )
    ((x, y),) = batches.as_numpy_iterator()
    np.testing.assert_array_equal(y.argmax(1), x[:, 0, 0, 0].astype(int) % 7)
    assert y.sum() == 16


def test_validation_batches_hold_every_image_once_in_order():
    images = np.broadcast_to(np.arange(251, dtype=np.uint8)[:251, None, None, None], (251, 2, 2, 3))
    batches = list(
        evaluation_batches(images, np.arange(251) % 5, partial(Single.targets, classes=5)).as_numpy_iterator()
    )
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), images)
    np.testing.assert_array_equal(np.concatenate([y.argmax(1) for _, y in batches]), np.arange(251) % 5)


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(4000, 64, 62), (10, 64, 1), (96, 64, 2)])
def test_an_epoch_is_about_one_round(count, batch_size, steps):
    assert steps_per_epoch(count, batch_size) == steps


def hashes(batches):
    """One hash of all pixels and labels."""
    digest = hashlib.sha256()
    for images, targets in batches.as_numpy_iterator():
        digest.update(images.tobytes() + targets.tobytes())
    return digest.hexdigest()


def test_neither_workers_nor_prefetch_change_a_batch():
    entries = ({"name": "flip"}, {"name": "crop", "padding": 2}, {"name": "mixup"})
    settings = [(1, 0), (2, 4), (8, 16), (5, 1)]
    digests = {
        hashes(stream(range(40), entries, workers=workers, prefetch=prefetch))
        for workers, prefetch in settings
    }
    assert len(digests) == 1


def test_repeated_augmentation_repeats_each_image_in_a_batch_with_other_draws():
    images = np.arange(64, dtype=np.uint8)[:, None, None, None] + np.arange(
        0, 160, 10, dtype=np.uint8
    ).reshape(1, 4, 4, 1)
    batches = training_batches(
        np.repeat(images, 3, axis=3),
        np.arange(64, dtype=np.int32),
        targets=partial(Single.targets, classes=64),
        batch_size=24,
        seed=9,
        augment=make_augmentation(({"name": "crop", "padding": 3},), 9, 1),
        steps=range(8),
        repeated_augmentation=3,
    )
    seen = []
    for x, y in batches.as_numpy_iterator():
        drawn, counts = np.unique(y.argmax(1), return_counts=True)
        assert (counts == 3).all()
        assert len(np.unique(x.reshape(24, -1), axis=0)) > 16
        seen += drawn.tolist()
    assert sorted(seen) == list(range(64))  # eight batches of eight images are one round


def test_a_batch_that_cannot_hold_all_repeats_is_refused():
    with pytest.raises(ConfigError, match="batch_size 20 is not a multiple of repeated_augmentation 3"):
        stream(range(1), (), repeated_augmentation=3)


def test_the_permutation_of_a_round_is_made_once():
    permutation.cache_clear()
    for step in range(50):
        batch_indices(3, step, 10, 500)
    assert permutation.cache_info().misses == 1


def test_a_batch_out_of_a_million_images_takes_microseconds_once_its_round_is_there():
    batch_indices(3, 0, 32, 1_000_000)
    start = time.perf_counter()
    for step in range(1, 1001):
        batch_indices(3, step, 32, 1_000_000)
    assert time.perf_counter() - start < 0.5
    assert permutation(3, 0, 1_000_000).nbytes == 4_000_000
