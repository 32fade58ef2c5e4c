"""`.npz` files of google-research/vision_transformer.

They contain plain ViTs (Dosovitskiy et al. 2021, arXiv:2010.11929) and R+ViT hybrids (Steiner et al. 2022,
arXiv:2106.10270). Their kernels have the same order of axes as ours.
"""

from typing import Any

from visionpipe.weights.layout import (
    Companions,
    Format,
    FormatRow,
    Tensors,
    biases_in,
    flat,
    heads_in,
    heads_out,
    keras_dense,
    same,
)
from visionpipe.weights.report import Preprocessing


def norm(ours: str, theirs: str) -> tuple[FormatRow, ...]:
    """Returns the rows of a LayerNorm or GroupNorm; older files store the latter as (1, 1, 1, channels)."""
    return (
        FormatRow(f"{ours}/gamma", (f"{theirs}/scale",), flat),
        FormatRow(f"{ours}/beta", (f"{theirs}/bias",), flat),
    )


def conv(ours: str, theirs: str) -> FormatRow:
    """Returns the row of a convolution without a bias."""
    return FormatRow(f"{ours}/kernel", (f"{theirs}/kernel",), same)


def encoder_block(norm1: str, attention: str, norm2: str, mlp: str) -> tuple[FormatRow, ...]:
    """Returns the rows of a block, given the names of its four modules, which depend on the version of the code."""
    ours, theirs = "encoder_block_{block}", "Transformer/encoderblock_{block}"
    attention = f"{theirs}/{attention}"

    def query_key_value(name: str) -> tuple[str, ...]:
        return tuple(f"{attention}/{part}/{name}" for part in ("query", "key", "value"))

    return (
        *norm(f"{ours}_attention_norm", f"{theirs}/{norm1}"),
        FormatRow(f"{ours}_attention/query_key_value/kernel", query_key_value("kernel"), heads_in),
        FormatRow(f"{ours}_attention/query_key_value/bias", query_key_value("bias"), biases_in),
        FormatRow(f"{ours}_attention/output/kernel", (f"{attention}/out/kernel",), heads_out),
        FormatRow(f"{ours}_attention/output/bias", (f"{attention}/out/bias",), same),
        *norm(f"{ours}_mlp_norm", f"{theirs}/{norm2}"),
        *keras_dense(f"{ours}_mlp_expand", f"{theirs}/{mlp}/Dense_0"),
        *keras_dense(f"{ours}_mlp_project", f"{theirs}/{mlp}/Dense_1"),
    )


STAGES = (
    conv("stem_conv", "conv_root"),
    *norm("stem_norm", "gn_root"),
    *(
        row
        for number in (1, 2, 3)
        for row in (
            conv(f"stage{{stage}}_block{{block}}_conv{number}", f"block{{stage}}/unit{{block}}/conv{number}"),
            *norm(f"stage{{stage}}_block{{block}}_norm{number}", f"block{{stage}}/unit{{block}}/gn{number}"),
        )
    ),
    conv("stage{stage}_block{block}_shortcut", "block{stage}/unit{block}/conv_proj"),
    *norm("stage{stage}_block{block}_shortcut_norm", "block{stage}/unit{block}/gn_proj"),
)

VIT = (
    *keras_dense("patch_embedding", "embedding"),
    FormatRow("tokens/class_token", ("cls",), same),
    *encoder_block("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"),
    *encoder_block("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0"),
    *norm("encoder_norm", "Transformer/encoder_norm"),
    *keras_dense("pre_logits", "pre_logits"),
    *keras_dense("logits", "head"),
)


def encoder_options(tensors: Tensors) -> dict[str, Any]:
    """Returns the options of the ViTs of this code and of its successor, big_vision."""
    query = next((x for name, x in tensors.items() if name.endswith("query/kernel")), None)
    return {
        "activation": "gelu_tanh",  # flax's default
        "layer_norm_epsilon": 1e-6,
        "pixel_mean": (127.5,) * 3,
        "pixel_std": (127.5,) * 3,
        "pooler_act": "tanh",
        **({"pool": "token"} if "cls" in tensors else {}),
        **({"num_heads": query.shape[1]} if query is not None and query.ndim == 3 else {}),
    }


def options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of the checkpoint (see `Format`)."""
    stages = {
        "norm": "group",
        "norm_epsilon": 1e-6,
        "preactivation": False,
        "shortcut": "projection",
        "stride_on": "3x3",
        "padding": "same",
        "act_layer": "relu",
        "aa_layer": "none",
        "stage_strides": (1, 2, 2, 2),
    }
    return (
        encoder_options(tensors) | {"position": "learned"} | (stages if "conv_root/kernel" in tensors else {})
    )


FORMAT = Format(
    name="google-research .npz",
    signature=("embedding/kernel", "Transformer/posembed_input/pos_embedding"),
    prefixes=("", "opt/target/"),
    rows=(
        *STAGES,
        *VIT,
        FormatRow("tokens/position_embedding", ("Transformer/posembed_input/pos_embedding",), same),
    ),
    options=options,
    positions="linear",
    # For evaluation the images are resized to the full size and not cropped (vit_jax/input_pipeline.py).
    preprocessing=lambda companions: Preprocessing((127.5,) * 3, (127.5,) * 3, "bilinear", 1.0),
)
