"""Training augmentation on the CPU input path: what params.yaml can list, and what each entry does.

Every random number is drawn statelessly from (seed, step, position in the list), by `dice.py`; `pixels.py`
does to the pixels what the numbers say; and all of a list is one compiled graph: the same batch on every
backend, with any number of workers and after every resume. This module imports no framework, because
config.py reads from it what an entry may say.
"""

import itertools
import math
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from visionpipe.data import pixels
from visionpipe.data.dice import MOST_STREAMS, Dice, Range, Sides
from visionpipe.errors import ConfigError

# images uint8 (batch, height, width, 3), targets float32 (batch, classes), step int64 () → both float32
Augment = Callable[[Any, Any, Any], tuple[Any, Any]]
Fraction = Annotated[float, (0, 1)]
Ratio = Annotated[Range, (0.01, 100)]


class OutOfRange(ConfigError):
    """Names the parameter; config.py knows which entry it is of."""


@dataclass(frozen=True)
class Augmentation:
    """One entry of `augmentation:`. The annotations hold the least and the largest value of a parameter."""

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
        """One after the other the entries of `run`, neighbours in the list that share this function."""
        raise NotImplementedError


Run = list[tuple[Any, Dice]]  # entries, with the dice of each


class Moving(Augmentation):
    """Moves whole pixels. Neighbours in the list become one gather, on uint8."""

    def sources(self, rows: Any, columns: Any, dice: Dice, sides: Sides) -> tuple[Any, Any]:
        """Positions int32 (batch, height) and (batch, width) to those that their pixels come from."""
        raise NotImplementedError

    @staticmethod
    def apply(run: Run, images: Any, targets: Any, epoch: Any) -> tuple[Any, Any]:
        sides = images.shape[1:3]
        rows, columns = pixels.positions(images)
        for entry, dice in reversed(run):  # from where a pixel ends back to where it began
            rows, columns = entry.sources(rows, columns, dice, sides)
        return pixels.moved(images, rows, columns), targets


class Changing(Augmentation):
    """Gives each image new pixels."""

    def change(self, images: Any, dice: Dice) -> Any:
        """images: float32 (batch, height, width, 3), [0, 255], here and back."""
        raise NotImplementedError

    @staticmethod
    def apply(run: Run, images: Any, targets: Any, epoch: Any) -> tuple[Any, Any]:
        for entry, dice in run:
            images = entry.change(pixels.as_float(images), dice)
        return images, targets


@dataclass(frozen=True)
class Mixing(Augmentation):
    """Mixes each image and its label with the one half a batch further on, and so never with itself.

    Where a list has several such entries, each image draws one of them. From epoch `off_epoch` on, counted
    from 0, an entry does nothing; null: it never ends.
    """

    alpha: Annotated[float, (0.05, 1000)] = 1.0  # of Beta(alpha, alpha), which the mix is drawn from
    probability: Fraction = 1.0
    off_epoch: Annotated[int | None, (0, math.inf)] = None

    def own(self, images: Any, dice: Dice) -> tuple[Any, Any]:
        """What an image keeps: of each pixel (batch, height or 1, width or 1, 1), of its label (batch,)."""
        raise NotImplementedError

    @staticmethod
    def apply(run: Run, images: Any, targets: Any, epoch: Any) -> tuple[Any, Any]:
        import tensorflow as tf

        images = pixels.as_float(images)
        on = tf.stack([entry.off_epoch is None or epoch < entry.off_epoch for entry, _ in run])
        (u,) = run[0][1].uniform(1)
        drawn = tf.cast(u * tf.cast(tf.math.count_nonzero(on), tf.float32), tf.int32)  # among those on
        share, label_share = tf.ones((images.shape[0], 1, 1, 1)), tf.ones((images.shape[0],))
        for index, (entry, dice) in enumerate(run):
            turn = on[index] & (drawn == tf.math.count_nonzero(on[:index], dtype=tf.int32))
            mixed = turn & dice.whether(entry.probability, stream=3)
            own, label_own = entry.own(images, dice)
            share = tf.where(mixed[:, None, None, None], own, share)
            label_share = tf.where(mixed, label_own, label_share)
        return pixels.mixed(images, share), pixels.mixed(targets, label_share[:, None])


@dataclass(frozen=True)
class Flip(Moving):
    """Mirrors left and right."""

    probability: Fraction = 0.5

    def sources(self, rows: Any, columns: Any, dice: Dice, sides: Sides) -> tuple[Any, Any]:
        import tensorflow as tf

        flips = dice.whether(self.probability)[:, None]
        return rows, tf.where(flips, sides[1] - 1 - columns, columns)


@dataclass(frozen=True)
class Crop(Moving):
    """Pads with `padding` black pixels on each side and crops back to size, anywhere."""

    padding: Annotated[int, (0, math.inf)] = 4

    def sources(self, rows: Any, columns: Any, dice: Dice, sides: Sides) -> tuple[Any, Any]:
        down, right = dice.integers(2, -self.padding, self.padding)
        return rows + down[:, None], columns + right[:, None]


@dataclass(frozen=True)
class ResizedCrop(Changing):
    """A rectangle anywhere, resized to the whole (Szegedy et al. 2014, arXiv:1409.4842, section 6).

    `scale`: its share of the image's area; `ratio`: its width by its height.
    """

    scale: Annotated[Range, (0.001, 1)] = (0.08, 1.0)
    ratio: Ratio = (3 / 4, 4 / 3)

    def change(self, images: Any, dice: Dice) -> Any:
        return pixels.resized(images, *dice.rectangles(images.shape[1:3], self.scale, self.ratio))


