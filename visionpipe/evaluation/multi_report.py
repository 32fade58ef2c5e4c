"""Writes the report about a model that answers with any number of labels: metrics, predictions and pictures."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.data.labels import NO_LABEL
from visionpipe.data.prepared import Prepared
from visionpipe.escape import csv_line, script_data, visible
from visionpipe.evaluation import multilabel, multilabel_pictures, pictures
from visionpipe.files import replacing_file, write_json

MOST_AT_A_LABEL = 3  # pictures of missing, and of spurious labels


@dataclass(frozen=True)
class Evaluated:
    """Probabilities float32 and labels int8 of a split, both (n, classes), and the thresholds (classes,)."""

    probabilities: np.ndarray
    labels: np.ndarray
    thresholds: np.ndarray

    @property
    def answers(self) -> np.ndarray:
        """The labels that are answered, bool (n, classes)."""
        return multilabel.answered(self.probabilities, self.thresholds)

    @property
    def right(self) -> np.ndarray:
        """Whether all known labels of an image are answered rightly, bool (n,)."""
        return ((self.answers == self.labels) | (self.labels == multilabel.UNKNOWN)).all(axis=1)

    @property
    def classes(self) -> None:
        """No class of each image, so slices have no balanced accuracy."""

    def score(self, rows: np.ndarray) -> float:
        """Computes the mean average precision of some of the images, bool (n,)."""
        return multilabel.mean_average_precision(self.probabilities[rows], self.labels[rows]) or 0.0

    def metrics(self, classes: list[str], bins: int) -> dict[str, Any]:
        """Computes the headline metrics, as values for JSON."""
        return multilabel.multilabel_metrics(self.probabilities, self.labels, classes, self.thresholds, bins)


def evaluated(parts: Iterable[tuple[np.ndarray, np.ndarray]], thresholds: np.ndarray) -> Evaluated:
    """Collects the probabilities and labels of batches of images."""
    probabilities, labels = zip(
        *((table.astype(np.float32), of_batch) for table, of_batch in parts), strict=True
    )
    return Evaluated(np.concatenate(probabilities), np.concatenate(labels), thresholds)


def write_predictions(path: Path, prepared: Prepared, results: dict[str, Evaluated]) -> None:
    """Writes one line per image of both splits, with three columns per label; unknown labels are empty.

    They are the label as it is known, the answer, and its probability. The metadata come last.
    """
    classes = prepared.classes
    columns = ["split", "file"]
    columns += [f"{kind}({name})" for kind in ("label", "answer", "p") for name in classes]
    further = prepared.manifest.get("columns", [])
    with replacing_file(path) as file:
        file.write(
            csv_line([*columns, *(f"metadata {name}" if name in columns else name for name in further)])
        )
        for split, result in results.items():
            metadata, answers = prepared.metadata(split), result.answers.astype(int)
            for row, name in enumerate(prepared.files(split)):
                known = [
                    "" if value == multilabel.UNKNOWN else value for value in result.labels[row].tolist()
                ]
                shares = [f"{p:.6f}" for p in result.probabilities[row]]
                line = [split, name, *known, *answers[row].tolist(), *shares]
                file.write(csv_line([*line, *(metadata[name][row] for name in further)]))


def write_test_report(report: Path, prepared: Prepared, result: Evaluated, bins: int, most: int) -> None:
    """Writes confusion.csv (which DVC plots), per_class.json and the pictures of the test split.

    A line of confusion.csv is a label of an image and a label of the answer.
    """
    classes, shares, labels, thresholds = (
        prepared.classes,
        result.probabilities,
        result.labels,
        result.thresholds,
    )
    table = multilabel.per_label(shares, labels, classes, thresholds, bins)
    write_json(report / "per_class.json", table)
    with replacing_file(report / "confusion.csv") as file:
        file.write(csv_line(["actual", "predicted"]))
        for known, answered in zip(labels == multilabel.PRESENT, result.answers, strict=True):
            for actual, predicted in itertools.product(*(names(row, classes) for row in (known, answered))):
                file.write(csv_line([script_data(actual), script_data(predicted)]))
    images = prepared.images("test")
    drawn = {
        "per_class.png": multilabel_pictures.per_label(table),
        "calibration.png": multilabel_pictures.calibration(shares, labels, classes, bins),
        "confusion.png": multilabel_pictures.cooccurrence(labels, result.answers, classes),
        "mistakes.png": multilabel_pictures.mistakes(
            images, labels, shares, classes, thresholds, min(most, MOST_AT_A_LABEL)
        ),
    }
    for name, figure in drawn.items():
        pictures.save(figure, report / name)


def names(row: np.ndarray, classes: list[str]) -> list[str]:
    """Returns the names of the labels in a row, bool (classes,), or NO_LABEL alone."""
    return [classes[place] for place in np.flatnonzero(row).tolist()] or [NO_LABEL]


def summary(test: dict[str, Any]) -> str:
    """Says how good the model is on the test images."""
    interval = f"{test['mean_average_precision_low']:.4f}–{test['mean_average_precision_high']:.4f}"
    return (
        f"test mean average precision {test['mean_average_precision']:.4f} ({interval}), macro F1 "
        f"{test['f1_macro']:.4f}, worst {test['worst_average_precision']:.4f} ({visible(test['worst_class'])})"
    )
