"""`visionpipe probe`: measures within minutes how well frozen features classify the prepared images."""

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from visionpipe.data.form import model_input
from visionpipe.data.prepared import PREPARED, Prepared, open_prepared
from visionpipe.errors import ConfigError, WeightsError
from visionpipe.files import sha256_json
from visionpipe.models import build_model
from visionpipe.models.known import known
from visionpipe.models.names import CLASS_LOGITS, LOGITS
from visionpipe.models.variants import VARIANTS, fields
from visionpipe.project.backend import start_backend
from visionpipe.project.lock import installed
from visionpipe.project.params import Params
from visionpipe.project.paths import model_folder
from visionpipe.tasks import TASKS, Task
from visionpipe.tracking.runs import find_run, log_metrics, log_params
from visionpipe.tracking.store import connect
from visionpipe.weights import PretrainedCheckpoint, load_weights, resolve
from visionpipe.weights.channels import fitted_pixels

if TYPE_CHECKING:
    import keras

BATCH = 64
NEIGHBOURS = (1, 5, 20)
TEMPERATURE = 0.07  # of the neighbours' votes (Wu et al. 2018, arXiv:1805.01978)
ROWS_AT_ONCE = 200  # images times classes are 32 MB of numbers at 20,000 classes
RIDGES = tuple(10.0**power for power in range(-6, 3))
Scores = dict[str, float]  # the task's score by split


@dataclass(frozen=True)
class Result:
    """The result of both probes.

    Attributes:
        width: the number of features.
        chosen: the settings that were best on the validation images.
        seconds: the time to compute the features.
    """

    name: str
    width: int
    neighbours: Scores
    linear: Scores
    chosen: dict[str, float]
    seconds: float


def probe(params: Params, target: str | None, variant: str | None, size: int | None) -> None:
    """Prints and logs the score of a k-nearest-neighbour and of a linear probe, beside those of raw pixels.

    Args:
        target: an entry of `models:`, or a source of weights; None for all trained entries.
        variant: the model variant of a source that does not name one.
        size: height and width to which the images are resized; None for the size of the prepared images.

    Raises:
        ConfigError: no model, or not this one, is trained yet.
        WeightsError: the source is missing, cannot be read, or does not name its variant.
    """
    start_backend(params)
    data = open_prepared(PREPARED)
    image_size = (size, size) if size else tuple(data.manifest["size"])
    targets = [target] if target else [name for name in params.models if trained(name).exists()]
    if not targets:
        raise ConfigError("no model is trained yet: run dvc repro, or name a source: visionpipe probe SOURCE")
    results = [judged("pixels", {split: pixels(data.images(split)) for split in data.splits}, data, 0.0)]
    for name in targets:
        checkpoint, model = open_target(name, params, variant, image_size, data.decoding["channels"])
        start, body = time.perf_counter(), without_head(model)
        computed = {split: features(body, data.images(split), f"{name}, {split}") for split in data.splits}
        result = judged(name, computed, data, time.perf_counter() - start)
        log(params, checkpoint, data, image_size, result)
        results.append(result)
    print(
        f"{TASKS[data.task].score.replace('_', ' ')} by k nearest neighbours (k-NN) and by ridge regression (linear):"
    )
    print(table(results, data.splits))


def trained(name: str) -> Path:
    return model_folder(name) / "model.keras"


def open_target(
    name: str, params: Params, variant: str | None, image_size: tuple[int, ...], channels: int
) -> tuple[PretrainedCheckpoint, "keras.Model"]:
    """Returns the weights that `name` stands for, and a model with these weights."""
    if name in params.models and trained(name).exists():
        checkpoint = resolve(trained(name))
    elif name in params.models:
        raise ConfigError(
            f"{name} is not trained yet: run dvc repro train@{name}, or probe the source that it starts from"
        )
    else:
        checkpoint = resolve(name)
    height, width = image_size
    if checkpoint.is_own:
        from visionpipe.weights.visionpipe_keras import open_own

        model = open_own(checkpoint.path, (height, width)).model
        if model.input.shape[-1] != channels:
            raise WeightsError(
                f"{name} takes images of {model.input.shape[-1]} channels, and the prepared images have {channels}"
            )
        return checkpoint, model
    row = known(name)
    variant = variant or (row.variant if row else None)
    if variant is None:
        raise WeightsError(
            f"{name} does not name its model variant: add --variant with one that visionpipe models lists"
        )
    options = dict(row.overrides) if row else {}
    if variant in VARIANTS:
        options |= {
            key: value for key, value in checkpoint.options.items() if key in fields(VARIANTS[variant].spec)
        }
    pixels = {
        key: fitted_pixels(value, channels)
        for key, value in checkpoint.options.items()
        if key.startswith("pixel_")
    }
    model = build_model(variant, 1, (height, width), channels=channels, **pixels, **options)
    print(load_weights(model, checkpoint, head="zero"), flush=True)
    return checkpoint, model


