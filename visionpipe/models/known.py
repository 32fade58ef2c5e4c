"""The published checkpoints that are known to fit a variant. Imports no framework.

Accuracies are top-1 on ImageNet-1k's validation images, in per cent, as the source prints them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from visionpipe.models.variants import shown


@dataclass(frozen=True)
class Known:
    """One published checkpoint.

    `variant` and `overrides` say what to build for it. `size` is the side of its square images, in pixels. `sha256` has
    the first digits of the file's hash where the publisher puts them into the file's name. `reference` is where the
    accuracy is printed.
    """

    source: str
    variant: str
    size: int
    accuracy: float | None
    licence: str
    reference: str
    sha256: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)


TIMM = "timm, results-imagenet.csv"
DEIT = "facebookresearch/deit, README_deit.md"
KERAS = "keras.io/api/applications"
BUCKET = "https://storage.googleapis.com/vit_models"
DEIT_FILES = "https://dl.fbaipublicfiles.com/deit"
KERAS_FILES = "https://storage.googleapis.com/tensorflow/keras-applications/resnet"
TORCH_RESNET: dict[str, Any] = {"padding": "symmetric"}
TIMM_HYBRID: dict[str, Any] = {"norm_epsilon": 1e-5, "activation": "gelu"}
CAFFE_RESNET: dict[str, Any] = {"padding": "symmetric", "stride_on": "1x1", "norm_epsilon": 1.001e-5}


def timm(name: str, variant: str, accuracy: float, size: int = 224, **overrides: Any) -> Known:
    """Returns a checkpoint of timm, under torchvision's licence if its tag begins with `tv_`."""
    licence = "BSD-3-Clause" if ".tv_" in name else "Apache-2.0"
    return Known(f"timm:{name}", variant, size, accuracy, licence, TIMM, overrides=overrides)


def deit(size: str, letter: str, sha256: str, accuracy: float) -> Known:
    """Returns a distilled DeiT; the name of its file ends with the first digits of its hash."""
    name = f"deit_{size}_distilled_patch16_224-{sha256}.pth"
    return Known(f"{DEIT_FILES}/{name}", f"DeiT-{letter}/16", 224, accuracy, "Apache-2.0", DEIT, sha256)


def keras_resnet(depth: int, accuracy: float) -> Known:
    """Returns a ResNet of keras.applications."""
    name = f"resnet{depth}_weights_tf_dim_ordering_tf_kernels.h5"
    return Known(
        f"{KERAS_FILES}/{name}", f"ResNet-{depth}", 224, accuracy, "MIT", KERAS, overrides=CAFFE_RESNET
    )


