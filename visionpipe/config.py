"""params.yaml as frozen dataclasses. This module imports no framework, so mistakes surface at once."""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from visionpipe.errors import ConfigError
from visionpipe.models.specs import ModelSpec
from visionpipe.models.variants import resolve_variant

PARAMS_FILE = Path("params.yaml")


@dataclass(frozen=True)
class PrepareConfig:
    """`size`: (height, width) in pixels. Fractions are of the images that they are drawn from."""

    source: Literal["zip", "folder", "tfds"]
    path: str
    name: str | None = None
    size: tuple[int, int] = (64, 64)
    validation_fraction: float = 0.2
    test_fraction: float = 0.2


# What `augmentation` entries are called, and the parameters that each must have.
AUGMENTATIONS: dict[str, dict[str, type]] = {
    "flip": {"probability": float},
    "shift": {"pixels": int},
    "cutout": {"fraction": float},
}


@dataclass(frozen=True)
class TrainConfig:
    """The recipe. `warmup_fraction` is of all steps; `augmentation` is read by data/augmentation.py."""

    epochs: int = 10
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = 0.001
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0001
    label_smoothing: float = 0.0
    augmentation: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class ModelConfig:
    """One entry of `models:`. `needs` is the file that DVC orders this training after."""

    variant: str
    needs: str
    overrides: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportConfig:
    """`max_logit_difference`: what ONNX may differ from Keras by, relative to the largest logit, before
    any quantisation. `precision: auto` keeps int8 where it is much faster and hardly less accurate.
    """

    precision: Literal["fp32", "int8", "auto"] = "fp32"
    opset: int = 18
    max_logit_difference: float = 0.001


@dataclass(frozen=True)
class EvaluateConfig:
    calibration_bins: int = 15
    worst_mistakes: int = 25


@dataclass(frozen=True)
class GateConfig:
    """The least that a model must reach on the validation split to be registered, in [0, 1]."""

    accuracy: float = 0.0
    worst_recall: float = 0.0


@dataclass(frozen=True)
class RegisterConfig:
    gate: GateConfig = GateConfig()


@dataclass(frozen=True)
class TrackingConfig:
    experiment: str = "visionpipe"
    model: str = "visionpipe"