def without_head(model: "keras.Model") -> "keras.Model":
    """Returns a model from the images to the input of the head."""
    import keras

    from visionpipe.acceleration.network import accelerate

    names = {layer.name for layer in model.layers}
    head = model.get_layer(CLASS_LOGITS if CLASS_LOGITS in names else LOGITS)
    return accelerate(keras.Model(model.input, head.input))


def features(body: "keras.Model", images: np.ndarray, title: str) -> np.ndarray:
    """Computes features, float32 (n, features), of prepared images (n, height, width, channels)."""
    import keras

    size = body.input.shape[1:3]
    parts = []
    for start in tqdm(range(0, len(images), BATCH), desc=title, unit="batch", disable=None):
        batch = model_input(images[start : start + BATCH])
        count = len(batch)
        batch = np.pad(
            batch, ((0, BATCH - count), (0, 0), (0, 0), (0, 0))
        )  # so that only one shape is compiled
        if batch.shape[1:3] != size:
            batch = keras.ops.image.resize(batch, size, interpolation="bicubic", antialias=True)
            batch = keras.ops.convert_to_numpy(keras.ops.clip(batch, 0, 255))
        parts.append(np.asarray(body.predict_on_batch(batch), np.float32)[:count])
    return np.concatenate(parts)


def pixels(images: np.ndarray) -> np.ndarray:
    """Returns the images, averaged to about 16 × 16 pixels, as features float32 (n, features)."""
    steps = [max(1, round(side / 16)) for side in images.shape[1:3]]
    height, width = (side // step * step for side, step in zip(images.shape[1:3], steps, strict=True))
    blocks = (len(images), height // steps[0], steps[0], width // steps[1], steps[1], images.shape[3])
    means = np.asarray(images[:, :height, :width]).reshape(blocks).mean((2, 4), dtype=np.float32)
    return means.reshape(len(images), -1)


def judged(name: str, by_split: dict[str, np.ndarray], data: Prepared, seconds: float) -> Result:
    """Runs both probes on the features of each split. Their settings are chosen on the validation images."""
    labels = {split: data.labels(split) for split in by_split}
    mean, deviation = by_split["train"].mean(0), by_split["train"].std(0) + 1e-6
    scaled = {split: (x - mean) / deviation for split, x in by_split.items()}
    task, classes = TASKS[data.task], len(data.classes)

    def best(answers: Iterator[tuple[float, Scores]]) -> tuple[float, Scores]:
        return max(answers, key=lambda answer: answer[1]["validation"])

    k, neighbours = best(nearest_neighbours(scaled, labels, classes, task))
    ridge, linear = best(least_squares(scaled, labels, classes, task))
    return Result(name, by_split["train"].shape[1], neighbours, linear, {"k": k, "ridge": ridge}, seconds)


def nearest_neighbours(
    by_split: dict[str, np.ndarray], labels: dict[str, np.ndarray], classes: int, task: type[Task]
) -> Iterator[tuple[float, Scores]]:
    """Yields k and the scores of a vote of the k training images with the highest cosine similarity.

    A vote weighs exp(cosine / TEMPERATURE).
    """
    unit = {split: x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-12) for split, x in by_split.items()}
    most = min(max(NEIGHBOURS), len(labels["train"]))
    nearest: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for split in [split for split in by_split if split != "train"]:
        weights, places = [], []
        for start in range(0, len(unit[split]), 1000):
            cosine = unit[split][start : start + 1000] @ unit["train"].T
            place = np.argsort(-cosine, axis=1, kind="stable")[:, :most]
            places.append(place)
            weights.append(np.exp((np.take_along_axis(cosine, place, 1) - 1) / TEMPERATURE))
        nearest[split] = np.concatenate(places), np.concatenate(weights)
    for k in NEIGHBOURS:
        yield (
            float(k),
            {
                split: task.score_of(
                    (
                        task.votes(labels["train"], places[rows, :k], weights[rows, :k], classes),
                        labels[split][rows],
                    )
                    for rows in blocks(len(places))
                )
                for split, (places, weights) in nearest.items()
            },
        )


def least_squares(
    by_split: dict[str, np.ndarray], labels: dict[str, np.ndarray], classes: int, task: type[Task]
) -> Iterator[tuple[float, Scores]]:
    """Yields each ridge, and the scores of a ridge regression to −1 and 1 per class, computed in closed form.

    A class learns from the images of which its label is known. The ridge is relative to the mean variance of the
    features (Dosovitskiy et al. 2021, section 4.1).
    """
    width = by_split["train"].shape[1]
    weights = np.zeros((len(RIDGES), width, classes), np.float32)
    constants = np.zeros((len(RIDGES), classes))
    for columns, rows in task.known_together(labels["train"], classes):
        x = by_split["train"][rows].astype(np.float64)
        if not len(x):
            continue
        mean = x.mean(0)
        x -= mean
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        # Sums by class need no array of targets, (images, classes), which may be large.
        sums = task.class_sums(np.column_stack([x, np.ones(len(x))]), labels["train"][rows], classes)[columns]
        products = vectors.T @ (2 * sums[:, :-1].T / len(x))
        for number, ridge in enumerate(RIDGES):
            slopes = vectors @ (products / (np.maximum(values, 0) + ridge * values.mean())[:, None])
            weights[number][:, columns] = slopes
            constants[number, columns] = 2 * sums[:, -1] / len(x) - 1 - mean @ slopes
    for number, ridge in enumerate(RIDGES):
        yield (
            ridge,
            {
                split: task.score_of(
                    (x[rows] @ weights[number] + constants[number], labels[split][rows])
                    for rows in blocks(len(x))
                )
                for split, x in by_split.items()
                if split != "train"
            },
        )


def blocks(count: int) -> Iterator[slice]:
    """Yields the rows of `count` images, ROWS_AT_ONCE at a time."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE))


def log(
    params: Params,
    checkpoint: PretrainedCheckpoint,
    data: Prepared,
    image_size: tuple[int, ...],
    result: Result,
) -> None:
    """Logs a probe to MLflow, in a separate experiment because nothing was trained.

    Probes of the same weights on the same images share one run.
    """
    identity = {
        "weights_sha256": checkpoint.sha256,
        "data_sha256": data.manifest["content_sha256"],
        "image_size": list(image_size),
        "versions": installed(params.backend),
    }
    key = sha256_json(identity)
    experiment = f"{params.tracking.experiment} probes"
    store = connect(dataclasses.replace(params.tracking, experiment=experiment))
    run = find_run(store, probe_key=key)
    if run is None:
        run = store.client.create_run(
            store.experiment_id,
            run_name=f"{result.name} · {key[:6]}",
            tags={"probe_key": key, "source": checkpoint.source, "weights_sha256": checkpoint.sha256},
        )
        log_params(store, run.info.run_id, identity | result.chosen | {"features": result.width})
    numbers: dict[str, Any] = {"seconds": result.seconds}
    score = TASKS[data.task].score
    for probed, scores in (("neighbours", result.neighbours), ("linear", result.linear)):
        numbers |= {f"{probed}.{split}.{score}": value for split, value in scores.items()}
    log_metrics(store, run.info.run_id, numbers)
    store.client.set_terminated(run.info.run_id, "FINISHED")


def table(results: list[Result], splits: list[str]) -> str:
    judged_on = [split for split in splits if split != "train"]
    lines = [
        "| weights | features | "
        + " | ".join(f"{kind} {split}" for kind in ("k-NN", "linear") for split in judged_on)
        + " | seconds |",
        "| --- | ---: |" + " ---: |" * (2 * len(judged_on) + 1),
    ]
    for result in results:
        values = [scores[split] for scores in (result.neighbours, result.linear) for split in judged_on]
        numbers = " | ".join(f"{value:.4f}" for value in values)
        lines.append(f"| {result.name} | {result.width:,} | {numbers} | {result.seconds:.0f} |")
    return "\n".join(lines)
