"""Makes training batches: a batch is a pure function of (seed, global step).

So the order of the data is the same on every backend, with any prefetch depth, and after every resume.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from visionpipe.data.augmentation import Augment
from visionpipe.data.form import model_input
from visionpipe.data.pixels import aligned
from visionpipe.errors import ConfigError

Targets = Callable[[np.ndarray], np.ndarray]  # labels (n, …) → what a loss learns, float32 (n, width)
Order = Callable[[int, int, int], np.ndarray]  # seed, number of a round, images → indices (images,)
WORKERS, PREFETCH = 2, 4
WORDS = 4  # numbers of 64 bits that Philox makes for each value of its counter
ROOT_BITS = 64  # before the root is taken, so that it has 32 bits behind the point
EVALUATION_BATCH = 250


def steps_per_epoch(count: int, batch_size: int) -> int:
    """Returns the number of optimizer steps that see `count` images about once."""
    return max(1, round(count / batch_size))


def batch_indices(
    seed: int, step: int, batch_size: int, count: int, repeats: int = 1, order: Order | None = None
) -> np.ndarray:
    """Returns the indices int64 (batch,) of the images in batch `step`, without computing earlier batches.

    The batches follow one round of `count` images after another: seeded permutations, or those of `order`. A batch may
    straddle two rounds, so that no image is left out. With `repeats`, each image appears that many times in a row.
    """
    order = order or permutation
    positions = np.arange(step * batch_size, (step + 1) * batch_size) // repeats
    rounds, offsets = np.divmod(positions, count)
    indices = np.empty(batch_size, np.int64)
    for number in range(rounds[0], rounds[-1] + 1):
        in_round = rounds == number
        indices[in_round] = order(seed, int(number), count)[offsets[in_round]]
    return indices


@functools.lru_cache(maxsize=2)  # a million images take 20 ms, which is too long for every batch
def permutation(seed: int, number: int, count: int) -> np.ndarray:
    """Returns permutation `number` of the images, (count,), in the smallest dtype because it stays in memory."""
    generator = np.random.Generator(np.random.Philox(key=[seed, number]))
    return generator.permutation(count).astype(np.min_scalar_type(count))


def class_shares(sampler: str, counts: np.ndarray) -> np.ndarray:
    """Returns how often each class is drawn relative to the others, as integers, of Python's type (classes,).

    Args:
        sampler: one of those of `train.sampler`.
        counts: int (classes,), the images of each class. A class without any is never drawn.
    """
    if sampler == "balanced":
        shares = [int(count > 0) for count in counts]
    elif sampler == "sqrt":
        shares = [math.isqrt(int(count) << ROOT_BITS) for count in counts]
    else:
        shares = [int(count) for count in counts]
    return np.array(shares, object)


def class_order(labels: np.ndarray, sampler: str) -> Order | None:
    """Returns what makes the rounds in which the classes have their `class_shares`; None for `shuffle`.

    Each class has a separate stream: one permutation of its images after another, so that no image comes again before
    all others of its class. A round takes the next images of each stream in their order, to places that a permutation
    gives to the class. After any number of rounds each class was drawn as often as its share demands, within one image.

    Args:
        labels: int (n,), of the training images.
    """
    if sampler == "shuffle":
        return None
    counts = np.bincount(labels)
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(counts)[:-1])
    ends = np.cumsum(class_shares(sampler, counts))

    def drawn(number: int) -> np.ndarray:
        """Returns how often each class is drawn before round `number`. The integers are exact, whatever their size."""
        return np.diff(number * len(labels) * ends // ends[-1], prepend=0)

    @functools.lru_cache(maxsize=2)
    def order(seed: int, number: int, count: int) -> np.ndarray:
        places, indices = permutation(seed, number, count), np.empty(count, np.min_scalar_type(count))
        starts, stops = drawn(number).tolist(), drawn(number + 1).tolist()
        taken = 0
        for label, (images, start, stop) in enumerate(zip(by_class, starts, stops, strict=True)):
            if stop > start:
                of_class = np.sort(places[taken : taken + stop - start])
                indices[of_class] = images[class_stream(seed, label, len(images), start, stop)]
                taken += stop - start
        return indices

    return order


def class_stream(seed: int, label: int, count: int, start: int, stop: int) -> np.ndarray:
    """Returns places `start` to `stop` of the seeded permutations of `count` images of a class, one after another."""
    first, last = start // count, (stop - 1) // count
    blocks = -(-count // WORDS)
    # The highest word of the counter tells these numbers from those of `permutation`.
    generator = np.random.Philox(key=[seed, label], counter=[first * blocks, 0, 0, 1])
    numbers = generator.random_raw((last - first + 1) * blocks * WORDS).reshape(-1, blocks * WORDS)
    permutations = numbers[:, :count].argsort(axis=1, kind="stable").ravel()
    return permutations[start - first * count : stop - first * count]


def training_batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    targets: Targets,
    batch_size: int,
    seed: int,
    augment: Augment,
    steps: range,
    repeated_augmentation: int = 1,
    teacher_logits: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    sampler: str = "shuffle",
    drawn_as: np.ndarray | None = None,
    workers: int = WORKERS,
    prefetch: int = PREFETCH,
) -> Any:
    """Returns the augmented batches of the global `steps`, which are prepared ahead on the CPU.

    Args:
        images: uint8 or uint16 (all, height, width, channels); may be a memory map.
        labels: those of Prepared.labels.
        targets: converts labels to what a loss learns.
        steps: the numbers of the batches.
        repeated_augmentation: how often each image appears in its batch, each time with other random draws (Hoffer et
            al. 2020, arXiv:1901.09335). A batch then has fewer different images; an epoch has the same steps.
        teacher_logits: float32 (all, classes), appended to the targets.
        weights: float32 (all,), factors of the images' losses. That of a mixed image is the mean of both, by their
            shares, and each of its labels counts by its own image's weight.
        sampler: how often each class is drawn (`class_shares`).
        drawn_as: the class of each image for the sampler, int (all,); None: its label.
        workers: how many batches are made at the same time. Changes no batch.
        prefetch: how many finished batches may wait. Changes no batch.

    Returns:
        A `tf.data.Dataset` of images float32 (batch, height, width, channels) in [0, 255] and targets float32
        (batch, width), mixed where images were mixed; with `weights` also the weights float32 (batch,).

    Raises:
        ConfigError: the batch size is not a multiple of `repeated_augmentation`.
    """
    import tensorflow as tf

    if batch_size % repeated_augmentation:
        raise ConfigError(
            f"batch_size {batch_size} is not a multiple of repeated_augmentation {repeated_augmentation}"
        )
    stored = np.asarray(images)  # indexing np.memmap itself costs more than the copy of the pixels
    taught = np.empty((len(labels), 0), np.float32) if teacher_logits is None else teacher_logits
    factors = np.ones(len(labels), np.float32) if weights is None else weights
    order = class_order(labels if drawn_as is None else drawn_as, sampler)
    width = targets(labels[:1]).shape[1]

    def read(step: np.int64) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        indices = batch_indices(seed, int(step), batch_size, len(labels), repeated_augmentation, order)
        chosen = aligned((batch_size, *images.shape[1:]), images.dtype)
        stored.take(indices, axis=0, out=chosen, mode="clip")  # the default mode copies twice
        return chosen, targets(labels[indices]), taught[indices], factors[indices]

    def batch(step: Any) -> tuple[Any, ...]:
        dtypes = [tf.as_dtype(images.dtype), tf.float32, tf.float32, tf.float32]
        chosen, learned, logits, factor = tf.numpy_function(read, [step], dtypes, stateful=False)
        chosen = tf.ensure_shape(chosen, (batch_size, *images.shape[1:]))
        learned = tf.ensure_shape(learned, (batch_size, width))
        logits = tf.ensure_shape(logits, (batch_size, taught.shape[1]))
        if weights is None:
            augmented, learned = augment(chosen, learned, step)
            return augmented, tf.concat([learned, logits], 1)
        # Mixing is linear in the targets, so weighted ones beside them become the weighted shares of both images.
        factor = tf.ensure_shape(factor, (batch_size,))[:, None]
        augmented, mixed = augment(chosen, tf.concat([learned, learned * factor, factor], 1), step)
        learned, weighted, factor = tf.split(mixed, [width, width, 1], axis=1)
        learned = tf.where(factor > 0, tf.math.divide_no_nan(weighted, factor), learned)
        return augmented, tf.concat([learned, logits], 1), factor[:, 0]

    numbers = tf.data.Dataset.range(steps.start, steps.stop)
    batches = numbers.map(batch, num_parallel_calls=workers, deterministic=True).prefetch(prefetch)
    return batches.with_options(untuned())


def evaluation_batches(
    images: np.ndarray, labels: np.ndarray, targets: Targets, batch_size: int = EVALUATION_BATCH
) -> Any:
    """Returns a whole split in order, not augmented, as a `tf.data.Dataset` like that of `training_batches`."""
    import tensorflow as tf

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(labels), batch_size):
            part = slice(start, start + batch_size)
            yield model_input(images[part]), targets(labels[part])

    shapes = (None, *images.shape[1:]), (None, targets(labels[:1]).shape[1])
    signature = tuple(tf.TensorSpec(shape, tf.float32) for shape in shapes)
    dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
    count = -(-len(labels) // batch_size)
    return dataset.apply(tf.data.experimental.assert_cardinality(count)).with_options(untuned())


def untuned() -> Any:
    """Returns dataset options without autotuning: after a minute of work the tuner takes half a minute to stop."""
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return options
