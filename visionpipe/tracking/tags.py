"""Collects what a registered version records about itself: tags, precision and speed."""

import json
from pathlib import Path
from typing import Any

from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.quantization import decision_path
from visionpipe.artifact.speed import measurement_path
from visionpipe.data.prepared import PREPARED, open_prepared, split_sizes
from visionpipe.errors import RegistryError
from visionpipe.project.backend import thread_count
from visionpipe.project.lineage import code_sha256
from visionpipe.project.params import Params
from visionpipe.project.paths import artifact_folder, model_folder, report_folder, state_folder
from visionpipe.tasks import TASKS
from visionpipe.tracking.commits import Damaged, commit_that_makes, locked


def version_tags(name: str) -> dict[str, str]:
    """Returns the tags of a new version of model `name`: what made it, and how good it is."""
    lineage = read_output(model_folder(name) / "lineage.json")
    metrics = read_output(report_folder(name) / "metrics.json")
    prepared = open_prepared(PREPARED, verify=False)
    task = TASKS[prepared.task]
    return {
        "artifact_sha256": artifact_sha256(artifact_folder(name)),
        "precision": precision(name)["precision"],
        "lineage_id": lineage["lineage_id"],
        "train_key": lineage["train_key"],
        "model_sha256": lineage["model_sha256"],
        "data": Path(lineage["params"]["prepare"]["path"]).name,
        "data_sha256": lineage["data_sha256"],
        "training_images": str(split_sizes(prepared.manifest)["train"]),
        "code_sha256": code_sha256(lineage),
        "model": name,
        "backend": lineage["params"]["backend"],
        "task": task.name,
        f"validation_{task.score}": repr(metrics["validation"][task.score]),
        f"test_{task.score}": repr(metrics["test"][task.score]),
        "dvc_lock": json.dumps(locked_outputs(name)),
    } | commit_that_makes(name, lineage).tags()


def precision(name: str) -> dict[str, Any]:
    """Returns the precision, fp32 or int8, with the numbers that decided it.

    These are the accuracies of both, if int8 was requested, and the speeds, if they were measured on this machine.
    """
    artifact = artifact_folder(name)
    parity = read_output(artifact / "parity.json") if (artifact / "parity.json").exists() else {}
    accuracies = {f"accuracy_{kind}": value for kind, value in parity.get("validation_accuracy", {}).items()}
    file = decision_path(artifact_sha256(artifact), state_folder())
    measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {"precision": parity.get("precision", "fp32")} | accuracies | (measured if accuracies else {})


def measured_speed(name: str, params: Params) -> dict[str, float]:
    """Returns the speed that `evaluate` measured on this machine; empty if it did not run on this machine."""
    file = measurement_path(artifact_sha256(artifact_folder(name)), thread_count(params), state_folder())
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def locked_outputs(name: str) -> dict[str, str]:
    """Reads path → md5 of the outputs of the stages that made this model from dvc.lock. `dvc checkout` needs them."""
    lock = Path("dvc.lock")
    content = lock.read_bytes() if lock.exists() else b""
    wanted = ("prepare", f"train@{name}", f"export@{name}", f"evaluate@{name}")
    try:
        return {
            path: md5
            for stage in wanted
            for path, md5 in locked(content, stage, "outs").items()
            if md5 is not None
        }
    except Damaged:
        raise RegistryError(
            "dvc.lock is damaged, perhaps by conflict markers: resolve the merge, then run dvc repro"
        ) from None


def read_output(path: Path) -> dict[str, Any]:
    """Reads a JSON file that an earlier stage wrote; raises RegistryError if it does not exist."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RegistryError(f"{path} does not exist: run dvc repro") from None
