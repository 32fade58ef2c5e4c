"""Judges the models by the gate. The result is the receipt of the stage `register`."""

import json
from pathlib import Path
from typing import Any

from visionpipe.artifact.digest import artifact_sha256
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.errors import RegistryError
from visionpipe.project.params import Params
from visionpipe.project.paths import artifact_folder, model_folder, report_folder
from visionpipe.project.sections import GateConfig
from visionpipe.tasks import TASKS, Task
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
    """Makes the receipt: which models pass the gate, and which of them has the best validation score."""
    models = {}
    data = open_prepared(PREPARED, verify=False)
    task = TASKS[data.task]
    blind = task.blind_score(data.labels("validation"))
    for name in params.models:
        metrics = read_output(report_folder(name) / "metrics.json")
        validation = metrics["validation"]
        lineage = read_output(model_folder(name) / "lineage.json")
        failures = gate_failures(task, params.register.gate, validation, blind)
        failures += data_failures(params.register.gate, metrics)
        models[name] = {
            "lineage_id": lineage["lineage_id"],
            "artifact_sha256": artifact_sha256(artifact_folder(name)),
            f"validation_{task.score}": validation[task.score],
            "passed": not failures,
            "failures": failures,
        }
    passing = [name for name, model in models.items() if model["passed"]]
    chosen = max(passing, key=lambda name: models[name][f"validation_{task.score}"], default=None)
    return {"passed": chosen is not None, "chosen": chosen, "models": models}


def gate_failures(task: type[Task], gate: GateConfig, validation: dict[str, Any], blind: float) -> list[str]:
    """Returns one sentence for each limit that the validation metrics miss.

    `blind`: the score of a model that sees nothing. A metric that no label defines misses every limit.
    """
    values = {metric: validation[metric] or 0.0 for metric in {*task.limits, task.score}}
    failures = [
        f"validation {metric} {values[metric]:.4f} is below {getattr(gate, metric):g}"
        for metric in task.limits
        if values[metric] < getattr(gate, metric)
    ]
    key, words = task.over
    over, score = getattr(gate, key), values[task.score]
    if over and score < blind + over - 1e-9:  # of 0.1 + 0.25, say, which is no exact sum
        failures.append(
            f"validation {task.score} {score:.4f} is below {blind + over:.4f}, the {words} {blind:.4f} plus {key} "
            f"{over:g}"
        )
    return failures


def data_failures(gate: GateConfig, metrics: dict[str, Any]) -> list[str]:
    """Returns one sentence for each limit on the data that the metrics of a report exceed."""
    failures = []
    for split in ("validation", "test"):
        if gate.max_leak is not None:
            of_split = metrics[split]
            if "leaking_images" not in of_split:
                return ["the data were prepared without a search for copies: run dvc repro --force prepare"]
            share = of_split["leaking_images"] / max(of_split["images"], 1)
            if share > gate.max_leak:
                failures.append(
                    f"{of_split['leaking_images']:,} of {of_split['images']:,} {split} images have a copy in an "
                    f"earlier split, more than max_leak {gate.max_leak:g}"
                )
    if gate.max_shortcut is not None:
        shortcut = metrics["validation"].get("shortcut")
        if shortcut is None:
            return ["the data were prepared without a search for shortcuts: run dvc repro --force prepare"]
        if shortcut > gate.max_shortcut:
            failures.append(
                f"the files alone give a class away with a score of {shortcut:.4f}, more than max_shortcut "
                f"{gate.max_shortcut:g}"
            )
    return failures
