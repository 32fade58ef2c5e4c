"""The random draws of augmentation: pure functions of (seed, step, position in the list)."""

import math
from dataclasses import dataclass
from typing import Any

MOST_ENTRIES = 64  # in a list of augmentations
MOST_STREAMS = 64  # of random numbers, per entry
Range = tuple[float, float]
Sides = tuple[int, int]


@dataclass(frozen=True)
class Draws:
    """Draws the random numbers of one entry of the list for one batch of `count` images.

    Draws of the same `stream` repeat each other; draws of different streams are independent. `step` is an int64 tensor.
    """

    seed: int
    position: int
    step: Any
    count: int

    def key(self, stream: int) -> Any:
        """Returns the key of the random generator, int64 (2,), which differs for every stream and step."""
        import tensorflow as tf

        number = (self.seed * MOST_ENTRIES + self.position) * MOST_STREAMS + stream
        return tf.stack([tf.constant(number, tf.int64), self.step])

    def uniform(self, columns: int, stream: int = 0) -> list[Any]:
        """Draws `columns` tensors float32 (batch,), uniform in [0, 1)."""
        import tensorflow as tf

        shape = (columns, self.count)
        return tf.unstack(tf.random.stateless_uniform(shape, self.key(stream), alg="philox"))

    def whether(self, probability: float, stream: int = 0) -> Any:
        """Draws bool (batch,), true with `probability`."""
        return self.uniform(1, stream)[0] < probability

    def integers(self, columns: int, least: int, most: int) -> list[Any]:
        """Draws `columns` tensors int32 (batch,), uniform from `least` to `most`, both included."""
        import tensorflow as tf

        return [least + tf.cast(u * (most + 1 - least), tf.int32) for u in self.uniform(columns)]

    def normal(self, stream: int) -> Any:
        """Draws float32 (batch,) from the normal distribution with mean 0 and standard deviation 1."""
        import tensorflow as tf

        return tf.random.stateless_normal((self.count,), self.key(stream), alg="philox")

    def noise(self, shape: tuple[int, ...], stream: int) -> Any:
        """Draws float32 of `shape`, uniform in [0, 255)."""
        import tensorflow as tf

        return tf.random.stateless_uniform(shape, self.key(stream), 0, 255, alg="philox")

    def beta(self, alpha: float, stream: int) -> Any:
        """Draws float32 (batch,) from Beta(alpha, alpha), as X / (X + Y) with X and Y from Gamma(alpha)."""
        import tensorflow as tf

        # In float32 a Gamma of small alpha underflows, and 0 / (0 + 0) is NaN.
        drawn = tf.random.stateless_gamma((2, self.count), self.key(stream), alpha, dtype=tf.float64)
        return tf.cast(drawn[0] / (drawn[0] + drawn[1]), tf.float32)

    def rectangles(self, sides: Sides, scale: Range, ratio: Range, stream: int = 0) -> tuple[Any, ...]:
        """Draws rectangles inside an image of `sides`, (height, width): top, left, height and width, float32 (batch,).

        A rectangle's share of the image's area is uniform in `scale`. The logarithm of its width divided by its height
        is uniform over the part of `ratio` that fits into the image. The usual way, to draw again until a rectangle
        fits, would prefer small rectangles.
        """
        import tensorflow as tf

        height, width = sides
        u_scale, u_ratio, u_top, u_left = self.uniform(4, stream)
        share = scale[0] + (scale[1] - scale[0]) * u_scale
        narrowest, widest = (
            tf.math.log(width / height * share),  # a rectangle as high as the image
            tf.math.log(width / height / share),  # a rectangle as wide as the image
        )
        low, high = (tf.minimum(tf.maximum(math.log(end), narrowest), widest) for end in ratio)
        ratios = tf.exp(low + (high - low) * u_ratio)
        area = share * (height * width)
        heights = tf.minimum(tf.sqrt(area / ratios), height)
        widths = tf.minimum(tf.sqrt(area * ratios), width)
        return u_top * (height - heights), u_left * (width - widths), heights, widths

    def centred(self, sides: Sides, fraction: Any, stream: int = 0) -> list[Any]:
        """Draws rectangles centred on any pixel of the image: top, left, height and width, float32 (batch,).

        The sides of a rectangle are `fraction` (batch,) of the image's, in whole pixels. It may reach beyond the image.
        """
        import tensorflow as tf

        lengths = [tf.floor(fraction * side + 0.5) for side in sides]
        centres = [tf.floor(u * side) for u, side in zip(self.uniform(2, stream), sides, strict=True)]
        corners = [centre - tf.floor(length / 2) for centre, length in zip(centres, lengths, strict=True)]
        return [*corners, *lengths]
