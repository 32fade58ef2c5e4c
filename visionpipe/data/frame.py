"""Resizes images and fits them into a size, in the same way for preparing and for serving.

This module is copied into the served artifact.
"""

import numpy as np
from PIL import Image

from visionpipe.data.headers import PADDING

LUMA = (19595, 38470, 7471)  # of 65536: ITU-R BT.601, as Pillow converts RGB to grey
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def frame(
    image: np.ndarray,
    size: tuple[int, int],
    interpolation: str = "bicubic",
    crop_ratio: float = 1.0,
    framing: str = "crop",
    pad_color: tuple[int, int, int] = PADDING,
) -> np.ndarray:
    """Resizes an image onto a canvas of `size` divided by `crop_ratio`, and cuts `size` out of the centre.

    At crop ratio 1 an image that already has this size is returned unchanged.

    Args:
        image: uint8 or uint16 (h, w, channels).
        size: (height, width) of the result, in pixels.
        interpolation: one of RESAMPLING.
        crop_ratio: side of the crop, relative to the side of the canvas.
        framing: "crop" covers the canvas, so that the longer side is cut off on both ends; "pad" shows all of the
            image in the middle of the canvas, surrounded by `pad_color`; "stretch" changes the ratio of the sides.
        pad_color: red, green and blue, in [0, 255]. Images of other channels are surrounded by its grey.

    Returns:
        (height, width, channels), of the type of `image`.
    """
    (height, width), (source_height, source_width) = size, image.shape[:2]
    if image.shape[:2] == (height, width) and crop_ratio == 1:
        return image
    down, across = height / source_height, width / source_width  # the scales that stretch would have
    if framing != "stretch":
        down = across = max(down, across) if framing == "crop" else min(down, across)
    down, across = down / crop_ratio, across / crop_ratio
    left = max(0.0, (source_width - width / across) / 2)
    top = max(0.0, (source_height - height / down) / 2)
    # Only the visible part is resized, so that a strip of 1 × 1,000,000 pixels never becomes a huge image.
    box = (left, top, source_width - left, source_height - top)
    shown = (
        min(height, max(1, round(source_height * down))),
        min(width, max(1, round(source_width * across))),
    )
    resized = resize(image, shown, RESAMPLING[interpolation], box)
    if shown == (height, width):
        return resized
    margin = np.array(pad_color, image.dtype)[None, None]
    if image.shape[2] != 3:
        margin = luma(margin)
    canvas = np.full(
        (height, width, image.shape[2]), margin * (257 if image.dtype == np.uint16 else 1), image.dtype
    )
    top, left = (height - shown[0]) // 2, (width - shown[1]) // 2
    canvas[top : top + shown[0], left : left + shown[1]] = resized
    return canvas


def resize(
    image: np.ndarray,
    size: tuple[int, int],
    resampling: Image.Resampling,
    box: tuple[float, float, float, float],
) -> np.ndarray:
    """Resizes the part `box` (left, top, right, bottom) of an image to `size`, (height, width), in pixels.

    Takes uint8 or uint16 (h, w, channels). The channels of other images than 8-bit RGB are resized one by one, those
    of 16 bits as float32. So a grey image gets the pixels that it would get as RGB.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.array(Image.fromarray(image).resize(size[::-1], resampling, box=box))
    result = np.empty((*size, image.shape[2]), image.dtype)
    for channel in range(image.shape[2]):
        values = image[..., channel] if image.dtype == np.uint8 else image[..., channel].astype(np.float32)
        pixels = np.asarray(Image.fromarray(values).resize(size[::-1], resampling, box=box))
        # Bicubic and Lanczos interpolation overshoot. Pillow clips 8 bits itself.
        result[..., channel] = pixels if image.dtype == np.uint8 else np.clip(np.rint(pixels), 0, 65535)
    return result


def luma(pixels: np.ndarray) -> np.ndarray:
    """Converts RGB to grey, (height, width, 1), with the weights and the rounding of Pillow. Grey stays unchanged."""
    total = sum(pixels[..., channel].astype(np.uint32) * np.uint32(LUMA[channel]) for channel in range(3))
    grey: np.ndarray = ((total + np.uint32(0x8000)) >> np.uint32(16)).astype(pixels.dtype)[..., None]
    return grey
