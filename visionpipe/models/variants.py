"""The table of variants: the settings that a name such as `ResNet-50` stands for, and where they are published.

A new variant is one row.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from visionpipe.errors import YAML_EXPONENT, ConfigError, did_you_mean
from visionpipe.models.specs import (
    BoTNetSpec,
    CoAtNetSpec,
    ConformerSpec,
    Convolutions,
    Encoder,
    HybridSpec,
    ModelSpec,
    ResNetSpec,
    Size,
    ViTSpec,
)


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    `parameters` is the published number of trainable parameters at `image_size` and `num_classes`, exact or as the
    paper prints it; null where no paper has this model. `reference` is where the model is published.
    """

    spec: ModelSpec
    image_size: int
    num_classes: int
    parameters: int | str | None
    reference: str


# hidden_dim, depth, num_heads, mlp_dim
ENCODERS = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
}
VIT = "Dosovitskiy et al. 2021, arXiv:2010.11929, table 1"
VIT_SMALL = "Touvron et al. 2021, arXiv:2012.12877, table 1; Steiner et al. 2022, arXiv:2106.10270, table 2"
VIT_PARAMETERS = {  # the published files with a head of 1,000 classes, as timm counts them
    "Ti/16": 5_717_416,
    "S/32": 22_878_952,
    "S/16": 22_050_664,
    "B/16": 86_567_656,
    "B/32": 88_224_232,
    "B/8": 86_576_872,
    "L/32": 306_535_400,
    "L/16": 304_326_632,
    "H/14": 632_045_800,
}
R_VIT = "Steiner et al. 2022, arXiv:2106.10270, table 2"


def encoder(size: str) -> dict[str, Any]:
    """Returns the settings of an encoder of size Ti, S, B, L or H."""
    return dict(zip(("hidden_dim", "depth", "num_heads", "mlp_dim"), ENCODERS[size], strict=True))


def vits() -> dict[str, Variant]:
    """Returns the ViTs of all encoder sizes and patch sizes."""
    table = {}
    for size in ENCODERS:
        for patch_size in (32, 16, 14, 8, 4, 2):
            image_size = 32 if patch_size < 8 else 224
            name, reference = f"{size}/{patch_size}", VIT_SMALL if size in ("Ti", "S") else VIT
            if patch_size < 8:
                reference = f"ours, with the encoder of {reference}"
            spec = ViTSpec(patch_size=patch_size, **encoder(size))
            table[f"ViT-{name}"] = Variant(spec, image_size, 1000, VIT_PARAMETERS.get(name), reference)
    return table


def distilled(size: str, parameters: int) -> Variant:
    """Returns a DeiT with its distillation token; `parameters` counts those of the published file."""
    spec = ViTSpec(patch_size=16, distillation_token=True, **encoder(size))
    return Variant(spec, 224, 1000, parameters, "Touvron et al. 2021, arXiv:2012.12877, section 4")


def small_vit(hidden_dim: int, depth: int, num_heads: int) -> Variant:
    """Returns a ViT for a few thousand images of 28 to 64 pixels.

    As in the compact transformers, heads have 32 channels and mlp_dim is 2 × hidden_dim. The initial positions are as
    large as the patches that they are added to: from the papers' 0.02, a short training cannot grow them in time.
    """
    spec = ViTSpec(
        patch_size=4, hidden_dim=hidden_dim, depth=depth, num_heads=num_heads, mlp_dim=2 * hidden_dim,
        pool="gap", position_stddev=0.5,
    )  # fmt: skip
    return Variant(spec, 32, 10, None, "ours, after Hassani et al. 2021, arXiv:2104.05704, table 1")


def resnet(blocks: tuple[int, ...], parameters: int, reference: str, **options: Any) -> Variant:
    """Returns a ResNet for ImageNet."""
    return Variant(ResNetSpec(blocks_per_stage=blocks, **options), 224, 1000, parameters, reference)


RESNET = "He et al. 2016, arXiv:1512.03385, table 1"
RESNET_V2 = "He et al. 2016, arXiv:1603.05027"
RESNET_D = "He et al. 2019, arXiv:1812.01187, figure 2"
BIT = "Kolesnikov et al. 2020, arXiv:1912.11370, section 3.1"


def cifar_resnet(blocks: int, parameters: str | None, **options: Any) -> Variant:
    """Returns a ResNet of 6n+2 layers: n basic blocks in each of three stages."""
    convolutions: dict[str, Any] = {
        "blocks_per_stage": (blocks,) * 3,
        "filters": 16,
        "block": "basic",
        "stem": "3x3",
    }
    reference = "He et al. 2016, arXiv:1512.03385, table 6"
    if not parameters:
        reference = f"ours, with fewer blocks and projections, after {reference}"
    return Variant(ResNetSpec(**(convolutions | options)), 32, 10, parameters, reference)


