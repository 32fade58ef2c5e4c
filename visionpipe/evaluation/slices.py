"""Compares the accuracy of groups of images that share a value of the metadata, such as a camera or a hospital."""

from collections import Counter
from typing import Any

import numpy as np

from visionpipe.evaluation.metrics import wilson_interval

MOST_VALUES = 30  # of a column; with more, such as an age or a number, the column makes no slices
LEAST_IMAGES = 10  # of a slice


def slices(correct: np.ndarray, metadata: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Computes the accuracy of each value of each column with few values.

    Args:
        correct: bool (n,), whether each image is recognised.
        metadata: column → the value of each image; "" is a missing one.

    Returns:
        A row for each slice: column, value, images, accuracy, and accuracy_low and accuracy_high, the 95 % interval.
        The columns come in their order, and their values with the lowest accuracy first.
    """
    rows = []
    for column, values in metadata.items():
        counts = Counter(values)
        if not 2 <= len(counts) <= MOST_VALUES:
            continue
        array, of_column = np.array(values, object), []
        for value, count in counts.items():
            if count >= LEAST_IMAGES:
                right = int(correct[array == value].sum())
                low, high = wilson_interval(right, count)
                of_column.append(
                    {
                        "column": column,
                        "value": value,
                        "images": count,
                        "accuracy": right / count,
                        "accuracy_low": low,
                        "accuracy_high": high,
                    }
                )
        rows += sorted(of_column, key=lambda row: (row["accuracy"], row["value"]))
    return rows
