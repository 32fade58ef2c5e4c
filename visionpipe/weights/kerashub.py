"""KerasHub's presets of ViT and ResNet.

A preset is a folder with config.json, model.weights.h5 (the backbone) and task.weights.h5 (the head). The arrays of a
layer are numbered.
"""

from typing import Any

import numpy as np

from visionpipe.weights.layout import (
    Assumed,
    Companions,
    Format,
    FormatRow,
    Size,
    Tensors,
    biases_in,
    heads_in,
    heads_out,
    same,
)
from visionpipe.weights.report import Preprocessing
from visionpipe.weights.timm import pixel_options


def numbered(ours: str, theirs: str, *names: str) -> tuple[FormatRow, ...]:
    """Returns a row for each variable of a layer: `names` lists ours in the order of their numbers."""
    return tuple(
        FormatRow(f"{ours}/{name}", (f"{theirs}/{number}",), same) for number, name in enumerate(names)
    )


def dense(ours: str, theirs: str) -> tuple[FormatRow, ...]:
    """Returns the rows of a dense layer or a convolution."""
    return numbered(ours, theirs, "kernel", "bias")


def batch_norm(ours: str, theirs: str) -> tuple[FormatRow, ...]:
    """Returns the rows of a batch norm."""
    return numbered(ours, theirs, "gamma", "beta", "moving_mean", "moving_variance")


def one_row(table: np.ndarray) -> np.ndarray:
    """Adds a first axis: (tokens, channels) to (1, tokens, channels)."""
    return table[None]


BLOCK = "vit_encoder/transformer_block_{block+1}"


def query_key_value(number: int) -> tuple[str, ...]:
    """Returns the names of the three kernels (number 0) or biases (number 1) of an attention layer."""
    return tuple(f"{BLOCK}/mha/{part}/{number}" for part in ("query", "key", "value"))


VIT = (
    *dense("patch_embedding", "vit_patching_and_embedding/patch_embedding"),
    FormatRow("tokens/class_token", ("vit_patching_and_embedding/0",), same),
    FormatRow("tokens/position_embedding", ("vit_patching_and_embedding/position_embedding/0",), one_row),
    *numbered("encoder_block_{block}_attention_norm", f"{BLOCK}/ln_1", "gamma", "beta"),
    FormatRow("encoder_block_{block}_attention/query_key_value/kernel", query_key_value(0), heads_in),
    FormatRow("encoder_block_{block}_attention/query_key_value/bias", query_key_value(1), biases_in),
    FormatRow(
        "encoder_block_{block}_attention/output/kernel", (f"{BLOCK}/mha/attention_output/0",), heads_out
    ),
    FormatRow("encoder_block_{block}_attention/output/bias", (f"{BLOCK}/mha/attention_output/1",), same),
    *numbered("encoder_block_{block}_mlp_norm", f"{BLOCK}/ln_2", "gamma", "beta"),
    *dense("encoder_block_{block}_mlp_expand", f"{BLOCK}/mlp/dense_1"),
    *dense("encoder_block_{block}_mlp_project", f"{BLOCK}/mlp/dense_2"),
    *numbered("encoder_norm", "vit_encoder/ln", "gamma", "beta"),
    *dense("pre_logits", "pre_logits"),
    *dense("logits", "predictions"),
)

STACK = "stack{stage-1}_block{block-1}"
RESNET = (
    *dense("stem_conv", "conv1_conv"),
    *batch_norm("stem_norm", "conv1_bn"),
    *(
        row
        for number in (1, 2, 3)
        for row in (
            *dense(f"stage{{stage}}_block{{block}}_conv{number}", f"{STACK}_{number}_conv"),
            *batch_norm(f"stage{{stage}}_block{{block}}_norm{number}", f"{STACK}_{number}_bn"),
        )
    ),
    *dense("stage{stage}_block{block}_shortcut", f"{STACK}_0_conv"),
    *batch_norm("stage{stage}_block{block}_shortcut_norm", f"{STACK}_0_bn"),
    *dense("logits", "predictions"),
)


# The names that an older Keras derived from the classes and attributes of a ViT's layers → the layers' names.
UNNAMED = {
    "vi_t_patching_and_embedding": "vit_patching_and_embedding",
    "vi_t_encoder": "vit_encoder",
    "layer_norm": "ln",
    "layer_norm_1": "ln_1",
    "layer_norm_2": "ln_2",
    "query_dense": "query",
    "key_dense": "key",
    "value_dense": "value",
    "output_dense": "attention_output",
    "dense": "predictions",
}


