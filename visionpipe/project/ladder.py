"""The models that `visionpipe init` chooses from: three families for each side of the images."""

from dataclasses import dataclass, field
from typing import Any

from visionpipe.models import list_models
from visionpipe.models.known import KNOWN

Size = tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """One model. `gmac`: 10⁹ multiply-accumulates for an image of the side `at`; it grows with the area."""

    variant: str
    gmac: float
    at: int
    learning_rate: float
    overrides: dict[str, Any] = field(default_factory=dict)
    init: str | None = None

    def macs(self, size: Size) -> float:
        return self.gmac * 1e9 * size[0] * size[1] / self.at**2


Models = dict[str, Choice]  # entry of `models:` → what it trains
Ladder = list[tuple[int, Models]]  # side of the images, and the models for it, the smallest first


def small(side: int, resnet: float, vit: float, hybrid: float, patch_size: int | None = None) -> Models:
    """The models of the sample, a ViT with larger patches where the images are larger."""
    stem: dict[str, Any] = {"stem": "conv"} | ({"patch_size": patch_size} if patch_size else {})
    return {
        "resnet": Choice("ResNet-14", resnet, side, 0.004, {"filters": 32, "stem_stride": 2}),
        "vit": Choice("ViT-Mi/4", vit, side, 0.003, stem),
        "hybrid": Choice("R14+ViT-Mi", hybrid, side, 0.004),
    }


def medium(side: int, resnet: float, vit: float, hybrid: float) -> Models:
    return {
        "resnet": Choice("ResNet-18", resnet, side, 0.003, {"filters": 32}),
        "vit": Choice("ViT-Sm/4", vit, side, 0.002, {"stem": "conv", "patch_size": 16}),
        "hybrid": Choice("R14+ViT-Mi", hybrid, side, 0.003, {"stem_stride": 4}),
    }


# Side of the images, and models to train from random weights; the numbers are 10⁹ multiply-accumulates at that side.
FROM_SCRATCH: Ladder = [
    (32, small(32, 0.0264, 0.0217, 0.0289)),
    (48, small(48, 0.0595, 0.0547, 0.0651)),
    (64, small(64, 0.1057, 0.0648, 0.1162, patch_size=8)),
    (96, medium(96, 0.0887, 0.1475, 0.0651)),
    (128, medium(128, 0.1577, 0.2642, 0.1162)),
    (
        224,
        {
            "resnet": Choice("ResNet-50", 4.09, 224, 0.001),
            "vit": Choice("ViT-S/16", 4.60, 224, 0.0005),
            "hybrid": Choice("R26+ViT-S/32", 3.46, 224, 0.0005),
        },
    ),
]


def published(*names: str) -> Models:
    """Models to start from checkpoints of the table `visionpipe models`."""
    costs = {model.name: model.gmac for model in list_models()}
    return {
        entry: Choice(
            KNOWN[name].variant,
            costs[KNOWN[name].variant],
            KNOWN[name].size,
            0.0005,
            dict(KNOWN[name].overrides),
            name,
        )
        for entry, name in zip(("resnet", "vit", "hybrid"), names, strict=True)
    }


def from_published() -> Ladder:
    """The checkpoints saw 224 pixels; every side that 32 divides fits their models."""
    smaller = published("resnet18-torchvision", "vit-ti16-augreg", "r26-vit-s32-augreg")
    larger = published("resnet50-torchvision", "vit-s16-augreg", "r26-vit-s32-augreg")
    return [*((side, smaller) for side in (64, 96, 128, 160, 192, 224)), (224, larger)]
