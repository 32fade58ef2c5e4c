"""The model tables: what a variant's name stands for. Imports no framework, so that a wrong name,
field or image size is refused before anything slow starts. A new variant is one row.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from visionpipe.errors import ConfigError

Size = tuple[int, int]


@dataclass(frozen=True)
class ViTSpec:
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1).

    `pool`: `token` reads a class token, `gap` averages the patch tokens (Beyer et al. 2022).
    """

    family: ClassVar[str] = "vit"
    patch_size: int
    hidden_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    pool: typing.Literal["token", "gap"] = "token"
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0

    def check(self, image_size: Size) -> None:
        check_encoder(self.hidden_dim, self.num_heads)
        if any(side % self.patch_size for side in image_size):
            raise ConfigError(
                f"image size {image_size[0]}×{image_size[1]} is not divisible by patch_size {self.patch_size}"
            )


@dataclass(frozen=True)
class ResNetSpec:
    """CIFAR-style ResNet (He et al. 2016, arXiv:1512.03385, section 4.2): a 3×3 stem and stages of
    basic blocks; every stage but the first halves the resolution.

    `filters`: channels of the first stage; each next stage doubles them.
    """

    family: ClassVar[str] = "resnet"
    blocks_per_stage: tuple[int, ...]
    filters: int = 16
    stem_stride: int = 1

    def check(self, image_size: Size) -> None:
        check_resolution(image_size, self.stem_stride * 2 ** (len(self.blocks_per_stage) - 1))


@dataclass(frozen=True)
class HybridSpec:
    """ResNet stages whose last feature map becomes the tokens of a Transformer encoder
    (Dosovitskiy et al. 2021, section 3.1, "Hybrid Architecture").
    """

    family: ClassVar[str] = "hybrid"
    blocks_per_stage: tuple[int, ...]
    filters: int
    hidden_dim: int
    depth: int
    num_heads: int
    mlp_dim: int
    stem_stride: int = 1
    pool: typing.Literal["token", "gap"] = "gap"
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0

    def check(self, image_size: Size) -> None:
        check_encoder(self.hidden_dim, self.num_heads)
        check_resolution(image_size, self.stem_stride * 2 ** (len(self.blocks_per_stage) - 1))


ModelSpec = ViTSpec | ResNetSpec | HybridSpec

VARIANTS: Mapping[str, ModelSpec] = types.MappingProxyType(
    {
        # He et al. 2016, table 6: 6n+2 layers, n blocks in each of three stages.
        "ResNet-8": ResNetSpec((1, 1, 1)),
        "ResNet-14": ResNetSpec((2, 2, 2)),
        "ResNet-20": ResNetSpec((3, 3, 3)),
        "ResNet-32": ResNetSpec((5, 5, 5)),
        "ResNet-44": ResNetSpec((7, 7, 7)),
        "ResNet-56": ResNetSpec((9, 9, 9)),
        # Ours, for a few thousand images of 28 to 64 pixels: heads of 32 and mlp_dim = 2 × hidden_dim, as
        # the compact transformers have them (Hassani et al. 2021, arXiv:2104.05704, table 1).
        "ViT-Mi/4": ViTSpec(4, 64, 4, 2, 128, pool="gap"),
        "ViT-Sm/4": ViTSpec(4, 96, 6, 3, 192, pool="gap"),
        "R14+ViT-Mi": HybridSpec((2, 2, 2), 32, 128, 1, 4, 256, stem_stride=2),
    }
)


def resolve_variant(name: str, image_size: Size, **overrides: Any) -> ModelSpec:
    """The spec of variant `name` with `overrides`; ConfigError for what cannot be built."""
    if name not in VARIANTS:
        raise ConfigError(f"variant: no {name!r}{closest(name, VARIANTS)}; known: {', '.join(VARIANTS)}")
    spec = VARIANTS[name]
    hints = typing.get_type_hints(type(spec))
    fields = [f.name for f in dataclasses.fields(spec)]
    for key, value in overrides.items():
        if key not in fields:
            raise ConfigError(
                f"overrides: {name} has no {key!r}{closest(key, fields)}; it has {', '.join(fields)}"
            )
        overrides[key] = check_field(key, value, hints[key])
    spec = dataclasses.replace(spec, **overrides)
    spec.check(image_size)
    return spec


def check_field(key: str, value: Any, hint: Any) -> Any:
    """`value` in the field's type; sizes and counts must be positive, rates in [0, 1)."""
    if typing.get_origin(hint) is typing.Literal:
        valid = value in typing.get_args(hint)
    elif hint is int:
        valid = type(value) is int and value > 0
    elif hint is float:
        valid = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
    else:
        value = tuple(value) if isinstance(value, list | tuple) else ()
        valid = len(value) > 0 and all(type(v) is int and v > 0 for v in value)
    if not valid:
        expected = {int: "a positive whole number", float: "a number in [0, 1)"}.get(
            hint,
            f"one of {', '.join(map(str, typing.get_args(hint)))}"
            if typing.get_origin(hint) is typing.Literal
            else "a list of positive whole numbers",
        )
        raise ConfigError(f"overrides: {key}: expected {expected}, received {value!r}")
    return value


def check_encoder(hidden_dim: int, num_heads: int) -> None:
    if hidden_dim % num_heads:
        raise ConfigError(f"hidden_dim {hidden_dim} is not divisible by num_heads {num_heads}")


def check_resolution(image_size: Size, stride: int) -> None:
    if min(image_size) < stride * 2:
        raise ConfigError(
            f"image size {image_size[0]}×{image_size[1]} is too small for a total stride of {stride}"
        )


def closest(word: str, known: typing.Iterable[str]) -> str:
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" (did you mean {match[0]!r}?)" if match else ""