KNOWN: Mapping[str, Known] = {
    "vit-ti16-augreg": timm("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "ViT-Ti/16", 75.45),
    "vit-s16-augreg": timm("vit_small_patch16_224.augreg_in21k_ft_in1k", "ViT-S/16", 81.40),
    "vit-b16-augreg": timm("vit_base_patch16_224.augreg_in21k_ft_in1k", "ViT-B/16", 84.53),
    "vit-l16-augreg": timm("vit_large_patch16_224.augreg_in21k_ft_in1k", "ViT-L/16", 85.83),
    "r26-vit-s32-augreg": timm(
        "vit_small_r26_s32_224.augreg_in21k_ft_in1k", "R26+ViT-S/32", 81.86, **TIMM_HYBRID
    ),
    "r50-vit-b16-384": timm(
        "vit_base_r50_s16_384.orig_in21k_ft_in1k", "R50+ViT-B/16", 84.99, 384, **TIMM_HYBRID
    ),
    "r50-vit-b16-384-google": Known(
        f"{BUCKET}/imagenet21k+imagenet2012/R50+ViT-B_16.npz", "R50+ViT-B/16", 384, None, "Apache-2.0",
        "google-research/vision_transformer",
    ),
    "resnet18-torchvision": timm("resnet18.tv_in1k", "ResNet-18", 69.75, **TORCH_RESNET),
    "resnet50-torchvision": timm("resnet50.tv_in1k", "ResNet-50", 76.16, **TORCH_RESNET),
    "resnet101-torchvision": timm("resnet101.tv_in1k", "ResNet-101", 77.40, **TORCH_RESNET),
    "resnet152-torchvision": timm("resnet152.tv_in1k", "ResNet-152", 78.33, **TORCH_RESNET),
    "resnet50-keras": keras_resnet(50, 74.9),
    "resnet101-keras": keras_resnet(101, 76.4),
    "resnet152-keras": keras_resnet(152, 76.6),
    "deit-ti16-distilled": deit("tiny", "Ti", "b40b3cf7", 74.5),
    "deit-s16-distilled": deit("small", "S", "649709d9", 81.2),
    "deit-b16-distilled": deit("base", "B", "df68dfff", 83.4),
    "vit-b16-huggingface": Known(
        "hf:google/vit-base-patch16-224", "ViT-B/16", 224, None, "Apache-2.0", "huggingface.co/google",
        overrides={"layer_norm_epsilon": 1e-12},
    ),
    "resnet50-huggingface": Known(
        "hf:microsoft/resnet-50", "ResNet-50", 224, None, "Apache-2.0", "huggingface.co/microsoft",
        overrides=TORCH_RESNET,
    ),
    "vit-b16-kerashub": Known(
        "kerashub:vit_base_patch16_224_imagenet", "ViT-B/16", 224, None, "Apache-2.0", "keras.io/keras_hub"
    ),
    "resnet50-kerashub": Known(
        "kerashub:resnet_50_imagenet", "ResNet-50", 224, None, "Apache-2.0", "keras.io/keras_hub",
        overrides=TORCH_RESNET,
    ),
}  # fmt: skip

# Preset → its address at Kaggle, with the version that KerasHub 0.32 downloads.
KERASHUB_PRESETS: Mapping[str, str] = {
    "vit_base_patch16_224_imagenet": "keras/vit/keras/vit_base_patch16_224_imagenet/4",
    "vit_base_patch16_384_imagenet": "keras/vit/keras/vit_base_patch16_384_imagenet/4",
    "vit_large_patch16_224_imagenet": "keras/vit/keras/vit_large_patch16_224_imagenet/4",
    "vit_large_patch16_384_imagenet": "keras/vit/keras/vit_large_patch16_384_imagenet/4",
    "vit_base_patch32_384_imagenet": "keras/vit/keras/vit_base_patch32_384_imagenet/3",
    "vit_large_patch32_384_imagenet": "keras/vit/keras/vit_large_patch32_384_imagenet/3",
    "vit_base_patch16_224_imagenet21k": "keras/vit/keras/vit_base_patch16_224_imagenet21k/3",
    "vit_base_patch32_224_imagenet21k": "keras/vit/keras/vit_base_patch32_224_imagenet21k/3",
    "vit_huge_patch14_224_imagenet21k": "keras/vit/keras/vit_huge_patch14_224_imagenet21k/3",
    "vit_large_patch16_224_imagenet21k": "keras/vit/keras/vit_large_patch16_224_imagenet21k/3",
    "vit_large_patch32_224_imagenet21k": "keras/vit/keras/vit_large_patch32_224_imagenet21k/3",
    "resnet_18_imagenet": "keras/resnetv1/keras/resnet_18_imagenet/3",
    "resnet_50_imagenet": "keras/resnetv1/keras/resnet_50_imagenet/3",
    "resnet_101_imagenet": "keras/resnetv1/keras/resnet_101_imagenet/3",
    "resnet_152_imagenet": "keras/resnetv1/keras/resnet_152_imagenet/3",
}


def known(name: str) -> Known | None:
    """Returns the published checkpoint of this name, or None."""
    return KNOWN.get(name)


def table() -> str:
    """Returns all known checkpoints as a Markdown table."""
    lines = [
        "| checkpoint | variant | overrides | top-1 % | size | licence | sha256 | source | accuracy from |",
        "| --- | --- | --- | ---: | ---: | --- | --- | --- | --- |",
    ]
    for name, row in KNOWN.items():
        overrides = ", ".join(f"{key}: {shown(value)}" for key, value in row.overrides.items())
        accuracy = f"{row.accuracy:.2f}" if row.accuracy else "–"
        lines.append(
            f"| {name} | {row.variant} | {overrides or '–'} | {accuracy} | {row.size} | {row.licence} | "
            f"{row.sha256 or '–'} | {row.source} | {row.reference} |"
        )
    return "\n".join(lines)