def with_layer_names(tensors: Tensors, companions: Companions) -> dict[str, np.ndarray]:
    """Renames the tensors of a preset that an older Keras saved to the names of their layers; others stay the same."""
    names = dict(UNNAMED)
    config = backbone(companions)
    for kind in ("conv", "bn"):
        group = {"conv": "conv2d", "bn": "batch_normalization"}[kind]
        for number, layer in enumerate(in_order(config, kind)):
            names[f"{group}_{number}" if number else group] = layer
    blocks = {"vi_t_encoder_block": 1}
    blocks |= {f"vi_t_encoder_block_{number}": number + 1 for number in range(1, config.get("num_layers", 0))}
    names |= {group: f"transformer_block_{number}" for group, number in blocks.items()}
    return {"/".join(names.get(part, part) for part in name.split("/")): x for name, x in tensors.items()}


def in_order(config: dict[str, Any], kind: str) -> list[str]:
    """Returns the names of a ResNet's convolutions (`conv`) or norms (`bn`) in the order of Keras's numbers.

    Within a block the shortcut's layer precedes the last one.
    """
    basic = config.get("block_type") == "basic_block"
    names = [f"conv1_{kind}"]
    for stack, blocks in enumerate(config.get("stackwise_num_blocks", ())):
        for block in range(blocks):
            layers = [1, 2] if basic else [1, 2, 3]
            if block == 0 and not (basic and stack == 0):
                layers.insert(-1, 0)
            names += [f"stack{stack}_block{block}_{layer}_{kind}" for layer in layers]
    return names


def preprocessing(companions: Companions) -> Preprocessing | None:
    """Reads the preset's image converter, which multiplies pixels by `scale` and adds `offset`."""
    converter = companions.get("image_converter.json")
    if converter is None:
        converter = companions.get("preprocessor.json", {}).get("config", {}).get("image_converter")
    if converter is None:
        return None
    config = converter["config"]
    scale = 1.0 if config.get("scale") is None else config["scale"]
    offset = 0.0 if config.get("offset") is None else config["offset"]
    scales, offsets = np.broadcast_to(scale, 3), np.broadcast_to(offset, 3)
    size = config.get("image_size")
    return Preprocessing(
        mean=tuple(float(value) for value in -offsets / scales),
        std=tuple(float(value) for value in 1 / scales),
        interpolation=config.get("interpolation"),
        crop_ratio=1.0 if config.get("crop_to_aspect_ratio") else None,
        size=(size[0], size[1]) if size else None,
    )


def backbone(companions: Companions) -> dict[str, Any]:
    """Returns the configuration of the backbone; empty if the preset has none."""
    return companions.get("config.json", {}).get("config", {})


def pooling(companions: Companions) -> Any:
    """Returns how the head pools the features; None if the preset has no head, or does not say."""
    return companions.get("task.json", {}).get("config", {}).get("pooling")


def vit_options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of a ViT (see `Format`)."""
    config, pool = backbone(companions), pooling(companions)
    has_class_token = "vit_patching_and_embedding/0" in tensors
    if pool == "gap" and has_class_token:
        pool = "gap of all tokens"
    if pool == "token" and not has_class_token:
        pool = "token, the first of the image"
    return {
        "activation": "gelu",
        "layer_norm_epsilon": config.get("layer_norm_epsilon", Assumed(1e-6)),
        "position": "learned",
        "num_heads": tensors["vit_encoder/transformer_block_1/mha/query/0"].shape[1],
        "pool": pool or Assumed("token" if has_class_token else "gap"),
        "pooler_act": "tanh",
        **pixel_options(preprocessing(companions)),
    }


def resnet_options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of a ResNet (see `Format`)."""
    config = backbone(companions)
    strides = config.get("stackwise_num_strides")
    return {
        "norm": "batch",
        "norm_epsilon": 1e-5,
        "preactivation": config.get("use_pre_activation", False),
        "shortcut": "pool" if "_vd" in config.get("block_type", "") else "projection",
        "stride_on": "3x3",
        "padding": "symmetric",
        "act_layer": "relu",
        "aa_layer": "none",
        "stage_strides": tuple(strides) if strides else Assumed((1, 2, 2, 2)),
        "global_pool": pooling(companions) or Assumed("avg"),
        **pixel_options(preprocessing(companions)),
    }


def image_size(companions: Companions) -> Size | None:
    """Returns (height, width) of the images that the positions are for; None if config.json does not say."""
    height, width, *_ = backbone(companions).get("image_shape") or (None, None)
    return (int(height), int(width)) if height and width else None


FORMATS = (
    Format(
        name="KerasHub ViT",
        signature=(
            "vit_patching_and_embedding/patch_embedding/0",
            "vit_encoder/transformer_block_1/mha/query/0",
        ),
        rows=VIT,
        options=vit_options,
        positions="bicubic",  # KerasHub cannot resize positions; its weights come from Hugging Face's models
        image_size=image_size,
        preprocessing=preprocessing,
    ),
    Format(
        name="KerasHub ResNet",
        signature=("conv1_conv/0", "stack0_block0_1_conv/0"),
        rows=RESNET,
        options=resnet_options,
        preprocessing=preprocessing,
    ),
)
