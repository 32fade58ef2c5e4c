"""Finds shortcuts: how well a class is recognised by what should say nothing about it.

A score is the F1 of one class, out of fold, on a scale from 0 for what the class's share alone gives to 1 for always
right. A score over all classes would not see a shortcut of one class.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from visionpipe.data.labels import UNKNOWN
from visionpipe.data.measures import FORMATS, jpeg_quality
from visionpipe.data.spreadsheet import number_of

STRONG = 0.4  # of what knows nothing of the picture: its size, its format, its compression
CORNER, AHEAD = 0.4, 0.2  # of one corner, and how far it is ahead of the corner on its other side
BORDER, COLOUR = 0.6, 0.75  # of what may well belong to a class
DEPTH, LEAST_LEAF = 6, 5  # of a decision tree
CORNERS = ("top left corner", "top right corner", "bottom left corner", "bottom right corner")
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


def rounded(
    source: str, class_name: str, score: float, f1: float, chance: float, detail: str = ""
) -> Shortcut:
    """Returns a shortcut with its numbers rounded to four digits."""
    return Shortcut(
        source, class_name, round(float(score), 4), round(float(f1), 4), round(float(chance), 4), detail
    )


def class_scores(predicted: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, ...]:
    """Computes (score, F1, F1 by chance, hits) of each class; see the head of this module."""
    actual, said = np.bincount(labels, minlength=classes), np.bincount(predicted, minlength=classes)
    hits = np.bincount(labels[labels == predicted], minlength=classes)
    f1 = 2 * hits / np.maximum(actual + said, 1)
    share = actual / max(len(labels), 1)
    chance = 2 * share / (1 + share)
    score = np.clip((f1 - chance) / np.maximum(1 - chance, 1e-9), 0, 1)
    return score, f1, chance, hits


def questions(
    labels: np.ndarray, classes: list[str]
) -> Iterator[tuple[np.ndarray | slice, np.ndarray, list[str]]]:
    """Yields what a shortcut may answer: the images, their classes as numbers, and the names of these.

    Where images may have several labels, int8 (n, classes), each label that some have and some lack is a question of
    its own to the images of which it is known: class 1 has the label, and class 0, without a name, does not.
    """
    if labels.ndim == 1:
        yield slice(None), labels, classes
        return
    for column, name in enumerate(classes):
        known = np.flatnonzero(labels[:, column] != UNKNOWN)
        if len(np.unique(labels[known, column])) == 2:
            yield known, labels[known, column].astype(np.int64), ["", name]


def named(shortcuts: list[Shortcut]) -> list[Shortcut]:
    """Leaves out the classes without a name, and puts the strongest shortcut first."""
    return sorted(
        (found for found in shortcuts if found.class_name),
        key=lambda found: (-found.score, found.class_name),
    )


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
        scores = np.where((hits >= LEAST_HITS) & (np.array(classes, object) != ""), scores, 0)
        largest = max(largest, float(scores.max()))
        for index in np.flatnonzero(scores >= STRONG).tolist():
            if index not in best or scores[index] > best[index].score:
                numbers = scores[index], f1[index], chance[index]
                detail = typical(source, measures, labels == index)
                best[index] = rounded(source, classes[index], *numbers, detail)
    return sorted(best.values(), key=lambda found: (-found.score, found.class_name)), round(largest, 4)


def by_tree(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Predicts each image's class by a decision tree on `values`, (n, numbers), fitted to the other half, (n,)."""
    from sklearn.tree import DecisionTreeClassifier

    half = halves(labels)
    predicted = np.zeros(len(labels), np.int64)
    for fold in (0, 1):
        if (half == fold).any() and (half != fold).any():
            tree = DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=LEAST_LEAF, random_state=0)
            tree.fit(values[half != fold], labels[half != fold])
            predicted[half == fold] = tree.predict(values[half == fold])
    return predicted


def picture_shortcuts(
    measures: dict[str, np.ndarray], labels: np.ndarray, classes: list[str]
) -> list[Shortcut]:
    """Finds classes that one corner, the border or the mean colour recognise."""
    count = len(classes)
    colours = measures["colour"].reshape(len(labels), -1, 3).mean(axis=1)
    sources = {name: (measures["corners"][:, index], CORNER) for index, name in enumerate(CORNERS)}
    sources |= {
        "border": (measures["border"], BORDER),
        "mean colour": (colours, COLOUR),
    }
    results = {
        name: class_scores(by_tree(values.astype(np.float32), labels), labels, count)
        for name, (values, _) in sources.items()
    }
    best: dict[int, Shortcut] = {}
    for name, (_, least) in sources.items():
        scores, f1, chance, hits = results[name]
        strong = (scores >= least) & (hits >= LEAST_HITS)
        if name in CORNERS:
            opposite = CORNERS[CORNERS.index(name) ^ 1]
            strong &= scores >= results[opposite][0] + AHEAD
        for index in np.flatnonzero(strong).tolist():
            weaker = index in best and best[index].score < scores[index]
            if index not in best or (weaker and (best[index].source in CORNERS) == (name in CORNERS)):
                numbers = scores[index], f1[index], chance[index]
                detail = typical_colour(sources[name][0], labels == index)
                best[index] = rounded(name, classes[index], *numbers, detail)
    return sorted(best.values(), key=lambda found: (-found.score, found.class_name))


