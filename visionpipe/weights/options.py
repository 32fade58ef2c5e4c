"""Which of the options that change a model's numbers, but not its weights' shapes, a built model has."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def options_of(model: "keras.Model") -> dict[str, Any]:
    """The fields of specs.py, as far as this model has what they are about, and `pixel_mean`, `pixel_std`."""
    layers = {layer.name: layer for layer in model.layers}
    found: dict[str, Any] = {}
    if "normalisation" in layers:
        scale, offset = layers["normalisation"].scale, layers["normalisation"].offset
        found["pixel_mean"] = tuple(-shift / factor for factor, shift in zip(scale, offset, strict=True))
        found["pixel_std"] = tuple(1 / factor for factor in scale)
    return found | encoder_options(layers) | convolution_options(layers)


def encoder_options(layers: dict[str, Any]) -> dict[str, Any]:
    from visionpipe.models.layers import ACTIVATIONS

    if "tokens" not in layers or "encoder_block_00_attention" not in layers:
        return {}
    names = {function: name for name, function in ACTIVATIONS.items()}
    return {
        "activation": names[layers["encoder_block_00_mlp_expand"].activation],
        "layer_norm_epsilon": layers["encoder_norm"].epsilon,
        "num_heads": layers["encoder_block_00_attention"].num_heads,
        "position": layers["tokens"].position,
    }


def convolution_options(layers: dict[str, Any]) -> dict[str, Any]:
    import keras

    if "stem_conv" not in layers:
        return {}
    norms = [
        layer
        for layer in layers.values()
        if isinstance(layer, keras.layers.BatchNormalization | keras.layers.GroupNormalization)
    ]
    batch = isinstance(norms[0], keras.layers.BatchNormalization)
    found = {"norm": "batch" if batch else "group", "norm_epsilon": norms[0].epsilon}
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