def wide_resnet(depth: int, width: int, parameters: str) -> Variant:
    """Returns WRN-depth-width, of 6n+4 layers."""
    blocks = (depth - 4) // 6
    spec = ResNetSpec(
        blocks_per_stage=(blocks,) * 3, filters=16, width_factor=float(width), stem_filters=16, block="basic",
        stem="3x3", preactivation=True,
    )  # fmt: skip
    return Variant(spec, 32, 10, parameters, "Zagoruyko & Komodakis 2016, arXiv:1605.07146, tables 4 and 5")


def r_vit(blocks: tuple[int, ...], size: str, parameters: int, patch_size: int = 1) -> Variant:
    """Returns a hybrid with the numerics of the published ones: group norm, weight standardisation, tanh GELU."""
    spec = HybridSpec(
        blocks_per_stage=blocks, patch_size=patch_size, norm="group", norm_epsilon=1e-6,
        activation="gelu_tanh", **encoder(size),
    )  # fmt: skip
    return Variant(spec, 224, 1000, parameters, R_VIT)


def small_hybrid() -> Variant:
    """Returns a hybrid for small images: a ResNet of 14 layers with a single Transformer block behind it."""
    spec = HybridSpec(
        blocks_per_stage=(2, 2, 2), filters=32, block="basic", stem="3x3", stem_stride=2, hidden_dim=128,
        depth=1, num_heads=4, mlp_dim=256, pool="gap",
    )  # fmt: skip
    return Variant(spec, 32, 10, None, "ours")


def coatnet(blocks: tuple[int, ...], dims: tuple[int, ...], parameters: str) -> Variant:
    spec = CoAtNetSpec(blocks_per_stage=blocks, dims=dims)
    return Variant(spec, 224, 1000, parameters, "Dai et al. 2021, arXiv:2106.04803, tables 3 and 4")


def conformer(filters: int, hidden_dim: int, num_heads: int, parameters: str) -> Variant:
    spec = ConformerSpec(filters=filters, hidden_dim=hidden_dim, num_heads=num_heads, mlp_dim=4 * hidden_dim)
    return Variant(spec, 224, 1000, parameters, "Peng et al. 2021, arXiv:2105.03889, tables 1 and 2")


BOTNET = "Srinivas et al. 2021, arXiv:2101.11605, table 1"

VARIANTS: Mapping[str, Variant] = types.MappingProxyType(
    {
        "ViT-Mi/4": small_vit(64, 4, 2),
        "ViT-Sm/4": small_vit(96, 6, 3),
        **vits(),
        "DeiT-Ti/16": distilled("Ti", 5_910_800),
        "DeiT-S/16": distilled("S", 22_436_432),
        "DeiT-B/16": distilled("B", 87_338_192),
        "CCT-7/3x1": Variant(
            ViTSpec(
                patch_size=2,
                stem="conv",
                hidden_dim=256,
                depth=7,
                num_heads=4,
                mlp_dim=512,
                pool="seq",
                query_key_value_bias=False,
            ),
            32,
            10,
            "3.76M",
            "Hassani et al. 2021, arXiv:2104.05704, table 1",
        ),
        "ResNet-8": cifar_resnet(1, None, shortcut="projection"),
        "ResNet-14": cifar_resnet(2, None, shortcut="projection"),
        "ResNet-20": cifar_resnet(3, "0.27M", shortcut="pad"),
        "ResNet-32": cifar_resnet(5, "0.46M", shortcut="pad"),
        "ResNet-44": cifar_resnet(7, "0.66M", shortcut="pad"),
        "ResNet-56": cifar_resnet(9, "0.85M", shortcut="pad"),
        "ResNet-110": cifar_resnet(18, "1.7M", shortcut="pad"),
        "WRN-16-4": wide_resnet(16, 4, "2.7M"),
        "WRN-40-4": wide_resnet(40, 4, "8.9M"),
        "WRN-16-8": wide_resnet(16, 8, "11.0M"),
        "WRN-28-10": wide_resnet(28, 10, "36.5M"),
        "ResNet-18": resnet((2, 2, 2, 2), 11_689_512, RESNET, block="basic"),
        "ResNet-34": resnet((3, 4, 6, 3), 21_797_672, RESNET, block="basic"),
        "ResNet-50": resnet((3, 4, 6, 3), 25_557_032, RESNET),
        "ResNet-101": resnet((3, 4, 23, 3), 44_549_160, RESNET),
        "ResNet-152": resnet((3, 8, 36, 3), 60_192_808, RESNET),
        "ResNet-50-D": resnet((3, 4, 6, 3), 25_576_264, RESNET_D, stem="deep", shortcut="pool"),
        "ResNet-50v2": resnet((3, 4, 6, 3), 25_549_352, RESNET_V2, preactivation=True),
        "ResNet-101v2": resnet((3, 4, 23, 3), 44_541_480, RESNET_V2, preactivation=True),
        "ResNet-152v2": resnet((3, 8, 36, 3), 60_185_128, RESNET_V2, preactivation=True),
        "BiT-R50x1": resnet((3, 4, 6, 3), 25_549_352, BIT, preactivation=True, norm="group"),
        "R14+ViT-Mi": small_hybrid(),
        "R+ViT-Ti/16": r_vit((), "Ti", 6_337_704, patch_size=8),
        "R26+ViT-S/32": r_vit((2, 2, 2, 2), "S", 36_431_912),
        "R26+ViT-B/32": r_vit((2, 2, 2, 2), "B", 101_383_976),
        "R50+ViT-B/16": r_vit((3, 4, 9), "B", 98_659_112),
        "R50+ViT-L/32": r_vit((3, 4, 6, 3), "L", 328_994_856),
        "BoTNet-50": Variant(BoTNetSpec(blocks_per_stage=(3, 4, 6, 3)), 224, 1000, "20.8M", BOTNET),
        "CoAtNet-0": coatnet((2, 2, 3, 5, 2), (64, 96, 192, 384, 768), "25M"),
        "CoAtNet-1": coatnet((2, 2, 6, 14, 2), (64, 96, 192, 384, 768), "42M"),
        "Conformer-Ti": conformer(64, 384, 6, "23.5M"),
        "Conformer-S": conformer(256, 384, 6, "37.7M"),
        "Conformer-B": conformer(384, 576, 9, "83.3M"),
    }
)


