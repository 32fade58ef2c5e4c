"""The numbers of a report. NumPy only; every function is a pure function of its arguments.

Throughout: `probabilities` float (n, classes), rows summing to one; `labels` int (n,), class indices;
n ≥ 1. A class without examples in the split has neither precision nor recall nor F1: they are None,
and the averages leave it out. A class that has examples but is never predicted has precision 0.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

WILSON_Z = 1.959963984540054  # the normal quantile that leaves 2.5 % on either side


def classification_metrics(
    probabilities: np.ndarray, labels: np.ndarray, classes: list[str], bins: int
) -> dict[str, Any]:
    """The headline numbers of one split, ready for JSON.

    Args:
        classes: names of the classes, in the order of the columns of `probabilities`.
        bins: number of confidence bins behind `calibration_error`.

    Returns accuracy, top5_accuracy (with more than five classes only), macro_f1, worst_recall and its
    worst_class, calibration_error, nll (nats), the 95 % interval of accuracy, and the number of images.
    """
    confusion = confusion_matrix(labels, probabilities.argmax(axis=1), len(classes))
    table = {name: row for name, row in per_class(confusion, classes).items() if row["support"]}
    worst_class = min(table, key=lambda name: table[name]["recall"])
    correct = int(np.trace(confusion))
    low, high = wilson_interval(correct, len(labels))
    top5 = {"top5_accuracy": top_accuracy(probabilities, labels, 5)} if len(classes) > 5 else {}
    return {
        "accuracy": correct / len(labels),
        **top5,
        "macro_f1": float(np.mean([row["f1"] for row in table.values()])),
        "worst_recall": table[worst_class]["recall"],
        "worst_class": worst_class,
        "calibration_error": calibration(probabilities, labels, bins).error,
        "nll": negative_log_likelihood(probabilities, labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "images": len(labels),
    }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """int64 (classes, classes): how many images of the row's class were predicted as the column's."""
    flat = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes**2)
    return flat.reshape(classes, classes)


def per_class(confusion: np.ndarray, classes: list[str]) -> dict[str, dict[str, Any]]:
    """For every class: precision, recall, F1 and support (its number of images)."""
    table: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(classes):
        hits, support, predicted = (
            int(confusion[index, index]),
            int(confusion[index].sum()),
            int(confusion[:, index].sum()),
        )
        table[name] = {
            "precision": hits / max(predicted, 1) if support else None,
            "recall": hits / support if support else None,
            "f1": 2 * hits / (support + predicted) if support else None,
            "support": support,
        }
    return table


def top_accuracy(probabilities: np.ndarray, labels: np.ndarray, count: int) -> float:
    """The share of images whose class is among the `count` most probable; ties go to the lower index."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return float((best == labels[:, None]).any(axis=1).mean())


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of −log p(true class) in nats. A probability that underflowed to zero counts as 2e-308."""
    likelihoods = probabilities[np.arange(len(labels)), labels].astype(np.float64)
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


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int) -> Calibration:
    confidence = probabilities.max(axis=1).astype(np.float64)
    correct = probabilities.argmax(axis=1) == labels
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
