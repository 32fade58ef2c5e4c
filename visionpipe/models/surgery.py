"""What can be done with a built or trained model: another resolution, its inner features, its attention."""

import re
from typing import Any

import keras
import numpy as np

from visionpipe.errors import ConfigError
from visionpipe.models import height_and_width
from visionpipe.models.attention import MultiHeadSelfAttention, take_weights


def with_image_size(model: keras.Model, image_size: int | tuple[int, int]) -> keras.Model:
    """A copy of `model` for images of another (height, width), with its position embeddings and relative
    positions resized linearly; fixed ones are read between those that the model knows. All other weights are
    the same. Computed in NumPy: equal on every backend.

    Raises:
        ConfigError: no size, or one that the model's strides and patches do not fit.
    """
    height, width = height_and_width(image_size)
    config = model.get_config()
    for layer in config["layers"]:
        layer.pop("build_config", None)  # the shapes of the old size
        if layer["config"].get("position") == "sincos":
            layer["config"].setdefault("sincos_grid", model.get_layer(layer["config"]["name"]).grid)
    (images,) = (layer for layer in config["layers"] if layer["class_name"] == "InputLayer")
    images["config"]["batch_shape"] = (None, height, width, images["config"]["batch_shape"][-1])
    try:
        resized = keras.Model.from_config(config)
    except ValueError as error:
        raise ConfigError(f"{model.name} cannot take images of {height}×{width}: {error}") from error
    for layer in (layer for layer in resized.layers if hasattr(layer, "strides")):
        if any(side < step for side, step in zip(layer.input.shape[1:3], layer.strides, strict=True)):
            raise ConfigError(
                f"{model.name} cannot take images of {height}×{width}: too small for its strides"
            )
        if isinstance(layer, keras.layers.Conv2D) and layer.strides == layer.kernel_size:  # patches
            rest = [side % stride for side, stride in zip(layer.input.shape[1:3], layer.strides, strict=True)]
            if any(rest):
                raise ConfigError(
                    f"{model.name} cannot take images of {height}×{width}: {layer.name} would leave out the "
                    f"last {rest[0]} rows and {rest[1]} columns of its input"
                )
    for layer, old in zip(resized.layers, model.layers, strict=True):
        if getattr(layer, "grid", None) != getattr(old, "grid", None):  # 3×4 and 4×3 have as many weights
            layer.resize_from(old)
        else:
            take_weights(layer, old)
    return resized


def features(model: keras.Model) -> keras.Model:
    """A model with the same input and a dictionary of named intermediate outputs.

    Convolution stages, or the stem where there is no stage: `stride_4`, `stride_8` …, the last block's output
    at each stride (batch, rows, columns, channels); with `preactivation` it has no norm yet. Transformer
    blocks over tokens (ViT, serial and parallel hybrids): `block_00`, `block_01` …, their outputs, class and
    register tokens first (batch, tokens, hidden_dim).
    """
    rows = model.input.shape[1]
    outputs: dict[str, Any] = {}
    blocks = 0
    names = [layer.name for layer in model.layers]
    stages = [name for name in names if re.fullmatch(r"stage\d+_block\d+(_fusion)?_output", name)]
    stem = [name for name in names if name in ("stem_conv", "stem_relu", "stem_pool")]
    for layer in model.layers:
        if layer.name in (stages or stem[-1:]):
            outputs[f"stride_{stride(rows, layer.output.shape[1])}"] = layer.output
        elif re.fullmatch(r"(encoder_block_\d+|.*_encoder)_mlp_add", layer.name):
            outputs[f"block_{blocks:02d}"] = layer.output
            blocks += 1
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


def stride(rows: int, left: int) -> int:
    """How often, as a power of two, `rows` were halved until `left` were there; odd ones are rounded up."""
    return 1 if rows <= left else 2 * stride(-(-rows // 2), left)


def attention_maps(model: keras.Model, images: Any) -> dict[str, np.ndarray]:
    """How much each token of each Transformer block reads from each other one: by the layer's name, float
    (batch, heads, tokens, tokens), rows summing to 1. Class and register tokens come first.

    Raises:
        ConfigError: the model has none.
    """
    attentions = [layer for layer in model.layers if isinstance(layer, MultiHeadSelfAttention)]
    if not attentions:
        raise ConfigError(f"{model.name} has no attention")
    inputs = keras.Model(model.input, {layer.name: layer.input for layer in attentions})(images)
    return {
        layer.name: keras.ops.convert_to_numpy(layer.attention_map(inputs[layer.name]))
        for layer in attentions
    }
