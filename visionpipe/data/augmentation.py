"""The augmentations that params.yaml can list, applied to training batches on the CPU.

draws.py draws every random number statelessly from (seed, step, position in the list), and pixels.py changes the pixels
accordingly. A whole list is one compiled graph. So a batch is the same on every backend, with any number of workers and
after every resume. This module imports no framework, because params.yaml is checked against it.
"""

import itertools
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from visionpipe.data import pixels
from visionpipe.data.draws import MOST_STREAMS, Draws, Range, Sides
from visionpipe.data.operations import operate
from visionpipe.errors import ConfigError

# images uint8 or uint16 (batch, height, width, channels), targets float32 (batch, classes), step int64 ()
# → both float32
Augment = Callable[[Any, Any, Any], tuple[Any, Any]]
Fraction = Annotated[float, (0, 1)]
Ratio = Annotated[Range, (0.01, 100)]


class OutOfRange(ConfigError):
    """A parameter of an augmentation is out of range. The message names the parameter, but not the list entry."""


@dataclass(frozen=True)
class Augmentation:
    """One entry of `augmentation:`. The annotations of its parameters contain their least and largest values."""

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            if typing.get_origin(hint) is not Annotated or value is None:
                continue
            (least, most), pair = hint.__metadata__[0], isinstance(value, tuple | list)
            low, high = value if pair else (value, value)
            if not least <= low <= high <= most:
                bounds = f"at least {least}" if most == math.inf else f"between {least} and {most}"
                order = ", the smaller value first" if pair else ""
                raise OutOfRange(f"{name}: must be {bounds}{order}; received {value}")

    @staticmethod
    def apply(run: "Run", images: Any, targets: Any, epoch: Any) -> tuple[Any, Any]:
        """Applies the entries of `run` in order; these are neighbours in the list that share this function."""
        raise NotImplementedError


Run = list[tuple[Any, Draws]]  # entries, each with its random draws


class Moving(Augmentation):
    """Moves whole pixels. Neighbours in the list become one copy of unchanged pixels."""

    def source(self, place: pixels.Place, draws: Draws, sides: Sides) -> pixels.Place:
        """Composes the move with those that follow: from the `place` that these read to the one that they read then."""
        raise NotImplementedError

    @staticmethod
    def apply(run: Run, images: Any, targets: Any, epoch: Any) -> tuple[Any, Any]:
        sides = images.shape[1:3]
        place = pixels.unmoved(images)
        for entry, draws in reversed(run):  # from where a pixel ends back to where it comes from
            place = entry.source(place, draws, sides)
        return pixels.moved(images, place), targets


class Changing(Augmentation):
    """Computes new pixels for each image."""

    def change(self, images: Any, draws: Draws) -> Any:
        """Changes images (batch, height, width, 3), uint8 or float32 in [0, 255]; returns float32 of the same range."""
        raise NotImplementedError

    @staticmethod
    def apply(run: Run, images: Any, targets: Any, epoch: Any) -> tuple[Any, Any]:
        for entry, draws in run:
            images = entry.change(images, draws)
        return images, targets


