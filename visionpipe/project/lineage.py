"""The identity of a model: two equal keys mean the same data, code, parameters and library versions."""

from dataclasses import asdict, fields
from typing import Any

from visionpipe.data.config import PrepareConfig
from visionpipe.files import sha256_json
from visionpipe.models.specs import ModelSpec
from visionpipe.project.backend import thread_count
from visionpipe.project.params import Params
from visionpipe.project.sections import ModelConfig
from visionpipe.training.recipe import TrainConfig

Pixels = dict[str, tuple[float, ...]]
LISTED = ("follow_links",)  # which files are found: the hash of the data says that
NEWER_IN_TABLE = ("labels", "separator")
CHECKPOINTS = ("checkpoint_minutes", "checkpoint_steps")  # the weights do not depend on them


def train_key(identity: dict[str, Any]) -> str:
    """Computes the key of a training from what its weights depend on. It is known before the training starts."""
    return sha256_json(identity)


def lineage_id(key: str, model_sha256: str) -> str:
    """Computes the id that ties the run, the model file and the registered version together."""
    return sha256_json({"train_key": key, "model_sha256": model_sha256})


def code_sha256(identity: dict[str, Any]) -> str:
    """Returns the hash of the code that trained a model. A lineage.json of visionpipe 0.1 has one per file."""
    code = identity["code"]
    return code if isinstance(code, str) else sha256_json(code)


def training_params(name: str, params: Params, recipe: TrainConfig, spec: ModelSpec) -> dict[str, Any]:
    """Returns the part of params.yaml that the weights of the entry `name` depend on."""
    entry = params.model(name)
    return {
        "backend": params.backend,
        "seed": params.seed,
        "threads": thread_count(params),
        "model": {
            "variant": entry.variant,
            "family": spec.family,
            **({"init": entry.init, "init_head": entry.init_head} if entry.init is not None else {}),
            **({"init_grid": entry.init_grid} if entry.init_grid is not None else {}),
            **written_pixels(entry),
            **asdict(spec),
        },
        "train": train_params(recipe),
        "prepare": prepare_params(params.prepare),
    }


def train_params(recipe: TrainConfig) -> dict[str, Any]:
    """Returns the recipe, without newer keys that have their default: these never change a key."""
    newer = [f.name for f in fields(recipe) if f.kw_only and getattr(recipe, f.name) == f.default]
    return {key: value for key, value in asdict(recipe).items() if key not in (*CHECKPOINTS, *newer)}


def prepare_params(config: PrepareConfig) -> dict[str, Any]:
    """Returns the section `prepare:`, without newer keys that have their default: these never change a key."""
    values = {key: value for key, value in asdict(config).items() if key not in LISTED}
    newer = [
        f for f in fields(config) if f.kw_only and f.name not in ("interpolation", "crop_ratio", *LISTED)
    ]
    for f in newer:
        if values[f.name] == f.default:
            del values[f.name]
    if config.table:
        for key in NEWER_IN_TABLE:
            if values["table"][key] is None:
                del values["table"][key]
    return values


def written_pixels(model: ModelConfig) -> Pixels:
    """Returns the parts of the normalisation that are in params.yaml."""
    written = {"pixel_mean": model.pixel_mean, "pixel_std": model.pixel_std}
    return {key: value for key, value in written.items() if value is not None}
