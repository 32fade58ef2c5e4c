"""The operations of RandAugment, and how each image of a batch gets its operations."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from visionpipe.data.pixels import (
    as_float,
    auto_contrast,
    brightness,
    contrast,
    equalize,
    posterize,
    rotate,
    saturation,
    sharpness,
    shear,
    solarize,
    translate,
)

LARGE = 160 * 160 * 3  # values of an image: a group of such images leaves the processor's cache

# The operations of RandAugment, each a function of images, levels in [0, 1] and signs ±1. The ranges are those of the
# paper's code, or timm's for operations that have a sign.
OPERATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "identity": lambda images, level, sign: images,
    "auto_contrast": lambda images, level, sign: auto_contrast(images),
    "equalize": lambda images, level, sign: equalize(images),
    "rotate": lambda images, level, sign: rotate(images, 0.5236 * level * sign),  # 30 degrees
    "solarize": lambda images, level, sign: solarize(images, 256 * (1 - level)),
    "posterize": lambda images, level, sign: posterize(images, level),
    "color": lambda images, level, sign: saturation(images, 1 + 0.9 * level * sign),
    "contrast": lambda images, level, sign: contrast(images, 1 + 0.9 * level * sign),
    "brightness": lambda images, level, sign: brightness(images, 1 + 0.9 * level * sign),
    "sharpness": lambda images, level, sign: sharpness(images, 1 + 0.9 * level * sign),
    "shear_x": lambda images, level, sign: shear(images, 0.3 * level * sign, None),
    "shear_y": lambda images, level, sign: shear(images, None, 0.3 * level * sign),
    "translate_x": lambda images, level, sign: translate(images, 0.45 * level * sign, None),
    "translate_y": lambda images, level, sign: translate(images, None, 0.45 * level * sign),
}


def operate(images: Any, choices: Any, levels: Any, sides: Any) -> Any:
    """Applies one of OPERATIONS to each image, or several one after another, and returns float32.

    Large images take turns, because the pixels of one stay in the processor's cache. Small ones are grouped by
    operation.

    Args:
        images: of any dtype.
        choices: uniform in [0, 1); select the operations. Float32 (batch,) or (batch, rounds), like the others.
        levels: strengths of the operations, clipped to [0, 1].
        sides: uniform in [0, 1); select the signs.
    """
    import tensorflow as tf

    chosen = tf.cast(choices * len(OPERATIONS), tf.int32)
    levels, signs = tf.clip_by_value(levels, 0, 1), tf.where(sides < 0.5, -1.0, 1.0)
    rounds = [tf.reshape(numbers, (images.shape[0], -1)) for numbers in (chosen, levels, signs)]
    if math.prod(images.shape[1:]) >= LARGE:
        return tf.map_fn(one_by_one, (images, *rounds), fn_output_signature=tf.float32)
    for numbers in zip(*(tf.unstack(number, axis=1) for number in rounds), strict=True):
        images = in_groups(as_float(images), *numbers)
    return images


def one_by_one(parts: tuple[Any, ...]) -> Any:
    """Applies the operations of all rounds to one image: (height, width, 3) and three times (rounds,)."""
    import tensorflow as tf

    # Functions that stay apart: of those that are merged into the graph, TensorFlow visits every node of all branches.
    operations = [
        tf.function(operation, experimental_attributes={"_noinline": True})
        for operation in OPERATIONS.values()
    ]
    image = as_float(parts[0])[None]
    for chosen, level, sign in zip(*map(tf.unstack, parts[1:]), strict=True):
        branches = [partial(operation, image, level[None], sign[None]) for operation in operations]
        image = tf.ensure_shape(tf.switch_case(chosen, branches), image.shape)
    return image[0]


def in_groups(images: Any, chosen: Any, level: Any, sign: Any) -> Any:
    """Splits the batch by operation, and puts it together again."""
    import tensorflow as tf

    groups = [
        tf.dynamic_partition(values, chosen, len(OPERATIONS))
        for values in (images, level, sign, tf.range(images.shape[0]))
    ]
    results = []
    for operation, *parts in zip(OPERATIONS.values(), *groups[:3], strict=True):
        parts[0] = tf.ensure_shape(parts[0], (None, *images.shape[1:]))
        # Empty groups are skipped: TensorFlow's convolution changes the size of an empty batch.
        results.append(
            tf.cond(tf.size(parts[1]) > 0, partial(operation, *parts), lambda parts=parts: parts[0])
        )
    return tf.ensure_shape(tf.dynamic_stitch(groups[3], results), images.shape)