@dataclass(frozen=True)
class Params:
    """The whole experiment. `threads: null` means the number of physical cores."""

    prepare: PrepareConfig
    models: dict[str, ModelConfig]
    train: TrainConfig = TrainConfig()
    export: ExportConfig = ExportConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    register: RegisterConfig = RegisterConfig()
    tracking: TrackingConfig = TrackingConfig()
    backend: Literal["tensorflow", "jax", "torch"] = "tensorflow"
    seed: int = 0
    threads: int | None = None

    def model(self, name: str) -> ModelConfig:
        if name not in self.models:
            raise ConfigError(
                f"no model {name!r} in params.yaml{suggest(name, self.models)}; "
                f"models: has {', '.join(self.models)}"
            )
        return self.models[name]

    def train_config(self, name: str) -> TrainConfig:
        """The common recipe with the model's own `train:` overrides applied."""
        common = dataclasses.asdict(self.train)
        return build(TrainConfig, common | self.model(name).train, f"models.{name}.train")

    def model_spec(self, name: str) -> ModelSpec:
        """The variant with its overrides, checked against the image size."""
        model = self.model(name)
        try:
            return resolve_variant(model.variant, self.prepare.size, **model.overrides)
        except ConfigError as error:
            raise ConfigError(f"params.yaml: models.{name}: {error}") from None


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Reads and checks params.yaml; raises ConfigError with the key's path."""
    try:
        content = yaml.load(path.read_text(), UniqueKeys)
    except FileNotFoundError:
        raise ConfigError(f"no {path} here: run visionpipe in the folder that holds dvc.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    params = build(Params, content, "")
    check(params)
    return params


class UniqueKeys(yaml.SafeLoader):
    """Refuses what YAML forbids and PyYAML lets pass: the first of two equal keys would be lost."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key} is there twice, at {str(node.start_mark).strip()}")
        return super().construct_mapping(node, deep)


def check(params: Params) -> None:
    """Checks that need more than one key, or more than a type."""
    prepare, gate = params.prepare, params.register.gate
    require(params.models, "models", "needs at least one entry")
    require(all(side >= 8 for side in prepare.size), "prepare.size", "sides must be at least 8 pixels")
    require(0 < prepare.validation_fraction < 1, "prepare.validation_fraction", "must lie between 0 and 1")
    require(0 < prepare.test_fraction < 1, "prepare.test_fraction", "must lie between 0 and 1")
    require(
        bool(prepare.name) == (prepare.source == "tfds"),
        "prepare.name",
        "names the TensorFlow Datasets set: give it with source: tfds, and only there",
    )
    require(0 <= params.seed < 2**31, "seed", "must lie between 0 and 2147483647")
    require(params.threads is None or params.threads >= 1, "threads", "must be at least 1, or null")
    for name, value in dataclasses.asdict(gate).items():
        require(0 <= value <= 1, f"register.gate.{name}", "must lie between 0 and 1")
    evaluate, export = params.evaluate, params.export
    require(evaluate.calibration_bins >= 1, "evaluate.calibration_bins", "must be at least 1")
    require(evaluate.worst_mistakes >= 0, "evaluate.worst_mistakes", "must not be negative")
    require(13 <= export.opset <= 18, "export.opset", "must lie between 13 and 18")
    require(export.max_logit_difference > 0, "export.max_logit_difference", "must be positive")
    for name, value in dataclasses.asdict(params.tracking).items():
        require(value and not set("/:") & set(value), f"tracking.{name}", "needs a name without '/' and ':'")
    for name in params.models:
        require(
            name.replace("-", "").replace("_", "").isalnum(),
            f"models.{name}",
            "a model's name may hold letters, digits, '-' and '_' only",
        )
        recipe, where = params.train_config(name), f"models.{name}.train"
        require(recipe.epochs >= 1, f"{where}.epochs", "must be at least 1")
        require(recipe.batch_size >= 1, f"{where}.batch_size", "must be at least 1")
        require(0 < recipe.learning_rate < math.inf, f"{where}.learning_rate", "must be positive and finite")
        require(0 <= recipe.warmup_fraction < 1, f"{where}.warmup_fraction", "must lie in [0, 1)")
        require(
            0 <= recipe.weight_decay < math.inf, f"{where}.weight_decay", "must be finite and not negative"
        )
        require(0 <= recipe.label_smoothing < 1, f"{where}.label_smoothing", "must lie in [0, 1)")
        for position, entry in enumerate(recipe.augmentation):
            check_augmentation(entry, f"{where}.augmentation[{position}]")
        params.model_spec(name)


def check_augmentation(entry: dict[str, Any], key: str) -> None:
    name = entry.get("name")
    require(
        name in AUGMENTATIONS,
        f"{key}.name",
        f"no augmentation {name!r}{suggest(str(name), AUGMENTATIONS)}; known: {', '.join(AUGMENTATIONS)}",
    )
    parameters = AUGMENTATIONS[str(name)]
    require(
        entry.keys() - {"name"} == parameters.keys(),
        key,
        f"{name} takes {', '.join(parameters)}; received {', '.join(entry.keys() - {'name'}) or 'nothing'}",
    )
    for parameter, kind in parameters.items():
        value = convert(entry[parameter], kind, f"{key}.{parameter}")
        require(
            value >= 0 if kind is int else 0 <= value <= 1,
            f"{key}.{parameter}",
            "must not be negative" if kind is int else "must lie between 0 and 1",
        )


def require(condition: object, key: str, message: str) -> None:
    if not condition:
        raise ConfigError(f"params.yaml: {key}: {message}")


def suggest(word: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def build(kind: type, content: Any, key: str) -> Any:
    """Makes the dataclass `kind` from a mapping; unknown, missing and mistyped keys are refused."""
    if not isinstance(content, dict):
        raise ConfigError(f"params.yaml: {key or 'the file'}: expected a section, received {content!r}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    prefix = f"{key}." if key else ""
    for name in content:
        if name not in fields:
            raise ConfigError(
                f"params.yaml: unknown key {prefix}{name}{suggest(str(name), fields)}; "
                f"known here: {', '.join(fields)}"
            )
    for name, f in fields.items():
        # The file is the whole experiment: only what may be null or empty can be left out of it.
        optional = f.default is None or f.default_factory is not dataclasses.MISSING
        if name not in content and not optional:
            raise ConfigError(f"params.yaml: {prefix}{name} is missing")
    hints = typing.get_type_hints(kind)
    return kind(**{name: convert(value, hints[name], prefix + name) for name, value in content.items()})


def convert(value: Any, hint: Any, key: str) -> Any:
    """`value` as the annotated type `hint`, or ConfigError. Integers count as floats; booleans never."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, key)
    if origin is types.UnionType:
        if value is None:
            return None
        return convert(value, next(a for a in arguments if a is not types.NoneType), key)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(
            f"params.yaml: {key}: expected one of {', '.join(arguments)}, received "
            f"{value!r}{suggest(str(value), arguments)}"
        )
    if origin is dict and isinstance(value, dict):
        return {str(k): convert(v, arguments[1], f"{key}.{k}") for k, v in value.items()}
    if origin is tuple and isinstance(value, list | tuple):
        if arguments[-1] is Ellipsis:
            return tuple(convert(v, arguments[0], f"{key}[{i}]") for i, v in enumerate(value))
        if len(value) == len(arguments):
            return tuple(
                convert(v, a, f"{key}[{i}]") for i, (v, a) in enumerate(zip(value, arguments, strict=True))
            )
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, str, bool) and type(value) is hint:
        return value
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    expected = names.get(
        hint,
        "a list of [height, width]"
        if hint == tuple[int, int]
        else "a list"
        if origin is tuple
        else "a section",
    )
    note = " (YAML reads 1e-3 as text: write 1.0e-3)" if hint is float and isinstance(value, str) else ""
    raise ConfigError(f"params.yaml: {key}: expected {expected}, received {value!r}{note}")
