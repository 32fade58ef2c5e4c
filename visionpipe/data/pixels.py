"""The pixel operations of augmentation: pure functions of a batch of images and one number per image.

We draw the random parameters; keras-cv applies them. TensorFlow's operations replace a layer of keras-cv that differs
from its paper, is not vectorised, or fails in a graph beside JAX and torch; each replacement states its reason.

Unless stated otherwise, images are float32 (batch, height, width, 3) in [0, 255], and numbers are float32 (batch,).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

GREY = 127.5
COLOURS = (0.0, 255.0)


def as_float(images: Any) -> Any:
    """Converts images to float32 in [0, 255]: uint16 are divided by 257, other types stay in their range."""
    import tensorflow as tf

    floats = tf.cast(images, tf.float32)
    return floats / 257 if images.dtype == tf.uint16 else floats


def positions(images: Any) -> tuple[Any, Any]:
    """Returns the positions of all pixels: rows int32 (batch, height) and columns int32 (batch, width)."""
    import tensorflow as tf

    count, *sides = images.shape[:3]
    rows, columns = (tf.tile(tf.range(side)[None], (count, 1)) for side in sides)
    return rows, columns


def moved(images: Any, rows: Any, columns: Any) -> Any:
    """Returns the pixels at `rows` and `columns`, of any dtype, unchanged; black where these lie outside the image.

    This is a single gather, of integers. keras-cv's flip alone makes five passes over four times the bytes.
    """
    import tensorflow as tf

    count, height, width, channels = images.shape
    black = count * height * width  # index of the black pixel that is appended

    def offsets(places: Any, side: int, stride: int) -> Any:
        return tf.where((places >= 0) & (places < side), places * stride, black)

    first = (tf.range(count) * (height * width))[:, None]
    from_rows = offsets(rows, height, width) + first
    source = from_rows[:, :, None] + offsets(columns, width, 1)[:, None, :]
    table = tf.concat([tf.reshape(images, (-1, channels)), tf.zeros((1, channels), images.dtype)], axis=0)
    return tf.gather(table, tf.minimum(source, black))


def inside(images: Any, top: Any, left: Any, height: Any, width: Any) -> Any:
    """Returns bool (batch, height, width, 1): whether a pixel lies in a rectangle with edges rounded to pixels."""
    import tensorflow as tf

    def within(start: Any, length: Any, side: int) -> Any:
        first, end = tf.round(start)[:, None], tf.round(start + length)[:, None]
        places = tf.range(side, dtype=tf.float32)
        return (places >= first) & (places < end)

    rows = within(top, height, images.shape[1])
    columns = within(left, width, images.shape[2])
    return (rows[:, :, None] & columns[:, None, :])[..., None]


def mixed(values: Any, share: Any) -> Any:
    """Adds `share` of each image or target and 1 - `share` of the one half a batch further on."""
    import tensorflow as tf

    other = tf.roll(values, values.shape[0] // 2, axis=0)
    return values * share + other * (1 - share)


def resized(images: Any, top: Any, left: Any, height: Any, width: Any) -> Any:
    """Resizes a rectangle of each image bilinearly to the whole image, as Pillow's `resize` with a `box` does.

    keras-cv's RandomCropAndResize is not vectorised.
    """
    sides = images.shape[1:3]
    y, x = (length / side for length, side in zip((height, width), sides, strict=True))
    # Pixel 0 has its centre at 0.5.
    return projected(images, x, 0 * x, left + x / 2 - 0.5, 0 * y, y, top + y / 2 - 0.5, fill_mode="NEAREST")


def projected(images: Any, *matrix: Any, fill_mode: str = "CONSTANT") -> Any:
    """Replaces the pixel at (x, y) with the one at (a x + b y + c, d x + e y + f), interpolated bilinearly.

    `matrix` is a, b, c, d, e, f.
    """
    import tensorflow as tf

    zero = tf.zeros_like(matrix[0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([*matrix, zero, zero], axis=1),
        output_shape=images.shape[1:3],
        fill_value=GREY,
        interpolation="BILINEAR",
        fill_mode=fill_mode,
    )


def layer(name: str, *arguments: Any, **parameters: Any) -> Callable[..., Any]:
    """Returns the deterministic part of a keras-cv layer: it takes images and the parameters to apply."""
    import keras_cv

    # float32 whatever the precision of the model that trains on the images
    apply: Callable[..., Any] = getattr(keras_cv.layers, name)(
        *arguments, **parameters, dtype="float32"
    ).augment_images
    return apply


def per_image(numbers: Any) -> Any:
    """Reshapes (batch,) to (batch, 1, 1, 1)."""
    return numbers[:, None, None, None]


def blended(images: Any, others: Any, factors: Any) -> Any:
    """Interpolates from `others` (factor 0) to `images` (factor 1), and extrapolates, as Pillow's ImageEnhance does."""
    import tensorflow as tf

    return tf.clip_by_value(others + (images - others) * per_image(factors), *COLOURS)


