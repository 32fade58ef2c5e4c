"""A version of a model: where it comes from, and the checks before it may answer."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from visionpipe.artifact.classifier import Classifier, read_json
from visionpipe.artifact.digest import ARTIFACT_FILES, artifact_sha256
from visionpipe.errors import ArtifactError

RECORD = "version.json"  # beside an artifact that was packed for a container
QUICK = 0.005  # seconds of a prediction beside which decoding counts, so that waiting actively costs more than it gains
KNOWN_FILES = {*ARTIFACT_FILES, "parity.json", RECORD}


@dataclass(frozen=True)
class Version:
    """`folder` holds the artifact; `tags` and `metrics` are what the registry and the run say about it."""

    name: str
    number: str
    folder: Path
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str | None]:
        """What makes it another one: a store that was made anew numbers from 1 again."""
        return self.number, self.tags.get("artifact_sha256")


def version_in(folder: Path) -> Version:
    """The version in a folder: an artifact (`artifacts/NAME`), an MLflow model around one, or a container's.

    Without a record of its own its number is the start of the artifact's sha256.
    """
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is neither a folder nor an address like models:/visionpipe@champion")
    if not (folder / "model.onnx").is_file():
        inner = sorted((folder / "artifacts").glob("*/model.onnx"))
        folder = inner[0].parent if inner else folder
    sha256 = artifact_sha256(folder)
    if (folder / RECORD).exists():
        match read_json(folder / RECORD):
            case {"name": str(name), "number": str(number), "tags": dict(tags), "metrics": dict(metrics)}:
                return Version(name, number, folder, tags, metrics)
        raise ArtifactError(f"{folder / RECORD} is not a version's record: pack the model again")
    return Version(folder.resolve().name, sha256[:12], folder, {"artifact_sha256": sha256})


def write_record(version: Version, path: Path) -> None:
    content = {name: getattr(version, name) for name in ("name", "number", "tags", "metrics")}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def not_registered(name: str, number: str) -> str:
    """What is wrong with a version that people made in the MLflow UI, and what to do."""
    return (
        f"version {number} of {name} was not made by visionpipe register, which verifies what it registers: delete it "
        f"in the MLflow UI, or take its aliases away, and run visionpipe register"
    )


def load(version: Version, threads: int = 0) -> Classifier:
    """Loads a version after comparing its bytes with its recorded digest; raises ArtifactError.

    An artifact is ONNX and JSON. Anything else in its folder is refused, above all a pickle, which nothing
    here would read but somebody else might.
    """
    if not version.tags.get("artifact_sha256"):
        raise ArtifactError(not_registered(version.name, version.number))
    if not version.folder.is_dir():
        raise ArtifactError(
            f"version {version.number} of {version.name} has no files: {version.folder} is gone; run "
            f"visionpipe register where its model lies"
        )
    strangers = sorted({path.name for path in version.folder.iterdir()} - KNOWN_FILES)
    if strangers:
        raise ArtifactError(f"{version.folder} holds {strangers[0]}, which does not belong to an artifact")
    expected, found = version.tags["artifact_sha256"], artifact_sha256(version.folder)
    if expected != found:
        raise ArtifactError(
            f"version {version.number} of {version.name} is damaged: its files have sha256 {found[:12]}…, "
            f"{expected[:12]}… was registered"
        )
    classifier = Classifier(version.folder, threads or None, spinning="within")
    height, width = classifier.size
    noise = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    try:
        finite = np.isfinite(classifier.logits(noise)).all()
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
        raise ArtifactError(
            f"version {version.number} of {version.name} does not run: {' '.join(str(error).split())}"
        ) from error
    if not finite:
        raise ArtifactError(f"version {version.number} of {version.name} answers with NaN or infinite values")
    start = time.perf_counter()
    classifier.logits(noise)
    if time.perf_counter() - start < QUICK and threads != 1:
        return Classifier(version.folder, threads or None, spinning="never")
    return classifier