@dataclass(frozen=True)
class RandAugment(Changing):
    """`count` of 14 operations, one after the other (Cubuk et al. 2019, arXiv:1909.13719).

    `magnitude`: 0 to 10, with a normal spread of `magnitude_std` between images and operations. More is
    always stronger: colour, contrast, brightness and sharpness go either way, as in timm's `inc1`.
    """

    count: Annotated[int, (1, MOST_STREAMS // 2)] = 2
    magnitude: Annotated[float, (0, 10)] = 9.0
    magnitude_std: Annotated[float, (0, 10)] = 0.5

    def change(self, images: Any, dice: Dice) -> Any:
        for turn in range(self.count):
            operation, sign = dice.uniform(2, stream=2 * turn)
            magnitude = self.magnitude + self.magnitude_std * dice.normal(stream=2 * turn + 1)
            images = pixels.operate(images, operation, magnitude / 10, sign)
        return images


@dataclass(frozen=True)
class ColorJitter(Changing):
    """Factors within 1 ± so much; `hue` turns by up to so much of the circle, either way."""

    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.4
    hue: Annotated[float, (0, 0.5)] = 0.1

    def change(self, images: Any, dice: Dice) -> Any:
        u, v, w, x = (2 * u - 1 for u in dice.uniform(4))
        images = pixels.brightness(images, 1 + self.brightness * u)
        images = pixels.contrast(images, 1 + self.contrast * v)
        images = pixels.saturation(images, 1 + self.saturation * w)
        return pixels.hue(images, self.hue * x)


@dataclass(frozen=True)
class Erasing(Changing):
    """Overwrites a rectangle of some images with noise or grey (Zhong et al. 2017, arXiv:1708.04896).

    `scale` and `ratio` as in `resized_crop`.
    """

    probability: Fraction = 0.25
    scale: Annotated[Range, (0.001, 1)] = (0.02, 1 / 3)
    ratio: Ratio = (0.3, 10 / 3)
    fill: Literal["noise", "grey"] = "noise"

    def change(self, images: Any, dice: Dice) -> Any:
        import tensorflow as tf

        chosen = dice.whether(self.probability, stream=1)[:, None, None, None]
        rectangles = dice.rectangles(images.shape[1:3], self.scale, self.ratio)
        fill = dice.noise(images.shape, stream=2) if self.fill == "noise" else pixels.GREY
        return tf.where(chosen & pixels.inside(images, *rectangles), fill, images)


@dataclass(frozen=True)
class Cutout(Changing):
    """Greys out a rectangle of `fraction` of each side, centred anywhere (DeVries & Taylor 2017)."""

    fraction: Fraction = 0.5

    def change(self, images: Any, dice: Dice) -> Any:
        import tensorflow as tf

        rectangles = dice.centred(images.shape[1:3], tf.fill((dice.count,), self.fraction))
        return tf.where(pixels.inside(images, *rectangles), pixels.GREY, images)


@dataclass(frozen=True)
class MixUp(Mixing):
    """A blend of two images (Zhang et al. 2017, arXiv:1710.09412)."""

    alpha: Annotated[float, (0.05, 1000)] = 0.2

    def own(self, images: Any, dice: Dice) -> tuple[Any, Any]:
        share = dice.beta(self.alpha, stream=1)
        return share[:, None, None, None], share


@dataclass(frozen=True)
class CutMix(Mixing):
    """A rectangle of another image; labels follow the pixels (Yun et al. 2019, arXiv:1905.04899)."""

    def own(self, images: Any, dice: Dice) -> tuple[Any, Any]:
        import tensorflow as tf

        fraction = tf.sqrt(1 - dice.beta(self.alpha, stream=1))
        rectangles = dice.centred(images.shape[1:3], fraction, stream=2)
        kept = tf.cast(~pixels.inside(images, *rectangles), tf.float32)
        return kept, tf.reduce_mean(kept, axis=(1, 2, 3))


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


def make_augmentation(entries: Sequence[dict[str, Any]], seed: int, steps_per_epoch: int) -> Augment:
    """One function from a batch and its global step to the augmented batch.

    Args:
        entries: params.yaml's `train.augmentation`, in order: `name` and parameters of its kind.
        seed: with the step, the only source of randomness.
        steps_per_epoch: what `off_epoch` is counted with.

    Returns:
        A graph function of TensorFlow tensors, for a `tf.data` pipeline: images uint8 (batch, height,
        width, 3), targets float32 (batch, classes) and the step int64 () to images float32 of the same
        shape in [0, 255] and targets float32, soft where images were mixed.
    """
    import tensorflow as tf

    kinds = [
        AUGMENTATIONS[entry["name"]](**{key: entry[key] for key in entry.keys() - {"name"}})
        for entry in entries
    ]

    @tf.function(reduce_retracing=True)
    def augment(images: Any, targets: Any, step: Any) -> tuple[Any, Any]:
        rolled = [(kind, Dice(seed, index, step, images.shape[0])) for index, kind in enumerate(kinds)]
        for apply, run in itertools.groupby(rolled, key=lambda pair: pair[0].apply):
            images, targets = apply(list(run), images, targets, step // steps_per_epoch)
        return pixels.as_float(images), targets

    return augment
