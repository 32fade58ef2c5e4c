"""Describes versions of a model, and checks and loads a version for serving."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visionpipe.artifact.classifier import Classifier, read_json
from visionpipe.artifact.digest import ARTIFACT_FILES, WITH_PREPROCESSING, artifact_sha256
from visionpipe.errors import ArtifactError

RECORD = "version.json"  # describes the version beside an artifact that was packed for a container
QUICK = 0.005  # seconds of a prediction; threads of faster models must not spin: decoding needs the cores
KNOWN_FILES = {*ARTIFACT_FILES, WITH_PREPROCESSING, "parity.json", RECORD}


@dataclass(frozen=True)
class Version:
    """A version: its artifact in `folder`, its tags in the registry, and the metrics of its run."""

    name: str
    number: str
    folder: Path
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str | None]:
        """Returns what identifies the version. The number alone does not: a recreated store counts from 1 again."""
        return self.number, self.tags.get("artifact_sha256")


def version_in(folder: Path) -> Version:
    """Describes the version in a folder: an artifact (`artifacts/NAME`), an MLflow model, or a container's artifact.

    Only a container's artifact has a record of name and number. For others the number is the start of the artifact's
    sha256. Raises ArtifactError if the folder holds no artifact.
    """
    if not folder.is_dir():
        raise ArtifactError(
            f"{folder} is neither a folder nor an address such as models:/visionpipe@champion"
        )
    if not (folder / "model.onnx").is_file():
        inner = sorted((folder / "artifacts").glob("*/model.onnx"))
        folder = inner[0].parent if inner else folder
    sha256 = artifact_sha256(folder)
    if (folder / RECORD).exists():
        match read_json(folder / RECORD):
            case {"name": str(name), "number": str(number), "tags": dict(tags), "metrics": dict(metrics)}:
                return Version(name, number, folder, tags, metrics)
        raise ArtifactError(f"{folder / RECORD} is damaged: run visionpipe container again")
    return Version(folder.resolve().name, sha256[:12], folder, {"artifact_sha256": sha256})


def write_record(version: Version, path: Path) -> None:
    """Writes the record of a version that is packed for a container."""
    content = {name: getattr(version, name) for name in ("name", "number", "tags", "metrics")}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def not_registered(name: str, number: str) -> str:
    """Returns the error message for a version that was made without visionpipe, for example in the MLflow UI."""
    return (
        f"version {number} of {name} was not made by visionpipe register, so it was never verified: delete it or "
        f"remove its aliases in the MLflow UI, then run visionpipe register"
    )


def load(version: Version, threads: int = 0) -> Classifier:
    """Loads a version for serving after comparing its files with the registered digest; raises ArtifactError.

    An artifact consists of ONNX and JSON files. A folder with any other file is refused: a pickle, for example, would
    not be read here, but might be read elsewhere.

    threads: number of threads of one prediction; 0 means the number of physical cores.
    """
    if not version.tags.get("artifact_sha256"):
        raise ArtifactError(not_registered(version.name, version.number))
    if not version.folder.is_dir():
        raise ArtifactError(
            f"version {version.number} of {version.name} has no files, {version.folder} is missing: run visionpipe "
            f"register in the project that holds its model"
        )
    unknown = sorted({path.name for path in version.folder.iterdir()} - KNOWN_FILES)
    if unknown:
        raise ArtifactError(
            f"{version.folder} holds {unknown[0]}, which is not part of an artifact: remove it"
        )
    expected, actual = version.tags["artifact_sha256"], artifact_sha256(version.folder)
    if expected != actual:
        raise ArtifactError(
            f"version {version.number} of {version.name} is damaged: its files have sha256 {actual[:12]}…, but "
            f"{expected[:12]}… was registered; run visionpipe register in the project that holds its model"
        )
    classifier = Classifier(version.folder, threads or None, spinning="within")
    noise = classifier.noise(1)
    try:
        finite = np.isfinite(classifier.logits(noise)).all()
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise ArtifactError(
            f"version {version.number} of {version.name} does not run: {' '.join(str(error).split())}"
        ) from error
    if not finite:
        raise ArtifactError(f"version {version.number} of {version.name} predicts NaN or infinite values")
    start = time.perf_counter()
    classifier.logits(noise)
    if time.perf_counter() - start < QUICK and threads != 1:
        return Classifier(version.folder, threads or None, spinning="never")
    return classifier
