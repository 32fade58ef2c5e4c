"""Compares the accuracy of groups of images that share a value of the metadata, such as a camera or a hospital."""

from collections import Counter
from typing import Any

import numpy as np

from visionpipe.data.spreadsheet import number_of
from visionpipe.evaluation.metrics import balanced_accuracy, wilson_interval

MOST_VALUES = 30  # of a column of texts; with more, such as names of patients, the column makes no slices
LEAST_IMAGES = 10  # of a slice
PARTS = 4  # that a column of numbers is divided into, of about the same number of images
MOSTLY = 0.9  # of the values must be numbers; the others are taken as texts, such as "unknown"


def slices(
    correct: np.ndarray, labels: np.ndarray | None, metadata: dict[str, list[str]], groups: str | None = None
) -> list[dict[str, Any]]:
    """Computes the accuracy of each value of each column with few values, and of the quarters of columns of numbers.

    Args:
        correct: bool (n,), whether each image is recognised.
        labels: int (n,), the class of each image; None if images have no single class.
        metadata: column → the value of each image; "" is a missing one.
        groups: the column that says which images belong together. Its numbers are names, and have no quarters.

    Returns:
        A row for each slice: column, value, images, accuracy, accuracy_low and accuracy_high, the 95 % interval, and
        balanced_accuracy, the mean recall of the classes that the slice has. The value of a quarter is its bounds, such
        as "18 to 34". The columns come in their order, and their values with the lowest accuracy first.
    """
    rows = []
    for column, texts in metadata.items():
        values = texts if column == groups else in_quarters(texts)
        counts = Counter(values)
        if not 2 <= len(counts) <= MOST_VALUES:
            continue
        array, of_column = np.array(values, object), []
        for value, count in counts.items():
            if count >= LEAST_IMAGES:
                inside = array == value
                right = int(correct[inside].sum())
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
                    | (
                        {}
                        if labels is None
                        else {"balanced_accuracy": balanced_accuracy(correct[inside], labels[inside])}
                    )
                )
        rows += sorted(of_column, key=lambda row: (row["accuracy"], row["value"]))
    return rows


def in_quarters(texts: list[str]) -> list[str]:
    """Returns the bounds of each number's quarter, as texts; the texts themselves where no quarters are needed.

    Quarters are needed where most values are numbers and rare. The same number is always in the same quarter. Whole
    numbers that never repeat are identities, and stay as they are.
    """
    counts = Counter(text for text in texts if text)
    numbers = {text: number for text in counts if (number := number_of(text)) is not None}
    given = sum(counts.values())
    numeric = sum(counts[text] for text in numbers)
    frequent = sum(count for count in counts.values() if count >= LEAST_IMAGES)
    identities = len(numbers) == numeric and all(number.is_integer() for number in numbers.values())
    if numeric < MOSTLY * given or 2 * frequent >= given or identities:
        return texts
    ordered = sorted(numbers, key=lambda text: (numbers[text], text))
    every = np.array([numbers[text] for text in ordered for _ in range(counts[text])])
    limits = np.unique(np.quantile(every, np.arange(1, PARTS) / PARTS, method="lower"))
    part_of = {text: int(np.searchsorted(limits, numbers[text])) for text in ordered}
    bounds: dict[int, tuple[str, str]] = {}
    for text in ordered:
        bounds[part_of[text]] = bounds.get(part_of[text], (text, text))[0], text
    names = {part: first if first == last else f"{first} to {last}" for part, (first, last) in bounds.items()}
    return [names[part_of[text]] if text in part_of else text for text in texts]


def worst_slice(rows: list[dict[str, Any]], accuracy: float) -> dict[str, Any] | None:
    """Returns the slice with the lowest accuracy of those whose interval lies below `accuracy`; None without one."""
    low = [row for row in rows if row["accuracy_high"] < accuracy]
    return min(low, key=lambda row: row["accuracy"], default=None)
