"""Stage `register`: completes every model's run, and registers the best one that passes the gate."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from visionpipe.backend import thread_count
from visionpipe.config import GateConfig, Params
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.errors import DataError, RegistryError
from visionpipe.evaluation.comparison import comparison, read_rows
from visionpipe.evaluation.speed import measurement_path
from visionpipe.files import write_bytes, write_json
from visionpipe.lineage import artifact_sha256, sha256_json, state_folder
from visionpipe.quantization import decision_path
from visionpipe.serving.classifier import Classifier
from visionpipe.tracking.card import model_card
from visionpipe.tracking.commits import Damaged, commit_that_makes, locked
from visionpipe.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    move_aliases,
    other_data,
    publish,
    version_by_alias,
)
from visionpipe.tracking.runs import complete, record, record_precision
from visionpipe.tracking.store import Store, alone, connect, tracking_uri
from visionpipe.tracking.verification import GOLDEN_IMAGES, Golden, golden_answers, made_of

RECEIPT = Path("registration.json")
COMPARISON = Path("comparison.md")


def register(params: Params) -> None:
    """Writes the receipt and `comparison.md`; everything else it makes lives in the tracking store.

    Run again, or interrupted and run again, it makes nothing twice; after a deleted store it makes
    everything anew from the files.
    """
    receipt = judge(params)
    store = connect(params.tracking)
    with alone(store.uri, "register", "waiting for another process to register"):
        runs = {}
        for name in params.models:
            runs[name] = record(store, Path("models") / name)
            complete(store, runs[name], Path("reports") / name, measured_speed(name, params))
            record_precision(store, runs[name], precision(name))
        chosen = receipt["chosen"]
        if chosen is not None:
            tags = version_tags(chosen)
            version = publish(
                store,
                runs[chosen],
                chosen,
                Path("artifacts") / chosen,
                model_card(chosen, params, precision(chosen)),
                golden(chosen),
                tags,
            )
            name_commit(store, version, tags)
            moved = move_aliases(store, version)
            print(f"registered: {params.tracking.model} version {version.version} is {chosen}")
            print(alias_summary(store, moved))
    write_json(RECEIPT, receipt)
    compare(params)
    if chosen is None:
        print("\n" + "!" * 100)
        for name, model in receipt["models"].items():
            print(f"!! {name} does not pass the gate: {'; '.join(model['failures'])}")
        print("!! NOTHING WAS REGISTERED, and no alias was moved. The gate is register.gate in params.yaml.")
        print("!" * 100)
    print(f"tracking store: {tracking_uri()}")


def name_commit(store: Store, version: Any, tags: dict[str, str]) -> None:
    """Notes the commit that makes the model on a version that was registered before there was one."""
    if "git_note" in version.tags and "git_note" not in tags:
        for name in ("git_commit", "git_dirty"):
            store.client.set_model_version_tag(store.model_name, version.version, name, tags[name])
        store.client.delete_model_version_tag(store.model_name, version.version, "git_note")


def alias_summary(store: Store, moved: list[str]) -> str:
    """Who serves and who might, and what to do where the two come from different data."""
    champion, challenger = version_by_alias(store, CHAMPION), version_by_alias(store, CHALLENGER)
    line = ", ".join(
        f"{alias} is version {version.version} ({made_of(version)}){' now' if alias in moved else ''}"
        for alias, version in ((CHAMPION, champion), (CHALLENGER, challenger))
        if version is not None
    )
    if champion and challenger and other_data(champion, challenger):
        line += (
            f"\nthe champion was trained on other data: visionpipe promote --new-data lets version "
            f"{challenger.version} serve"
        )
    return line


def compare(params: Params) -> None:
    """Prints the models side by side, and writes the same table to comparison.md."""
    if not any((Path("reports") / name / "metrics.json").exists() for name in params.models):
        raise RegistryError("nothing has been evaluated here yet: run dvc repro, or dvc pull")
    receipt = read_receipt()
    chosen = receipt["chosen"] if receipt else None
    table = comparison(read_rows(params.models, thread_count(params), state_folder()), chosen)
    write_bytes(COMPARISON, table.encode())
    print(f"\n{table}")


def read_receipt() -> dict[str, Any] | None:
    """What the last `register` here wrote; None before the first one. Raises RegistryError for a damaged file."""
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
    """Whether this is what `judge` says of one model."""
    match model:
        case {"artifact_sha256": str(), "failures": [*failures]}:
            return all(isinstance(failure, str) for failure in failures)
    return False


def judge(params: Params) -> dict[str, Any]:
    """The receipt: which models pass the gate, and the best of them, by validation accuracy alone."""
    models = {}
    for name in params.models:
        validation = read_output(Path("reports") / name / "metrics.json")["validation"]
        lineage = read_output(Path("models") / name / "lineage.json")
        failures = gate_failures(params.register.gate, validation)
        models[name] = {
            "lineage_id": lineage["lineage_id"],
            "artifact_sha256": artifact_sha256(Path("artifacts") / name),
            "validation_accuracy": validation["accuracy"],
            "passed": not failures,
            "failures": failures,
        }
    passing = [name for name, model in models.items() if model["passed"]]
    chosen = max(passing, key=lambda name: models[name]["validation_accuracy"], default=None)
    return {"passed": chosen is not None, "chosen": chosen, "models": models}


def read_output(path: Path) -> dict[str, Any]:
    """What an earlier stage wrote as JSON."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RegistryError(f"there is no {path}: run dvc repro") from None


