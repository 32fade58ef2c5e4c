"""Reads off a built model the options that change its numbers, but not the shapes of its weights."""

import re
import typing
from typing import TYPE_CHECKING, Any

from visionpipe.models.names import (
    ENCODER_NORM,
    FINAL_NORM,
    FIRST_BLOCK,
    NORMALISATION,
    POOL,
    PRE_LOGITS,
    STEM_CONV,
    TOKENS,
    encoder_block_name,
)
from visionpipe.models.specs import ModelSpec
from visionpipe.models.variants import fields

if TYPE_CHECKING:
    import keras


# Options, by timm's names, in which checkpoints differ, but which are the same for all models here.
FIXED = {"act_layer": "relu", "aa_layer": "none", "global_pool": "avg"}


def options_of(model: "keras.Model") -> dict[str, Any]:
    """Returns the options of a model, as far as it has the layers that they concern.

    These are fields of specs.py, `pixel_mean` and `pixel_std`, and options that no field changes: those of FIXED,
    `stage_strides` (the stride of each stage's first block) and `pooler_act` (the activation before the head).
    """
    layers = {layer.name: layer for layer in model.layers}
    options: dict[str, Any] = {}
    if NORMALISATION in layers:
        scale, offset = layers[NORMALISATION].scale, layers[NORMALISATION].offset
        options["pixel_mean"] = tuple(-shift / factor for factor, shift in zip(scale, offset, strict=True))
        options["pixel_std"] = tuple(1 / factor for factor in scale)
    options |= encoder_options(layers) | convolution_options(layers)
    num_heads = [layer.num_heads for layer in layers.values() if hasattr(layer, "num_heads")]
    if num_heads:
        options.setdefault("num_heads", num_heads[0])
    if "stem_gelu1" in layers:  # only a CoAtNet has it
        options["stem_stride"] = layers[f"{STEM_CONV}1"].strides[0]
    return options


def is_option(name: str) -> bool:
    """Whether `options_of` returns this option for any model."""
    others = {*FIXED, "stage_strides", "pooler_act", "pixel_mean", "pixel_std"}
    return name in others or any(name in fields(spec) for spec in typing.get_args(ModelSpec))


def encoder_options(layers: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of a Transformer encoder; none if the model has no encoder."""
    from visionpipe.models.attention import SequencePooling
    from visionpipe.models.layers import ACTIVATIONS

    first = encoder_block_name(0)
    if TOKENS not in layers or f"{first}_attention" not in layers:
        return {}
    names = {function: name for name, function in ACTIVATIONS.items()}
    averaged = "seq" if isinstance(layers.get(POOL), SequencePooling) else "gap"
    return {
        "activation": names[layers[f"{first}_mlp_expand"].activation],
        "layer_norm_epsilon": layers[ENCODER_NORM].epsilon,
        "num_heads": layers[f"{first}_attention"].num_heads,
        "position": layers[TOKENS].position,
        "pool": "token" if layers[TOKENS].has_class_token else averaged,
        **({"pooler_act": "tanh"} if PRE_LOGITS in layers else {}),
    }


def convolution_options(layers: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of residual stages and their stem; none if the model has no such stem."""
    import keras

    if STEM_CONV not in layers:
        return {}
    options: dict[str, Any] = {name: FIXED[name] for name in ("act_layer", "aa_layer")}
    if isinstance(layers.get(POOL), keras.layers.GlobalAveragePooling2D):
        options["global_pool"] = FIXED["global_pool"]
    # The layers of the stages' first blocks, by name.
    first_blocks = {name: match for name in layers if (match := FIRST_BLOCK.fullmatch(name))}
    strides: dict[int, int] = {}
    for name, match in first_blocks.items():
        if hasattr(layers[name], "strides"):
            stage = int(match["stage"])
            strides[stage] = max(strides.get(stage, 1), layers[name].strides[0])
    if strides:
        options["stage_strides"] = tuple(strides[stage] for stage in sorted(strides))
    if layers[STEM_CONV].kernel_size == (3, 3) and f"{STEM_CONV}1" not in layers:
        options["stem_stride"] = layers[STEM_CONV].strides[0]
    norms = [
        layer
        for layer in layers.values()
        if isinstance(layer, keras.layers.BatchNormalization | keras.layers.GroupNormalization)
    ]
    batch = isinstance(norms[0], keras.layers.BatchNormalization)
    options |= {"norm": "batch" if batch else "group", "norm_epsilon": norms[0].epsilon}
    strided = [
        name
        for name, layer in layers.items()
        if isinstance(layer, keras.layers.Conv2D) and layer.strides != (1, 1) and layer.kernel_size != (1, 1)
    ]
    if any(name.startswith("stem_") or re.match(r"stage\d", name) for name in strided):
        padded = any(isinstance(layer, keras.layers.ZeroPadding2D) for layer in layers.values())
        options["padding"] = "symmetric" if padded else "same"
    if first_blocks:
        options["preactivation"] = FINAL_NORM in layers
    for name, match in first_blocks.items():
        if match["layer"] == "conv1" and name.replace("conv1", "conv3") in layers:
            second = layers.get(name.replace("conv1", "conv2"))
            if layers[name].strides != (1, 1):
                options["stride_on"] = "1x1"
            elif second is not None and second.strides != (1, 1):
                options["stride_on"] = "3x3"
        elif match["layer"] in ("shortcut_pool", "shortcut_pad"):
            options["shortcut"] = match["layer"].removeprefix("shortcut_")
        elif match["layer"] == "shortcut":
            options.setdefault("shortcut", "projection")
    return options
