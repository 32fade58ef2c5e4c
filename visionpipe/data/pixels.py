"""The pixel operations of augmentation: pure functions of a batch of images and one number per image.

We draw the random parameters; keras-cv applies them. Other operations replace a layer of keras-cv that differs from its
paper, is slow or not vectorised, or fails in a graph beside JAX and torch; each replacement states its reason.

Unless stated otherwise, images are float32 (batch, height, width, 3) in [0, 255], and numbers are float32 (batch,).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

GREY = 127.5
COLOURS = (0.0, 255.0)
ALIGNMENT = 64  # bytes


def as_float(images: Any) -> Any:
    """Converts images to float32 in [0, 255]: uint16 are divided by 257, other types stay in their range."""
    import tensorflow as tf

    floats = tf.cast(images, tf.float32)
    return floats / 257 if images.dtype == tf.uint16 else floats


class Place(NamedTuple):
    """Where the pixels of each image come from: row `top` + y, and column `left` + x, or - x where `mirrored`.

    int32 (batch,) and bool (batch,).
    """

    top: Any
    left: Any
    mirrored: Any


def unmoved(images: Any) -> Place:
    """Returns the place at which all pixels stay where they are."""
    import tensorflow as tf

    zeros = tf.zeros((images.shape[0],), tf.int32)
    return Place(zeros, zeros, tf.zeros((images.shape[0],), tf.bool))


def moved(images: Any, place: Place) -> Any:
    """Returns the pixels at `place`, of any dtype, unchanged; black where it lies outside the image.

    NumPy copies whole rows. TensorFlow can only gather pixels, which takes three times as long, and keras-cv's flip
    alone makes five passes over four times the bytes.
    """
    import tensorflow as tf

    result = tf.numpy_function(copied, [images, *place], images.dtype, stateful=False)
    return tf.ensure_shape(result, images.shape)


def copied(images: Any, tops: Any, lefts: Any, mirrored: Any) -> Any:
    """Computes `moved` for NumPy arrays."""
    height, width, channels = images.shape[1:]
    results = aligned(images.shape, images.dtype)
    numbers = zip(tops.tolist(), lefts.tolist(), mirrored.tolist(), strict=True)
    for image, result, (top, left, mirror) in zip(images, results, numbers, strict=True):
        to_rows, from_rows = overlap(top, height)
        if mirror:
            to_columns, from_columns = overlap(width - 1 - left, width)  # in the mirror image
            source, target = image[:, ::-1][from_rows, from_columns], result[to_rows, to_columns]
            for channel in range(channels):  # NumPy is slow where it copies three values at a time
                target[..., channel] = source[..., channel]
        else:
            to_columns, from_columns = overlap(left, width)
            result[to_rows, to_columns] = image[from_rows, from_columns]
    return results


def overlap(first: int, side: int) -> tuple[slice, slice]:
    """Returns which places of a side are filled, and from where, if place 0 is filled from place `first`."""
    first = min(max(first, -side), side)
    after, before = max(first, 0), max(-first, 0)
    return slice(before, side - after), slice(after, side - before)


def aligned(shape: tuple[int, ...], dtype: Any) -> Any:
    """Returns a NumPy array of zeros that TensorFlow uses as it is. It copies those that begin at another address."""
    import numpy as np

    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


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

    The images may be of any dtype. keras-cv's RandomCropAndResize is not vectorised.
    """
    import tensorflow as tf

    if images.dtype != tf.uint8:
        images = as_float(images)
    sides = images.shape[1:3]
    edged = tf.concat([images[:, :1], images, images[:, -1:]], axis=1)  # tf.pad is slow at it
    edged = tf.concat([edged[:, :, :1], edged, edged[:, :, -1:]], axis=2)
    firsts, lasts = [], []
    for first, length, side in zip((top, left), (height, width), sides, strict=True):
        # Pixel 0 has its centre at 0.5, and its place is 1 where an edge has been added.
        firsts.append((first + length / side / 2 + 0.5) / (side + 1))
        lasts.append((first + length - length / side / 2 + 0.5) / (side + 1))
    boxes = tf.stack([*firsts, *lasts], axis=1)
    return tf.image.crop_and_resize(edged, boxes, tf.range(images.shape[0]), sides)


