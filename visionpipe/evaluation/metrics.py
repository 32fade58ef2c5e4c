"""Computes the metrics of a report, with NumPy alone. Every function is pure.

Arguments with the same name mean the same everywhere:
    probabilities: float (n, classes), rows summing to one; or `Answers`, which are computed from them batch by batch.
    labels: int (n,), class indices; n ≥ 1.
    confusion: a matrix as `confusion_matrix` returns it, or `Pairs`, if the matrix would be too large.

A class without examples in the split has no precision, recall or F1: they are None, and averages leave the class
out. A class that has examples but is never predicted has precision 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

WILSON_Z = 1.959963984540054  # the normal quantile that leaves 2.5 % on either side
TOP = 5


@dataclass(frozen=True)
class Answers:
    """The part of each image's probabilities that the metrics need.

    best: int (n, TOP), or fewer columns with fewer classes. The most probable classes; ties go to the lower index.
    shares: float64, shape of `best`. The probabilities of these classes.
    likelihood: float64 (n,). The probability of the true class.
    """

    best: np.ndarray
    shares: np.ndarray
    likelihood: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        return self.best[:, 0]

    @property
    def confidence(self) -> np.ndarray:
        return self.shares[:, 0]


def answers(probabilities: np.ndarray | Answers, labels: np.ndarray) -> Answers:
    """Reduces probabilities to `Answers`; returns `Answers` unchanged."""
    if isinstance(probabilities, Answers):
        return probabilities
    rows, left = np.arange(len(labels)), probabilities.astype(np.float64)
    best = np.empty((len(labels), min(TOP, left.shape[1])), np.int64)
    shares, likelihood = np.empty(best.shape), left[rows, labels]
    for place in range(best.shape[1]):
        best[:, place] = left.argmax(axis=1)
        shares[:, place] = left[rows, best[:, place]]
        left[rows, best[:, place]] = -1
    return Answers(best, shares, likelihood)


def joined(parts: Iterable[Answers]) -> Answers:
    """Concatenates the answers of several batches."""
    columns = zip(*((part.best, part.shares, part.likelihood) for part in parts), strict=True)
    return Answers(*(np.concatenate(column) for column in columns))


class Pairs(NamedTuple):
    """A sparse confusion matrix: `counts` images of class `actual` were predicted as `predicted`; int64 (pairs,)."""

    actual: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray


def pairs(labels: np.ndarray, predicted: np.ndarray) -> Pairs:
    """Counts the pairs of true and predicted class, both int (n,)."""
    codes, counts = np.unique(labels.astype(np.int64) << 32 | predicted, return_counts=True)
    return Pairs(codes >> 32, codes & 0xFFFFFFFF, counts)


def nonzero(confusion: np.ndarray | Pairs) -> Pairs:
    """Converts a confusion matrix to `Pairs`; returns `Pairs` unchanged."""
    if isinstance(confusion, Pairs):
        return confusion
    actual, predicted = np.nonzero(confusion)
    return Pairs(actual, predicted, confusion[actual, predicted].astype(np.int64))


def classification_metrics(
    probabilities: np.ndarray | Answers, labels: np.ndarray, classes: list[str], bins: int
) -> dict[str, Any]:
    """Computes the metrics of one split, as values for JSON.

    Args:
        classes: class names, in the order of the columns of `probabilities`.
        bins: number of confidence bins for `calibration_error`.

    Returns:
        accuracy; top5_accuracy (only with more than five classes); balanced_accuracy; macro_f1; worst_recall and
        worst_class, the class that has it; calibration_error; nll (nats); accuracy_low and accuracy_high, the 95 %
        interval; images.
    """
    predictions = answers(probabilities, labels)
    everything = per_class(pairs(labels, predictions.predicted), classes)
    table = {name: row for name, row in everything.items() if row["support"]}
    worst_class = min(table, key=lambda name: table[name]["recall"])
    correct = int((predictions.predicted == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    top5 = {"top5_accuracy": top_accuracy(predictions, labels, TOP)} if len(classes) > TOP else {}
    return {
        "accuracy": correct / len(labels),
        **top5,
        "balanced_accuracy": balanced_accuracy(predictions.predicted == labels, labels),
        "macro_f1": float(np.mean([row["f1"] for row in table.values()])),
        "worst_recall": table[worst_class]["recall"],
        "worst_class": worst_class,
        "calibration_error": calibration(predictions, labels, bins).error,
        "nll": negative_log_likelihood(predictions, labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "images": len(labels),
    }


def balanced_accuracy(correct: np.ndarray, labels: np.ndarray) -> float:
    """Computes the mean recall of the classes that have images, from bool (n,) and int (n,), like scikit-learn."""
    supports = np.bincount(labels)
    present = supports > 0
    return float((np.bincount(labels, correct)[present] / supports[present]).mean())


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts the images by true class (rows) and predicted class (columns), int64 (classes, classes)."""
    flat = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    return flat.reshape(classes, classes)


