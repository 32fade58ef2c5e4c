"""Builds image classifiers by name. Importing this package imports no framework; `build_model` imports Keras."""

import csv
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpipe.errors import ConfigError
from visionpipe.models.names import IMAGES, LOGITS, NORMALISATION, TWO_HEADS
from visionpipe.models.specs import ModelSpec
from visionpipe.models.variants import VARIANTS, resolve_variant

if TYPE_CHECKING:
    import keras


COSTS = Path(__file__).with_name("costs.csv")


@dataclass(frozen=True)
class Listed:
    """One row of the list of models: what `build_model` makes of a name without overrides.

    `parameters` counts the trainable parameters, and `gmac` the billions of multiply-accumulates for one image. Both
    are for square images of `image_size` pixels.
    """

    name: str
    family: str
    parameters: int
    gmac: float
    image_size: int
    reference: str


def list_models() -> list[Listed]:
    """Returns all models, in the order in which `visionpipe models` prints them."""
    with COSTS.open() as file:
        costs = {row["name"]: (int(row["parameters"]), float(row["gmac"])) for row in csv.DictReader(file)}
    return [
        Listed(name, variant.spec.family, *costs[name], variant.image_size, variant.reference)
        for name, variant in VARIANTS.items()
    ]


def build_model(
    variant: str,
    num_classes: int,
    image_size: int | tuple[int, int],
    *,
    channels: int = 3,
    pixel_mean: tuple[float, ...] | None = None,
    pixel_std: tuple[float, ...] | None = None,
    **overrides: Any,
) -> "keras.Model":
    """Builds a classifier with freshly initialised weights.

    Args:
        variant: a name that `list_models` returns, such as `ResNet-50`.
        num_classes: the number of logits.
        image_size: (height, width) in pixels, or one number for square images.
        channels: the number of channels of the images.
        pixel_mean: mean of each channel, in [0, 255]; None means 127.5. The model normalises its input itself.
        pixel_std: standard deviation of each channel; 0 counts as 1, None means 127.5.
        overrides: values for fields of the variant (see specs.py).

    Returns:
        A model from images (batch, height, width, channels), float32 or uint8 in [0, 255], to float32 logits
        (batch, num_classes).

    Raises:
        ConfigError: the variant or a field is unknown, or a value or combination is impossible.
    """
    if not positive(num_classes):
        raise ConfigError(f"num_classes: expected a positive whole number, received {num_classes!r}")
    if not positive(channels):
        raise ConfigError(f"channels: expected a positive whole number, received {channels!r}")
    size = height_and_width(image_size)
    spec = resolve_variant(variant, size, **overrides)
    pixels = [
        per_channel(name, (127.5,) * channels if values is None else values, channels)
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std))
    ]
    return model_from_spec(spec, int(num_classes), size, *pixels)


def height_and_width(image_size: Any) -> tuple[int, int]:
    """Returns (height, width) for a pair, or for one number that stands for both.

    Raises:
        ConfigError: `image_size` is neither.
    """
    sides = image_size if isinstance(image_size, tuple | list) else (image_size, image_size)
    if len(sides) != 2 or not all(map(positive, sides)):
        raise ConfigError(f"image_size: expected pixels or (height, width), received {image_size!r}")
    height, width = map(int, sides)
    return height, width


def positive(number: Any) -> bool:
    """Whether `number` is a whole number above 0; NumPy's integers count, booleans do not."""
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) > 0


def per_channel(name: str, values: Any, channels: int) -> tuple[float, ...]:
    """Returns the finite numbers of an argument, one a channel, or raises a ConfigError that names the argument."""
    try:
        numbers = tuple(map(float, values))
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != channels or not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{name}: expected a number for each of {channels} channels, received {values!r}")
    return numbers


def model_from_spec(
    spec: ModelSpec,
    num_classes: int,
    image_size: tuple[int, int],
    pixel_mean: tuple[float, ...],
    pixel_std: tuple[float, ...],
) -> "keras.Model":
    """Builds the model of a spec that has already been checked. Its images have as many channels as `pixel_mean`."""
    import keras

    from visionpipe.models.coatnet import coatnet
    from visionpipe.models.conformer import conformer
    from visionpipe.models.hybrid import botnet, hybrid
    from visionpipe.models.layers import Rescaling
    from visionpipe.models.resnet import resnet
    from visionpipe.models.vit import vit

    families: dict[str, Callable[..., Any]] = {
        "vit": vit,
        "resnet": resnet,
        "hybrid": hybrid,
        "botnet": botnet,
        "coatnet": coatnet,
        "conformer": conformer,
    }
    images = keras.Input((*image_size, len(pixel_mean)), name=IMAGES)
    scale = [1 / (deviation or 1.0) for deviation in pixel_std]
    offset = [-mean * factor for mean, factor in zip(pixel_mean, scale, strict=True)]
    # Not keras.layers.Normalization: its constants become extra inputs of the exported ONNX graph.
    x = Rescaling(scale, offset, name=NORMALISATION)(images)
    features = families[spec.family](x, spec)
    if isinstance(features, list):  # the vectors of the class token and of the distillation token
        heads = [
            keras.layers.Dense(num_classes, dtype="float32", name=name)(vector)
            for name, vector in zip(TWO_HEADS, features, strict=True)
        ]
        logits = keras.layers.Average(dtype="float32", name=LOGITS)(heads)
    else:
        logits = keras.layers.Dense(num_classes, dtype="float32", name=LOGITS)(features)
    return keras.Model(images, logits, name=spec.family)
