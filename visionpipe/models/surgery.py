"""Operations on a built or trained model: another image size, its inner features, its attention maps."""

from typing import Any

import keras
import numpy as np

from visionpipe.errors import ConfigError
from visionpipe.models import height_and_width
from visionpipe.models.attention import MultiHeadSelfAttention, take_weights
from visionpipe.models.names import ENCODER_OUTPUT, STAGE_OUTPUT, STEM_OUTPUTS


def with_image_size(model: keras.Model, image_size: int | tuple[int, int]) -> keras.Model:
    """Returns a copy of `model` for images of another size.

    Position embeddings and relative positions are resized linearly. Fixed positions are computed at points between
    those of the old grid. All other weights are copied. NumPy does the arithmetic, so every backend gives the same
    weights.

    Args:
        image_size: (height, width) in pixels, or one number for square images.

    Raises:
        ConfigError: `image_size` is no size, or the model's strides and patches do not fit it.
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
        if isinstance(layer, keras.layers.Conv2D) and layer.strides == layer.kernel_size:  # a patch embedding
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
    """Returns a model with the same input whose output is a dictionary of intermediate outputs.

    `stride_4`, `stride_8` … are the outputs of the last block at each stride (batch, rows, columns, channels), or the
    stem's where there is no stage. With `preactivation` these have not passed a norm yet. `block_00`, `block_01` … are
    the outputs of the Transformer blocks of ViTs and of serial and parallel hybrids (batch, tokens, hidden_dim), class
    and register tokens first.
    """
    rows = model.input.shape[1]
    outputs: dict[str, Any] = {}
    blocks = 0
    names = [layer.name for layer in model.layers]
    stages = [name for name in names if STAGE_OUTPUT.fullmatch(name)]
    stem = [name for name in names if name in STEM_OUTPUTS]
    for layer in model.layers:
        if layer.name in (stages or stem[-1:]):
            outputs[f"stride_{stride(rows, layer.output.shape[1])}"] = layer.output
        elif ENCODER_OUTPUT.fullmatch(layer.name):
            outputs[f"block_{blocks:02d}"] = layer.output
            blocks += 1
    return keras.Model(model.input, outputs, name=f"{model.name}_features")


def stride(rows: int, left: int) -> int:
    """Returns the power of two by which `rows` were divided to get `left` rows; each halving rounds up."""
    return 1 if rows <= left else 2 * stride(-(-rows // 2), left)


def attention_maps(model: keras.Model, images: Any) -> dict[str, np.ndarray]:
    """Computes the attention weights of every attention layer for a batch of images.

    Args:
        images: (batch, height, width, channels), float32 or uint8 in [0, 255].

    Returns:
        Layer name → (batch, heads, tokens, tokens). The weights of each query sum to 1. Class and register tokens come
        first.

    Raises:
        ConfigError: the model has no attention.
    """
    attentions = [layer for layer in model.layers if isinstance(layer, MultiHeadSelfAttention)]
    if not attentions:
        raise ConfigError(f"{model.name} has no attention")
    inputs = keras.Model(model.input, {layer.name: layer.input for layer in attentions})(images)
    return {
        layer.name: keras.ops.convert_to_numpy(layer.attention_map(inputs[layer.name]))
        for layer in attentions
    }
