"""Fixed position embeddings, and the resizing of learned ones to another grid."""

import numpy as np


def sincos_positions(
    rows: int, columns: int, channels: int, grid: tuple[int, int] | None = None
) -> np.ndarray:
    """Computes fixed positions from sines and cosines of column and row: float32 (rows·columns, channels).

    The frequencies run from 1 to 1/10000 (Beyer et al. 2022, arXiv:2205.01580, appendix).

    Args:
        rows, columns: the grid to fill.
        channels: a multiple of 4.
        grid: (rows, columns) that the positions span, aligned at the corners; by default the grid itself.
    """
    frequencies = 10000.0 ** -np.linspace(0, 1, channels // 4)
    sides = zip(grid or (rows, columns), (rows, columns), strict=True)
    places = np.meshgrid(*(np.linspace(0, side - 1, count) for side, count in sides), indexing="ij")
    row, column = np.reshape(places, (2, -1, 1)) * frequencies
    return np.concatenate(
        [np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1, dtype=np.float32
    )


def resize_positions(grid: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    """Resizes positions (rows, columns, channels) to `size`, (rows, columns).

    `method` is `linear`, which aligns corners, as scipy.ndimage.zoom of order 1 does for the original ViT; or `bicubic`
    or `bicubic, antialiased`, which align pixel areas, as torch's interpolate does for Hugging Face and timm.
    """
    matrix = MATRICES[method]
    for axis, length in enumerate(size):
        weights = matrix(grid.shape[axis], length)
        grid = np.moveaxis(np.tensordot(weights, grid, axes=(1, axis)), 0, axis)
    return grid


def linear(old: int, new: int) -> np.ndarray:
    """Returns the weights (new, old) of linear interpolation with aligned corners."""
    places = np.linspace(0, old - 1, new)
    return np.stack([np.interp(places, range(old), row) for row in np.eye(old)], axis=1)


def cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Computes Keys' cubic convolution kernel (1981), which is zero beyond a distance of 2."""
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((x - 5) * x + 8) * x * a - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def bicubic(old: int, new: int) -> np.ndarray:
    """Returns the weights (new, old) of torch's bicubic interpolation: a = −0.75, and the border repeats outwards."""
    weights = np.zeros((new, old))
    for row in range(new):
        place = (row + 0.5) * old / new - 0.5
        for sample in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            weights[row, min(max(sample, 0), old - 1)] += cubic(np.asarray(sample - place), -0.75)
    return weights


def antialiased_bicubic(old: int, new: int) -> np.ndarray:
    """Returns the weights (new, old) of bicubic interpolation with antialiasing, as in torch and Pillow: a = −0.5.

    Where the grid shrinks, the kernel is as wide as the new pixels.
    """
    centres, samples = (np.arange(new) + 0.5) * old / new, np.arange(old) + 0.5
    weights = cubic((samples[None] - centres[:, None]) / max(old / new, 1), -0.5)
    return weights / weights.sum(axis=1, keepdims=True)


MATRICES = {"linear": linear, "bicubic": bicubic, "bicubic, antialiased": antialiased_bicubic}


def distance_index(side: int) -> np.ndarray:
    """Returns int (side, side): the index of the distance from position i to j in a table of 2·side−1 distances."""
    return np.arange(side)[None, :] - np.arange(side)[:, None] + side - 1
