"""Converts decoded images to RGB: transparency, and colour profiles to sRGB.

This module is copied into the served artifact.
"""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

BACKGROUND = (255, 255, 255)
MAX_PROFILE = 4 * 2**20  # bytes of a colour profile; larger ones are ignored
SRGB_WITHIN = 2  # levels in [0, 255] that a profile may differ from sRGB to be taken for it


def rgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Converts 8-bit pixels to RGB in sRGB, by the colour profile if there is one, without transparency."""
    mask = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA") else "RGBA")
        mask = image.getchannel("A")
    transform = _transform(image.mode, profile) if profile else None
    if transform is not None:
        colours = transform.apply(image.convert(transform.input_mode))
    else:
        colours = image if image.mode == "RGB" else image.convert("RGB")
    if mask is None:
        return colours
    canvas = Image.new("RGB", image.size, BACKGROUND)
    canvas.paste(colours, mask=mask)
    return canvas


def _transform(mode: str, profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Returns the conversion of pixels of a mode to sRGB; None if they need none, or the profile does not fit them."""
    kind = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}.get(profile[16:20])
    grey = mode in ("1", "L", "LA")  # a profile of colours fits grey pixels too
    if (
        kind is None
        or len(profile) > MAX_PROFILE
        or (kind == "CMYK") != (mode == "CMYK")
        or (kind == "L") > grey
    ):
        return None
    return _to_srgb(profile, kind)


@functools.lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the conversion of a profile's colours to sRGB, or None if the profile is sRGB or damaged.

    The intent is relative colorimetric with compensation of the black point. Image viewers ignore damaged profiles
    too. A profile is sRGB if no colour of a grid changes by more than SRGB_WITHIN.
    """
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError):
        return None
    if mode == "CMYK":
        return transform
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    grid = (
        levels[:, None]
        if mode == "L"
        else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(16, -1, 3)
    )
    colours = Image.fromarray(grid)
    converted = np.asarray(ImageCms.applyTransform(colours, transform), int)
    change = np.abs(converted - np.asarray(colours.convert("RGB"))).max()
    return None if change <= SRGB_WITHIN else transform


# Levels of more than 8 bits ----------------------------------------------------------------------------
