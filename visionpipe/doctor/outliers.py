"""Finds images unlike all others, and images that look like no class."""

import numpy as np

from visionpipe.doctor.labels import Predictions

FAR = 5.0  # robust deviations of the logarithm of the distance to the nearest images
UNSURE = 0.35  # probability of the likeliest class, below which an image is of none; at least twice chance
DISTANT = 90  # percentile of the distances, above which an image that is unsure counts
MOST_SHARE = 0.01  # of the images


def find_outliers(predictions: Predictions, classes: int) -> np.ndarray:
    """Returns the rows of images that are far from all others, or distant and of no class, the farthest first."""
    distance = np.log(np.maximum(predictions.distance, 1e-9))
    middle = float(np.median(distance))
    spread = max(1.4826 * float(np.median(np.abs(distance - middle))), 1e-3)
    far = distance > middle + FAR * spread
    unsure = predictions.shares[:, 0] < max(min(UNSURE, 0.9), 2 / classes if classes > 5 else 0)
    nowhere = unsure & (distance > np.percentile(distance, DISTANT)) if classes > 2 else np.zeros_like(far)
    rows = np.flatnonzero(far | nowhere)
    order = rows[np.argsort(-np.round(distance[rows], 4), kind="stable")]
    return order[: max(1, int(MOST_SHARE * len(distance)))]
