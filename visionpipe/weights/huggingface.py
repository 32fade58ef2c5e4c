"""State dicts of Hugging Face's transformers: ViT, DeiT with its teacher's token, ResNet."""

import itertools
from typing import Any

import numpy as np

from visionpipe.weights.layout import (
    Companions,
    Format,
    Row,
    Tensors,
    biases_in,
    same,
    torch_conv,
    torch_dense,
    torch_norm,
)
from visionpipe.weights.report import Preprocessing
from visionpipe.weights.timm import pixel_options


def linears_in(*kernels: np.ndarray) -> np.ndarray:
    """Query, key and value, each torch's (out, in), side by side: (in, 3·out)."""
    return np.concatenate([kernel.T for kernel in kernels], axis=1)


LAYER = "encoder.layer.{block}"


def query_key_value(name: str) -> tuple[str, ...]:
    return tuple(f"{LAYER}.attention.attention.{part}.{name}" for part in ("query", "key", "value"))


VIT = (
    *torch_conv("patch_embedding", "embeddings.patch_embeddings.projection"),
    Row("tokens/class_token", ("embeddings.cls_token",), same),
    Row("tokens/distillation_token", ("embeddings.distillation_token",), same),
    Row("tokens/position_embedding", ("embeddings.position_embeddings",), same),
    *torch_norm("encoder_block_{block}_attention_norm", f"{LAYER}.layernorm_before"),
    Row("encoder_block_{block}_attention/query_key_value/kernel", query_key_value("weight"), linears_in),
    Row("encoder_block_{block}_attention/query_key_value/bias", query_key_value("bias"), biases_in),
    *torch_dense("encoder_block_{block}_attention/output", f"{LAYER}.attention.output.dense"),
    *torch_norm("encoder_block_{block}_mlp_norm", f"{LAYER}.layernorm_after"),
    *torch_dense("encoder_block_{block}_mlp_expand", f"{LAYER}.intermediate.dense"),
    *torch_dense("encoder_block_{block}_mlp_project", f"{LAYER}.output.dense"),
    *torch_norm("encoder_norm", "layernorm"),
    *torch_dense("pre_logits", "pooler.dense"),
    *torch_dense("logits", "classifier"),
    *torch_dense("logits_class", "cls_classifier"),
    *torch_dense("logits_distillation", "distillation_classifier"),
)

BLOCK = "encoder.stages.{stage-1}.layers.{block-1}"
RESNET = (
    *torch_conv("stem_conv", "embedder.embedder.convolution"),
    *torch_norm("stem_norm", "embedder.embedder.normalization"),
    *(
        row
        for number in (1, 2, 3)
        for row in (
            *torch_conv(
                f"stage{{stage}}_block{{block}}_conv{number}", f"{BLOCK}.layer.{number - 1}.convolution"
            ),
            *torch_norm(
                f"stage{{stage}}_block{{block}}_norm{number}", f"{BLOCK}.layer.{number - 1}.normalization"
            ),
        )
    ),
    *torch_conv("stage{stage}_block{block}_shortcut", f"{BLOCK}.shortcut.convolution"),
    *torch_norm("stage{stage}_block{block}_shortcut_norm", f"{BLOCK}.shortcut.normalization"),
    *torch_dense("logits", "classifier.1"),
)

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def preprocessing(companions: Companions) -> Preprocessing | None:
    config = companions.get("preprocessor_config.json", {})
    if not config.get("do_normalize", True) or "image_mean" not in config or "image_std" not in config:
        return None
    scale = config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 1
    size = config.get("crop_size") or config.get("size")
    if isinstance(size, int):
        size = {"height": size, "width": size}
    elif isinstance(size, dict) and "shortest_edge" in size:
        size = {"height": size["shortest_edge"], "width": size["shortest_edge"]}
    return Preprocessing(
        mean=tuple(float(value) / scale for value in config["image_mean"]),
        std=tuple(float(value) / scale for value in config["image_std"]),
        interpolation=RESAMPLING.get(config.get("resample")),
        crop_ratio=config.get("crop_pct"),
        size=(size["height"], size["width"]) if size else None,
    )


def vit_options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Where there is no config.json: what transformers takes by default."""
    config = companions.get("config.json", {})
    activation = config.get("hidden_act", "gelu")
    return {
        "activation": ACTIVATIONS.get(activation, activation),
        "layer_norm_epsilon": config.get("layer_norm_eps", 1e-12),
        "position": "learned",
        **({"num_heads": config["num_attention_heads"]} if "num_attention_heads" in config else {}),
        **pixel_options(preprocessing(companions)),
    }


def resnet_options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    config = companions.get("config.json", {})
    return {
        "norm": "batch",
        "norm_epsilon": 1e-5,
        "preactivation": False,
        "shortcut": "projection",
        "stride_on": "1x1" if config.get("downsample_in_bottleneck") else "3x3",
        "padding": "symmetric",
        **pixel_options(preprocessing(companions)),
    }


def prefixed(*models: str) -> tuple[str, ...]:
    """A classifier's file names its model; the headless model's own file does not."""
    return tuple(itertools.chain(("",), (f"{model}." for model in models)))


FORMATS = (
    Format(
        name="Hugging Face ViT",
        signature=("embeddings.cls_token", "encoder.layer.0.layernorm_before.weight"),
        prefixes=prefixed("vit", "deit"),
        rows=VIT,
        options=vit_options,
        positions="bicubic",
        preprocessing=preprocessing,
        ignored=r"embeddings\.mask_token",
    ),
    Format(
        name="Hugging Face ResNet",
        signature=(
            "embedder.embedder.convolution.weight",
            "encoder.stages.0.layers.0.layer.0.convolution.weight",
        ),
        prefixes=prefixed("resnet"),
        rows=RESNET,
        options=resnet_options,
        preprocessing=preprocessing,
        ignored=r".*num_batches_tracked",
    ),
)
