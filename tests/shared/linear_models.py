"""Writes models without training them, in a folder with prepared images and a tracking store."""

import dataclasses
import json
from pathlib import Path

import mlflow
import numpy as np
import yaml
from onnx_models import write_artifact
from repository import CLASSES, NEEDS, Tracked, pattern, tracked

from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.speed import measurement_path
from visionpipe.data.config import PrepareConfig
from visionpipe.data.prepared import PREPARED, SPLITS, write_manifest, write_split
from visionpipe.files import sha256_file, write_json
from visionpipe.project.backend import thread_count
from visionpipe.project.lineage import lineage_id, train_key
from visionpipe.project.params import Params
from visionpipe.project.paths import state_folder
from visionpipe.project.sections import ModelConfig, TrackingConfig
from visionpipe.stages.evaluate import evaluate

SIZE = (8, 8)


def make_params(name: str, models: list[str]) -> Params:
    return Params(
        PrepareConfig(
            source="zip", path="data/tiny.zip", size=SIZE, validation_fraction=0.2, test_fraction=0.2
        ),
        models={model: ModelConfig(variant="ResNet-8", needs=NEEDS) for model in models},
        train={"epochs": 1},
        tracking=TrackingConfig(experiment=name, model=name),
        threads=1,
    )


def state(params: Params) -> Tracked:
    return tracked(Path("mlflow.db"), params.tracking.model, params.tracking.experiment)


def split_data(split: str) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(SPLITS.index(split))
    labels = np.arange({"train": 40, "validation": 60, "test": 80}[split], dtype=np.int32) % len(CLASSES)
    return np.stack([pattern(label, random) for label in labels]), labels


def write_prepared(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split in SPLITS:
        images, labels = split_data(split)
        files = [f"{split}/{index}.png" for index in range(len(images))]
        write_split(folder, split, images, range(len(images)), labels, files)
    statistics = {"channel_mean": [0.0] * 3, "channel_std": [1.0] * 3}
    write_manifest(folder, size=SIZE, classes=list(CLASSES), **statistics, quarantined=[], warnings=[])


def linear_weights(mistaken: int) -> np.ndarray:
    """Makes weights (pixels, classes) that confuse the first `mistaken` classes, and are right for all others."""
    random = np.random.default_rng(0)
    means = np.stack(
        [np.mean([pattern(c, random) for _ in range(50)], axis=0).ravel() for c in range(len(CLASSES))]
    )
    weights = (means - means.mean(axis=0)).T / 1000
    order = np.arange(len(CLASSES))
    order[:mistaken] = np.roll(order[:mistaken], 1)
    return weights[:, order]


def write_model(name: str, params: Params, mistaken: int = 0, epochs: int = 2) -> None:
    """Writes the outputs of train, export and evaluate for a linear model."""
    folder = Path("models") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.keras").write_bytes(f"{name} {mistaken}".encode())
    columns = "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate"
    rows = [f"{epoch},1.0,0.5,1.0,0.5,0.01" for epoch in range(1, epochs + 1)]
    (folder / "history.csv").write_text("\n".join([columns, *rows]) + "\n")
    identity = {
        "data_sha256": json.loads((PREPARED / "manifest.json").read_text())["content_sha256"],
        "code": "c0de",
        "params": {
            "backend": "tensorflow",
            "seed": 0,
            "model": {"family": "linear"},
            "train": {},
            "prepare": {"path": "data/tiny.zip"},
        },
        "versions": {"keras": "3"},
    }
    key, model_sha256 = train_key(identity | {"name": name}), sha256_file(folder / "model.keras")
    write_json(
        folder / "lineage.json",
        {
            "name": name,
            "train_key": key,
            "lineage_id": lineage_id(key, model_sha256),
            "model_sha256": model_sha256,
            "parameters_count": 768,
            **identity,
        },
    )
    artifact = write_artifact(Path("artifacts") / name, list(CLASSES), SIZE, linear_weights(mistaken))
    speed = {"latency_p50_ms": 1.0, "latency_p95_ms": 1.0, "images_per_second": 1.0, "peak_memory_mib": 1.0}
    write_json(measurement_path(artifact_sha256(artifact), thread_count(params), state_folder()), speed)
    evaluate(name, params)


def only(params: Params, *models: str) -> Params:
    return dataclasses.replace(params, models={name: params.models[name] for name in models})


def assert_exactly_once(params: Params, runs: list[str], versions: int) -> None:
    """Checks that the store has one finished run for each of `runs`, no point twice, and `versions` intact versions."""
    store = state(params)
    assert store.finished == sorted(runs)
    assert len(store.runs) == len(runs)
    assert store.doubled() == []
    assert len(store.versions) == versions
    assert set(store.aliases) == ({"challenger", "champion"} if versions else set())
    for version in store.versions:
        assert_verified(version)


def assert_verified(version) -> None:
    """Checks that the files of a version have the digest in its tags."""
    (artifact,) = (downloaded(version) / "artifacts").glob("*/model.onnx")
    assert artifact_sha256(artifact.parent) == version.tags["artifact_sha256"]


def downloaded(version) -> Path:
    """Returns the folder of a version's MLflow model."""
    store = f"sqlite:///{Path('mlflow.db').absolute()}"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(store)  # MLflow resolves the address of a logged model in this store only
    try:
        return Path(mlflow.artifacts.download_artifacts(version.source))
    finally:
        mlflow.set_tracking_uri(before)


def write_params_file(params: Params) -> None:
    content = json.loads(json.dumps(dataclasses.asdict(params)))
    Path("params.yaml").write_text(yaml.safe_dump(content))


def set_alias(store, alias: str, version: str) -> None:
    store.client.set_registered_model_alias(store.model_name, alias, version)
