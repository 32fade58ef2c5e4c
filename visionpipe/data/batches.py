"""The sampler: a batch is a pure function of (seed, global step).

So the data order is the same on every backend, with any prefetch depth, and after every resume.
"""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from visionpipe.data.augmentation import Augment
from visionpipe.errors import ConfigError

WORKERS, PREFETCH = 2, 4
EVALUATION_BATCH = 250


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Optimizer steps that see `count` images about once."""
    return max(1, round(count / batch_size))


def batch_indices(seed: int, step: int, batch_size: int, count: int, repeats: int = 1) -> np.ndarray:
    """Indices (batch,) of batch number `step`, computable without the batches before it.

    The stream is one seeded permutation of the `count` images after another; a batch may straddle two
    of them, so that no image is ever left out. With `repeats`, each image drawn is there that many times,
    side by side.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size) // repeats
    rounds, offsets = np.divmod(positions, count)
    indices = np.empty(batch_size, np.int64)
    for number in range(rounds[0], rounds[-1] + 1):
        here = rounds == number
        indices[here] = permutation(seed, number, count)[offsets[here]]
    return indices


@functools.lru_cache(maxsize=2)  # a million images take 20 ms: once for each round, not for each batch
def permutation(seed: int, number: int, count: int) -> np.ndarray:
    """Round `number` of the stream: (count,), in as few bytes as there may be, for it stays in memory."""
    generator = np.random.Generator(np.random.Philox(key=[seed, number]))
    return generator.permutation(count).astype(np.min_scalar_type(count))


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    batch_size: int,
    seed: int,
    augment: Augment,
    steps: range,
    repeated_augmentation: int = 1,
    teacher_logits: np.ndarray | None = None,
    workers: int = WORKERS,
    prefetch: int = PREFETCH,
) -> Any:
    """The batches of the global `steps`, prepared ahead on the CPU.

    Args:
        repeated_augmentation: how often each image that is drawn appears in its batch, each time with dice of
            its own (Hoffer et al. 2020, arXiv:1901.09335). A step sees fewer images then, an epoch has as
            many steps.
        teacher_logits: float32 (all, classes), put beside the labels: then these are (batch, 2·classes).
        workers, prefetch: batches that are made at the same time, and kept ahead. They change no batch.

    Returns:
        A `tf.data.Dataset` of images float32 (batch, height, width, 3) in [0, 255] and labels float32
        (batch, classes): one-hot, or soft where images were mixed.

    Raises ConfigError where the batch does not hold `repeated_augmentation` of each of its images.
    """
    import tensorflow as tf

    if batch_size % repeated_augmentation:
        raise ConfigError(
            f"batch_size {batch_size} is not a multiple of repeated_augmentation {repeated_augmentation}"
        )
    pixels = np.asarray(images)  # a memory map without the class around it, which costs more than the copy

    taught = np.empty((len(labels), 0), np.float32) if teacher_logits is None else teacher_logits

    def read(step: np.int64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        indices = batch_indices(seed, int(step), batch_size, len(labels), repeated_augmentation)
        return pixels.take(indices, axis=0), labels[indices], taught[indices]

    def batch(step: Any) -> tuple[Any, Any]:
        kinds = [tf.uint8, tf.int32, tf.float32]
        chosen, classes_of_chosen, answers = tf.numpy_function(read, [step], kinds, stateful=False)
        chosen = tf.ensure_shape(chosen, (batch_size, *images.shape[1:]))
        targets = tf.one_hot(tf.ensure_shape(classes_of_chosen, (batch_size,)), classes)
        augmented, targets = augment(chosen, targets, step)
        return augmented, tf.concat([targets, tf.ensure_shape(answers, (batch_size, taught.shape[1]))], 1)

    numbers = tf.data.Dataset.range(steps.start, steps.stop)
    batches = numbers.map(batch, num_parallel_calls=workers, deterministic=True).prefetch(prefetch)
    return batches.with_options(untuned())


def evaluation_batches(
    images: np.ndarray, labels: np.ndarray, classes: int, batch_size: int = EVALUATION_BATCH
) -> Any:
    """A whole split in order, not augmented, as a `tf.data.Dataset` like that of `training_batches`."""
    import tensorflow as tf

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            yield images[part].astype(np.float32), one_hot(labels[part], classes)

    shapes = (None, *images.shape[1:]), (None, classes)
    signature = tuple(tf.TensorSpec(shape, tf.float32) for shape in shapes)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    count = -(-len(labels) // batch_size)
    return dataset.apply(tf.data.experimental.assert_cardinality(count)).with_options(untuned())


def untuned() -> Any:
    """There is nothing to tune, and after a minute of work the tuner takes half a minute to stop."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Labels int (n,) to float32 (n, classes)."""
    return np.eye(classes, dtype=np.float32)[labels]
