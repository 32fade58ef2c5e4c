"""Stage `evaluate`: measures the exported model on the validation and test images, and writes reports/NAME/."""

from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.artifact.classifier import BATCH, Classifier
from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.speed import measure
from visionpipe.data.duplicates import copies_between
from visionpipe.data.groups import group_column
from visionpipe.data.prepared import PREPARED, Prepared, open_prepared
from visionpipe.errors import ArtifactError
from visionpipe.escape import csv_line, script_data, visible
from visionpipe.evaluation import metrics, pictures
from visionpipe.evaluation.metrics import Answers
from visionpipe.evaluation.slices import slices, worst_slice
from visionpipe.files import replacing_file, write_json
from visionpipe.project.backend import thread_count
from visionpipe.project.params import Params
from visionpipe.project.paths import artifact_folder, report_folder, state_folder

SPLITS = ("validation", "test")
MOST_COLUMNS = 100  # classes; with more of them, predictions.csv has the five most probable only
NEXT = [column for place in ("second", "third", "fourth", "fifth") for column in (place, f"p({place})")]


def evaluate(name: str, params: Params) -> None:
    """Evaluates `artifacts/NAME`, and writes metrics, predictions and pictures to `reports/NAME`.

    The files are the same in every run. So measured speeds are only printed.

    Raises:
        ArtifactError: the artifact is damaged, does not belong to the prepared data, or answers with NaN.
    """
    artifact, report = artifact_folder(name), report_folder(name)
    threads = thread_count(params)
    prepared = open_prepared(PREPARED)
    classifier = Classifier(artifact, threads)
    check_agreement(artifact, classifier, prepared)
    labels = {split: prepared.labels(split) for split in SPLITS}
    answers, tables = {}, {}
    for split in SPLITS:
        answers[split], tables[split] = predict(artifact, classifier, prepared.images(split), labels[split])

    write_predictions(report / "predictions.csv", prepared, answers, tables)
    bins = params.evaluate.calibration_bins
    headline = {
        split: metrics.classification_metrics(answers[split], labels[split], prepared.classes, bins)
        for split in SPLITS
    }
    for split in SPLITS:
        headline[split] |= data_metrics(prepared, split, answers[split].predicted == labels[split])
    write_json(report / "metrics.json", headline)
    metadata = prepared.metadata("test")
    groups = group_column(list(metadata), params.prepare.group)
    of_slices = slices(answers["test"].predicted == labels["test"], labels["test"], metadata, groups)
    write_json(report / "slices.json", of_slices)
    write_test_report(report, prepared, answers["test"], of_slices, params)

    speed = measure(artifact, artifact_sha256(artifact), threads, state_folder())
    print(summary(name, headline["test"], of_slices, speed))


def check_agreement(artifact: Path, classifier: Classifier, prepared: Prepared) -> None:
    if classifier.labels != prepared.classes:
        raise ArtifactError(
            f"{artifact} has other classes than {PREPARED}: train and export it again with dvc repro"
        )
    expected, received = (one.framing | one.decoding for one in (classifier, prepared))
    if expected != received:
        different = [key for key in expected if expected[key] != received[key]]
        theirs, ours = (
            ", ".join(f"{key} {options[key]}" for key in different) for options in (expected, received)
        )
        raise ArtifactError(
            f"{artifact} expects images of {theirs}, {PREPARED} has {ours}: train and export it again with dvc repro"
        )


def predict(
    artifact: Path, classifier: Classifier, images: np.ndarray, labels: np.ndarray
) -> tuple[Answers, np.ndarray | None]:
    """Returns the answers and, for at most MOST_COLUMNS classes, all probabilities: float64 (n, classes).

    Raises:
        ArtifactError: a probability is NaN or infinite.
    """
    parts, tables = [], []
    for start in range(0, len(images), BATCH):
        probabilities = classifier.probabilities(images[start : start + BATCH])
        if not np.isfinite(probabilities).all():
            raise ArtifactError(
                f"{artifact} answers with NaN or infinite values, because its training diverged: lower "
                f"train.learning_rate, or set train.clip_norm: 1.0"
            )
        parts.append(metrics.answers(probabilities, labels[start : start + BATCH]))
        if len(classifier.labels) <= MOST_COLUMNS:
            tables.append(probabilities)
    return metrics.joined(parts), np.concatenate(tables) if tables else None


