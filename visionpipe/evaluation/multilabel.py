"""Computes the metrics of images that may have several labels, with NumPy alone. Every function is pure.

Arguments with the same name mean the same everywhere:
    probabilities: float (n, classes), [0, 1]: the probability of each label, which do not sum to one; n ≥ 1.
    labels: int8 (n, classes): 1 present, 0 absent, -1 unknown.
    thresholds: float (classes,). A label is answered where its probability is at least the threshold of its class.
    classes: class names, in the order of the columns.
    scores, present: float (known,) and bool (known,): the probabilities of one class and whether it is present, of
        the images whose label is known.

Unknown labels are left out of every metric. A class without a present label has neither average precision, precision,
recall, F1 nor calibration error: they are None, and averages leave the class out. A class that has present labels
but is never answered has precision 0.

All functions together need about 15 bytes for each probability, besides the arguments.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from visionpipe.evaluation.metrics import Calibration, reliability

PRESENT, ABSENT, UNKNOWN = 1, 0, -1
UNFITTED = 0.5  # the threshold of a class that cannot be fitted
SEED = 0
RESAMPLES, FEWEST_RESAMPLES = 1000, 100
AFFORDABLE = 2_000_000_000  # labels to read in all resamples, about 5 ns each
BLOCK = 2**16  # images; float32 counts exactly up to 2**24


def multilabel_metrics(
    probabilities: np.ndarray, labels: np.ndarray, classes: list[str], thresholds: np.ndarray, bins: int
) -> dict[str, Any]:
    """Computes the metrics of one split, as values for JSON. A metric that is not defined is None.

    Args:
        bins: number of bins of the probability for `calibration_error`.

    Returns:
        mean_average_precision and its 95 % interval, mean_average_precision_low and mean_average_precision_high;
        micro_average_precision; worst_average_precision and worst_class, the class that has it; f1_macro; f1_micro;
        subset_accuracy; hamming_loss; calibration_error (mean of the classes); nll (nats, mean of the known labels);
        images.
    """
    table = per_label(probabilities, labels, classes, thresholds, bins)
    tested = {name: row for name, row in table.items() if row["support"]}
    worst_class = min(tested, key=lambda name: tested[name]["average_precision"], default=None)
    low, high = mean_average_precision_interval(probabilities, labels, affordable_resamples(labels.size))
    known, answers = labels != UNKNOWN, answered(probabilities, thresholds)
    return {
        "mean_average_precision": mean([row["average_precision"] for row in tested.values()]),
        "mean_average_precision_low": low,
        "mean_average_precision_high": high,
        "micro_average_precision": average_precision(probabilities[known], labels[known] == PRESENT),
        "worst_average_precision": tested[worst_class]["average_precision"]
        if worst_class is not None
        else None,
        "worst_class": worst_class,
        "f1_macro": mean([row["f1"] for row in tested.values()]),
        "f1_micro": f1_micro(labels, answers),
        "subset_accuracy": subset_accuracy(labels, answers),
        "hamming_loss": hamming_loss(labels, answers),
        "calibration_error": mean([row["calibration_error"] for row in tested.values()]),
        "nll": negative_log_likelihood(probabilities, labels),
        "images": len(labels),
    }


def per_label(
    probabilities: np.ndarray, labels: np.ndarray, classes: list[str], thresholds: np.ndarray, bins: int
) -> dict[str, dict[str, Any]]:
    """Computes the metrics of every class, as values for JSON.

    Returns:
        For each class name: average_precision, precision, recall, f1, threshold, calibration_error, support (the
        number of images with the label) and known (the number of images whose label is known).
    """
    table: dict[str, dict[str, Any]] = {}
    limits = np.asarray(thresholds, np.float64)
    columns = zip(classes, limits, known_columns(probabilities, labels), strict=True)
    for name, threshold, (scores, present) in columns:
        answers = scores >= threshold
        hits, support, count = int(answers[present].sum()), int(present.sum()), int(answers.sum())
        table[name] = {
            "average_precision": average_precision(scores, present),
            "precision": hits / max(count, 1) if support else None,
            "recall": hits / support if support else None,
            "f1": 2 * hits / (support + count) if support else None,
            "threshold": float(threshold),
            "calibration_error": calibration(scores, present, bins).error if support else None,
            "support": support,
            "known": len(present),
        }
    return table


def known_columns(probabilities: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields scores and present of each class in turn."""
    for column, label in zip(probabilities.T, labels.T, strict=True):
        known = label != UNKNOWN
        yield column[known], label[known] == PRESENT


