"""Identifies an exported model by the content of its files."""

from pathlib import Path

from visionpipe.errors import ArtifactError
from visionpipe.files import sha256_file, sha256_json

ARTIFACT_FILES = ("model.onnx", "labels.json", "preprocessing.json")


def artifact_sha256(folder: Path) -> str:
    """Hashes an exported model: its graph with weights, labels and preprocessing. Raises ArtifactError."""
    missing = [name for name in ARTIFACT_FILES if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder} has no {', '.join(missing)}: run dvc repro")
    return sha256_json({name: sha256_file(folder / name) for name in ARTIFACT_FILES})
