"""The format of prepared pixels, and how they become a model's input or a picture.

Trainings import this module and not the decoder, so that another decoder alone trains nothing again. Like decode.py, it
is copied into the served artifact.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class PixelFormat:
    """Describes the pixels of a model's images.

    Attributes:
        levels: the levels that become 0 and the largest in images of more than 8 bits; "file": the least and the
            largest of each image; None: those that the file or its type states.
        channels: 1 is grey, 3 is RGB; of another number, the files must have exactly so many.
        depth: the bits of a value, 8 or 16.
    """

    levels: Literal["file"] | tuple[float, float] | None = None
    channels: int = 3
    depth: int = 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of prepared pixels: uint8 or uint16."""
        return np.dtype(f"u{self.depth // 8}")

    @property
    def most(self) -> int:
        """The largest value of a prepared pixel."""
        return int(2**self.depth - 1)

    @property
    def is_rgb(self) -> bool:
        """Whether this is 8-bit RGB."""
        return (self.channels, self.depth) == (3, 8)


def model_input(images: np.ndarray) -> np.ndarray:
    """Converts prepared images to the model's input, float32 in [0, 255]; uint16 are divided by 257."""
    floats = np.asarray(images, np.float32)
    return floats / np.float32(257) if images.dtype == np.uint16 else floats


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Converts prepared pixels (…, height, width, channels) to 8-bit RGB for pictures.

    Three or more channels show the first three, fewer show the first as grey.
    """
    if pixels.dtype == np.uint16:
        pixels = np.rint(pixels / 257).astype(np.uint8)
    return pixels[..., :3] if pixels.shape[-1] >= 3 else np.repeat(pixels[..., :1], 3, axis=-1)