def per_class(confusion: np.ndarray | Pairs, classes: list[str]) -> dict[str, dict[str, Any]]:
    """Computes precision, recall, F1 and support (the number of images) of every class."""
    cells = nonzero(confusion)
    right = cells.actual == cells.predicted
    columns = (
        totals(cells.actual[right], cells.counts[right], len(classes)),
        totals(cells.actual, cells.counts, len(classes)),
        totals(cells.predicted, cells.counts, len(classes)),
    )
    table: dict[str, dict[str, Any]] = {}
    for name, hits, support, predicted in zip(classes, *columns, strict=True):
        table[name] = {
            "precision": hits / max(predicted, 1) if support else None,
            "recall": hits / support if support else None,
            "f1": 2 * hits / (support + predicted) if support else None,
            "support": support,
        }
    return table


def totals(indices: np.ndarray, counts: np.ndarray, classes: int) -> list[int]:
    """Sums `counts` for each class. `bincount` sums in float64, which is exact up to 2**53."""
    return np.bincount(indices, counts, classes).astype(np.int64).tolist()


def most_confused(confusion: np.ndarray | Pairs, classes: int, most: int) -> np.ndarray:
    """Returns ascending indices of at most `most` classes: those with the most frequent mistakes, then any others."""
    cells = nonzero(confusion)
    wrong = np.flatnonzero(cells.actual != cells.predicted)
    wrong = wrong[np.argsort(-cells.counts[wrong], kind="stable")]
    mistaken = np.stack([cells.actual[wrong], cells.predicted[wrong]], axis=1).ravel()
    candidates = np.concatenate([mistaken, np.arange(classes)])
    _, first = np.unique(candidates, return_index=True)
    return np.sort(candidates[np.sort(first)[:most]])


def top_accuracy(probabilities: np.ndarray | Answers, labels: np.ndarray, count: int) -> float:
    """Computes the share of images whose class is among the `count` most probable; `count` is at most TOP."""
    best = answers(probabilities, labels).best[:, :count]
    return float((best == labels[:, None]).any(axis=1).mean())


def negative_log_likelihood(probabilities: np.ndarray | Answers, labels: np.ndarray) -> float:
    """Computes the mean of −log p(true class), in nats. A probability that underflowed to zero counts as 1e-38."""
    likelihoods = answers(probabilities, labels).likelihood
    return float(-np.log(np.maximum(likelihoods, np.finfo(np.float32).tiny)).mean())


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Computes the 95 % score interval of a proportion (Wilson 1927), which stays inside [0, 1]."""
    share, z = successes / trials, WILSON_Z
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    low, high = float(centre - half), float(centre + half)
    # Both ends are exact where all or none succeed, which the rounded sums miss.
    return (max(0.0, low) if successes else 0.0), (min(1.0, high) if successes < trials else 1.0)


@dataclass(frozen=True)
class Calibration:
    """Confidence and accuracy in M bins (m/M, (m+1)/M] of confidence, all of equal width.

    counts: int (M,), images per bin.
    confidences, accuracies: float (M,), means of each bin; NaN in empty bins.
    error: the expected calibration error, which is the mean of |accuracy − confidence| weighted by counts
        (Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3).
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray
    error: float


def calibration(probabilities: np.ndarray | Answers, labels: np.ndarray, bins: int) -> Calibration:
    """Compares confidence with accuracy in `bins` bins of confidence."""
    predictions = answers(probabilities, labels)
    return reliability(predictions.confidence, predictions.predicted == labels, bins)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int) -> Calibration:
    """Compares confidence, float64 (n,), with correctness, bool (n,), in `bins` bins of confidence."""
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    confidence_sums = np.bincount(index, weights=confidence, minlength=bins)
    correct_sums = np.bincount(index, weights=correct, minlength=bins)
    divisors = np.where(counts, counts, np.nan)
    return Calibration(
        counts,
        confidence_sums / divisors,
        correct_sums / divisors,
        float(np.abs(confidence_sums - correct_sums).sum() / len(correct)),
    )