def answered(probabilities: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Returns which labels are answered, bool (n, classes). It compares in float64."""
    return probabilities >= np.asarray(thresholds, np.float64)


def mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


def average_precision(scores: np.ndarray, present: np.ndarray) -> float | None:
    """Computes the average precision as scikit-learn defines it: Σ (Rₙ − Rₙ₋₁) Pₙ over the distinct scores.

    Each present label adds one step of 1/positives to the recall. The sum is therefore the mean, over the present
    labels, of the precision of all answers whose scores are at least as high.
    """
    positives, everything = np.sort(scores[present]), np.sort(scores)
    if not len(positives):
        return None
    hits = len(positives) - np.searchsorted(positives, positives)
    return float(np.mean(hits / (len(everything) - np.searchsorted(everything, positives))))


def mean_average_precision(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Computes the mean of the average precisions of the labels that some image has; None if there are none."""
    precisions = (average_precision(*column) for column in known_columns(probabilities, labels))
    return mean([precision for precision in precisions if precision is not None])


def affordable_resamples(size: int) -> int:
    """Returns how many resamples of `size` labels to draw: fewer where there are more than two million labels."""
    return max(FEWEST_RESAMPLES, min(RESAMPLES, AFFORDABLE // size))


def mean_average_precision_interval(
    probabilities: np.ndarray, labels: np.ndarray, resamples: int, seed: int = SEED
) -> tuple[float, float] | tuple[None, None]:
    """Estimates the 95 % interval of the mean average precision: percentiles of the bootstrap (Efron 1979).

    Each resample draws n images with replacement. A class none of whose images with the label were drawn is left out
    of the mean of that resample. Every class is sorted once; a resample only weights its images.
    """
    prepared = [
        Ranking.of(column, label)
        for column, label in zip(probabilities.T, labels.T, strict=True)
        if (label == 1).any()
    ]
    if not prepared:
        return None, None
    random, means = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = random.integers(0, len(labels), len(labels), dtype=np.int32)
        weights = np.bincount(drawn, minlength=len(labels)).astype(np.int32)
        values = [ranking.weighted(weights) for ranking in prepared]
        means.append(mean([value for value in values if value is not None]))
    low, high = np.quantile([value for value in means if value is not None], [0.025, 0.975])
    return float(low), float(high)


class Ranking(NamedTuple):
    """The images of one class by falling probability.

    images: int32 (known,).
    positives: int32 (positives,). The images among them that have the label.
    last, last_positive: int32 (positives,). For each of `positives`, the place in `images` and in `positives` of the
        last image with the same probability.
    """

    images: np.ndarray
    positives: np.ndarray
    last: np.ndarray
    last_positive: np.ndarray

    @classmethod
    def of(cls, column: np.ndarray, label: np.ndarray) -> "Ranking":
        known = np.flatnonzero(label != UNKNOWN)
        images = known[np.argsort(-column[known], kind="stable")].astype(np.int32)
        positives = images[label[images] == PRESENT]
        everything, some = -column[images], -column[positives]
        last, last_positive = (np.searchsorted(scores, some, "right") - 1 for scores in (everything, some))
        return cls(images, positives, last.astype(np.int32), last_positive.astype(np.int32))

    def weighted(self, weights: np.ndarray) -> float | None:
        """Computes the average precision with integer weights of the images; None without a positive."""
        steps = weights[self.positives]
        hits = np.cumsum(steps)
        if not hits[-1]:
            return None
        everything = np.cumsum(weights[self.images])[self.last]
        # A present label that was not drawn has step 0; nothing may be drawn above it either.
        return float((steps * hits[self.last_positive] / np.maximum(everything, 1)).sum() / hits[-1])


def f1_micro(labels: np.ndarray, answers: np.ndarray) -> float | None:
    """Computes F1 of all known labels together; None without a present label. `answers`: bool (n, classes)."""
    present = labels == PRESENT
    support, count = int(present.sum()), int((answers & (labels != UNKNOWN)).sum())
    return 2 * int((answers & present).sum()) / (support + count) if support else None


def subset_accuracy(labels: np.ndarray, answers: np.ndarray) -> float | None:
    """Computes the share of images with every label right, among those with every label known; None without any."""
    complete = (labels != UNKNOWN).all(axis=1)
    right = (answers == (labels == PRESENT)).all(axis=1)
    return float(right[complete].mean()) if complete.any() else None


def hamming_loss(labels: np.ndarray, answers: np.ndarray) -> float | None:
    """Computes the share of the known labels that are answered wrongly; None without a known label."""
    known = labels != UNKNOWN
    wrong = (answers != (labels == PRESENT)) & known
    return int(wrong.sum()) / int(known.sum()) if known.any() else None


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    """Computes the mean binary cross-entropy of the known labels, in nats; None without a known label.

    Probabilities are clipped to [ε, 1 − ε] with the ε of their dtype, as scikit-learn does: in float32 a confident
    probability rounds to 1, whose complement is 0.
    """
    epsilon = np.finfo(probabilities.dtype).eps
    total, count = 0.0, 0
    for scores, present in known_columns(probabilities, labels):
        clipped = np.clip(scores, epsilon, 1 - epsilon).astype(np.float64)
        total -= float(np.log(np.where(present, clipped, 1 - clipped)).sum())
        count += len(present)
    return total / count if count else None


def calibration(scores: np.ndarray, present: np.ndarray, bins: int) -> Calibration:
    """Compares the probability of a label with the share of images that have it, in bins of the probability.

    This is the calibration error for two classes (Guo et al. 2017, section 2). `accuracies` of the result are
    shares of images with the label.
    """
    return reliability(scores.astype(np.float64), present, bins)


def cooccurrence(present: np.ndarray) -> np.ndarray:
    """Counts the images with both of two labels, int64 (classes, classes); the diagonal counts those with one.

    present: bool (n, classes), False where unknown.
    """
    counts = np.zeros((present.shape[1],) * 2, np.int64)
    for start in range(0, len(present), BLOCK):
        block = present[start : start + BLOCK].astype(np.float32)
        counts += (block.T @ block).astype(np.int64)
    return counts


class Errors(NamedTuple):
    """The most confident wrong answers about one label, as indices of images, the most confident first.

    missing: images that have the label and do not get it; the lowest probability first.
    spurious: images that get the label and do not have it; the highest probability first.
    """

    missing: np.ndarray
    spurious: np.ndarray


def worst_errors(
    probabilities: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, most: int
) -> list[Errors]:
    """Finds at most `most` missing and `most` spurious answers of each class. Of equal ones the first image wins."""
    found = []
    for column, label, answers in zip(
        probabilities.T, labels.T, answered(probabilities, thresholds).T, strict=True
    ):
        missing = np.flatnonzero((label == PRESENT) & ~answers)
        spurious = np.flatnonzero((label == ABSENT) & answers)
        found.append(
            Errors(
                missing[np.argsort(column[missing], kind="stable")][:most],
                spurious[np.argsort(-column[spurious], kind="stable")][:most],
            )
        )
    return found


@dataclass(frozen=True)
class Curve:
    """What each possible threshold of one class answers; all are (distinct scores,), by falling score.

    scores: float64.
    hits: int, images with the label among the answers.
    answers: int, images with at least this score.
    """

    scores: np.ndarray
    hits: np.ndarray
    answers: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        return self.hits / self.answers

    @property
    def recall(self) -> np.ndarray:
        return self.hits / self.hits[-1]


def curve(scores: np.ndarray, present: np.ndarray) -> Curve:
    """Counts hits and answers at every distinct score. At least one label is present."""
    order = np.argsort(-scores, kind="stable")
    falling = scores[order].astype(np.float64)
    last = np.flatnonzero(np.append(np.diff(falling), -1))
    return Curve(falling[last], np.cumsum(present[order])[last], last + 1)


def fit_thresholds(
    probabilities: np.ndarray, labels: np.ndarray, precision: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Fits one threshold for each class.

    Without `precision` it has the highest F1, and of several the one with the fewest answers (Lipton et al. 2014,
    "Optimal Thresholding of Classifiers to Maximize F1 Measure"). With `precision` it is the smallest whose precision
    is at least that, which has the highest recall.

    Returns:
        thresholds, float64 (classes,), and which were fitted, bool (classes,). A class without a present label,
        without an absent one, or that never has the wanted precision, is not fitted and gets 0.5.
    """
    thresholds = [
        fit_threshold(scores, present, precision) for scores, present in known_columns(probabilities, labels)
    ]
    return (
        np.array([UNFITTED if value is None else value for value in thresholds], np.float64),
        np.array([value is not None for value in thresholds], bool),
    )


def fit_threshold(scores: np.ndarray, present: np.ndarray, precision: float | None) -> float | None:
    """Fits the threshold of one class, or returns None."""
    if not present.any() or present.all():
        return None
    possible = curve(scores, present)
    if precision is None:
        place = int(np.argmax(2 * possible.hits / (possible.hits[-1] + possible.answers)))
    else:
        enough = np.flatnonzero(possible.precision >= precision)
        if not len(enough):
            return None
        place = int(enough[-1])
    # In the middle between two scores, so that an answer does not depend on the last bits of a backend.
    lower = possible.scores[place + 1] if place + 1 < len(possible.scores) else 0.0
    return float((possible.scores[place] + lower) / 2)
