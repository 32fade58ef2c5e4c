"""The section `prepare:` of params.yaml."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class PrepareConfig:
    """Where the images come from, and how they are resized and split.

    Args:
        source: The kind of the source.
        path: The folder or file with the images; for `tfds` the data folder of TensorFlow Datasets.
        name: The data set of TensorFlow Datasets; for other sources null.
        size: Height and width of the prepared images in pixels.
        interpolation: How images are resized; the artifact uses it too.
        crop_ratio: The side of the central crop, relative to the short side of the resized image; the artifact uses it
            too.
        channels: The channels of the prepared images: 1 for grey, 3 for RGB, or those that the files have; the artifact
            uses it too.
        depth: The bits of a pixel's value, 8 or 16; the artifact uses it too.
        range: The values of a file that become black and white: those of its `type`, its extremes with `file`, or a
            pair [low, high] beyond which values are clipped; the artifact uses it too.
        test_fraction: The share of all images that becomes the test split, if the source has none. It is drawn first.
        validation_fraction: The share of the remaining training images that becomes the validation split, if the
            source has none.
    """

    source: Literal["zip", "folder", "tfds", "idx"]
    path: str
    name: str | None = None
    size: tuple[int, int] = (64, 64)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = field(
        default="bicubic", kw_only=True
    )
    crop_ratio: float = field(default=1.0, kw_only=True)
    channels: int = field(default=3, kw_only=True)
    depth: Literal[8, 16] = field(default=8, kw_only=True)
    range: Literal["type", "file"] | tuple[float, float] = field(default="type", kw_only=True)
    validation_fraction: float = 0.2
    test_fraction: float = 0.2
