"""params.yaml as frozen dataclasses. This module imports no framework, so that mistakes are reported at once."""

import dataclasses
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from visionpipe.artifact.canonical import check_parameters
from visionpipe.data.augmentation import AUGMENTATIONS, RGB_ONLY, Mixing, OutOfRange
from visionpipe.data.config import PrepareConfig, group_pattern
from visionpipe.data.draws import MOST_ENTRIES
from visionpipe.data.headers import MAX_CHANNELS
from visionpipe.data.measurements import POSSIBLE
from visionpipe.errors import ConfigError, did_you_mean
from visionpipe.models.names import layer_names
from visionpipe.models.specs import Encoder, ModelSpec
from visionpipe.models.variants import resolve_variant
from visionpipe.project.needs import check_needs
from visionpipe.project.schema import UniqueKeys, build, converted, require
from visionpipe.project.sections import (
    EvaluateConfig,
    ExportConfig,
    ModelConfig,
    RegisterConfig,
    TrackingConfig,
)
from visionpipe.tasks import TASKS
from visionpipe.training.plan import Plan, check_end, check_mixing, check_rates, is_layer, no_layer
from visionpipe.training.presets import PRESETS
from visionpipe.training.recipe import TrainConfig, layered

PARAMS_FILE = Path("params.yaml")


@dataclass(frozen=True)
class Params:
    """The whole experiment.

    Args:
        prepare: Where the images come from, and how they are resized and split.
        models: The trainings, by name.
        needs: For an entry that starts from one model and learns from another: the files of both models, by the name of
            the entry.
        train: The recipe that all models share.
        export: How a trained model becomes the artifact that ships.
        evaluate: What a report shows.
        register: Which models may be registered.
        tracking: Names in MLflow.
        backend: The library that trains.
        seed: The number that determines all random draws.
        threads: The number of threads; null takes the number of physical cores.
        task: What a model says of an image: `single` names one class, `multi` any number of them, or none.
    """

    prepare: PrepareConfig
    models: dict[str, ModelConfig]
    needs: dict[str, tuple[str, str]] = field(default_factory=dict, kw_only=True)
    train: dict[str, Any] = field(default_factory=dict)
    export: ExportConfig = ExportConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register: RegisterConfig = RegisterConfig()
    tracking: TrackingConfig = TrackingConfig()
    backend: Literal["tensorflow", "jax", "torch"] = "tensorflow"
    seed: int = 0
    threads: int | None = None
    task: Literal["single", "multi"] = field(default="single", kw_only=True)

    def model(self, name: str) -> ModelConfig:
        if name not in self.models:
            raise ConfigError(
                f"no model {name!r} in params.yaml{did_you_mean(name, self.models)}; "
                f"models: has {', '.join(self.models)}"
            )
        return self.models[name]

    def train_config(self, name: str) -> TrainConfig:
        """Merges the recipe of an entry: its keys override the common recipe, and keys override those of a preset.

        Raises:
            ConfigError: the recipe is invalid.
        """
        task = TASKS[self.task]
        layers: list[dict[str, Any]] = [task.recipe]
        for content, key in ((self.train, "train"), (self.model(name).train, f"models.{name}.train")):
            written = dict(content)
            preset = written.pop("preset", None)
            require(
                preset is None or (isinstance(preset, str) and preset in PRESETS),
                f"{key}.preset",
                f"no preset {preset!r}{did_you_mean(str(preset), PRESETS)}; known: {', '.join(PRESETS)}",
            )
            layers += [
                converted(TrainConfig, PRESETS.get(preset, {}), key),
                converted(TrainConfig, written, key),
            ]
        recipe = TrainConfig(**layered(*layers))
        with named(f"models.{name}.train."):
            recipe.check()
            task.check_recipe(recipe)
            check_end(recipe)
            check_mixing(recipe, recipe.batch_size)
        return recipe

    def model_spec(self, name: str) -> ModelSpec:
        """Returns the variant of an entry with its overrides.

        Raises:
            ConfigError: an override is invalid, the image size does not fit, or an ONNX file cannot hold the model.
        """
        model = self.model(name)
        with named(f"models.{name}: "):
            spec = resolve_variant(model.variant, self.prepare.size, **model.overrides)
            if isinstance(
                spec, Encoder
            ):  # the matrices of its blocks are nearly all parameters of a large model
                check_parameters(spec.depth * spec.hidden_dim * (4 * spec.hidden_dim + 2 * spec.mlp_dim))
            return spec


def plan_of(recipe: TrainConfig, name: str, images: int) -> Plan:
    """Returns the phases and steps of an entry's recipe for a number of training images.

    Raises:
        ConfigError: the recipe does not fit this number.
    """
    plan = Plan(recipe, images)
    with named(f"models.{name}.train."):
        plan.check()
    return plan