def data_metrics(prepared: Prepared, split: str, right: np.ndarray) -> dict[str, Any]:
    """Returns what the data make of a split's accuracy: copies of images of earlier splits, and shortcuts.

    Empty for data that an older version has prepared.

    Args:
        right: whether each answer is right, bool (n,).
    """
    earlier = prepared.splits[: prepared.splits.index(split)]
    measures = {name: prepared.measures(name) for name in (*earlier, split)}
    copies = {name: values["copies"] for name, values in measures.items() if values is not None}
    if len(copies) < len(measures):
        return {}
    leaking = copies_between(copies, split, earlier)
    rest = right[~leaking]
    return {
        "leaking_images": int(leaking.sum()),
        "accuracy_without_leaking": float(rest.mean()) if len(rest) else 0.0,
        "shortcut": prepared.manifest["findings"]["shortcuts"]["largest"],
    }


def write_predictions(
    path: Path, prepared: Prepared, answers: dict[str, Answers], tables: dict[str, np.ndarray | None]
) -> None:
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
        for split, of_split in answers.items():
            files, labels, table = prepared.files(split), prepared.labels(split), tables[split]
            metadata = prepared.metadata(split)
            for row, (name, label) in enumerate(zip(files, labels, strict=True)):
                ranking = zip(of_split.best[row], of_split.shares[row], strict=True)
                (best, confidence), *others = [(classes[index], f"{share:.6f}") for index, share in ranking]
                numbers = [of_split.likelihood[row]] if table is None else table[row]
                rest = [cell for other in others for cell in other] if table is None else []
                line = [split, name, classes[label], best, confidence, *(f"{p:.6f}" for p in numbers), *rest]
                file.write(csv_line([*line, *(metadata[name][row] for name in further)]))


def write_test_report(
    report: Path, prepared: Prepared, answers: Answers, of_slices: list[dict[str, Any]], params: Params
) -> None:
    """Writes confusion.csv (which DVC plots), per_class.json and the pictures of the test split."""
    classes, labels, images = prepared.classes, prepared.labels("test"), prepared.images("test")
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

    bins = metrics.calibration(answers, labels, params.evaluate.calibration_bins)
    most = params.evaluate.worst_mistakes
    pictures.save(pictures.confusion(confusion, classes), report / "confusion.png")
    pictures.save(pictures.per_class(table), report / "per_class.png")
    pictures.save(pictures.calibration(bins), report / "calibration.png")
    pictures.save(pictures.mistakes(images, labels, answers, classes, most), report / "mistakes.png")
    accuracy = float((answers.predicted == labels).mean())
    pictures.save(pictures.slices(of_slices, accuracy), report / "slices.png")


def summary(name: str, test: dict[str, Any], of_slices: list[dict[str, Any]], speed: dict[str, float]) -> str:
    interval = f"{test['accuracy_low']:.4f}–{test['accuracy_high']:.4f}"
    leaking = test.get("leaking_images", 0)
    without = (
        f"\n{name}: without the {leaking:,} test images that have copies in train or validation, test accuracy "
        f"{test['accuracy_without_leaking']:.4f}"
        if leaking
        else ""
    )
    worst = worst_slice(of_slices, test["accuracy"])
    lowest = (
        f"\n{name}: test accuracy {worst['accuracy']:.4f} ({worst['accuracy_low']:.4f}–{worst['accuracy_high']:.4f}) "
        f"of the {worst['images']:,} images with {visible(worst['column'])} {visible(worst['value']) or 'missing'}, "
        f"see {report_folder(name) / 'slices.png'}"
        if worst
        else ""
    )
    return (
        f"{name}: test accuracy {test['accuracy']:.4f} ({interval}), macro F1 {test['macro_f1']:.4f}, "
        f"worst recall {test['worst_recall']:.4f} ({visible(test['worst_class'])}), "
        f"{speed['latency_p50_ms']:.2f} ms per image, {speed['images_per_second']:,.0f} images/s"
        + without
        + lowest
    )
