"""Histograms of oriented gradients (Dalal and Triggs 2005), which describe shapes and ignore brightness."""

import numpy as np

ORIENTATIONS = 8  # of half a turn


def oriented_gradients(pictures: np.ndarray, cells: int) -> np.ndarray:
    """Computes the roots of the histograms of `cells` × `cells` equal parts of each picture.

    Args:
        pictures: float32 (n, side, side), grey; `side` is a multiple of `cells`.

    Returns:
        float32 (n, cells, cells, ORIENTATIONS).
    """
    count, side = pictures.shape[:2]
    down, right = np.gradient(pictures, axis=(1, 2))
    strength = np.hypot(right, down)
    angle = np.arctan2(down, right) % np.pi * np.float32(ORIENTATIONS / np.pi)
    lower = np.floor(angle).astype(np.int32)
    share = angle - lower
    place = np.arange(side) // (side // cells)
    cell = (np.arange(count)[:, None, None] * cells + place[:, None]) * cells + place
    histogram = np.zeros(count * cells * cells * ORIENTATIONS)
    for bin_, weight in ((lower, strength * (1 - share)), (lower + 1, strength * share)):
        index = cell * ORIENTATIONS + bin_ % ORIENTATIONS
        histogram += np.bincount(index.ravel(), weight.ravel(), minlength=len(histogram))
    return np.sqrt(histogram).astype(np.float32).reshape(count, cells, cells, ORIENTATIONS)