@dataclass(frozen=True)
class Mixing(Augmentation):
    """Mixes each image and its label with the image half a batch further on, and so never with itself.

    Where a list has several such entries, each image draws one of them.

    Args:
        alpha: the share of the other image is drawn from Beta(alpha, alpha): 1 is uniform, smaller values mix less.
        probability: the share of the images that are mixed.
        off_epoch: the first epoch, counted from 0, in which the entry is off; null: it is always on.
    """

    alpha: Annotated[float, (0.05, 1000)] = 1.0
    probability: Fraction = 1.0
    off_epoch: Annotated[int | None, (0, math.inf)] = None

    def shares(self, images: Any, draws: Draws) -> tuple[Any, Any]:
        """Returns the share that an image retains of each pixel and of its label; the rest is the other image's.

        The shares are float32 in [0, 1]: (batch, height or 1, width or 1, 1) for pixels, and (batch,) for labels.
        """
        raise NotImplementedError

    @staticmethod
    def apply(run: Run, images: Any, targets: Any, epoch: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        images = pixels.as_float(images)
        on = tf.stack([entry.off_epoch is None or epoch < entry.off_epoch for entry, _ in run])
        (u,) = run[0][1].uniform(1)
        # Each image draws one of the entries that are on.
        drawn = tf.cast(u * tf.cast(tf.math.count_nonzero(on), tf.float32), tf.int32)
        shares, label_shares = tf.ones((images.shape[0], 1, 1, 1)), tf.ones((images.shape[0],))
        for index, (entry, draws) in enumerate(run):
            turn = on[index] & (drawn == tf.math.count_nonzero(on[:index], dtype=tf.int32))
            mixed = turn & draws.whether(entry.probability, stream=3)
            entry_shares, entry_label_shares = entry.shares(images, draws)
            shares = tf.where(mixed[:, None, None, None], entry_shares, shares)
            label_shares = tf.where(mixed, entry_label_shares, label_shares)
        return pixels.mixed(images, shares), pixels.mixed(targets, label_shares[:, None])


@dataclass(frozen=True)
class Flip(Moving):
    """Mirrors images left to right.

    Args:
        probability: the share of the images that are mirrored.
    """

    probability: Fraction = 0.5

    def source(self, place: pixels.Place, draws: Draws, sides: Sides) -> pixels.Place:
        import tensorflow as tf

        flips, last = draws.whether(self.probability), sides[1] - 1
        left = tf.where(flips, last - place.left, place.left)
        return pixels.Place(place.top, left, place.mirrored ^ flips)


@dataclass(frozen=True)
class Crop(Moving):
    """Pads images with black pixels on each side, and crops them to their size at a random place.

    Args:
        padding: the pixels on each side.
    """

    padding: Annotated[int, (0, math.inf)] = 4

    def source(self, place: pixels.Place, draws: Draws, sides: Sides) -> pixels.Place:
        down, right = draws.integers(2, -self.padding, self.padding)
        return pixels.Place(place.top + down, place.left + right, place.mirrored)


@dataclass(frozen=True)
class ResizedCrop(Changing):
    """Resizes a random rectangle to the whole image (Szegedy et al. 2014, arXiv:1409.4842, section 6).

    Args:
        scale: the range of the rectangle's share of the image's area.
        ratio: the range of the rectangle's width divided by its height.
    """

    scale: Annotated[Range, (0.001, 1)] = (0.08, 1.0)
    ratio: Ratio = (3 / 4, 4 / 3)

    def change(self, images: Any, draws: Draws) -> Any:
        return pixels.resized(images, *draws.rectangles(images.shape[1:3], self.scale, self.ratio))


@dataclass(frozen=True)
class RandAugment(Changing):
    """Applies random operations out of 14, one after another (Cubuk et al. 2019, arXiv:1909.13719).

    A larger magnitude is always stronger. Colour, contrast, brightness and sharpness go up or down, as in timm's
    `inc1`.

    Args:
        count: the number of operations.
        magnitude: the mean strength of an operation.
        magnitude_std: the standard deviation of the strength, which is normally distributed over images and operations.
    """

    count: Annotated[int, (1, MOST_STREAMS // 2)] = 2
    magnitude: Annotated[float, (0, 10)] = 9.0
    magnitude_std: Annotated[float, (0, 10)] = 0.5

    def change(self, images: Any, draws: Draws) -> Any:
        import tensorflow as tf

        rounds = []
        for turn in range(self.count):
            operation, side = draws.uniform(2, stream=2 * turn)
            magnitude = self.magnitude + self.magnitude_std * draws.normal(stream=2 * turn + 1)
            rounds.append((operation, magnitude / 10, side))
        return operate(images, *(tf.stack(numbers, axis=1) for numbers in zip(*rounds, strict=True)))


@dataclass(frozen=True)
class ColorJitter(Changing):
    """Changes brightness, contrast and saturation by random factors, and turns the hue by a random angle.

    Args:
        brightness: how far the factor of the brightness may be from 1.
        contrast: how far the factor of the contrast may be from 1.
        saturation: how far the factor of the saturation may be from 1.
        hue: the largest angle in either direction, as a fraction of the circle.
    """

    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.4
    hue: Annotated[float, (0, 0.5)] = 0.1

    def change(self, images: Any, draws: Draws) -> Any:
        u, v, w, x = (2 * u - 1 for u in draws.uniform(4))
        images = pixels.brightness(pixels.as_float(images), 1 + self.brightness * u)
        images = pixels.contrast(images, 1 + self.contrast * v)
        images = pixels.saturation(images, 1 + self.saturation * w)
        return pixels.hue(images, self.hue * x)


@dataclass(frozen=True)
class Erasing(Changing):
    """Overwrites a random rectangle of some images with noise or grey (Zhong et al. 2017, arXiv:1708.04896).

    Args:
        probability: the share of the images that are changed.
        scale: the range of the rectangle's share of the image's area.
        ratio: the range of the rectangle's width divided by its height.
        fill: what the rectangle shows afterwards.
    """

    probability: Fraction = 0.25
    scale: Annotated[Range, (0.001, 1)] = (0.02, 1 / 3)
    ratio: Ratio = (0.3, 10 / 3)
    fill: Literal["noise", "grey"] = "noise"

    def change(self, images: Any, draws: Draws) -> Any:
        import tensorflow as tf

        chosen = draws.whether(self.probability, stream=1)[:, None, None, None]
        rectangles = draws.rectangles(images.shape[1:3], self.scale, self.ratio)
        fill = draws.noise(images.shape, stream=2) if self.fill == "noise" else pixels.GREY
        return tf.where(chosen & pixels.inside(images, *rectangles), fill, pixels.as_float(images))


@dataclass(frozen=True)
class Cutout(Changing):
    """Greys out a rectangle with a random centre.

    Source: DeVries & Taylor 2017, arXiv:1708.04552.

    Args:
        fraction: the rectangle's sides, relative to those of the image.
    """

    fraction: Fraction = 0.5

    def change(self, images: Any, draws: Draws) -> Any:
        import tensorflow as tf

        rectangles = draws.centred(images.shape[1:3], tf.fill((draws.count,), self.fraction))
        return tf.where(pixels.inside(images, *rectangles), pixels.GREY, pixels.as_float(images))


@dataclass(frozen=True)
class MixUp(Mixing):
    """Blends two images and their labels (Zhang et al. 2017, arXiv:1710.09412)."""

    alpha: Annotated[float, (0.05, 1000)] = 0.2

    def shares(self, images: Any, draws: Draws) -> tuple[Any, Any]:
        share = draws.beta(self.alpha, stream=1)
        return share[:, None, None, None], share


@dataclass(frozen=True)
class CutMix(Mixing):
    """Replaces a rectangle with that of another image, and mixes the labels by area.

    Source: Yun et al. 2019, arXiv:1905.04899.
    """

    def shares(self, images: Any, draws: Draws) -> tuple[Any, Any]:
        import tensorflow as tf

        fraction = tf.sqrt(1 - draws.beta(self.alpha, stream=1))
        rectangles = draws.centred(images.shape[1:3], fraction, stream=2)
        outside = tf.cast(~pixels.inside(images, *rectangles), tf.float32)
        return outside, tf.reduce_mean(outside, axis=(1, 2, 3))


AUGMENTATIONS: dict[str, type[Augmentation]] = {
    "flip": Flip,
    "crop": Crop,
    "resized_crop": ResizedCrop,
    "rand_augment": RandAugment,
    "color_jitter": ColorJitter,
    "erasing": Erasing,
    "cutout": Cutout,
    "mixup": MixUp,
    "cutmix": CutMix,
}

RGB_ONLY = ("rand_augment", "color_jitter")  # the others move, mix or cover pixels of any kind


def make_augmentation(entries: Sequence[dict[str, Any]], seed: int, steps_per_epoch: int) -> Augment:
    """Returns a function that augments a batch, given its global step.

    Args:
        entries: the list `train.augmentation` of params.yaml: a `name` from AUGMENTATIONS, and parameters.
        seed: with the step, the only source of randomness.
        steps_per_epoch: converts the epochs of `off_epoch` to steps.

    Returns:
        A TensorFlow graph function for a `tf.data` pipeline. It takes images uint8 or uint16 (batch, height, width,
        channels), targets float32 (batch, classes) and the step int64 (). It returns images float32 of the same shape
        in [0, 255], and targets float32, soft where images were mixed.
    """
    import tensorflow as tf

    kinds = [
        AUGMENTATIONS[entry["name"]](**{key: entry[key] for key in entry.keys() - {"name"}})
        for entry in entries
    ]

    @tf.function(reduce_retracing=True)
    def augment(images: Any, targets: Any, step: Any) -> tuple[Any, Any]:
        drawn = [(kind, Draws(seed, index, step, images.shape[0])) for index, kind in enumerate(kinds)]
        for apply, run in itertools.groupby(drawn, key=lambda pair: pair[0].apply):
            images, targets = apply(list(run), images, targets, step // steps_per_epoch)
        return pixels.as_float(images), targets

    return augment
