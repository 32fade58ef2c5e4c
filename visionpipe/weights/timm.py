"""State dicts with timm's names, which the official DeiT files and torchvision's ResNets use, too."""

from typing import Any

from visionpipe.weights.layout import (
    Companions,
    Format,
    FormatRow,
    Tensors,
    same,
    torch_conv,
    torch_dense,
    torch_norm,
)
from visionpipe.weights.report import Preprocessing
from visionpipe.weights.timm_config import embeds_class, encoder_arguments, image_size, resnet_arguments

PREFIXES = ("", "module.", "model.")

ENCODER = (
    *torch_conv("patch_embedding", "patch_embed.proj"),
    FormatRow("tokens/class_token", ("cls_token",), same),
    FormatRow("tokens/distillation_token", ("dist_token",), same),
    FormatRow("tokens/register_tokens", ("reg_token",), same),
    FormatRow("tokens/position_embedding", ("pos_embed",), same),
    *torch_norm("encoder_block_{block}_attention_norm", "blocks.{block}.norm1"),
    *torch_dense("encoder_block_{block}_attention/query_key_value", "blocks.{block}.attn.qkv"),
    *torch_dense("encoder_block_{block}_attention/output", "blocks.{block}.attn.proj"),
    FormatRow("encoder_block_{block}_attention_scale/scale", ("blocks.{block}.ls1.gamma",), same),
    *torch_norm("encoder_block_{block}_mlp_norm", "blocks.{block}.norm2"),
    *torch_dense("encoder_block_{block}_mlp_expand", "blocks.{block}.mlp.fc1"),
    *torch_dense("encoder_block_{block}_mlp_project", "blocks.{block}.mlp.fc2"),
    FormatRow("encoder_block_{block}_mlp_scale/scale", ("blocks.{block}.ls2.gamma",), same),
    *torch_norm("encoder_norm", "norm"),
    *torch_dense("pre_logits", "pre_logits.fc"),
    *torch_dense("logits", "head"),
    *torch_dense("logits_class", "head"),
    *torch_dense("logits_distillation", "head_dist"),
)

BACKBONE = "patch_embed.backbone"
UNIT = BACKBONE + ".stages.{stage-1}.blocks.{block-1}"
HYBRID = (
    *torch_conv("stem_conv", f"{BACKBONE}.stem.conv"),
    *torch_norm("stem_norm", f"{BACKBONE}.stem.norm"),
    *torch_conv("stem_conv", f"{BACKBONE}.conv"),  # in a backbone without stages
    *torch_norm("stem_norm", f"{BACKBONE}.norm"),
    *(
        row
        for number in (1, 2, 3)
        for row in (
            *torch_conv(f"stage{{stage}}_block{{block}}_conv{number}", f"{UNIT}.conv{number}"),
            *torch_norm(f"stage{{stage}}_block{{block}}_norm{number}", f"{UNIT}.norm{number}"),
        )
    ),
    *torch_conv("stage{stage}_block{block}_shortcut", f"{UNIT}.downsample.conv"),
    *torch_norm("stage{stage}_block{block}_shortcut_norm", f"{UNIT}.downsample.norm"),
    *ENCODER,
)

BLOCK = "layer{stage}.{block-1}"
RESNET = (
    *torch_conv("stem_conv", "conv1"),
    *torch_norm("stem_norm", "bn1"),
    *(
        row
        for number in (1, 2, 3)
        for row in (
            *torch_conv(f"stage{{stage}}_block{{block}}_conv{number}", f"{BLOCK}.conv{number}"),
            *torch_norm(f"stage{{stage}}_block{{block}}_norm{number}", f"{BLOCK}.bn{number}"),
        )
    ),
    *torch_conv("stage{stage}_block{block}_shortcut", f"{BLOCK}.downsample.0"),
    *torch_norm("stage{stage}_block{block}_shortcut_norm", f"{BLOCK}.downsample.1"),
    *torch_dense("logits", "fc"),
)


def preprocessing(companions: Companions) -> Preprocessing | None:
    """Reads the `pretrained_cfg` of the config.json that timm publishes beside its weights."""
    config = companions.get("config.json", {})
    config = config.get("pretrained_cfg") or config
    if "mean" not in config or "std" not in config:
        return None
    return Preprocessing(
        mean=tuple(255 * float(value) for value in config["mean"]),
        std=tuple(255 * float(value) for value in config["std"]),
        interpolation=config.get("interpolation"),
        crop_ratio=config.get("crop_pct"),
        size=tuple(config["input_size"][1:]) if "input_size" in config else None,
    )


def pixel_options(prepared: Preprocessing | None) -> dict[str, Any]:
    """Returns the options for the normalisation of pixels; none if the checkpoint does not state it."""
    if prepared is None or not (prepared.mean and prepared.std):
        return {}
    return {"pixel_mean": prepared.mean, "pixel_std": prepared.std}


def encoder_options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of a VisionTransformer (see `Format`)."""
    return {
        "position": "learned" if "pos_embed" in tensors else "none",
        "pooler_act": "tanh",
        **encoder_arguments(companions, "cls_token" in tensors),
        **pixel_options(preprocessing(companions)),
    }


def hybrid_options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of a hybrid ViT (see `Format`)."""
    return encoder_options(tensors, companions) | {
        "norm": "group",
        "norm_epsilon": 1e-5,
        "preactivation": False,
        "shortcut": "projection",
        "stride_on": "3x3",
        "padding": "same",
        "act_layer": "relu",
        "aa_layer": "none",
        "stage_strides": (1, 2, 2, 2),
    }


def torch_resnet_options(tensors: Tensors, companions: Companions) -> dict[str, Any]:
    """Returns the options of a ResNet (see `Format`)."""
    stages = sum(f"layer{stage}.0.conv1.weight" in tensors for stage in range(1, 9))
    return {
        "norm": "batch",
        "preactivation": False,
        **resnet_arguments(companions, stages),
        **pixel_options(preprocessing(companions)),
    }


FORMATS = (
    *(
        Format(
            name=name,
            signature=("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", *stem),
            prefixes=PREFIXES,
            rows=rows,
            options=options,
            positions="bicubic, antialiased",
            class_position=embeds_class,
            image_size=image_size,
            preprocessing=preprocessing,
        )
        for name, stem, rows, options in (
            # The stem of a hybrid's ResNet may be a separate module.
            ("timm hybrid ViT", ["patch_embed.backbone.stem.conv.weight"], HYBRID, hybrid_options),
            ("timm hybrid ViT", ["patch_embed.backbone.conv.weight"], HYBRID, hybrid_options),
            ("timm ViT", [], ENCODER, encoder_options),
        )
    ),
    Format(
        name="timm or torchvision ResNet",
        signature=("conv1.weight", "bn1.running_mean", "layer1.0.conv1.weight"),
        prefixes=PREFIXES,
        rows=RESNET,
        options=torch_resnet_options,
        preprocessing=preprocessing,
        ignored=r".*num_batches_tracked",
    ),
)
