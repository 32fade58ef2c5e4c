"""All decisions about a training, made once from params.yaml, the prepared images and code.lock."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from visionpipe.data.prepared import Prepared
from visionpipe.files import sha256_file
from visionpipe.models.specs import ModelSpec
from visionpipe.models.variants import shown
from visionpipe.project.backend import thread_count
from visionpipe.project.lineage import Pixels, train_key, training_params, written_pixels
from visionpipe.project.lock import read_lock
from visionpipe.project.params import Params, plan_of
from visionpipe.project.paths import model_folder
from visionpipe.project.sections import ModelConfig
from visionpipe.tracking.trained import download_trained
from visionpipe.training.plan import Plan
from visionpipe.training.recipe import TrainConfig
from visionpipe.weights import Preprocessing, PretrainedCheckpoint, resolve
from visionpipe.weights.channels import fitted_pixels


@dataclass(frozen=True)
class TrainingPlan:
    """One entry of `models:`, ready to be trained.

    Attributes:
        steps: the recipe's phases and steps for the prepared images.
        start: the weights to start from; None for random weights.
        teacher: the `.keras` file of the teacher of `train.distill`.
        pixels: `pixel_mean` and `pixel_std` of the normalisation, per channel, in [0, 255].
        identity: everything that the weights depend on, for lineage.json.
        key: the hash of `identity`, and the name of the checkpoint folder.
    """

    name: str
    entry: ModelConfig
    recipe: TrainConfig
    spec: ModelSpec
    image_size: tuple[int, int]
    data: Prepared
    backend: str
    threads: int
    seed: int
    steps: Plan
    start: PretrainedCheckpoint | None
    teacher: Path | None
    pixels: Pixels
    identity: dict[str, Any]

    @property
    def key(self) -> str:
        return train_key(self.identity)

    @property
    def images(self) -> int:
        """The number of training images."""
        return self.steps.images

    def normalisation_lines(self) -> Iterator[str]:
        """Yields where the normalisation comes from, and where the prepared images differ from the checkpoint's."""
        seen = preprocessing_of(self.start)
        for key, value in self.pixels.items():
            written = key in written_pixels(self.entry)
            theirs = seen.mean if key == "pixel_mean" else seen.std
            source = "params.yaml" if written else "the checkpoint" if theirs else "the training images"
            yield f"  {key}: {shown(value)}, from {source}"
        for key, ours in self.data.framing.items():
            wanted = getattr(seen, key, None)
            if wanted is not None and wanted != ours:
                yield f"  prepare.{key}: {shown(ours)}, but the checkpoint was trained with {shown(wanted)}"


def resolve_training(name: str, params: Params, data: Prepared) -> TrainingPlan:
    """Makes the plan of the entry `name`, and downloads the weights to start from and the teacher, if it has them.

    Raises:
        ConfigError: the recipe does not fit the number of training images.
        WeightsError: the weights to start from are missing or cannot be read.
        RegistryError: the registry does not have the teacher.
        LockError: code.lock is missing or damaged.
    """
    entry, recipe = params.model(name), params.train_config(name)
    spec = params.model_spec(name)
    steps = plan_of(recipe, name, len(data.labels("train")))
    start = initial_weights(entry, params)
    teacher = teacher_file(recipe.distill.teacher) if recipe.distill else None
    return TrainingPlan(
        name=name,
        entry=entry,
        recipe=recipe,
        spec=spec,
        image_size=params.prepare.size,
        data=data,
        backend=params.backend,
        threads=thread_count(params),
        seed=params.seed,
        steps=steps,
        start=start,
        teacher=teacher,
        pixels=normalisation(entry, preprocessing_of(start), data.manifest),
        identity=identity(
            training_params(name, params, recipe, spec),
            params.backend,
            data.manifest["content_sha256"],
            start,
            teacher,
        ),
    )


def identity(
    trained: dict[str, Any],
    backend: str,
    data_sha256: str,
    start: PretrainedCheckpoint | None,
    teacher: Path | None,
) -> dict[str, Any]:
    """Returns everything that the weights depend on, as values for JSON.

    Code and libraries are those of code.lock. `trained`: the result of `training_params`.
    """
    lock = read_lock()
    return {
        "data_sha256": data_sha256,
        **(
            {"init_sha256": start.sha256, "init_preprocessing": asdict(preprocessing_of(start))}
            if start
            else {}
        ),
        **({"teacher_sha256": sha256_file(teacher)} if teacher else {}),
        "code": lock["stages"]["train"],
        "params": trained,
        "versions": lock["libraries"][backend],
    }


def preprocessing_of(start: PretrainedCheckpoint | None) -> Preprocessing:
    return (start and start.preprocessing) or Preprocessing()


def initial_weights(entry: ModelConfig, params: Params) -> PretrainedCheckpoint | None:
    """Downloads and returns the checkpoint that `init` names; None if the entry has no `init`."""
    if entry.init is None:
        return None
    source = model_folder(entry.init) / "model.keras" if entry.init in params.models else entry.init
    return resolve(source, sha256=entry.init_sha256)


def teacher_file(teacher: str) -> Path:
    """Returns the `.keras` file of a teacher, which is an entry of `models:` or models:/NAME@ALIAS."""
    return (
        download_trained(teacher) if teacher.startswith("models:/") else model_folder(teacher) / "model.keras"
    )


def normalisation(entry: ModelConfig, seen: Preprocessing, manifest: dict[str, Any]) -> Pixels:
    """Returns the normalisation from params.yaml, else from the weights to start from, else of the training images."""
    std = tuple(
        max(deviation, 1.0) for deviation in manifest["channel_std"]
    )  # it is 0 for a constant channel
    images = {"pixel_mean": tuple(manifest["channel_mean"]), "pixel_std": std}
    theirs = {"pixel_mean": seen.mean, "pixel_std": seen.std}
    channels = len(images["pixel_mean"])
    return (
        images
        | {key: fitted_pixels(value, channels) for key, value in theirs.items() if value}
        | written_pixels(entry)
    )