@contextmanager
def named(where: str) -> Iterator[None]:
    """Puts the place of the key in params.yaml in front of a ConfigError from the `with` block."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"params.yaml: {where}{error}") from None


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Reads and checks params.yaml.

    Raises:
        ConfigError: the file is missing or not valid, with the path of the key.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)  # nosec B506: a SafeLoader
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}: run visionpipe in the folder of a project, or make one with visionpipe init"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if isinstance(content, dict):
        check_task(content.get("task", Params.task))
    params = build(Params, content, "")
    check(params)
    return params


def check_task(task: Any) -> None:
    """Refuses a task that there is not, such as regression, and says what is possible instead."""
    hint = did_you_mean(str(task), TASKS)
    require(
        task in tuple(TASKS),
        "task",
        f"expected one of {', '.join(TASKS)}, received {task!r}{hint}: {POSSIBLE}",
    )


def check(params: Params) -> None:
    """Checks the values of all keys, which `build` has checked for their types only."""
    prepare, gate = params.prepare, params.register.gate
    require(params.models, "models", "needs at least one entry")
    require(all(side >= 8 for side in prepare.size), "prepare.size", "sides must be at least 8 pixels")
    require(0 < prepare.validation_fraction < 1, "prepare.validation_fraction", "must lie between 0 and 1")
    require(0 < prepare.crop_ratio <= 1, "prepare.crop_ratio", "must be above 0 and at most 1")
    require(
        prepare.source == "folder" or not prepare.follow_links,
        "prepare.follow_links",
        "is for prepare.source: folder",
    )
    require(
        all(0 <= level <= 255 for level in prepare.pad_color),
        "prepare.pad_color",
        "must be three numbers from 0 to 255",
    )
    require(
        not isinstance(prepare.levels, tuple) or -math.inf < prepare.levels[0] < prepare.levels[1] < math.inf,
        "prepare.levels",
        "must be a smaller and a larger number",
    )
    require(0 < prepare.test_fraction < 1, "prepare.test_fraction", "must lie between 0 and 1")
    require(
        bool(prepare.name) == (prepare.source == "tfds"),
        "prepare.name",
        "is the name of a set of TensorFlow Datasets: give it with source: tfds, and only with that",
    )
    require(
        1 <= prepare.channels <= MAX_CHANNELS, "prepare.channels", f"must lie between 1 and {MAX_CHANNELS}"
    )
    require(
        not params.export.include_preprocessing or (prepare.channels, prepare.depth) == (3, 8),
        "export.include_preprocessing",
        "is for models of 8-bit RGB images: leave it out with another prepare.channels or prepare.depth",
    )
    check_groups(prepare)
    require(0 <= params.seed < 2**31, "seed", "must lie between 0 and 2147483647")
    require(params.threads is None or params.threads >= 1, "threads", "must be at least 1, or null")
    for name, value in dataclasses.asdict(gate).items():
        require(value is None or 0 <= value <= 1, f"register.gate.{name}", "must lie between 0 and 1")
    for task in TASKS.values():
        for name in sorted(set(task.gate()) - set(TASKS[params.task].gate())):
            require(
                not getattr(gate, name),
                f"register.gate.{name}",
                f"is for task: {task.name}; task: {params.task} has {', '.join(TASKS[params.task].gate())}",
            )
    evaluate, export = params.evaluate, params.export
    require(evaluate.calibration_bins >= 1, "evaluate.calibration_bins", "must be at least 1")
    require(evaluate.worst_mistakes >= 0, "evaluate.worst_mistakes", "must not be negative")
    wanted = export.target_precision
    require(wanted is None or TASKS[params.task].several, "export.target_precision", "is for task: multi")
    require(
        wanted is None or 0 < wanted < 1, "export.target_precision", "must lie between 0 and 1, or be null"
    )
    require(13 <= export.opset <= 18, "export.opset", "must lie between 13 and 18")
    require(export.max_logit_difference > 0, "export.max_logit_difference", "must be positive")
    for name, value in dataclasses.asdict(params.tracking).items():
        # MLflow puts the model's name into addresses (models:/NAME@ALIAS) and into queries (name = 'NAME').
        unfit = "" if name == "experiment" else "'@?"
        require(
            not set("/:" + unfit) & set(value)
            and value.isprintable()
            and value.strip(" .")
            and len(value) <= 250,
            f"tracking.{name}",
            f"must be a name without / :{unfit and ' '}{' '.join(unfit)}, of at most 250 printable characters",
        )
    for name in params.models:
        require(
            re.fullmatch(r"[\w][\w-]*", name) and len(name.encode()) <= 200,
            f"models.{name}",
            "the name may have letters, digits, '-' and '_' only, must not begin with '-', and at most 200 bytes",
        )
        recipe, where = params.train_config(name), f"models.{name}.train"
        check_augmentation(recipe.augmentation, f"{where}.augmentation")
        check_colours(recipe.augmentation, prepare, f"{where}.augmentation")
        params.model_spec(name)
        require(
            params.model(name).init or not params.model(name).init_sha256,
            f"models.{name}.init_sha256", "has no effect without init: give both",
        )  # fmt: skip
        for key, least in (("pixel_mean", 0), ("pixel_std", 1)):
            numbers = getattr(params.model(name), key)
            require(
                numbers is None or len(numbers) == prepare.channels,
                f"models.{name}.{key}", f"expected a list of {prepare.channels}, received {list(numbers or ())}",
            )  # fmt: skip
            require(
                all(least <= number <= 255 for number in numbers or ()),
                f"models.{name}.{key}",
                f"must lie between {least} and 255, the range of pixels",
            )
        for key, unset in (("init_head", "zero"), ("init_grid", None)):
            require(
                params.model(name).init or getattr(params.model(name), key) == unset,
                f"models.{name}.{key}", "has no effect without init: leave it out",
            )  # fmt: skip
        require(
            min(params.model(name).init_grid or (1,)) >= 1,
            f"models.{name}.init_grid", "must be rows and columns of at least 1",
        )  # fmt: skip
        known = layer_names(params.model_spec(name))
        for key, names in recipe.named_layers().items():
            for words in names:
                require(is_layer(words, known), f"{where}.{key}", no_layer(words, known))
        with named(f"{where}."):
            check_rates(recipe, known)
    check_needs(params)


def check_groups(prepare: PrepareConfig) -> None:
    """Checks the keys that say what a table's columns mean, which images belong together, and folds."""
    table, tabular = prepare.table, prepare.source in ("table", "huggingface")
    require(tabular or not table, "prepare.table", "names the columns of a table: give it with source: table")
    if table is not None:
        require(
            prepare.source == "table" or table.labels is None,
            "prepare.table.labels",
            "names columns of a table: give it with source: table",
        )
        require(
            table.labels is None or len(set(table.labels)) == len(table.labels) > 1,
            "prepare.table.labels",
            "must name at least two columns, each of them once",
        )
        require(
            table.separator is None or (table.separator and table.labels is None),
            "prepare.table.separator",
            "must not be empty, and is for the column prepare.table.label: leave out prepare.table.labels",
        )
    require(
        prepare.group is None or tabular or group_pattern(prepare.group),
        "prepare.group",
        f"must be a regular expression with one group in parentheses, such as (patient\\d+)_; received "
        f"{prepare.group!r}",
    )
    require(
        prepare.group is None or not (table and table.group),
        "prepare.group",
        "and table.group: give one of the two",
    )
    require(prepare.folds is None or prepare.folds >= 2, "prepare.folds", "must be at least 2, or null")


