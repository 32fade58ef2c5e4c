"""Finds shortcuts: how well a class is recognised by what should say nothing about it.

A score is the F1 of one class, out of fold, on a scale from 0 for what the class's share alone gives to 1 for always
right. A score over all classes would not see a shortcut of one class.
"""

from dataclasses import dataclass

import numpy as np

from visionpipe.data.measures import FORMATS

STRONG = 0.4  # of what knows nothing of the picture: its size, its format, its compression
MOST_VALUES = 64  # bins of a measure
LEAST_HITS = 10  # images that a shortcut gets right; fewer are chance


@dataclass(frozen=True)
class Shortcut:
    """A class that something recognises, with its score, F1, and the F1 that the class's share alone gives."""

    source: str
    class_name: str
    score: float
    f1: float
    chance: float
    detail: str = ""


def class_scores(predicted: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, ...]:
    """Computes (score, F1, F1 by chance, hits) of each class; see the head of this module."""
    actual, said = np.bincount(labels, minlength=classes), np.bincount(predicted, minlength=classes)
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    f1 = 2 * hits / np.maximum(actual + said, 1)
    share = actual / max(len(labels), 1)
    chance = 2 * share / (1 + share)
    score = np.clip((f1 - chance) / np.maximum(1 - chance, 1e-9), 0, 1)
    return score, f1, chance, hits


def binned(values: np.ndarray) -> np.ndarray:
    """Numbers the distinct values of (n,), or their quantiles if there are more than MOST_VALUES."""
    distinct, codes = np.unique(values, return_inverse=True)
    if len(distinct) <= MOST_VALUES:
        return codes.ravel()
    bins = max(2, min(MOST_VALUES, len(values) // 20))
    return np.searchsorted(np.quantile(values, np.arange(1, bins) / bins), values, side="right")


def by_majority(codes: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Predicts each image's class as the most frequent one of its code in the other half of the images, (n,)."""
    half = halves(labels)
    predicted = np.zeros(len(labels), np.int64)
    for fold in (0, 1):
        learned, judged = half != fold, half == fold
        pairs, counts = np.unique(
            codes[learned].astype(np.int64) * classes + labels[learned], return_counts=True
        )
        order = np.lexsort((pairs, counts))  # the most frequent pair of a code comes last
        table = np.full(int(codes.max()) + 1, int(np.bincount(labels[learned], minlength=classes).argmax()))
        table[pairs[order] // classes] = pairs[order] % classes
        predicted[judged] = table[codes[judged]]
    return predicted


def halves(labels: np.ndarray) -> np.ndarray:
    """Divides the images of each class in turn into 0 and 1, (n,)."""
    order = np.argsort(labels, kind="stable")
    half = np.empty(len(labels), np.int64)
    half[order] = np.arange(len(labels)) % 2
    return half


def metadata_sources(measures: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns what is known of a file without looking at the picture: source → codes (n,)."""
    height, width = measures["height"].astype(np.int64), measures["width"].astype(np.int64)
    return {
        "size": binned(height * 1_000_003 + width)
        if len(np.unique(height * 1_000_003 + width)) <= MOST_VALUES
        else binned(height * width),
        "aspect ratio": binned(np.round(width / height, 2)),
        "file format": binned(measures["format"]),
        "JPEG quality": binned(measures["quantisation"]),
    }


def metadata_shortcuts(
    measures: dict[str, np.ndarray], labels: np.ndarray, classes: list[str]
) -> tuple[list[Shortcut], float]:
    """Finds classes that size, format or compression alone recognise.

    Returns:
        The strong ones, the strongest of each class, by falling score; and the largest score of any class.
    """
    best: dict[int, Shortcut] = {}
    largest = 0.0
    for source, codes in metadata_sources(measures).items():
        if not len(codes) or codes.min() == codes.max():
            continue
        scores, f1, chance, hits = class_scores(
            by_majority(codes, labels, len(classes)), labels, len(classes)
        )
        scores = np.where(hits >= LEAST_HITS, scores, 0)
        largest = max(largest, float(scores.max()))
        for index in np.flatnonzero(scores >= STRONG).tolist():
            if index not in best or scores[index] > best[index].score:
                best[index] = Shortcut(
                    source,
                    classes[index],
                    round(float(scores[index]), 4),
                    round(float(f1[index]), 4),
                    round(float(chance[index]), 4),
                    typical(source, measures, labels == index),
                )
    return sorted(best.values(), key=lambda found: (-found.score, found.class_name)), round(largest, 4)


def typical(source: str, measures: dict[str, np.ndarray], of_class: np.ndarray) -> str:
    """Says what most images of a class have, and the others have not."""
    match source:
        case "file format":
            shown = [FORMATS[int(index)] for index in measures["format"]]
        case "JPEG quality":
            shown = [f"a quantisation of {value:.0f}" for value in measures["quantisation"]]
        case "aspect ratio":
            shown = [f"{w / h:.2f}:1" for h, w in zip(measures["height"], measures["width"], strict=True)]
        case _:
            shown = [f"{h} × {w} pixels" for h, w in zip(measures["height"], measures["width"], strict=True)]
    names, codes = np.unique(np.array(shown), return_inverse=True)
    inside, outside = (np.bincount(codes[mask], minlength=len(names)) for mask in (of_class, ~of_class))
    share, other = inside / max(of_class.sum(), 1), outside / max((~of_class).sum(), 1)
    most = int(np.argmax(share - other))
    return f"{share[most]:.0%} of the class are {names[most]}, {other[most]:.0%} of the other images"
