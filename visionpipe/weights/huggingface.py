"""State dicts of Hugging Face's transformers: ViT, DeiT with a distillation token, ResNet."""

import itertools
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
    same,
    torch_conv,
    torch_dense,
    torch_norm,
)
from visionpipe.weights.report import Preprocessing
from visionpipe.weights.timm import pixel_options


def linears_in(*kernels: np.ndarray) -> np.ndarray:
    """Joins torch's weights of query, key and value, each (out, in), to (in, 3·out)."""
    return np.concatenate([kernel.T for kernel in kernels], axis=1)


LAYER = "encoder.layer.{block}"


def query_key_value(name: str) -> tuple[str, ...]:
    """Returns the names of the three `weight`s or `bias`es of an attention layer."""
    return tuple(f"{LAYER}.attention.attention.{part}.{name}" for part in ("query", "key", "value"))


VIT = (
    *torch_conv("patch_embedding", "embeddings.patch_embeddings.projection"),
    FormatRow("tokens/class_token", ("embeddings.cls_token",), same),
    FormatRow("tokens/distillation_token", ("embeddings.distillation_token",), same),
    FormatRow("tokens/position_embedding", ("embeddings.position_embeddings",), same),
    *torch_norm("encoder_block_{block}_attention_norm", f"{LAYER}.layernorm_before"),
    FormatRow(
        "encoder_block_{block}_attention/query_key_value/kernel", query_key_value("weight"), linears_in
    ),
    FormatRow("encoder_block_{block}_attention/query_key_value/bias", query_key_value("bias"), biases_in),
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
ACTIVATIONS = {  # transformers' names → those of specs.py
    "gelu": "gelu", "gelu_python": "gelu", "gelu_accurate": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
}  # fmt: skip
# Model types that compute what the names of their tensors say; other types may share the names.
PLAIN = {"vit", "deit", "vit_mae", "vit_msn", "resnet"}


def preprocessing(companions: Companions) -> Preprocessing | None:
    """Reads preprocessor_config.json; returns None without that file.

    Raises:
        ValueError: the images were prepared in a way that this package cannot reproduce.
    """
    config = companions.get("preprocessor_config.json")
    if config is None:
        return None
    if config.get("do_flip_channel_order"):
        raise ValueError("do_flip_channel_order: the channels are in the order B, G, R")
    factor = config.get("rescale_factor")
    scale = float(1 / 255 if factor is None else factor) if config.get("do_rescale", True) else 1.0
    if not 0 < scale < np.inf:
        raise ValueError(f"rescale_factor {factor}: every image would be of one colour")
    offset = 1.0 if config.get("rescale_offset") and config.get("do_rescale", True) else 0.0
    mean: Any = 0.0
    std: Any = 1.0
    if config.get("do_normalize", True):
        mean, std = config.get("image_mean"), config.get("image_std")
    size, crop_ratio = framing(config)
    return Preprocessing(
        mean=None if mean is None or std is None else per_channel((np.asarray(mean, float) + offset) / scale),
        std=None if mean is None or std is None else per_channel(np.asarray(std, float) / scale),
        interpolation=RESAMPLING.get(config.get("resample")) if config.get("do_resize", True) else None,
        crop_ratio=crop_ratio,
        size=size,
    )


def per_channel(value: np.ndarray) -> tuple[float, ...]:
    """Returns a number for each of 3 channels, from one number or three."""
    return tuple(float(number) for number in np.broadcast_to(value, 3))


def framing(config: dict[str, Any]) -> tuple[Size | None, float | None]:
    """Returns the size after the crop, and the crop ratio; None for what preprocessor_config.json does not say."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type"))
    resized, crop = sides(config.get("size")), sides(config.get("crop_size"))
    if not config.get("do_center_crop", crop is not None):
        crop = None
    size = crop or resized
    if size is None or resized is None or not config.get("do_resize", True):
        return size, None
    if crop is None:
        # transformers crops only images smaller than 384 pixels here.
        is_cropped = ("ConvNext" in kind or config.get("crop_pct")) and min(resized) < 384
        return size, float(config.get("crop_pct") or 224 / 256) if is_cropped else 1.0
    ratios = [side / whole for side, whole in zip(crop, resized, strict=True)]
    return size, min(ratios) if max(ratios) <= 1 else None


def sides(size: Any) -> Size | None:
    """Returns (height, width) for one number, or for a dictionary of height and width or of the shorter side."""
    if isinstance(size, dict):
        short = size.get("shortest_edge")
        size = (size.get("height", short), size.get("width", short))
    elif isinstance(size, int | float):
        size = (size, size)
    return None if not size or None in size else (int(size[0]), int(size[1]))


def image_size(companions: Companions) -> Size | None:
    """Returns (height, width) of the images that the positions are for; None if no file says it."""
    size = sides(companions.get("config.json", {}).get("image_size"))
    prepared = None if size else preprocessing(companions)
    return size or (prepared.size if prepared else None)


def options_from_config(companions: Companions, **keys: tuple[str, Any]) -> dict[str, Any]:
    """Reads options from config.json; `keys` maps an option to its key there and to transformers' default."""
    config = companions.get("config.json", {})
    options = {name: config.get(key, Assumed(default)) for name, (key, default) in keys.items()}
    other = config.get("model_type", "vit") not in PLAIN
    return options | ({"model_type": config["model_type"]} if other else {})


def vit_options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of a ViT or DeiT (see `Format`)."""
    options = options_from_config(
        companions,
        activation=("hidden_act", "gelu"),
        layer_norm_epsilon=("layer_norm_eps", 1e-12),
        pooler_act=("pooler_act", "tanh"),
    )
    if isinstance(options["activation"], str):
        options["activation"] = ACTIVATIONS.get(options["activation"], options["activation"])
    config = companions.get("config.json", {})
    return {
        **options,
        "position": "learned",
        "pool": "token",
        **({"num_heads": int(config["num_attention_heads"])} if "num_attention_heads" in config else {}),
        **pixel_options(preprocessing(companions)),
    }


def resnet_options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of a ResNet (see `Format`). Epsilon and pooling are fixed in transformers."""
    options = options_from_config(
        companions,
        act_layer=("hidden_act", "relu"),
        stage_strides=("downsample_in_first_stage", False),
        stride_on=("downsample_in_bottleneck", False),
    )
    first = {False: (1, 2, 2, 2), True: (2, 2, 2, 2)}
    return {
        **options,
        "stage_strides": with_value(options["stage_strides"], first),
        "stride_on": with_value(options["stride_on"], {False: "3x3", True: "1x1"}),
        "norm": "batch",
        "norm_epsilon": 1e-5,
        "preactivation": False,
        "shortcut": "projection",
        "padding": "symmetric",
        "aa_layer": "none",
        "global_pool": "avg",
        **pixel_options(preprocessing(companions)),
    }


def with_value(option: Any, values: dict[Any, Any]) -> Any:
    """Looks an option up in `values`; an assumed option stays assumed."""
    return Assumed(values[option.value]) if isinstance(option, Assumed) else values[bool(option)]


def prefixed(*models: str) -> tuple[str, ...]:
    """Returns the possible prefixes of the tensors' names.

    A classifier's file puts the name of its model before the names of the backbone; a file without a head does not.
    """
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
        image_size=image_size,
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
