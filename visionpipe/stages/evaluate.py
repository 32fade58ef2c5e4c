"""Stage `evaluate`: measures the exported model on the validation and test images, and writes reports/NAME/."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.speed import measure
from visionpipe.data.duplicates import copies_between
from visionpipe.data.groups import group_column
from visionpipe.data.prepared import PREPARED, Prepared, open_prepared
from visionpipe.errors import ArtifactError
from visionpipe.escape import visible
from visionpipe.evaluation import pictures
from visionpipe.evaluation.slices import slices, worst_slice
from visionpipe.files import write_json
from visionpipe.project.backend import thread_count
from visionpipe.project.params import Params
from visionpipe.project.paths import artifact_folder, report_folder, state_folder

SPLITS = ("validation", "test")


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
    task, bins = classifier.task, params.evaluate.calibration_bins
    results = {split: task.evaluated(finite_parts(artifact, classifier, prepared, split)) for split in SPLITS}
    writer = task.report()
    writer.write_predictions(report / "predictions.csv", prepared, results)
    headline = {split: result.metrics(prepared.classes, bins) for split, result in results.items()}
    for split, result in results.items():
        headline[split] |= data_metrics(prepared, split, result, task.score)
    write_json(report / "metrics.json", headline)
    test, metadata = results["test"], prepared.metadata("test")
    of_slices = slices(test.right, test.classes, metadata, group_column(list(metadata), params.prepare.group))
    write_json(report / "slices.json", of_slices)
    pictures.save(pictures.slices(of_slices, float(test.right.mean())), report / "slices.png")
    writer.write_test_report(report, prepared, test, bins, params.evaluate.worst_mistakes)

    speed = measure(artifact, artifact_sha256(artifact), threads, state_folder())
    print(
        f"{name}: {writer.summary(headline['test'])}, {speed['latency_p50_ms']:.2f} ms per image, "
        f"{speed['images_per_second']:,.0f} images/s"
    )
    print(*remarks(name, headline["test"], task.score, of_slices, float(test.right.mean())), sep="\n", end="")


def check_agreement(artifact: Path, classifier: Classifier, prepared: Prepared) -> None:
    if (classifier.task.name, classifier.labels) != (prepared.task, prepared.classes):
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


def finite_parts(
    artifact: Path, classifier: Classifier, prepared: Prepared, split: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields probabilities and labels batch by batch; raises ArtifactError if a probability is NaN or infinite."""
    for probabilities, labels in classifier.parts(prepared.images(split), prepared.labels(split)):
        if not np.isfinite(probabilities).all():
            raise ArtifactError(
                f"{artifact} answers with NaN or infinite values, because its training diverged: lower "
                f"train.learning_rate, or set train.clip_norm: 1.0"
            )
        yield probabilities, labels


def data_metrics(prepared: Prepared, split: str, result: Any, score: str) -> dict[str, Any]:
    """Returns what the data make of a split's score: copies of images of earlier splits, and shortcuts.

    Empty for data that an older version has prepared.

    Args:
        result: what the task evaluated.
        score: the name of the task's score.
    """
    earlier = prepared.splits[: prepared.splits.index(split)]
    measures = {name: prepared.measures(name) for name in (*earlier, split)}
    copies = {name: values["copies"] for name, values in measures.items() if values is not None}
    if len(copies) < len(measures):
        return {}
    leaking = copies_between(copies, split, earlier)
    return {
        "leaking_images": int(leaking.sum()),
        f"{score}_without_leaking": 0.0 if leaking.all() else result.score(~leaking),
        "shortcut": prepared.manifest["findings"]["shortcuts"]["largest"],
    }


def remarks(
    name: str, test: dict[str, Any], score: str, of_slices: list[dict[str, Any]], right: float
) -> Iterator[str]:
    """Yields what a reader of the test metrics must know: copies in earlier splits, and a slice that is much worse."""
    leaking, words = test.get("leaking_images", 0), score.replace("_", " ")
    if leaking:
        yield (
            f"{name}: without the {leaking:,} test images that have copies in train or validation, test {words} "
            f"{test[f'{score}_without_leaking']:.4f}\n"
        )
    worst = worst_slice(of_slices, right)
    if worst:
        interval = f"{worst['accuracy_low']:.4f}–{worst['accuracy_high']:.4f}"
        value = f"{visible(worst['column'])} {visible(worst['value']) or 'missing'}"
        yield (
            f"{name}: test accuracy {worst['accuracy']:.4f} ({interval}) of the {worst['images']:,} images with {value}"
            f", see {report_folder(name) / 'slices.png'}\n"
        )
