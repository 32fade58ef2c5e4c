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
        levels: The levels that become black and white in images of more than 8 bits, such as [0, 4095]; null takes
            those that the file states, else all of 16 bits. The artifact uses it too.
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
    levels: tuple[float, float] | None = field(default=None, kw_only=True)
    validation_fraction: float = 0.2
    test_fraction: float = 0.2

    @property
    def decode_options(self) -> dict[str, Any]:
        """The keyword arguments of `decode_image` that the artifact shares."""
        return {"levels": self.levels}

    @property
    def frame_options(self) -> dict[str, Any]:
        """The keyword arguments of `frame`."""
        names = ("size", "interpolation", "crop_ratio", "framing", "pad_color")
        return {name: getattr(self, name) for name in names}
