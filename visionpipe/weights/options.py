"""Which of the options that change a model's numbers, but not its weights' shapes, a built model has."""

import re
import typing
from typing import TYPE_CHECKING, Any

from visionpipe.models.specs import ModelSpec
from visionpipe.models.variants import fields

if TYPE_CHECKING:
    import keras


# What checkpoints can differ in and all models here have in common, under the names that timm has for it.
FIXED = {"act_layer": "relu", "aa_layer": "none", "global_pool": "avg"}


def options_of(model: "keras.Model") -> dict[str, Any]:
    """The fields of specs.py, as far as this model has what they are about, `pixel_mean` and `pixel_std`, and what
    no field changes: see FIXED, `stage_strides` of each stage's first block, and `pooler_act` of a tanh layer.
    """
    layers = {layer.name: layer for layer in model.layers}
    found: dict[str, Any] = {}
    if "normalisation" in layers:
        scale, offset = layers["normalisation"].scale, layers["normalisation"].offset
        found["pixel_mean"] = tuple(-shift / factor for factor, shift in zip(scale, offset, strict=True))
        found["pixel_std"] = tuple(1 / factor for factor in scale)
    found |= encoder_options(layers) | convolution_options(layers)
    heads = [layer.num_heads for layer in layers.values() if hasattr(layer, "num_heads")]
    if heads:
        found.setdefault("num_heads", heads[0])
    if "stem_gelu1" in layers:  # of a CoAtNet
        found["stem_stride"] = layers["stem_conv1"].strides[0]
    return found


def is_option(name: str) -> bool:
    """Whether `options_of` has this of any model."""
    others = {*FIXED, "stage_strides", "pooler_act", "pixel_mean", "pixel_std"}
    return name in others or any(name in fields(spec) for spec in typing.get_args(ModelSpec))


def encoder_options(layers: dict[str, Any]) -> dict[str, Any]:
    from visionpipe.models.attention import SequencePooling
    from visionpipe.models.layers import ACTIVATIONS

    if "tokens" not in layers or "encoder_block_00_attention" not in layers:
        return {}
    names = {function: name for name, function in ACTIVATIONS.items()}
    averaged = "seq" if isinstance(layers.get("pool"), SequencePooling) else "gap"
    return {
        "activation": names[layers["encoder_block_00_mlp_expand"].activation],
        "layer_norm_epsilon": layers["encoder_norm"].epsilon,
        "num_heads": layers["encoder_block_00_attention"].num_heads,
        "position": layers["tokens"].position,
        "pool": "token" if layers["tokens"].has_class_token else averaged,
        **({"pooler_act": "tanh"} if "pre_logits" in layers else {}),
    }


def convolution_options(layers: dict[str, Any]) -> dict[str, Any]:
    import keras

    if "stem_conv" not in layers:
        return {}
    found: dict[str, Any] = {name: FIXED[name] for name in ("act_layer", "aa_layer")}
    if isinstance(layers.get("pool"), keras.layers.GlobalAveragePooling2D):
        found["global_pool"] = FIXED["global_pool"]
    stages: dict[int, int] = {}
    for name, layer in layers.items():
        first = re.match(r"stage(\d+)_block1_", name)
        if first and hasattr(layer, "strides"):
            stages[int(first[1])] = max(stages.get(int(first[1]), 1), layer.strides[0])
    if stages:
        found["stage_strides"] = tuple(stages[number] for number in sorted(stages))
    if layers["stem_conv"].kernel_size == (3, 3) and "stem_conv1" not in layers:
        found["stem_stride"] = layers["stem_conv"].strides[0]
    norms = [
        layer
        for layer in layers.values()
        if isinstance(layer, keras.layers.BatchNormalization | keras.layers.GroupNormalization)
    ]
    batch = isinstance(norms[0], keras.layers.BatchNormalization)
    found |= {"norm": "batch" if batch else "group", "norm_epsilon": norms[0].epsilon}
    strided = [
        name
        for name, layer in layers.items()
        if isinstance(layer, keras.layers.Conv2D) and layer.strides != (1, 1) and layer.kernel_size != (1, 1)
    ]
    if any(name.startswith("stem_") or re.match(r"stage\d", name) for name in strided):
        padded = any(isinstance(layer, keras.layers.ZeroPadding2D) for layer in layers.values())
        found["padding"] = "symmetric" if padded else "same"
    if any(re.match(r"stage\d+_block1_", name) for name in layers):
        found["preactivation"] = "final_norm" in layers
    for name, layer in layers.items():
        if re.fullmatch(r"stage\d+_block1_conv1", name) and name.replace("conv1", "conv3") in layers:
            second = layers.get(name.replace("conv1", "conv2"))
            if layer.strides != (1, 1):
                found["stride_on"] = "1x1"
            elif second is not None and second.strides != (1, 1):
                found["stride_on"] = "3x3"
        for kind in ("pool", "pad"):
            if re.fullmatch(rf"stage\d+_block1_shortcut_{kind}", name):
                found["shortcut"] = kind
        if re.fullmatch(r"stage\d+_block1_shortcut", name):
            found.setdefault("shortcut", "projection")
    return found