def resolve_variant(name: str, image_size: Size, /, **overrides: Any) -> ModelSpec:
    """Returns the spec of variant `name` with `overrides` applied, and checks it for images of `image_size`.

    Raises:
        ConfigError: the variant or a field is unknown, or the model cannot be built.
    """
    if not isinstance(name, str) or name not in VARIANTS:
        raise ConfigError(
            f"variant: no {name!r}{did_you_mean(str(name), VARIANTS)}; visionpipe models lists all variants"
        )
    spec = VARIANTS[name].spec
    for key, value in overrides.items():
        if key not in fields(spec):
            raise ConfigError(
                f"overrides: {name} has no {key!r}{did_you_mean(key, fields(spec))}; "
                f"it has {', '.join(fields(spec))}"
            )
        overrides[key] = override(spec, key, value)
    spec = dataclasses.replace(spec, **overrides)
    spec.check(image_size)
    for key, reason in (spec.idle() if isinstance(spec, Convolutions | Encoder) else {}).items():
        # A value from the variant itself does no harm, and neither does `false`.
        if overrides.get(key):
            raise ConfigError(f"overrides: {key} has no effect, because {reason}: leave it out")
    return spec


def override(spec: ModelSpec, name: str, value: Any) -> Any:
    """Returns `value` in the type of the spec's field `name`.

    Raises:
        ConfigError: the value has another type or lies outside the field's range.
    """
    hint = typing.get_type_hints(type(spec))[name]
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = kinds[0]
    valid, expected = False, ""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        valid, expected = value in choices, f"one of {', '.join(choices)}"
    elif kind is bool:
        valid, expected = isinstance(value, bool), "true or false"
    elif kind is int:
        least = 0 if name == "register_tokens" else 1
        valid = type(value) is int and value >= least
        expected = "a whole number, 0 or more" if least == 0 else "a positive whole number"
    elif kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name.endswith(("_rate", "_momentum")):
            valid, expected = number and 0 <= value < 1, "a number in [0, 1)"
        else:
            valid, expected = number and 0 < value < math.inf, "a finite number above 0"
    else:
        valid = isinstance(value, list | tuple) and all(type(n) is int and n > 0 for n in value)
        value = tuple(value) if valid else value
        expected = "a list of positive whole numbers"
    if not valid:
        note = YAML_EXPONENT if kind is float and isinstance(value, str) else ""
        raise ConfigError(f"overrides: {name}: expected {expected}, received {value!r}{note}")
    return value


def shown(value: Any) -> str:
    """Writes a value as YAML reads it back."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(shown(number) for number in value)}]"
    if isinstance(value, float) and 0 < value < 1e-2:
        mantissa, exponent = f"{value:.4e}".split("e")  # YAML reads 1e-3, without a point, as text
        return f"{float(mantissa)}e{int(exponent)}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def fields(spec: ModelSpec) -> list[str]:
    """Returns the names of the spec's settings."""
    return [field.name for field in dataclasses.fields(spec)]
