"""The section `prepare:` of params.yaml."""

from dataclasses import dataclass, field
from typing import Any, Literal

from visionpipe.data.headers import PADDING


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
        framing: How an image of another shape fits: `crop` cuts off what stands over, `pad` adds margins, `stretch`
            changes its shape; the artifact uses it too.
        pad_color: Red, green and blue of the margins, in [0, 255]; the artifact uses it too.
        levels: The levels that become black and white in images of more than 8 bits, such as [0, 4095]; `file` takes
            the least and the largest of each image; null takes those that the file states, else all of 16 bits. The
            artifact uses it too.
        channels: The channels of the prepared images: 1 for grey, 3 for RGB, or as many as the files have; the artifact
            uses it too.
        depth: The bits of a prepared pixel's value, 8 or 16; the artifact uses it too.
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
    framing: Literal["crop", "pad", "stretch"] = field(default="crop", kw_only=True)
    pad_color: tuple[int, int, int] = field(default=PADDING, kw_only=True)
    levels: Literal["file"] | tuple[float, float] | None = field(default=None, kw_only=True)
    channels: int = field(default=3, kw_only=True)
    depth: Literal[8, 16] = field(default=8, kw_only=True)
    validation_fraction: float = 0.2
    test_fraction: float = 0.2

    @property
    def decode_options(self) -> dict[str, Any]:
        """The arguments of PixelFormat, which the artifact shares."""
        return {"levels": self.levels, "channels": self.channels, "depth": self.depth}

    @property
    def frame_options(self) -> dict[str, Any]:
        """The keyword arguments of `frame`."""
        names = ("size", "interpolation", "crop_ratio", "framing", "pad_color")
        return {name: getattr(self, name) for name in names}
