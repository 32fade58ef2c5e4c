"""The section `prepare:` of params.yaml."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class PrepareConfig:
    """Says where the images are, and how they are resized and split.

    Args:
        source: the kind of source (see sources.py).
        path: the file or folder of the source.
        name: the name of a set of TensorFlow Datasets, for `source: tfds` only.
        size: (height, width) of the prepared images, in pixels.
        interpolation: how the images are resized.
        crop_ratio: side of the central crop, relative to the short side of the resized image.
        test_fraction: share of the training images that becomes the test split, if the source has none.
        validation_fraction: share of the remaining training images that becomes the validation split, if the source
            has none.

    Size, interpolation and crop ratio are stored in the artifact, so that a server resizes images in the same way.
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
