"""What made a model: hashes and keys. Two equal keys mean the same data, code, parameters and versions."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from visionpipe.errors import ArtifactError, ConfigError

ARTIFACT_FILES = ("model.onnx", "labels.json", "preprocessing.json")


def dvc_root() -> Path:
    """The repository's root. In `dvc exp run --temp` that is the main repository, not the throw-away copy."""
    if os.environ.get("DVC_ROOT"):
        return Path(os.environ["DVC_ROOT"])
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / ".dvc").is_dir()), here)


def state_folder() -> Path:
    """`.visionpipe`: checkpoints, locks and measurements, which DVC and git do not see."""
    return dvc_root() / ".visionpipe"


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Hash of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def stage_code(stage: str, dvc_yaml: Path = Path("dvc.yaml")) -> dict[str, str]:
    """sha256 of every source file among the stage's `deps` in dvc.yaml: the one list of what it uses."""
    definition = yaml.safe_load(dvc_yaml.read_text(encoding="utf-8"))["stages"].get(stage)
    if definition is None:
        raise ConfigError(f"{dvc_yaml} has no stage {stage}")
    deps = [Path(dep) for dep in definition.get("do", definition)["deps"] if dep.startswith("visionpipe/")]
    return {file.as_posix(): sha256_file(file) for file in sorted(python_files(deps))}


def python_files(paths: Iterable[Path]) -> set[Path]:
    return {file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])}


def artifact_sha256(folder: Path) -> str:
    """Identity of an exported model: its graph with weights, its labels, its preprocessing."""
    missing = [name for name in ARTIFACT_FILES if not (folder / name).is_file()]
    if missing:
        raise ArtifactError(f"{folder} has no {', '.join(missing)}: run dvc repro")
    return sha256_json({name: sha256_file(folder / name) for name in ARTIFACT_FILES})


def train_key(identity: dict[str, Any]) -> str:
    """Known before training: names the checkpoint folder and finds an interrupted run."""
    return sha256_json(identity)


def lineage_id(key: str, model_sha256: str) -> str:
    """Known after training: ties run, model file and registered version together."""
    return sha256_json({"train_key": key, "model_sha256": model_sha256})