def gate_failures(gate: GateConfig, validation: dict[str, Any]) -> list[str]:
    """One sentence for each limit that the validation metrics miss."""
    return [
        f"validation {metric} {validation[metric]:.4f} is below {least:g}"
        for metric, least in dataclasses.asdict(gate).items()
        if validation[metric] < least
    ]


def measured_speed(name: str, params: Params) -> dict[str, float]:
    """What `evaluate` measured of this artifact on this machine; empty where it did not run here."""
    file = measurement_path(artifact_sha256(Path("artifacts") / name), thread_count(params), state_folder())
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}


def precision(name: str) -> dict[str, Any]:
    """fp32 or int8, the accuracies with both where both were made, and the speeds where that was here."""
    artifact = Path("artifacts") / name
    parity = read_output(artifact / "parity.json") if (artifact / "parity.json").exists() else {}
    accuracies = {f"accuracy_{kind}": value for kind, value in parity.get("validation_accuracy", {}).items()}
    file = decision_path(artifact_sha256(artifact), state_folder())
    measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {"precision": parity.get("precision", "fp32")} | accuracies | (measured if accuracies else {})


def golden(name: str) -> Golden:
    """The exported model's answers to a few validation images."""
    images = open_prepared(PREPARED, verify=False).images("validation")[:GOLDEN_IMAGES]
    if not len(images):
        raise DataError("the validation split is empty")
    return golden_answers(Classifier(Path("artifacts") / name), images)


def version_tags(name: str) -> dict[str, str]:
    """What a person asks of a version later: what made it, and how good it is."""
    lineage = read_output(Path("models") / name / "lineage.json")
    metrics = read_output(Path("reports") / name / "metrics.json")
    prepared = open_prepared(PREPARED, verify=False)
    return {
        "artifact_sha256": artifact_sha256(Path("artifacts") / name),
        "precision": precision(name)["precision"],
        "lineage_id": lineage["lineage_id"],
        "train_key": lineage["train_key"],
        "model_sha256": lineage["model_sha256"],
        "data": Path(lineage["params"]["prepare"]["path"]).name,
        "data_sha256": lineage["data_sha256"],
        "training_images": str(sum(prepared.manifest["counts"]["train"].values())),
        "code_sha256": sha256_json(lineage["code"]),
        "model": name,
        "backend": lineage["params"]["backend"],
        "validation_accuracy": repr(metrics["validation"]["accuracy"]),
        "test_accuracy": repr(metrics["test"]["accuracy"]),
        "dvc_lock": json.dumps(locked_outputs(name)),
    } | commit_that_makes(name, lineage).tags()


def locked_outputs(name: str) -> dict[str, str]:
    """md5 of each output that led to this model, as dvc.lock has them: what `dvc checkout` needs."""
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
            "dvc.lock is damaged, as with the marks of a merge in it: take one side of the merge, then run dvc repro"
        ) from None