def brightness(images: Any, factors: Any) -> Any:
    """Multiplies the pixels by `factors`. keras-cv's layer adds instead."""
    return blended(images, 0.0, factors)


def contrast(images: Any, factors: Any) -> Any:
    """Scales the distance from the mean grey. keras-cv's layer takes the mean of each channel, which shifts colours."""
    import tensorflow as tf

    grey = tf.reduce_mean(tf.image.rgb_to_grayscale(images), axis=(1, 2), keepdims=True)
    return blended(images, grey, factors)


def saturation(images: Any, factors: Any) -> Any:
    """Scales the distance from the grey version of each image."""
    return layer("RandomColorDegeneration", 0.5)(images, per_image(1 - factors))


def sharpness(images: Any, factors: Any) -> Any:
    """Scales the distance from a blurred version of each image."""
    return layer("RandomSharpness", 0.5, COLOURS)(images, per_image(1 - factors))


def hue(images: Any, turns: Any) -> Any:
    """Turns the hue by fractions of the colour circle."""
    return layer("RandomHue", 0.5, COLOURS)(images, turns)


def equalize(images: Any) -> Any:
    """Flattens the histogram of each channel, as Pillow does.

    keras-cv's layer counts in a loop over images, and ignores the smallest bin where Pillow ignores the last.
    """
    import tensorflow as tf

    count, (height, width) = tf.shape(images)[0], images.shape[1:3]
    values = tf.cast(tf.reshape(tf.transpose(images, (0, 3, 1, 2)), (-1, height * width)), tf.int32)
    bins = values + 256 * tf.range(3 * count)[:, None]
    histogram = tf.reshape(tf.math.unsorted_segment_sum(tf.ones_like(bins), bins, 3 * 256 * count), (-1, 256))
    last = tf.gather(histogram, tf.reduce_max(values, axis=1), batch_dims=1)[:, None]
    step = (height * width - last) // 255
    table = (step // 2 + tf.cumsum(histogram, axis=1, exclusive=True)) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
    flat = tf.cast(tf.gather(table, values, batch_dims=1), tf.float32)
    return tf.transpose(tf.reshape(flat, (-1, 3, height, width)), (0, 2, 3, 1))


def posterize(images: Any, levels: Any) -> Any:
    """Clears the low bits of each pixel: 8 bits remain at level 0, and 4 at level 1.

    keras-cv's layer is not vectorised.
    """
    import tensorflow as tf

    step = per_image(2 ** tf.round(4 * levels))
    return tf.floor(images / step) * step


def rotate(images: Any, angles: Any) -> Any:
    """Rotates by `angles`, in radians, around the centre. keras-cv's layer fails in a graph beside JAX and torch."""
    import tensorflow as tf

    y, x = ((side - 1) / 2 for side in images.shape[1:3])
    sine, cosine = tf.sin(angles), tf.cos(angles)
    return projected(
        images, cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y
    )


def shear(images: Any, x: Any, y: Any) -> Any:
    """Shears along each axis by fractions of the side; None leaves an axis unchanged."""
    apply = layer("RandomShear", 0.5, 0.5, fill_mode="constant", fill_value=GREY)
    return apply(
        images, {"shear_x": None if x is None else x[:, None], "shear_y": None if y is None else y[:, None]}
    )


def translate(images: Any, x: Any, y: Any) -> Any:
    """Moves by fractions `x` of the width and `y` of the height."""
    apply = layer("RandomTranslation", 1.0, 1.0, fill_mode="constant", fill_value=GREY)
    return apply(images, {"width_translations": x[:, None], "height_translations": y[:, None]})


def solarize(images: Any, thresholds: Any) -> Any:
    """Inverts the pixels above `thresholds`."""
    apply = layer("Solarization", COLOURS)
    return apply(images, {"thresholds": per_image(thresholds), "additions": 0.0})


# The operations of RandAugment, each a function of images, levels in [0, 1] and signs ±1. The ranges are those of the
# paper's code, or timm's for operations that have a sign.
OPERATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "identity": lambda images, level, sign: images,
    "auto_contrast": lambda images, level, sign: layer("AutoContrast", COLOURS)(images),
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
    "translate_x": lambda images, level, sign: translate(images, 0.45 * level * sign, 0 * level),
    "translate_y": lambda images, level, sign: translate(images, 0 * level, 0.45 * level * sign),
}


def operate(images: Any, choice: Any, level: Any, side: Any) -> Any:
    """Applies one of OPERATIONS to each image: splits the batch by operation, and puts it together again.

    Args:
        choice: uniform in [0, 1); selects the operation.
        level: strength of the operation, clipped to [0, 1].
        side: uniform in [0, 1); selects the sign.
    """
    import tensorflow as tf

    chosen = tf.cast(choice * len(OPERATIONS), tf.int32)
    level, sign = tf.clip_by_value(level, 0, 1), tf.where(side < 0.5, -1.0, 1.0)
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
