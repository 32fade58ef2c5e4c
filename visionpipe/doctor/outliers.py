"""Finds images unlike all others, and images that look like no class."""

import numpy as np

from visionpipe.doctor.labels import Predictions

FAR = 5.0  # robust deviations of the logarithm of the distance to the nearest images
UNSURE = 0.35  # probability of the likeliest class, below which an image is of none; at least twice chance
DISTANT = 90  # percentile of the distances, above which an image that is unsure counts
MOST_SHARE = 0.01  # of the images


def far_from_all(distances: np.ndarray) -> np.ndarray:
    """Returns the rows of images that are far from all others, the farthest first; `distances`: (n,)."""
    distance = np.log(np.maximum(distances, 1e-9))
    return farthest(distance, too_far(distance))


def too_far(distance: np.ndarray) -> np.ndarray:
    """Whether the logarithm of a distance, (n,), is FAR robust deviations above the median, bool (n,)."""
    middle = float(np.median(distance))
    spread = max(1.4826 * float(np.median(np.abs(distance - middle))), 1e-3)
    return distance > middle + FAR * spread


def farthest(distance: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Returns the chosen rows, the farthest first, at most MOST_SHARE of all."""
    rows = np.flatnonzero(chosen)
    order = rows[np.argsort(-np.round(distance[rows], 4), kind="stable")]
    return order[: max(1, int(MOST_SHARE * len(distance)))]


def find_outliers(predictions: Predictions, classes: int) -> np.ndarray:
    """Returns the rows of images that are far from all others, or distant and of no class, the farthest first."""
    distance = np.log(np.maximum(predictions.distance, 1e-9))
    far = too_far(distance)
    unsure = predictions.shares[:, 0] < max(min(UNSURE, 0.9), 2 / classes if classes > 5 else 0)
    nowhere = unsure & (distance > np.percentile(distance, DISTANT)) if classes > 2 else np.zeros_like(far)
    return farthest(distance, far | nowhere)
