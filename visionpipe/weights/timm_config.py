"""Reads timm's config.json: the name of an architecture implies arguments, which `model_args` overrides."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from visionpipe.weights.layout import Assumed, Companions, Size
from visionpipe.weights.options import FIXED

# Arguments that follow from the tensors, or that matter in training only.
SHOWN = {
    "architecture", "num_classes", "in_chans", "img_size", "patch_size", "embed_dim", "depth", "mlp_ratio",
    "qkv_bias", "qk_norm", "scale_attn_norm", "scale_mlp_norm", "proj_bias", "init_values", "class_token",
    "pos_embed", "no_embed_class", "reg_tokens", "pre_norm", "final_norm", "fc_norm", "drop_rate", "pos_drop_rate",
    "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_block_rate", "weight_init",
    "fix_init", "dynamic_img_size", "dynamic_img_pad", "strict_img_size", "layers", "channels", "cardinality",
    "base_width", "stem_width", "stem_type", "replace_stem_pool", "block_reduce_first", "down_kernel_size",
    "zero_init_last", "pretrained", "pretrained_cfg",
}  # fmt: skip
# timm's names → those of specs.py
ACTIVATIONS = {"gelu": "gelu", "gelu_erf": "gelu", "gelu_tanh": "gelu_tanh"}
POOLS = {"token": "token", "avg": "gap"}  # nosec B105: a class token, not a user's
HEADS = {
    "tiny": 3, "xsmall": 4, "wee": 4, "small": 6, "little": 5, "medium": 8, "mediumd": 8, "betwixt": 10, "base": 12,
    "so150m": 14, "large": 16, "huge": 16, "so400m": 16, "giant": 16, "giantopt": 16, "gigantic": 16,
}  # fmt: skip
TORCH: dict[str, Any] = {"norm_epsilon": 1e-5, "stride_on": "3x3", "padding": "symmetric"}
VIT: dict[str, Any] = {"act_layer": "gelu", "no_embed_class": False, "epsilon": 1e-6}
RESNET: dict[str, Any] = {"aa_layer": "none", "act_layer": "relu", "output_stride": 32, "global_pool": "avg"}
# Pattern of an architecture's name → arguments that it implies. Where several match, the later one takes precedence.
ARCHITECTURES: tuple[tuple[str, dict[str, Any]], ...] = (
    (r"(tv_|gluon_|ssl_|swsl_|ig_|wide_)?resnet\d+(_\d|_v1b)?", RESNET),
    (r"resnetaa\d+", RESNET | {"aa_layer": "avg"}),
    (r"resnetblur\d+", RESNET | {"aa_layer": "blur"}),
    (r"(vit|deit3?|flexivit)_.*", VIT),
    (r"deit3_.*|flexivit_.*|vit_.*_reg\d+_.*", {"no_embed_class": True}),
    (r"vit_.*_clip_.*", {"epsilon": 1e-5}),
    (r"vit_.*_quickgelu_.*", {"act_layer": "quick_gelu"}),
    (r"vit_(base_patch32|giantopt_patch16|so400m_patch16)_siglip_.*", {"act_layer": "gelu_tanh"}),
    (r"vit_large_patch16_siglip_(gap_)?512", {"act_layer": "gelu_tanh"}),
    (r"vit_.*_rpn_.*", {"block_fn": "ResPostBlock"}),
    (r"vit_base_patch16_gap_224", {"num_heads": 16}),
    (r"test_vit", VIT | {"num_heads": 2}),
)


def arguments(companions: Companions) -> dict[str, Any]:
    """Returns the arguments of timm's model that config.json states or implies."""
    config = companions.get("config.json", {})
    name, _, _ = str(config.get("architecture", "")).partition(".")
    given: dict[str, Any] = {}
    size = re.match(r"(?:vit|deit3?|flexivit)_([a-z0-9]+)(_|$)", name)
    if size and size[1] in HEADS:
        given["num_heads"] = HEADS[size[1]]
    for pattern, implied in ARCHITECTURES:
        if re.fullmatch(pattern, name):
            given |= {"architecture": name} | implied
    if "global_pool" in config:
        given["global_pool"] = config["global_pool"]
    return given | (config.get("model_args") or {})


def unread(given: Mapping[str, Any], read: Collection[str]) -> dict[str, Any]:
    """Returns the arguments that are on, are not in `read`, and do not follow from the tensors."""
    return {key: value for key, value in given.items() if value and key not in SHOWN and key not in read}


def encoder_arguments(companions: Companions, has_class_token: bool) -> dict[str, Any]:
    """Returns the options of a VisionTransformer."""
    given = arguments(companions)
    activation, epsilon = given.get("act_layer") or "gelu", given.get("epsilon", 1e-6)
    pool = given.get("global_pool", "token" if has_class_token else "avg") or "none"
    pool = POOLS.get(pool, pool)
    if pool == "gap" and (has_class_token or given.get("pool_include_prefix")):
        pool = "gap beside or over other tokens"
    options = {
        "activation": stated(given, "act_layer", ACTIVATIONS.get(activation, activation)),
        "layer_norm_epsilon": stated(given, "epsilon", epsilon),
        "pool": stated(given, "global_pool", pool),
    }
    if "num_heads" in given:
        options["num_heads"] = given["num_heads"]
    if given.get("norm_layer") == "layernorm":
        del given["norm_layer"]
    return options | unread(
        given, ("act_layer", "epsilon", "global_pool", "pool_include_prefix", "num_heads")
    )


def resnet_arguments(companions: Companions, stages: int) -> dict[str, Any]:
    """Returns the options of a ResNet with a number of stages."""
    given = arguments(companions)
    stride = given.get("output_stride", 32)
    strides = tuple(2 if stage > 0 and 4 * 2**stage <= stride else 1 for stage in range(stages))
    options = {
        "stage_strides": stated(given, "output_stride", strides),
        "shortcut": stated(given, "architecture", "pool" if given.get("avg_down") else "projection"),
        **{name: stated(given, name, given.get(name) or RESNET[name]) for name in FIXED},
        **{name: stated(given, "architecture", value) for name, value in TORCH.items()},
    }
    if given.get("norm_layer") == "batchnorm2d":
        del given["norm_layer"]
    return options | unread(given, ("output_stride", "avg_down", *FIXED))


def stated(given: Mapping[str, Any], name: str, value: Any) -> Any:
    """Returns `value` as it is if config.json gives the argument `name`, else as an assumption."""
    return value if name in given else Assumed(value)


def embeds_class(companions: Companions) -> bool | None:
    """Whether the class token has a position; None if config.json does not say."""
    without = arguments(companions).get("no_embed_class")
    return None if without is None else not without


def image_size(companions: Companions) -> Size | None:
    """Returns (height, width) of the images that the positions are for; None if config.json does not say."""
    config = companions.get("config.json", {})
    side = (config.get("model_args") or {}).get("img_size")
    if side is None:
        side = (config.get("pretrained_cfg") or config).get("input_size", [])[1:]
    if not side:
        return None
    height, width = (side, side) if isinstance(side, int) else side
    return int(height), int(width)
