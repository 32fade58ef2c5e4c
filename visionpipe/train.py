"""Stage `train`: one entry of `models:` from prepared images to `model.keras`."""

import csv
import dataclasses
import io
import math
import statistics
from pathlib import Path
from typing import Any

from visionpipe.backend import backend_versions, device_name, start_backend, thread_count
from visionpipe.canonical import save_keras
from visionpipe.config import Params
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.evaluation.speed import peak_memory_mib
from visionpipe.files import exclusive, write_bytes, write_json
from visionpipe.lineage import lineage_id, sha256_file, stage_code, state_folder, train_key
from visionpipe.models import model_from_spec
from visionpipe.tracking.runs import LiveRun

History = list[dict[str, float]]
HISTORY_COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


def train(name: str, params: Params) -> None:
    """Writes `models/NAME/`: model.keras, history.csv, lineage.json; logs one MLflow run.

    An interrupted training of the same key goes on from its last checkpoint.
    """
    recipe, spec = params.train_config(name), params.model_spec(name)
    start_backend(params)
    from visionpipe.training.checkpoint import Checkpoint
    from visionpipe.training.fit import fit

    data = open_prepared(PREPARED)
    identity = training_identity(name, params, data.manifest["content_sha256"])
    key, state = train_key(identity), state_folder()
    with exclusive(
        state / "locks" / key, f"{name}: another process trains this configuration; waiting for it"
    ):
        print(
            f"{name}: {params.model(name).variant} on {params.backend}, {device_name()}, "
            f"{thread_count(params)} threads, {len(data.labels('train')):,} images, {recipe.epochs} epochs, "
            f"key {key[:6]}",
            flush=True,
        )
        model = model_from_spec(
            spec,
            len(data.classes),
            params.prepare.size,
            data.manifest["channel_mean"],
            data.manifest["channel_std"],
        )
        checkpoint = Checkpoint(state / "checkpoints" / key)
        run = LiveRun(params.tracking, name, key, identity)
        history = fit(model, data, recipe, params.seed, checkpoint, run.log_epoch)

        folder = Path("models") / name
        save_keras(model, folder / "model.keras")
        write_bytes(folder / "history.csv", history_csv(history))
        model_sha256 = sha256_file(folder / "model.keras")
        lineage = {
            "name": name,
            "train_key": key,
            "lineage_id": lineage_id(key, model_sha256),
            "model_sha256": model_sha256,
            "parameters_count": sum(math.prod(weight.shape) for weight in model.trainable_variables),
            **identity,
        }
        write_json(folder / "lineage.json", lineage)
        measurement = state / "measurements" / f"train-{model_sha256}.json"
        if not measurement.exists():  # a forced repetition on a busy machine is no better measurement
            write_json(measurement, measured(history))
        run.finish(folder)
        checkpoint.remove()


def training_identity(name: str, params: Params, data_sha256: str) -> dict[str, Any]:
    """Everything that the weights depend on."""
    return {
        "data_sha256": data_sha256,
        "code": stage_code("train"),
        "params": {
            "backend": params.backend,
            "seed": params.seed,
            "threads": thread_count(params),
            "model": {
                "variant": params.model(name).variant,
                "family": params.model_spec(name).family,
                **dataclasses.asdict(params.model_spec(name)),
            },
            "train": dataclasses.asdict(params.train_config(name)),
            "prepare": dataclasses.asdict(params.prepare),
        },
        "versions": backend_versions(params),
    }


def history_csv(history: History) -> bytes:
    """One line per epoch of what is the same in every run: speed is not."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def measured(history: History) -> dict[str, Any]:
    """Time and speed over all epochs, those before an interruption too; the first one compiles."""
    speeds = [row["images_per_second"] for row in history[1:] or history]
    return {
        "minutes": sum(row["seconds"] for row in history) / 60,
        "images_per_second": statistics.median(speeds),
        "peak_memory_mib": peak_memory_mib(),
        "device": device_name(),
    }