def slid(images: Any, distances: Any) -> Any:
    """Returns the rows of each image from `distances` on, interpolated linearly, and grey beyond them.

    `distances` are float32 (batch, height or 1), in pixels. keras-cv's layers find the place of each pixel and channel
    anew, and take five times as long.
    """
    import tensorflow as tf

    count, (height, width, channels) = tf.shape(images)[0], images.shape[1:]
    table = tf.reshape(bordered(images, 0, 1), (-1, channels))
    whole = tf.floor(distances)
    starts = tf.cast(tf.clip_by_value(whole, -width - 1.0, width + 1.0), tf.int32)[:, :, None]
    columns = tf.clip_by_value(starts + tf.range(1, width + 2), 0, width + 1)
    rows = tf.reshape(tf.range(count * height) * (width + 2), (count, height, 1))
    pixels = tf.gather_nd(table, (rows + columns)[..., None])
    pixels = tf.reshape(pixels, (count, height, (width + 1) * channels))
    share = (distances - whole)[:, :, None]
    between = pixels[:, :, :-channels] * (1 - share) + pixels[:, :, channels:] * share
    return tf.reshape(between, (count, height, width, channels))


def lifted(images: Any, distances: Any) -> Any:
    """Does to columns what `slid` does to rows, with one distance for each image: float32 (batch,)."""
    import tensorflow as tf

    height = images.shape[1]
    whole = tf.floor(distances)
    starts = tf.cast(tf.clip_by_value(whole, -height - 1.0, height + 1.0), tf.int32)[:, None]
    rows = tf.clip_by_value(starts + tf.range(1, height + 2), 0, height + 1)
    pixels = tf.gather(bordered(images, 1, 0), rows, batch_dims=1)
    share = per_image(distances - whole)
    return pixels[:, :-1] * (1 - share) + pixels[:, 1:] * share


def bordered(images: Any, rows: int, columns: int) -> Any:
    """Surrounds images with grey rows and columns."""
    import tensorflow as tf

    return tf.pad(images, [[0, 0], [rows, rows], [columns, columns], [0, 0]], constant_values=GREY)


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

    means = reduced(tf.reduce_mean, images)[:, None, None]
    return blended(images, tf.image.rgb_to_grayscale(means), factors)


def reduced(reduce: Callable[..., Any], images: Any) -> Any:
    """Reduces images to (batch, 3): rows first, because TensorFlow is slow along axes of three values."""
    import tensorflow as tf

    height, width, channels = images.shape[1:]
    rows = reduce(tf.reshape(images, (-1, height, width * channels)), axis=1)
    return reduce(tf.reshape(rows, (-1, width, channels)), axis=1)


def saturation(images: Any, factors: Any) -> Any:
    """Scales the distance from the grey version of each image. keras-cv's layer makes many passes."""
    import tensorflow as tf

    height, width = images.shape[1:3]
    greys = tf.image.rgb_to_grayscale(tf.eye(3)) * tf.ones(
        (1, 3)
    )  # colours → grey, which has three equal channels
    matrices = factors[:, None, None] * tf.eye(3) + (1 - factors)[:, None, None] * greys
    changed = tf.matmul(tf.reshape(images, (-1, height * width, 3)), matrices)
    return tf.clip_by_value(tf.reshape(changed, tf.shape(images)), *COLOURS)


def sharpness(images: Any, factors: Any) -> Any:
    """Scales the distance from a blurred version of each image, except at its edge.

    keras-cv's layer makes many passes.
    """
    import tensorflow as tf

    kernel = tf.tile(tf.constant([1, 1, 1, 1, 5, 1, 1, 1, 1], shape=(3, 3, 1, 1)) / 13, (1, 1, 3, 1))
    blurred = tf.nn.depthwise_conv2d(images, tf.cast(kernel, tf.float32), [1, 1, 1, 1], "VALID")
    change = (images[:, 1:-1, 1:-1] - blurred) * per_image(factors - 1)
    return tf.clip_by_value(images + tf.pad(change, [[0, 0], [1, 1], [1, 1], [0, 0]]), *COLOURS)


def hue(images: Any, turns: Any) -> Any:
    """Turns the hue by fractions of the colour circle."""
    return layer("RandomHue", 0.5, COLOURS)(images, turns)


def auto_contrast(images: Any) -> Any:
    """Stretches each channel to the whole range. keras-cv's layer computes the same by slow reductions."""
    import tensorflow as tf

    height, width, channels = images.shape[1:]
    low, high = reduced(tf.reduce_min, images), reduced(tf.reduce_max, images)
    scale = tf.where(high > low, 255 / (high - low), 1)
    offset = tf.where(high > low, -low * scale, 0)
    scale, offset = (tf.tile(values, (1, width))[:, None] for values in (scale, offset))
    lines = tf.reshape(images, (-1, height, width * channels))
    return tf.reshape(tf.clip_by_value(lines * scale + offset, *COLOURS), tf.shape(images))