def name_shortcuts(files: list[str], labels: np.ndarray, classes: list[str]) -> list[Shortcut]:
    """Finds classes that the letters before the first digit of the file names recognise.

    Beginnings that have a word in common with a class name say what the picture shows, and are no finding.
    """
    stems = [file.rsplit("/", 1)[-1].rsplit(".", 1)[0].casefold() for file in files]
    starts = np.array([re.split(r"\d", stem, maxsplit=1)[0].strip(" _-()[]") for stem in stems])
    words = {word for name in classes for word in re.split(r"\W+|_", name.casefold()) if len(word) > 1}
    names, codes = np.unique(starts, return_inverse=True)
    if not 1 < len(names) <= max(MOST_VALUES, len(classes)):
        return []
    scores, f1, chance, hits = class_scores(by_majority(codes, labels, len(classes)), labels, len(classes))
    found = []
    for index in np.flatnonzero((scores >= STRONG) & (hits >= LEAST_HITS)).tolist():
        of_class = np.bincount(codes[labels == index], minlength=len(names))
        start = str(names[int(of_class.argmax())])
        if not words & set(re.split(r"\W+|_", start)) and not any(word in start for word in words):
            detail = f"{of_class.max() / of_class.sum():.0%} of its names begin with {start!r}"
            numbers = scores[index], f1[index], chance[index]
            found.append(rounded("file name", classes[index], *numbers, detail))
    return sorted(found, key=lambda item: (-item.score, item.class_name))


def column_shortcuts(
    metadata: dict[str, list[str]], labels: np.ndarray, classes: list[str]
) -> list[Shortcut]:
    """Finds classes that a column of the metadata recognises: of each class the column that does it best.

    Values of fewer than LEAST_HITS images are taken as one, because an image or a patient has one class by nature.

    Args:
        metadata: column → the value of each image; "" is a missing one.
    """
    best: dict[int, Shortcut] = {}
    for column, values in metadata.items():
        names, codes = np.unique(np.array(in_parts(values), object).astype(str), return_inverse=True)
        rare = np.bincount(codes, minlength=len(names)) < LEAST_HITS
        codes = np.where(rare[codes], len(names), codes)
        names = np.array([*map(repr, names.tolist()), "a rare value"])
        if len(np.unique(codes)) < 2:
            continue
        scores, f1, chance, hits = class_scores(
            by_majority(codes, labels, len(classes)), labels, len(classes)
        )
        for index in np.flatnonzero((scores >= STRONG) & (hits >= LEAST_HITS)).tolist():
            if index not in best or scores[index] > best[index].score:
                numbers = scores[index], f1[index], chance[index]
                detail = most_typical(names, codes, labels == index)
                best[index] = rounded(f"column {column!r}", classes[index], *numbers, detail)
    return sorted(best.values(), key=lambda found: (-found.score, found.class_name))


def in_parts(values: list[str]) -> list[str]:
    """Returns the values of a column, or the bounds of their parts if they are numbers of more than MOST_VALUES."""
    numbers = {text: number_of(text) for text in set(values) - {""}}
    if len(numbers) <= MOST_VALUES or None in numbers.values():
        return [text or "no value" for text in values]
    texts = sorted(numbers, key=lambda text: (numbers[text], text))
    part_of = dict(zip(texts, binned(np.array([numbers[text] for text in texts])).tolist(), strict=True))
    parts: dict[int, list[str]] = {}
    for text in texts:
        parts.setdefault(part_of[text], []).append(text)
    return [
        f"{parts[part_of[text]][0]} to {parts[part_of[text]][-1]}" if text else "no value" for text in values
    ]


def typical(source: str, measures: dict[str, np.ndarray], of_class: np.ndarray) -> str:
    """Says what most images of a class have, and the others have not."""
    match source:
        case "file format":
            shown = [f"{FORMATS[int(index)]} files" for index in measures["format"]]
        case "JPEG quality":
            qualities = jpeg_quality(measures["quantisation"]).tolist()
            shown = [f"JPEG files of quality {value}" if value else "no JPEG files" for value in qualities]
        case "aspect ratio":
            shown = [f"{w / h:.2f}:1" for h, w in zip(measures["height"], measures["width"], strict=True)]
        case _:
            shown = [f"{h} × {w} pixels" for h, w in zip(measures["height"], measures["width"], strict=True)]
    return most_typical(*np.unique(np.array(shown), return_inverse=True), of_class)


def most_typical(names: np.ndarray, codes: np.ndarray, of_class: np.ndarray) -> str:
    """Says which of `names` is much more frequent in a class than in the other images; `codes`: the name of each."""
    inside, outside = (np.bincount(codes[mask], minlength=len(names)) for mask in (of_class, ~of_class))
    share, other = inside / max(of_class.sum(), 1), outside / max((~of_class).sum(), 1)
    most = int(np.argmax(share - other))
    return f"{share[most]:.0%} of the class are {names[most]}, {other[most]:.0%} of the other images"


def typical_colour(colours: np.ndarray, of_class: np.ndarray) -> str:
    """Says which colour, of RGB (n, 3) in [0, 255], most images of a class have, and which the others have."""
    inside, outside = (
        np.rint(np.median(colours[mask], axis=0)).astype(int) for mask in (of_class, ~of_class)
    )
    return (
        f"its median is RGB {shown_colour(inside)} in the class, {shown_colour(outside)} in the other images"
    )


def shown_colour(colour: np.ndarray) -> str:
    return "({}, {}, {})".format(*colour.tolist())
