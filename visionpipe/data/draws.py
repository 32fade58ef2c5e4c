"""The random numbers of augmentation: pure functions of (seed, step, position in the list)."""

import math
from dataclasses import dataclass
from typing import Any

MOST_ENTRIES = 64  # of a list
MOST_STREAMS = 64  # of random numbers, for each entry
Range = tuple[float, float]
Sides = tuple[int, int]


@dataclass(frozen=True)
class Dice:
    """What one entry of the list draws for one batch. `stream`: equal ones repeat, others are independent."""

    seed: int
    position: int
    step: Any
    count: int

    def key(self, stream: int) -> Any:
        import tensorflow as tf

        number = (self.seed * MOST_ENTRIES + self.position) * MOST_STREAMS + stream
        return tf.stack([tf.constant(number, tf.int64), self.step])

    def uniform(self, columns: int, stream: int = 0) -> list[Any]:
        """So many tensors float32 (batch,), each uniform in [0, 1)."""
        import tensorflow as tf

        shape = (columns, self.count)
        return tf.unstack(tf.random.stateless_uniform(shape, self.key(stream), alg="philox"))

    def whether(self, probability: float, stream: int = 0) -> Any:
        """bool (batch,), true with `probability`."""
        return self.uniform(1, stream)[0] < probability

    def integers(self, columns: int, least: int, most: int) -> list[Any]:
        """So many tensors int32 (batch,), both ends included."""
        import tensorflow as tf

        return [least + tf.cast(u * (most + 1 - least), tf.int32) for u in self.uniform(columns)]

    def normal(self, stream: int) -> Any:
        """float32 (batch,), of mean 0 and standard deviation 1."""
        import tensorflow as tf

        return tf.random.stateless_normal((self.count,), self.key(stream), alg="philox")

    def noise(self, shape: tuple[int, ...], stream: int) -> Any:
        """float32, uniform in [0, 255)."""
        import tensorflow as tf

        return tf.random.stateless_uniform(shape, self.key(stream), 0, 255, alg="philox")

    def beta(self, alpha: float, stream: int) -> Any:
        """float32 (batch,), Beta(alpha, alpha): X / (X + Y) for X, Y of Gamma(alpha)."""
        import tensorflow as tf

        # In float64: a Gamma of small alpha underflows in float32, and 0 / (0 + 0) is no number.
        drawn = tf.random.stateless_gamma((2, self.count), self.key(stream), alpha, dtype=tf.float64)
        return tf.cast(drawn[0] / (drawn[0] + drawn[1]), tf.float32)

    def rectangles(self, sides: Sides, scale: Range, ratio: Range, stream: int = 0) -> tuple[Any, ...]:
        """Top, left, height and width, float32 (batch,), of rectangles that lie inside an image of `sides`.

        Their share of its area is uniform in `scale`, their width by their height uniform in the logarithm
        over that part of `ratio` which fits. Nothing is thrown away and drawn again, as is usual: that would
        prefer small ones.
        """
        import tensorflow as tf

        height, width = sides
        u_scale, u_ratio, u_top, u_left = self.uniform(4, stream)
        share = scale[0] + (scale[1] - scale[0]) * u_scale
        narrowest, widest = (
            tf.math.log(width / height * share),  # as high as the image
            tf.math.log(width / height / share),  # as wide
        )
        low, high = (tf.minimum(tf.maximum(math.log(end), narrowest), widest) for end in ratio)
        drawn = tf.exp(low + (high - low) * u_ratio)
        area = share * (height * width)
        heights = tf.minimum(tf.sqrt(area / drawn), height)
        widths = tf.minimum(tf.sqrt(area * drawn), width)
        return u_top * (height - heights), u_left * (width - widths), heights, widths

    def centred(self, sides: Sides, fraction: Any, stream: int = 0) -> list[Any]:
        """The same of rectangles that are `fraction` (batch,) of each side, whole pixels, and have one of the
        image's pixels as their centre: they may reach out of it.
        """
        import tensorflow as tf

        lengths = [tf.floor(fraction * side + 0.5) for side in sides]
        centres = [tf.floor(u * side) for u, side in zip(self.uniform(2, stream), sides, strict=True)]
        corners = [centre - tf.floor(length / 2) for centre, length in zip(centres, lengths, strict=True)]
        return [*corners, *lengths]
