"""Judges the models by the gate. The result is the receipt of the stage `register`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from visionpipe.artifact.digest import artifact_sha256
from visionpipe.errors import RegistryError
from visionpipe.project.params import GateConfig, Params
from visionpipe.project.paths import artifact_folder, model_folder, report_folder
from visionpipe.tracking.tags import read_output

RECEIPT = Path("registration.json")


def read_receipt() -> dict[str, Any] | None:
    """Reads the receipt; returns None if no `register` has run yet. Raises RegistryError for a damaged file."""
    try:
        receipt = json.loads(RECEIPT.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        receipt = None
    match receipt:
        case {"passed": bool(passed), "chosen": None | str() as chosen, "models": dict(models)} if (
            chosen in models
        ) == passed and all(map(is_judgement, models.values())):
            return dict(receipt)
    raise RegistryError(f"{RECEIPT} is damaged: run visionpipe register")


def is_judgement(model: Any) -> bool:
    """Whether the value has the form of a model's entry in the receipt."""
    match model:
        case {"artifact_sha256": str(), "failures": [*failures]}:
            return all(isinstance(failure, str) for failure in failures)
    return False


def judge(params: Params) -> dict[str, Any]:
    """Makes the receipt: which models pass the gate, and which of them has the best validation accuracy."""
    models = {}
    for name in params.models:
        validation = read_output(report_folder(name) / "metrics.json")["validation"]
        lineage = read_output(model_folder(name) / "lineage.json")
        failures = gate_failures(params.register.gate, validation)
        models[name] = {
            "lineage_id": lineage["lineage_id"],
            "artifact_sha256": artifact_sha256(artifact_folder(name)),
            "validation_accuracy": validation["accuracy"],
            "passed": not failures,
            "failures": failures,
        }
    passing = [name for name, model in models.items() if model["passed"]]
    chosen = max(passing, key=lambda name: models[name]["validation_accuracy"], default=None)
    return {"passed": chosen is not None, "chosen": chosen, "models": models}


def gate_failures(gate: GateConfig, validation: dict[str, Any]) -> list[str]:
    """Returns one sentence for each limit of the gate that the validation metrics miss."""
    return [
        f"validation {metric} {validation[metric]:.4f} is below {least:g}"
        for metric, least in dataclasses.asdict(gate).items()
        if validation[metric] < least
    ]
