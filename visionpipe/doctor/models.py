"""Asks a trained model about all prepared images, unless it has memorised their labels."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.digest import artifact_sha256
from visionpipe.data.prepared import Prepared
from visionpipe.doctor.labels import MEMORISED
from visionpipe.errors import ArtifactError
from visionpipe.files import replacing_file, sha256_json
from visionpipe.project.paths import artifact_folder, report_folder
from visionpipe.tasks import TASKS, Task

CHUNK = 256


def best_model(names: Iterable[str], task: type[Task]) -> str | None:
    """Returns the evaluated model with the best validation score of the task; None without one."""
    scores = {}
    for name in names:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            metrics = json.loads((report_folder(name) / "metrics.json").read_bytes())
            scores[name] = float(metrics["validation"][task.score])
    return max(scores, key=scores.__getitem__, default=None)


def model_probabilities(
    data: Prepared, name: str, folder: Path, threads: int | None
) -> tuple[np.ndarray, str]:
    """Returns the probabilities of all images, float32 (n, classes), as a memory map, and a sentence about the model.

    They are kept in `folder`. There are 0 rows if the model cannot be used.
    """
    artifact = artifact_folder(name)
    none = np.zeros((0, len(data.classes)), np.float32)
    try:
        key = sha256_json([artifact_sha256(artifact), data.manifest["content_sha256"]])[:16]
        path = folder / f"probabilities-{key}.npy"
        if not path.exists():
            for old in folder.glob("probabilities-*.npy"):
                old.unlink()
            classifier = Classifier(artifact, threads)
            expected, received = (one.framing | one.decoding for one in (classifier, data))
            of_data = isinstance(classifier.task, TASKS[data.task]) and classifier.labels == data.classes
            if not of_data or expected != received:
                return none, f"The model {name} was not asked: it was made for other classes or images."
            write_probabilities(classifier, data, path)
    except ArtifactError as error:
        return none, f"The model {name} was not asked: {error}."
    table = np.load(path, mmap_mode="r")
    labels = data.labels("train")  # the first split
    steps = range(0, len(labels), CHUNK)
    task = TASKS[data.task]
    score = task.score_of((table[: len(labels)][s : s + CHUNK], labels[s : s + CHUNK]) for s in steps)
    if score > MEMORISED:
        reached = f"{task.score.replace('_', ' ')} {score:.1%} of the training images"
        return none, f"The model {name} has memorised its labels ({reached}): it was not asked."
    return table, f"The predictions of the model {name} are averaged with those of the features."


def write_probabilities(classifier: Classifier, data: Prepared, path: Path) -> None:
    total = sum(len(data.images(split)) for split in data.splits)
    header = {"descr": "<f4", "fortran_order": False, "shape": (total, len(data.classes))}
    with (
        replacing_file(path) as file,
        tqdm(total=total, desc="model", unit=" images", disable=None) as progress,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for split in data.splits:
            images = data.images(split)
            for start in range(0, len(images), CHUNK):
                part = classifier.probabilities(images[start : start + CHUNK])
                file.write(np.nan_to_num(part).astype("<f4").tobytes())
                progress.update(len(part))
