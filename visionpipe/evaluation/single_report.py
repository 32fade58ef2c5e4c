"""Writes the report about a model that answers with one label: metrics, predictions and pictures."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.data.prepared import Prepared
from visionpipe.escape import csv_line, script_data, visible
from visionpipe.evaluation import metrics, pictures
from visionpipe.evaluation.metrics import Answers
from visionpipe.files import replacing_file, write_json

MOST_COLUMNS = 100  # classes; with more of them, predictions.csv has the five most probable only
NEXT = [column for place in ("second", "third", "fourth", "fifth") for column in (place, f"p({place})")]


@dataclass(frozen=True)
class Evaluated:
    """The answers for a split, and for at most MOST_COLUMNS classes all probabilities, float64 (n, classes)."""

    answers: Answers
    labels: np.ndarray
    table: np.ndarray | None

    @property
    def right(self) -> np.ndarray:
        """Whether each answer is right, bool (n,)."""
        return self.answers.predicted == self.labels

    @property
    def classes(self) -> np.ndarray:
        """The class of each image, int (n,), for the balanced accuracy of slices."""
        return self.labels

    def score(self, rows: np.ndarray) -> float:
        """Computes the accuracy of some of the images, bool (n,)."""
        return float(self.right[rows].mean())

    def metrics(self, classes: list[str], bins: int) -> dict[str, Any]:
        """Computes the headline metrics, as values for JSON."""
        return metrics.classification_metrics(self.answers, self.labels, classes, bins)


def evaluated(parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> Evaluated:
    """Collects what the report needs of the probabilities and labels of batches of images."""
    answers, labels, tables = [], [], []
    for probabilities, of_batch in parts:
        answers.append(metrics.answers(probabilities, of_batch))
        labels.append(of_batch)
        if probabilities.shape[1] <= MOST_COLUMNS:
            tables.append(probabilities)
    table = np.concatenate(tables) if tables else None
    return Evaluated(metrics.joined(answers), np.concatenate(labels), table)


def write_predictions(path: Path, prepared: Prepared, results: dict[str, Evaluated]) -> None:
    """Writes one line per image of both splits: its label, the predicted class, and probabilities.

    With more than MOST_COLUMNS classes the line has the probabilities of the label and of the five most probable. The
    metadata come last.
    """
    classes = prepared.classes
    few = len(classes) <= MOST_COLUMNS
    columns = [f"p({name})" for name in classes] if few else ["p(label)", *NEXT]
    columns = ["split", "file", "label", "predicted", "confidence", *columns]
    further = prepared.manifest.get("columns", [])
    further_names = [f"metadata {name}" if name in columns else name for name in further]
    with replacing_file(path) as file:
        file.write(csv_line([*columns, *further_names]))
        for split, result in results.items():
            of_split, table = result.answers, result.table
            files, labels = prepared.files(split), result.labels
            metadata = prepared.metadata(split)
            for row, (name, label) in enumerate(zip(files, labels, strict=True)):
                ranking = zip(of_split.best[row], of_split.shares[row], strict=True)
                (best, confidence), *others = [(classes[index], f"{share:.6f}") for index, share in ranking]
                numbers = [of_split.likelihood[row]] if table is None else table[row]
                rest = [cell for other in others for cell in other] if table is None else []
                line = [split, name, classes[label], best, confidence, *(f"{p:.6f}" for p in numbers), *rest]
                file.write(csv_line([*line, *(metadata[name][row] for name in further)]))


def write_test_report(report: Path, prepared: Prepared, result: Evaluated, bins: int, most: int) -> None:
    """Writes confusion.csv (which DVC plots), per_class.json and the pictures of the test split."""
    classes, images = prepared.classes, prepared.images("test")
    answers, labels = result.answers, result.labels
    confusion = metrics.pairs(labels, answers.predicted)
    shown = set(metrics.most_confused(confusion, len(classes), pictures.MOST_SHOWN).tolist())
    with replacing_file(report / "confusion.csv") as file:
        file.write(csv_line(["actual", "predicted"]))
        for actual, predicted in zip(labels.tolist(), answers.predicted.tolist(), strict=True):
            if actual in shown:
                said = classes[predicted] if predicted in shown else pictures.OTHERS
                file.write(csv_line([script_data(classes[actual]), script_data(said)]))
    table = metrics.per_class(confusion, classes)
    write_json(report / "per_class.json", table)

    reliability = metrics.calibration(answers, labels, bins)
    pictures.save(pictures.confusion(confusion, classes), report / "confusion.png")
    pictures.save(pictures.per_class(table), report / "per_class.png")
    pictures.save(pictures.calibration(reliability), report / "calibration.png")
    pictures.save(pictures.mistakes(images, labels, answers, classes, most), report / "mistakes.png")


def summary(test: dict[str, Any]) -> str:
    """Says how good the model is on the test images."""
    interval = f"{test['accuracy_low']:.4f}–{test['accuracy_high']:.4f}"
    return (
        f"test accuracy {test['accuracy']:.4f} ({interval}), macro F1 {test['macro_f1']:.4f}, "
        f"worst recall {test['worst_recall']:.4f} ({visible(test['worst_class'])})"
    )
