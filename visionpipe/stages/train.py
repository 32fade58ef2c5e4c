"""Stage `train`: trains one entry of `models:` on the prepared images, and writes `model.keras`."""

import csv
import io
import json
import math
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpipe.artifact.canonical import check_parameters, save_keras
from visionpipe.artifact.speed import peak_memory_mib
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.files import exclusive, sha256_file, sha256_json, write_bytes, write_json
from visionpipe.models import model_from_spec
from visionpipe.models.names import LOGITS, TWO_HEADS, layer_names
from visionpipe.project.backend import device_name, start_backend
from visionpipe.project.lineage import lineage_id, written_pixels
from visionpipe.project.params import Params
from visionpipe.project.paths import model_folder, state_folder
from visionpipe.stages.training_plan import TrainingPlan, resolve_training
from visionpipe.tasks import TASKS
from visionpipe.tracking.runs import LiveRun, flatten
from visionpipe.training.memory import memory_errors_named
from visionpipe.training.plan import count, plan_lines
from visionpipe.weights import load_weights

if TYPE_CHECKING:
    import keras

    from visionpipe.training.teacher import Teacher

History = list[dict[str, float]]
MEASURED = ("seconds", "images_per_second")  # columns of a history that differ between runs


def train(name: str, params: Params) -> None:
    """Trains the entry `name`, writes `models/NAME/` (model.keras, history.csv, lineage.json), logs one MLflow run.

    An interrupted training of the same key continues from its last checkpoint.

    Raises:
        ConfigError: there is no such entry, or its recipe does not fit the images.
        TrainingError: the memory is not enough, or the loss or the weights are not finite.
        WeightsError, RegistryError, LockError: the weights to start from, a teacher or code.lock are missing.
        Interrupted: Ctrl-C or SIGTERM.
    """
    params.model(name)  # refuses an unknown name before the backend starts
    start_backend(params)
    import keras

    from visionpipe.training.checkpoint import Checkpoint
    from visionpipe.training.fit import fit

    plan = resolve_training(name, params, open_prepared(PREPARED))
    state, recipe = state_folder(), plan.recipe
    with exclusive(
        state / "locks" / plan.key, f"{name}: waiting for another process that trains this configuration"
    ):
        print(introduction(plan), flush=True)
        print(*plan_lines(recipe, plan.images, layer_names(plan.spec)), sep="\n", flush=True)
        print_changes(name, plan.identity)
        build = partial(model_from_spec, plan.spec, len(plan.data.classes), plan.image_size, **plan.pixels)
        keras.config.set_dtype_policy("mixed_bfloat16" if recipe.precision == "bfloat16" else "float32")
        with memory_errors_named(recipe):
            model = build()
            check_parameters(model.count_params())
            teacher = make_teacher(plan)
        if plan.start:
            load_initial_weights(model, plan)
        if plan.start is None or plan.entry.init_head == "zero":
            begin_with_priors(model, plan)
        write_json(last_identity(name), plan.identity)
        checkpoint = Checkpoint(state / "checkpoints" / plan.key)
        with LiveRun(params.tracking, name, plan.key, plan.identity) as run:
            history = fit(model, plan.data, recipe, params.seed, checkpoint, run.log_epoch, teacher)
        if recipe.precision != "float32":
            keras.config.set_dtype_policy("float32")
            trained, model = model, build()
            model.set_weights(trained.get_weights())
        model_sha256 = write_model(model, history, plan)
        measurement = state / "measurements" / f"train-{model_sha256}.json"
        if not measurement.exists():  # a repetition (dvc repro --force) would not measure better
            write_json(measurement, measured(history))
        run.finish(model_folder(name))
        checkpoint.remove()


def introduction(plan: TrainingPlan) -> str:
    """Returns the line that a training prints first."""
    budget = f"{plan.recipe.budget}, {count(plan.steps.epoch_steps, 'step')} per epoch"
    if plan.recipe.minutes:
        budget += " (not reproducible: the number of steps depends on the machine)"
    return (
        f"{plan.name}: {plan.entry.variant} on {plan.backend}, {device_name()}, {plan.threads} threads, "
        f"{plan.recipe.precision}, {plan.images:,} images, {budget}, {plan.recipe.optimizer}, key {plan.key[:6]}"
    )