def equalize(images: Any) -> Any:
    """Flattens the histogram of each channel, as Pillow does.

    keras-cv's layer counts in a loop over images, and ignores the smallest bin where Pillow ignores the last.
    """
    import tensorflow as tf

    count, (height, width, channels) = tf.shape(images)[0], images.shape[1:]
    values = tf.reshape(tf.cast(images, tf.int32), (count, height, width * channels))
    bins = values + tf.tile(256 * tf.reshape(tf.range(channels * count), (count, 1, channels)), (1, 1, width))
    bins = tf.reshape(bins, (-1, 1))
    size = 256 * channels * count
    histogram = tf.reshape(tf.math.bincount(bins[:, 0], minlength=size, maxlength=size), (-1, 256))
    levels = tf.range(256)
    last = tf.reduce_max(tf.where(histogram > 0, levels, 0), axis=1)
    step = (height * width - tf.gather(histogram, last, batch_dims=1)[:, None]) // 255
    table = (step // 2 + tf.cumsum(histogram, axis=1, exclusive=True)) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), levels)
    # gather_nd is twice as fast as gather.
    return tf.reshape(tf.gather_nd(tf.cast(tf.reshape(table, [-1]), tf.float32), bins), tf.shape(images))


def posterize(images: Any, levels: Any) -> Any:
    """Clears the low bits of each pixel: 8 bits remain at level 0, and 4 at level 1.

    keras-cv's layer is not vectorised.
    """
    import tensorflow as tf

    step = per_image(2 ** tf.round(4 * levels))
    return tf.floor(images / step) * step


def rotate(images: Any, angles: Any) -> Any:
    """Rotates by `angles`, in radians, around the centre, with bilinear interpolation.

    keras-cv's layer fails in a graph beside JAX and torch. TensorFlow's ImageProjectiveTransformV3 computes each place
    once for every channel, and takes twice as long.
    """
    import tensorflow as tf

    count, (height, width, channels) = tf.shape(images)[0], images.shape[1:]
    sine, cosine = tf.sin(angles)[:, None, None], tf.cos(angles)[:, None, None]
    y = tf.range(height, dtype=tf.float32)[:, None] - (height - 1) / 2
    x = tf.range(width, dtype=tf.float32) - (width - 1) / 2

    def places(x: Any) -> tuple[Any, Any]:
        """Returns the columns and rows that the pixels of the columns `x` come from, counted from the grey border."""
        return cosine * x + ((width + 1) / 2 - sine * y), sine * x + ((height + 1) / 2 + cosine * y)

    left, top = (tf.cast(tf.floor(place), tf.int32) for place in places(x))
    # One weight for each value: TensorFlow is slow where it repeats numbers along an axis of three.
    right_share, lower_share = (place - tf.floor(place) for place in places(tf.repeat(x, channels)))
    table = tf.reshape(bordered(images, 1, 1), (-1, channels))
    first = (tf.range(count) * ((height + 2) * (width + 2)))[:, None, None]

    def at(down: int, right: int) -> Any:
        rows = tf.clip_by_value(top + down, 0, height + 1) * (width + 2)
        pixels = tf.gather_nd(table, (first + rows + tf.clip_by_value(left + right, 0, width + 1))[..., None])
        return tf.reshape(pixels, (count, height, width * channels))

    def between(one: Any, other: Any, share: Any) -> Any:
        return one + share * (other - one)

    upper, lower = (between(at(down, 0), at(down, 1), right_share) for down in (0, 1))
    return tf.reshape(between(upper, lower, lower_share), (count, height, width, channels))


def shear(images: Any, x: Any, y: Any) -> Any:
    """Shears along each axis by fractions of the side; None leaves an axis unchanged."""
    import tensorflow as tf

    height, width = images.shape[1:3]
    if x is not None:
        images = slid(images, x[:, None] * tf.range(height, dtype=tf.float32))
    return images if y is None else across(slid, images, y[:, None] * tf.range(width, dtype=tf.float32))


def translate(images: Any, x: Any, y: Any) -> Any:
    """Moves by fractions `x` of the width and `y` of the height; None leaves an axis unchanged."""
    height, width = images.shape[1:3]
    if x is not None:
        images = slid(images, -width * x[:, None])
    return images if y is None else lifted(images, -height * y)


def across(change: Callable[..., Any], images: Any, *numbers: Any) -> Any:
    """Applies `change` to columns instead of rows."""
    import tensorflow as tf

    return tf.transpose(change(tf.transpose(images, (0, 2, 1, 3)), *numbers), (0, 2, 1, 3))


def solarize(images: Any, thresholds: Any) -> Any:
    """Inverts the pixels from `thresholds` on. keras-cv's layer makes many passes."""
    import tensorflow as tf

    inverted = tf.cast(images >= per_image(thresholds), tf.float32)
    return images * (1 - inverted) + (255 - images) * inverted
