"""The section `prepare:` of params.yaml."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class PrepareConfig:
    """`size`: (height, width) in pixels. `crop_ratio`: side of the central crop, relative to the short side of the
    resized image. Both and the interpolation travel into the artifact. Each fraction is of the images that the split
    is drawn from.
    """

    source: Literal["zip", "folder", "tfds", "idx"]
    path: str
    name: str | None = None
    size: tuple[int, int] = (64, 64)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = field(
        default="bicubic", kw_only=True
    )
    crop_ratio: float = field(default=1.0, kw_only=True)
    validation_fraction: float = 0.2
    test_fraction: float = 0.2
