"""Finds labels that may be wrong where an image may have several: each label is a question of its own, yes or no.

The probability of a label is the mean of its share among the NEIGHBOURS nearest images and of a ridge regression that
was fitted to the other folds, averaged with those of trained models that have not memorised their labels. Confident
learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068) decides for each class separately.
"""

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from visionpipe.data.labels import ABSENT, PRESENT, UNKNOWN, readable
from visionpipe.doctor.findings import Finding, Images, Item
from visionpipe.doctor.labels import CHUNK, FOLDS, NEIGHBOURS, TILE, Probabilities

RIDGE = 1e-3  # of the mean square of the features
EXAMPLES = 2  # images with the label, or without it, beside one in question


def label_probabilities(
    features: np.ndarray, labels: np.ndarray, models: Sequence[Probabilities] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Predicts the labels of every image from all images but itself.

    Args:
        features: float32 (n, values).
        labels: int8 (n, classes), 1, 0 or -1 for unknown, which teaches nothing.
        models: the probabilities of trained models, each (n, classes).

    Returns:
        The probability of each label, float32 (n, classes), and the mean distance to the nearest images, (n,).
    """
    scaled = features / max(float(features[:, 0].std()), 1e-6)
    known, present = (labels != UNKNOWN).astype(np.float32), (labels == PRESENT).astype(np.float32)
    priors = present.sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    table = np.clip(priors + ridge(scaled, (present - priors) * known), 0, 1).astype(np.float32)
    distance = np.zeros(len(labels))
    squares = (scaled**2).sum(axis=1)
    count = min(NEIGHBOURS, len(labels) - 1)
    step = max(1, min(CHUNK, TILE // max(len(labels), 1)))
    for start in tqdm(range(0, len(labels), step), "labels", unit=" blocks", disable=None):
        rows = np.arange(start, min(start + step, len(labels)))
        distances = squares[None] - 2 * (scaled[rows] @ scaled.T)
        distances[np.arange(len(rows)), rows] = np.inf
        nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
        voters = known[nearest].sum(axis=1)
        shares = np.where(voters > 0, present[nearest].sum(axis=1) / np.maximum(voters, 1), priors)
        of_features = (table[rows] + shares) / 2
        table[rows] = (of_features + sum(model[rows] for model in models)) / (1 + len(models))
        squared = np.take_along_axis(distances, nearest, axis=1) + squares[rows, None]
        distance[rows] = np.sqrt(np.maximum(squared, 0)).mean(axis=1)
    return table, distance


def ridge(features: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns the predictions of ridge regressions, (n, classes), each row by a regression on the other folds."""
    fold = np.arange(len(features)) % FOLDS
    result = np.zeros_like(targets)
    for number in range(FOLDS):
        learned = fold != number
        mean = features[learned].mean(axis=0)
        inputs = (features[learned] - mean).astype(np.float64)
        squares = inputs.T @ inputs
        squares[np.diag_indices_from(squares)] += RIDGE * len(inputs) * max(float((inputs**2).mean()), 1e-12)
        slopes = np.linalg.solve(squares, inputs.T @ targets[learned])
        result[~learned] = (features[~learned] - mean) @ slopes
    return result


def doubtful(table: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether a label is probably wrong, bool (n, classes).

    An image is confidently with a label if its probability reaches the mean among the images that have it, and
    confidently without it if the probability is at most the mean among those that do not. Of the images that have the
    label, and of those that do not, this estimates the share of wrong labels; the least probable ones count as wrong
    (pruning by class), if their probability is on the other side of one half.
    """
    wrong = np.zeros(labels.shape, bool)
    for column in range(labels.shape[1]):
        shares = table[:, column].astype(np.float64)
        present, absent = (np.flatnonzero(labels[:, column] == value) for value in (PRESENT, ABSENT))
        if not len(present) or not len(absent):
            continue
        with_it, without_it = shares >= shares[present].mean(), shares <= shares[absent].mean()
        for rows, right, other, doubt in (
            (present, with_it, without_it, 1 - shares),
            (absent, without_it, with_it, shares),
        ):
            confident = other[rows].sum() + right[rows].sum()
            count = round(len(rows) * other[rows].sum() / max(confident, 1))
            worst = rows[np.argsort(-np.round(doubt[rows], 4), kind="stable")[:count]]
            wrong[worst[doubt[worst] > 0.5], column] = True
    return wrong


def several_label_findings(images: Images, table: np.ndarray) -> list[Finding]:
    """Describes the images with doubtful labels, the most doubtful first; suggests the whole set of labels."""
    labels, classes = images.labels, images.data.classes
    wrong = doubtful(table, labels)
    margins = np.where(labels == PRESENT, 2 * table - 1, 1 - 2 * table)  # negative: the label does not fit
    worst = np.round(np.where(wrong, margins, 1).min(axis=1), 4)
    rows = np.flatnonzero(wrong.any(axis=1))
    items = []
    for row in rows[np.argsort(worst[rows], kind="stable")].tolist():
        columns = np.flatnonzero(wrong[row])
        columns = columns[np.argsort(margins[row, columns], kind="stable")].tolist()
        right = labels[row].copy()
        right[columns] = np.where(right[columns] == PRESENT, ABSENT, PRESENT)
        said = [
            f"{classes[column]!r} {'seems absent' if labels[row, column] == PRESENT else 'seems to be missing'} "
            f"({table[row, column]:.0%})"
            for column in columns
        ]
        others = examples(table[:, columns[0]], labels[:, columns[0]], right[columns[0]])
        note = f"labelled {images.class_name(row)!r}: {', '.join(said)}"
        items.append(Item([row, *others], note, {row: readable(right, classes)}))
    return [Finding("label", len(items), items)] if items else []


def examples(shares: np.ndarray, labels: np.ndarray, value: int) -> list[int]:
    """Returns the images of which the label has this value and fits best."""
    rows = np.flatnonzero(labels == value)
    order = np.argsort(np.round(shares[rows], 4) * (-1 if value == PRESENT else 1), kind="stable")
    return rows[order[:EXAMPLES]].tolist()
