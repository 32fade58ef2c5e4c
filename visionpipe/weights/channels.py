"""Fits weights for images of three channels to images of another number, as timm does (`adapt_input_conv`).

Source: https://github.com/huggingface/pytorch-image-models, timm/models/_manipulate.py.
"""

import numpy as np

RGB = 3


def fitted_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Converts the kernel of the first convolution, (rows, columns, 3, out), to (rows, columns, channels, out).

    For one channel the three are summed, so that a grey image gives what it gave as RGB. For another number they are
    repeated in turn, and scaled by 3 / channels.
    """
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(channels) % RGB] * np.float32(RGB / channels)


def fitted_pixels(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Converts the mean or standard deviation of three channels to `channels`: their mean for one, else in turn."""
    if len(values) != RGB or channels == RGB:
        return values
    return (sum(values) / RGB,) if channels == 1 else tuple(values[c % RGB] for c in range(channels))


def fitting(channels: int) -> str:
    """Describes what happened to the first convolution."""
    how = "summed" if channels == 1 else f"repeated in turn and scaled by {RGB}/{channels}"
    return f"{RGB} → {channels} input channel{'' if channels == 1 else 's'}, {how}"
