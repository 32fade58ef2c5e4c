"""Training augmentation on the CPU input path: the dice are ours, the pixels keras-cv's.

keras-cv's layers, called normally, draw from generators that no seed makes reproducible. Here every
parameter is drawn statelessly from (seed, step) and handed to the layers' deterministic
`augment_images`, all in one compiled graph: the same pixels on every backend and after every resume.
"""

from collections.abc import Callable, Sequence
from typing import Any

Augment = Callable[[Any, Any], Any]


def flip(seed: Any, count: int, size: tuple[int, int], probability: float) -> tuple[Any, Any]:
    """Mirrors left and right."""
    import keras_cv
    import tensorflow as tf

    flips = tf.cast(tf.random.stateless_uniform((count, 1), seed) < probability, tf.float32)
    still = tf.zeros_like(flips)
    return keras_cv.layers.RandomFlip("horizontal"), {"flip_horizontals": flips, "flip_verticals": still}


def shift(seed: Any, count: int, size: tuple[int, int], pixels: int) -> tuple[Any, Any]:
    """Moves by whole pixels, up to `pixels` each way, and fills with zeros: a random crop after padding."""
    import keras_cv
    import tensorflow as tf

    moves = tf.cast(tf.random.stateless_uniform((count, 2), seed, -pixels, pixels + 1, tf.int32), tf.float32)
    layer = keras_cv.layers.RandomTranslation(1.0, 1.0, fill_mode="constant", interpolation="nearest")
    parameters = {"height_translations": moves[:, :1] / size[0], "width_translations": moves[:, 1:] / size[1]}
    return layer, parameters


def cutout(seed: Any, count: int, size: tuple[int, int], fraction: float) -> tuple[Any, Any]:
    """Blanks one rectangle of `fraction` of each side, centred anywhere (DeVries & Taylor 2017)."""
    import keras_cv
    import tensorflow as tf

    height, width = size
    centres = tf.random.stateless_uniform((count, 2), seed)
    layer = keras_cv.layers.RandomCutout(fraction, fraction, fill_mode="constant", fill_value=127.5)
    parameters = {
        "centers_y": tf.cast(centres[:, 0] * height, tf.int32),
        "centers_x": tf.cast(centres[:, 1] * width, tf.int32),
        "rectangles_height": tf.fill((count,), round(fraction * height)),
        "rectangles_width": tf.fill((count,), round(fraction * width)),
    }
    return layer, parameters


KINDS: dict[str, Callable[..., tuple[Any, Any]]] = {"flip": flip, "shift": shift, "cutout": cutout}


def make_augmentation(entries: Sequence[dict[str, Any]], seed: int) -> Augment:
    """One function from a batch and its global step to the augmented batch.

    Args:
        entries: params.yaml's `train.augmentation`, in order; `name` and the kind's own parameters.
        seed: with the step, the only source of randomness.

    Returns:
        A graph function of TensorFlow tensors, for a `tf.data` pipeline: images uint8 (batch, height,
        width, 3) and step int64 () to float32 of the same shape, in [0, 255].
    """
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def augment(images: Any, step: Any) -> Any:
        count, size = images.shape[0], (images.shape[1], images.shape[2])
        images = tf.cast(images, tf.float32)
        for position, entry in enumerate(entries):
            parameters = {key: value for key, value in entry.items() if key != "name"}
            # One stream of numbers per entry and step.
            dice = tf.stack([tf.constant(seed * 64 + position, tf.int64), step])
            layer, transformations = KINDS[entry["name"]](dice, count, size, **parameters)
            images = layer.augment_images(images, transformations)
        return images

    return augment
