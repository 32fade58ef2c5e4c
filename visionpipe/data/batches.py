"""The sampler: a batch is a pure function of (seed, global step).

So the data order is the same on every backend, with any prefetch depth, and after every resume.
"""

from typing import Any

import keras
import numpy as np

from visionpipe.data.augmentation import Augment

Batch = tuple[np.ndarray, np.ndarray]
PREFETCH = 4
VALIDATION_BATCH = 250


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps that see `count` images about once."""
    return max(1, round(count / batch_size))


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Indices (batch,) of batch number `step`, computable without the batches before it.

    The stream is one seeded permutation of the `count` images after another; a batch may straddle two
    of them, so that no image is ever left out.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    rounds, offsets = np.divmod(positions, count)
    indices = np.empty(batch_size, np.int64)
    for number in np.unique(rounds):
        order = np.random.Generator(np.random.Philox(key=[seed, number])).permutation(count)
        indices[rounds == number] = order[offsets[rounds == number]]
    return indices


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    batch_size: int,
    seed: int,
    augment: Augment,
    steps: range,
) -> Any:
    """The batches of the global `steps`, prepared ahead on the CPU.

    Returns:
        A `tf.data.Dataset` of images float32 (batch, height, width, 3) in [0, 255] and one-hot labels
        float32 (batch, classes).
    """
    import tensorflow as tf

    def read(step: np.int64) -> Batch:
        indices = batch_indices(seed, int(step), batch_size, len(labels))
        return images[indices], one_hot(labels[indices], classes)

    def batch(step: Any) -> tuple[Any, Any]:
        pixels, targets = tf.numpy_function(read, [step], [tf.uint8, tf.float32], stateful=False)
        pixels = tf.ensure_shape(pixels, (batch_size, *images.shape[1:]))
        return augment(pixels, step), tf.ensure_shape(targets, (batch_size, classes))

    options = tf.data.Options()
    # There is nothing to tune, and after a minute of work the tuner takes half a minute to stop.
    options.autotune.enabled = False
    return tf.data.Dataset.range(steps.start, steps.stop).map(batch).prefetch(PREFETCH).with_options(options)


class ValidationBatches(keras.utils.PyDataset):
    """A whole split in order, not augmented; images and labels as `training_batches` yields them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, classes: int):
        super().__init__()
        self.images, self.labels, self.classes = images, labels, classes

    def __len__(self) -> int:
        return -(-len(self.labels) // VALIDATION_BATCH)

    def __getitem__(self, index: int) -> Batch:
        part = slice(index * VALIDATION_BATCH, (index + 1) * VALIDATION_BATCH)
        return self.images[part].astype(np.float32), one_hot(self.labels[part], self.classes)


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels int (n,) to float32 (n, classes)."""
    return np.eye(classes, dtype=np.float32)[labels]