def print_changes(name: str, identity: dict[str, Any]) -> None:
    """Prints what has changed since the last training of this name; nothing for the first training."""
    file = last_identity(name)
    before, now = (
        (flatten(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}),
        flatten(identity),
    )
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key, "nothing"), now.get(key, "nothing")
        if before and json.dumps(old) != json.dumps(new):
            is_hash = key == "code" or key.endswith("sha256")
            print(f"  changed: {key}" + ("" if is_hash else f", {old} → {new}"), flush=True)


def last_identity(name: str) -> Path:
    return state_folder() / "identities" / f"{name}.json"


def begin_with_priors(model: "keras.Model", plan: TrainingPlan) -> None:
    """Sets the biases of the new heads as the task says: then the first answers are the shares of the labels."""
    priors = TASKS[plan.data.task].prior_logits(plan.data.labels("train"))
    heads = [layer for layer in model.layers if layer.name in TWO_HEADS] or [model.get_layer(LOGITS)]
    for head in heads if priors is not None else []:
        head.bias.assign(priors)


def load_initial_weights(model: "keras.Model", plan: TrainingPlan) -> None:
    """Loads the weights to start from, and prints which were used and which normalisation results."""
    assert plan.start is not None
    report = load_weights(
        model,
        plan.start,
        head=plan.entry.init_head,
        grid=plan.entry.init_grid,
        permitted=written_pixels(plan.entry),
    )
    print(report, *plan.normalisation_lines(), sep="\n", flush=True)


def make_teacher(plan: TrainingPlan) -> "Teacher | None":
    """Returns the recipe's teacher; None if it has none.

    Without augmentation the teacher's logits are computed beforehand. The key of their cache is everything that their
    last bits depend on.
    """
    from visionpipe.training.teacher import Teacher, load_teacher, teacher_logits

    if plan.teacher is None:
        return None
    model = load_teacher(plan.teacher, plan.data)
    if plan.recipe.augmentation:
        return Teacher(model=model)
    decisive = {"backend": plan.backend, "threads": plan.threads} | {
        name: plan.identity[name] for name in ("teacher_sha256", "data_sha256", "code", "versions")
    }
    cache = state_folder() / "teachers" / f"{sha256_json(decisive)}.npy"
    return Teacher(logits=teacher_logits(model, plan.data.images("train"), cache))


def write_model(model: "keras.Model", history: History, plan: TrainingPlan) -> str:
    """Writes the files of `models/NAME/`; returns the sha256 of model.keras."""
    folder = model_folder(plan.name)
    save_keras(model, folder / "model.keras")
    write_bytes(folder / "history.csv", history_csv(history))
    model_sha256 = sha256_file(folder / "model.keras")
    lineage = {
        "name": plan.name,
        "train_key": plan.key,
        "lineage_id": lineage_id(plan.key, model_sha256),
        "model_sha256": model_sha256,
        "classes": list(plan.data.classes),
        "parameters_count": sum(math.prod(weight.shape) for weight in model.trainable_variables),
        **plan.identity,
    }
    write_json(folder / "lineage.json", lineage)
    return model_sha256


def history_csv(history: History) -> bytes:
    """Returns a CSV with one line per epoch, without the speed, which differs between runs."""
    text = io.StringIO()
    columns = [name for name in history[0] if name not in MEASURED]
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue().encode()


def measured(history: History) -> dict[str, Any]:
    """Returns minutes, speed and memory over all epochs, including those before an interruption.

    The speed is the median without the first epoch, which compiles.
    """
    speeds = [row["images_per_second"] for row in history[1:] or history]
    return {
        "minutes": sum(row["seconds"] for row in history) / 60,
        "images_per_second": statistics.median(speeds),
        "peak_memory_mib": peak_memory_mib(),
        "device": device_name(),
    }