def check_augmentation(entries: tuple[dict[str, Any], ...], key: str) -> None:
    """Checks a list of augmentations. Missing parameters take the defaults of the augmentation's class."""
    require(len(entries) <= MOST_ENTRIES, key, f"holds at most {MOST_ENTRIES} entries")
    mixed = False
    for position, entry in enumerate(entries):
        where, name = f"{key}[{position}]", str(entry.get("name"))
        require(
            name in AUGMENTATIONS,
            f"{where}.name",
            f"no augmentation {name!r}{did_you_mean(name, AUGMENTATIONS)}; known: {', '.join(AUGMENTATIONS)}",
        )
        kind = AUGMENTATIONS[name]
        given = {parameter: value for parameter, value in entry.items() if parameter != "name"}
        defaults = {f.name: f.default for f in dataclasses.fields(kind)}
        try:
            build(kind, defaults | given, where)
        except OutOfRange as error:
            raise ConfigError(f"params.yaml: {where}.{error}") from None
        mixes = issubclass(kind, Mixing)
        require(mixes or not mixed, where, f"{name} must come before mixup and cutmix, which mix images")
        mixed = mixes


def check_colours(entries: tuple[dict[str, Any], ...], prepare: PrepareConfig, key: str) -> None:
    """Refuses augmentations that only 8-bit RGB images can have."""
    if (prepare.channels, prepare.depth) == (3, 8):
        return
    others = ", ".join(name for name in AUGMENTATIONS if name not in RGB_ONLY)
    for position, entry in enumerate(entries):
        require(
            entry["name"] not in RGB_ONLY,
            f"{key}[{position}].name",
            f"{entry['name']} changes 8-bit RGB colours, which images of prepare.channels {prepare.channels} and depth "
            f"{prepare.depth} do not have: use some of {others}",
        )
