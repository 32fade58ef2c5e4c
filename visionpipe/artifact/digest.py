"""Identifies an exported model by the content of its files."""

from pathlib import Path

from visionpipe.errors import ArtifactError
from visionpipe.files import sha256_file, sha256_json

ARTIFACT_FILES = ("model.onnx", "labels.json", "preprocessing.json")
WITH_PREPROCESSING = "model-with-preprocessing.onnx"  # where export.include_preprocessing is true


def artifact_sha256(folder: Path) -> str:
    """Hashes an exported model: its graphs with weights, labels and preprocessing. Raises ArtifactError."""
    return sha256_json({name: sha256_file(folder / name) for name in artifact_files(folder)})


def artifact_files(folder: Path) -> list[str]:
    """Returns the names of the files that make an exported model. Raises ArtifactError if one is missing."""
    missing = [name for name in ARTIFACT_FILES if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder} has no {', '.join(missing)}: run dvc repro")
    return [*ARTIFACT_FILES, *[WITH_PREPROCESSING] * (folder / WITH_PREPROCESSING).is_file()]
