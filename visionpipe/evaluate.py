"""Stage `evaluate`: the exported model's answers on the validation and test images → reports/NAME/."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.backend import thread_count
from visionpipe.config import Params
from visionpipe.data.prepared import PREPARED, Prepared, open_prepared
from visionpipe.errors import ArtifactError
from visionpipe.evaluation import metrics, pictures
from visionpipe.evaluation.speed import measure
from visionpipe.files import replacing, write_json
from visionpipe.lineage import artifact_sha256, state_folder
from visionpipe.serving.classifier import Classifier

SPLITS = ("validation", "test")


def evaluate(name: str, params: Params) -> None:
    """Judges `artifacts/NAME` as it ships. What it writes is the same in every run, so no speeds are in it.

    Raises ArtifactError when the artifact is damaged or does not belong to the prepared data.
    """
    artifact, report = Path("artifacts") / name, Path("reports") / name
    threads = thread_count(params)
    prepared = open_prepared(PREPARED)
    classifier = Classifier(artifact, threads)
    check_agreement(artifact, classifier, prepared)
    probabilities = {split: predict(artifact, classifier, prepared.images(split)) for split in SPLITS}

    report.mkdir(parents=True, exist_ok=True)
    write_predictions(report / "predictions.csv", prepared, probabilities)
    bins = params.evaluate.calibration_bins
    headline = {
        split: metrics.classification_metrics(
            probabilities[split], prepared.labels(split), prepared.classes, bins
        )
        for split in SPLITS
    }
    write_json(report / "metrics.json", headline)
    write_test_report(report, prepared, probabilities["test"], params)

    speed = measure(artifact, artifact_sha256(artifact), threads, state_folder())
    print(summary(name, headline["test"], speed))


def check_agreement(artifact: Path, classifier: Classifier, prepared: Prepared) -> None:
    if classifier.labels != prepared.classes:
        raise ArtifactError(f"{artifact} was exported for other classes than {PREPARED} has: export it again")
    if classifier.framing != prepared.framing:
        theirs, ours = (
            ", ".join(f"{key} {value}" for key, value in framing.items())
            for framing in (classifier.framing, prepared.framing)
        )
        raise ArtifactError(f"{artifact} expects images of {theirs}, {PREPARED} has {ours}: export it again")


def predict(artifact: Path, classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """float64 (n, classes); refuses a model whose answers are not numbers, as after a diverged training."""
    probabilities = classifier.probabilities(images)
    if not np.isfinite(probabilities).all():
        raise ArtifactError(f"{artifact} answers with NaN or infinite values: its training has diverged")
    return probabilities


@contextmanager
def written(path: Path) -> Iterator[Any]:
    """A writer of CSV rows whose file replaces `path`: what lies there may be a link into DVC's cache."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, "utf-8", newline="")
        yield csv.writer(text, lineterminator="\n")
        text.detach()  # flushed, and not closed


def write_predictions(path: Path, prepared: Prepared, probabilities: dict[str, np.ndarray]) -> None:
    """One line per image of both splits: what it is, what the model said, and how sure it was."""
    classes = prepared.classes
    with written(path) as writer:
        writer.writerow(["split", "file", "label", "predicted", "confidence", *(f"p({c})" for c in classes)])
        for split, table in probabilities.items():
            for name, label, row in zip(prepared.files(split), prepared.labels(split), table, strict=True):
                answer = [classes[label], classes[row.argmax()], f"{row.max():.6f}"]
                writer.writerow([split, name, *answer, *(f"{p:.6f}" for p in row)])


def write_test_report(report: Path, prepared: Prepared, probabilities: np.ndarray, params: Params) -> None:
    """What DVC plots (confusion.csv), the table by class, and the pictures: all of the test split."""
    classes, labels, images = prepared.classes, prepared.labels("test"), prepared.images("test")
    predicted = probabilities.argmax(axis=1)
    with written(report / "confusion.csv") as writer:
        writer.writerow(["actual", "predicted"])
        writer.writerows((classes[a], classes[p]) for a, p in zip(labels, predicted, strict=True))
    confusion = metrics.confusion_matrix(labels, predicted, len(classes))
    table = metrics.per_class(confusion, classes)
    write_json(report / "per_class.json", table)

    bins = metrics.calibration(probabilities, labels, params.evaluate.calibration_bins)
    most = params.evaluate.worst_mistakes
    pictures.save(pictures.confusion(confusion, classes), report / "confusion.png")
    pictures.save(pictures.per_class(table), report / "per_class.png")
    pictures.save(pictures.calibration(bins), report / "calibration.png")
    pictures.save(pictures.mistakes(images, labels, probabilities, classes, most), report / "mistakes.png")


def summary(name: str, test: dict[str, Any], speed: dict[str, float]) -> str:
    interval = f"{test['accuracy_low']:.4f}–{test['accuracy_high']:.4f}"
    return (
        f"{name}: test accuracy {test['accuracy']:.4f} ({interval}), macro F1 {test['macro_f1']:.4f}, "
        f"worst recall {test['worst_recall']:.4f} ({test['worst_class']}), "
        f"{speed['latency_p50_ms']:.2f} ms per image, {speed['images_per_second']:,.0f} images/s"
    )
