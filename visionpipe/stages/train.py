"""Stage `train`: one entry of `models:` from prepared images to `model.keras`."""

import csv
import io
import json
import math
import statistics
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpipe.artifact.canonical import check_parameters, save_keras
from visionpipe.artifact.speed import peak_memory_mib
from visionpipe.data.prepared import PREPARED, Prepared, open_prepared
from visionpipe.files import exclusive, sha256_file, sha256_json, write_bytes, write_json
from visionpipe.models import model_from_spec
from visionpipe.models.names import layer_names
from visionpipe.models.variants import shown
from visionpipe.project.backend import backend_versions, device_name, start_backend, thread_count
from visionpipe.project.lineage import Pixels, lineage_id, train_key, training_params, written_pixels
from visionpipe.project.lock import stage_code
from visionpipe.project.params import ModelConfig, Params
from visionpipe.project.paths import model_folder, state_folder
from visionpipe.tracking.runs import LiveRun, flatten
from visionpipe.tracking.trained import download_trained
from visionpipe.training.memory import memory_errors_named
from visionpipe.training.plan import plan_lines
from visionpipe.training.recipe import TrainConfig
from visionpipe.weights import Checkpoint, Preprocessing, load_weights, resolve

if TYPE_CHECKING:
    from visionpipe.training.teacher import Teacher

History = list[dict[str, float]]
HISTORY_COLUMNS = ("epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate")


def train(name: str, params: Params) -> None:
    """Writes `models/NAME/`: model.keras, history.csv, lineage.json; logs one MLflow run.

    An interrupted training of the same key goes on from its last checkpoint.
    """
    recipe, spec = params.train_config(name), params.model_spec(name)
    start_backend(params)
    import keras

    from visionpipe.training.checkpoint import Checkpoint as TrainingCheckpoint
    from visionpipe.training.fit import fit

    data = open_prepared(PREPARED)
    images = len(data.labels("train"))
    params.plan(name, images)
    identity = training_identity(name, params, data.manifest["content_sha256"])
    key, state = train_key(identity), state_folder()
    with exclusive(
        state / "locks" / key, f"{name}: another process trains this configuration; waiting for it"
    ):
        print(introduction(name, params, images, key), flush=True)
        print(*plan_lines(recipe, images, layer_names(spec)), sep="\n", flush=True)
        print_changes(name, identity)
        start = initial_weights(name, params)
        entry, seen = params.model(name), (start and start.preprocessing) or Preprocessing()
        pixels = normalisation(entry, seen, data.manifest)
        build = partial(model_from_spec, spec, len(data.classes), params.prepare.size, **pixels)
        keras.config.set_dtype_policy("mixed_bfloat16" if recipe.precision == "bfloat16" else "float32")
        with memory_errors_named(recipe):
            model = build()
            check_parameters(model.count_params())
            teacher = make_teacher(recipe, data, identity)
        if start:
            report = load_weights(
                model, start, head=entry.init_head, grid=entry.init_grid, permitted=written_pixels(entry)
            )
            print(report, *preprocessing_lines(entry, seen, data), sep="\n", flush=True)
        write_json(last_identity(name), identity)
        checkpoint = TrainingCheckpoint(state / "checkpoints" / key)
        with LiveRun(params.tracking, name, key, identity) as run:
            history = fit(model, data, recipe, params.seed, checkpoint, run.log_epoch, teacher)
        if recipe.precision != "float32":
            keras.config.set_dtype_policy("float32")
            trained, model = model, build()
            model.set_weights(trained.get_weights())

        folder = model_folder(name)
        save_keras(model, folder / "model.keras")
        write_bytes(folder / "history.csv", history_csv(history))
        model_sha256 = sha256_file(folder / "model.keras")
        lineage = {
            "name": name,
            "train_key": key,
            "lineage_id": lineage_id(key, model_sha256),
            "model_sha256": model_sha256,
            "classes": list(data.classes),
            "parameters_count": sum(math.prod(weight.shape) for weight in model.trainable_variables),
            **identity,
        }
        write_json(folder / "lineage.json", lineage)
        measurement = state / "measurements" / f"train-{model_sha256}.json"
        if not measurement.exists():  # a forced repetition on a busy machine is no better measurement
            write_json(measurement, measured(history))
        run.finish(folder)
        checkpoint.remove()


