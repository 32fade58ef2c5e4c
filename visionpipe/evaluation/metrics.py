"""The numbers of a report. NumPy only; every function is a pure function of its arguments.

Throughout: `probabilities` float (n, classes), rows summing to one, or the `Answers` made of them a batch at a time;
`labels` int (n,), class indices; n ≥ 1. `confusion` is a matrix as `confusion_matrix` makes it, or the `Pairs` of one
that would be too large.

A class without examples in the split has neither precision nor recall nor F1: they are None, and the averages leave
it out. A class that has examples but is never predicted has precision 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

WILSON_Z = 1.959963984540054  # the normal quantile that leaves 2.5 % on either side
TOP = 5


@dataclass(frozen=True)
class Answers:
    """What the numbers need of each image's probabilities.

    `best` int (n, TOP), or fewer with fewer classes: the most probable classes, of equal ones the lower index
    first; `shares` float64, their probabilities; `likelihood` float64 (n,), that of the true class.
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
    """The answers to all batches as one."""
    columns = zip(*((part.best, part.shares, part.likelihood) for part in parts), strict=True)
    return Answers(*(np.concatenate(column) for column in columns))


class Pairs(NamedTuple):
    """A confusion matrix without its zeros: `counts` images of the class `actual` were predicted as `predicted`.
    All are int64 (pairs,).
    """

    actual: np.ndarray
    predicted: np.ndarray
    counts: np.ndarray


def pairs(labels: np.ndarray, predicted: np.ndarray) -> Pairs:
    codes, counts = np.unique(labels.astype(np.int64) << 32 | predicted, return_counts=True)
    return Pairs(codes >> 32, codes & 0xFFFFFFFF, counts)


def nonzero(confusion: np.ndarray | Pairs) -> Pairs:
    if isinstance(confusion, Pairs):
        return confusion
    actual, predicted = np.nonzero(confusion)
    return Pairs(actual, predicted, confusion[actual, predicted].astype(np.int64))


def classification_metrics(
    probabilities: np.ndarray | Answers, labels: np.ndarray, classes: list[str], bins: int
) -> dict[str, Any]:
    """The headline numbers of one split, ready for JSON.

    Args:
        classes: names of the classes, in the order of the columns of `probabilities`.
        bins: number of confidence bins behind `calibration_error`.

    Returns accuracy, top5_accuracy (with more than five classes only), macro_f1, worst_recall and its
    worst_class, calibration_error, nll (nats), the 95 % interval of accuracy, and the number of images.
    """
    found = answers(probabilities, labels)
    everything = per_class(pairs(labels, found.predicted), classes)
    table = {name: row for name, row in everything.items() if row["support"]}
    worst_class = min(table, key=lambda name: table[name]["recall"])
    correct = int((found.predicted == labels).sum())
    low, high = wilson_interval(correct, len(labels))
    top5 = {"top5_accuracy": top_accuracy(found, labels, TOP)} if len(classes) > TOP else {}
    return {
        "accuracy": correct / len(labels),
        **top5,
        "macro_f1": float(np.mean([row["f1"] for row in table.values()])),
        "worst_recall": table[worst_class]["recall"],
        "worst_class": worst_class,
        "calibration_error": calibration(found, labels, bins).error,
        "nll": negative_log_likelihood(found, labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "images": len(labels),
    }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes): how many images of the row's class were predicted as the column's."""
    flat = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    return flat.reshape(classes, classes)


def per_class(confusion: np.ndarray | Pairs, classes: list[str]) -> dict[str, dict[str, Any]]:
    """For every class: precision, recall, F1 and support (its number of images)."""
    found = nonzero(confusion)
    right = found.actual == found.predicted
    columns = (
        totals(found.actual[right], found.counts[right], len(classes)),
        totals(found.actual, found.counts, len(classes)),
        totals(found.predicted, found.counts, len(classes)),
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
    """The sum of counts for each class; floats count exactly up to 2**53."""
    return np.bincount(indices, counts, classes).astype(np.int64).tolist()


def most_confused(confusion: np.ndarray | Pairs, classes: int, most: int) -> np.ndarray:
    """Indices of at most `most` classes, ascending: those of the most frequent mistakes, then any others."""
    found = nonzero(confusion)
    wrong = np.flatnonzero(found.actual != found.predicted)
    wrong = wrong[np.argsort(-found.counts[wrong], kind="stable")]
    mistaken = np.stack([found.actual[wrong], found.predicted[wrong]], axis=1).ravel()
    candidates = np.concatenate([mistaken, np.arange(classes)])
    _, first = np.unique(candidates, return_index=True)
    return np.sort(candidates[np.sort(first)[:most]])


def top_accuracy(probabilities: np.ndarray | Answers, labels: np.ndarray, count: int) -> float:
    """The share of images whose class is among the `count` most probable, at most TOP; ties go to the lower index."""
    best = answers(probabilities, labels).best[:, :count]
    return float((best == labels[:, None]).any(axis=1).mean())


def negative_log_likelihood(probabilities: np.ndarray | Answers, labels: np.ndarray) -> float:
    """Mean of −log p(true class) in nats. A probability that underflowed to zero counts as 2e-308."""
    likelihoods = answers(probabilities, labels).likelihood
    return float(-np.log(np.maximum(likelihoods, np.finfo(np.float64).tiny)).mean())


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927): stays inside [0, 1], also for 0 or n hits."""
    share, z = successes / trials, WILSON_Z
    centre = (share + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(share * (1 - share) / trials + z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


@dataclass(frozen=True)
class Calibration:
    """Confidence against accuracy, in bins (m/M, (m+1)/M] of equal width.

    `counts` int (M,); `confidences` and `accuracies` float (M,), means in the bin, NaN in empty bins.
    `error` is the expected calibration error: the mean gap, weighted by counts
    (Guo et al. 2017, "On Calibration of Modern Neural Networks", equation 3).
    """

    counts: np.ndarray
    confidences: np.ndarray
    accuracies: np.ndarray
    error: float


def calibration(probabilities: np.ndarray | Answers, labels: np.ndarray, bins: int) -> Calibration:
    found = answers(probabilities, labels)
    confidence, correct = found.confidence, found.predicted == labels
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    confidence_sums = np.bincount(index, weights=confidence, minlength=bins)
    correct_sums = np.bincount(index, weights=correct, minlength=bins)
    divisors = np.where(counts, counts, np.nan)
    return Calibration(
        counts,
        confidence_sums / divisors,
        correct_sums / divisors,
        float(np.abs(confidence_sums - correct_sums).sum() / len(labels)),
    )