def introduction(name: str, params: Params, images: int, key: str) -> str:
    recipe = params.train_config(name)
    budget = f"{recipe.budget}, {params.plan(name, images).epoch_steps:,} steps an epoch"
    if recipe.minutes:
        budget += " (how many that are depends on the machine: not reproducible)"
    return (
        f"{name}: {params.model(name).variant} on {params.backend}, {device_name()}, {thread_count(params)} threads, "
        f"{recipe.precision}, {images:,} images, {budget}, {recipe.optimizer}, key {key[:6]}"
    )


def print_changes(name: str, identity: dict[str, Any]) -> None:
    """Says what is not as it was in the last training of this name; nothing where there was none."""
    file = last_identity(name)
    before, now = (
        (flatten(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}),
        flatten(identity),
    )
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "nothing"), now.get(key, "nothing")
        if before and json.dumps(old) != json.dumps(new):
            hashes = key.startswith("code.") or key.endswith("sha256")
            print(f"  changed: {key}" + ("" if hashes else f", {old} → {new}"), flush=True)


def last_identity(name: str) -> Path:
    return state_folder() / "identities" / f"{name}.json"


def make_teacher(recipe: TrainConfig, data: Prepared, identity: dict[str, Any]) -> "Teacher | None":
    """The recipe's teacher. Where images are trained on as they are, its answers are computed beforehand, once for
    everything that their last bits depend on.
    """
    from visionpipe.training.teacher import Teacher, load_teacher, teacher_logits

    if recipe.distill is None:
        return None
    model = load_teacher(teacher_file(recipe.distill.teacher), data)
    if recipe.augmentation:
        return Teacher(model=model)
    own = {name: identity["params"][name] for name in ("backend", "threads")}
    own |= {name: identity[name] for name in ("teacher_sha256", "data_sha256", "code", "versions")}
    cache = state_folder() / "teachers" / f"{sha256_json(own)}.npy"
    return Teacher(logits=teacher_logits(model, data.images("train"), cache))


def teacher_file(teacher: str) -> Path:
    """An entry of `models:`, or models:/NAME@ALIAS."""
    return (
        download_trained(teacher) if teacher.startswith("models:/") else model_folder(teacher) / "model.keras"
    )


def initial_weights(name: str, params: Params) -> Checkpoint | None:
    """What `init` names, on this disk."""
    source, sha256 = params.model(name).init, params.model(name).init_sha256
    if source is None:
        return None
    file = model_folder(source) / "model.keras" if source in params.models else source
    return resolve(file, sha256=sha256)


def normalisation(model: ModelConfig, seen: Preprocessing, manifest: dict[str, Any]) -> Pixels:
    """As params.yaml has it, else as the weights to start from were trained, else of the training images."""
    std = tuple(max(deviation, 1.0) for deviation in manifest["channel_std"])  # a constant channel has 0
    images = {"pixel_mean": tuple(manifest["channel_mean"]), "pixel_std": std}
    theirs = {"pixel_mean": seen.mean, "pixel_std": seen.std}
    return images | {key: value for key, value in theirs.items() if value} | written_pixels(model)


def preprocessing_lines(model: ModelConfig, seen: Preprocessing, data: Prepared) -> Iterator[str]:
    """Where the normalisation is from, and in what the prepared images differ from the checkpoint's."""
    theirs = {"pixel_mean": seen.mean, "pixel_std": seen.std}
    for key, value in normalisation(model, seen, data.manifest).items():
        written = key in written_pixels(model)
        whose = "params.yaml" if written else "the checkpoint" if theirs[key] else "the training images"
        yield f"  {key}: {shown(value)}, of {whose}"
    for key, ours in data.framing.items():
        wanted = getattr(seen, key)
        if wanted is not None and wanted != ours:
            yield f"  prepare.{key}: {shown(ours)}, the checkpoint's images had {shown(wanted)}"


def training_identity(name: str, params: Params, data_sha256: str) -> dict[str, Any]:
    """Everything that the weights depend on."""
    distill, start = params.train_config(name).distill, initial_weights(name, params)
    return {
        "data_sha256": data_sha256,
        **(
            {
                "init_sha256": start.sha256,
                "init_preprocessing": asdict(start.preprocessing or Preprocessing()),
            }
            if start
            else {}
        ),
        **({"teacher_sha256": sha256_file(teacher_file(distill.teacher))} if distill else {}),
        "code": stage_code("train"),
        "params": training_params(name, params),
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
