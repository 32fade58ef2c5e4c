"""Which entries of `models:` need which other entries.

DVC orders the trainings by `needs`. This module refuses values of `needs` that contradict `init` and
`train.distill.teacher`, and those that form a circle.
"""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from visionpipe.errors import did_you_mean
from visionpipe.models.specs import ModelSpec
from visionpipe.project.paths import model_folder
from visionpipe.project.schema import require

if TYPE_CHECKING:
    from visionpipe.project.params import Params

IMAGES = "data/prepared/manifest.json"  # not imported from data/prepared.py, which imports NumPy
OUTPUT = re.compile(r"(?:\./)?(?:models|artifacts|reports)/([^/]+)(?:/.*)?")
# Options that change neither the shape of a weight nor the inference.
FREE = {"dropout_rate", "stochastic_depth_rate", "position_stddev", "zero_last_scale", "norm_momentum"}


def check_needs(params: "Params") -> None:
    """Checks that DVC trains each entry after the models that it starts from and learns from.

    Raises:
        ConfigError: `needs` of an entry is wrong, or the entries form a circle.
    """
    for name in params.models:
        entry, needed = params.model(name), needed_models(params, name)
        files = {model_file(other): key for key, other in needed.items()}
        if len(files) == 1:
            ((file, key),) = files.items()
            require(entry.needs == file, f"models.{name}.needs", f"must be {file}, the model in {key}")
        elif files:
            both, stamp = tuple(files), f"data/{name}.needs"
            require(
                entry.needs == stamp and set(params.needs.get(name, ())) == set(both),
                f"models.{name}.needs",
                f"must be {stamp}, with needs: {{{name}: [{', '.join(both)}]}} beside models:, because {name} needs "
                f"two models, in {' and '.join(files.values())}",
            )
        require(
            name not in params.needs or len(files) == 2,
            f"needs.{name}",
            f"is only for an entry with one model in init and another in train.distill.teacher: remove needs.{name}",
        )  # fmt: skip
        require(
            files or entry.needs in (IMAGES, entry.init, *map(model_file, params.models)),
            f"models.{name}.needs",
            f"must be {IMAGES}, or {model_file('NAME')} to train {name} after the entry NAME of models:, or the file "
            f"that init names",
        )
        if "init" in needed:
            check_same_weights(params, name, needed["init"])
    for name in params.needs:
        require(
            name in params.models,
            f"needs.{name}",
            f"models: has no entry of this name{did_you_mean(name, params.models)}",
        )
    for name in params.models:
        check_order(params, [name])


def needed_models(params: "Params", name: str) -> dict[str, str]:
    """Returns key → the other entry of `models:` that it names."""
    entry, distill, needed = params.model(name), params.train_config(name).distill, {}
    written = OUTPUT.fullmatch(entry.init or "")
    require(
        not (written and written[1] in params.models),
        f"models.{name}.init", f"is the output of an entry: write init: {written and written[1]}",
    )  # fmt: skip
    if entry.init in params.models:
        needed["init"] = str(entry.init)
    elif entry.init and re.fullmatch(r"[\w-]+", entry.init):
        check_word(params, name, entry.init)
    if distill and not distill.teacher.startswith("models:/"):
        needed["train.distill.teacher"] = distill.teacher
    for key, other in needed.items():
        require(
            other in params.models and other != name,
            f"models.{name}.{key}",
            f"no other model {other!r}{did_you_mean(other, params.models.keys() - {name})}; give an entry of "
            "models:, or models:/NAME@ALIAS",
        )
    return needed


def check_word(params: "Params", name: str, word: str) -> None:
    """Raises ConfigError if an `init` of one word is neither a file nor a known checkpoint."""
    from visionpipe.models.known import KNOWN  # imported here because most recipes do not need it

    require(
        word in KNOWN or Path(word).exists(),
        f"models.{name}.init",
        f"no other model {word!r}{did_you_mean(word, [*(params.models.keys() - {name}), *KNOWN])}; give an entry of "
        "models:, a file, or one of the checkpoints that visionpipe models lists",
    )


def model_file(name: str) -> str:
    return (model_folder(name) / "model.keras").as_posix()


def check_order(params: "Params", chain: list[str]) -> None:
    """Raises ConfigError if entries need each other in a circle. `chain`: entries of which each needs the next one."""
    files = (params.model(chain[-1]).needs, *params.needs.get(chain[-1], ()))
    for match in filter(None, map(OUTPUT.fullmatch, files)):
        if match[1] in params.models:
            require(
                match[1] not in chain,
                f"models.{chain[-1]}.needs",
                f"forms a circle, {' needs '.join([*chain, match[1]])}: remove one of these needs",
            )
            check_order(params, [*chain, match[1]])


def check_same_weights(params: "Params", name: str, other: str) -> None:
    """Raises ConfigError if an entry starts from another model whose weights do not fit."""
    mine, theirs = params.model_spec(name), params.model_spec(other)
    different = differences(mine, theirs)
    require(
        not different,
        f"models.{name}.init", f"the weights of {other} do not fit: {'; '.join(different)}",
    )  # fmt: skip


def differences(mine: ModelSpec, theirs: ModelSpec) -> list[str]:
    if mine.family != theirs.family:
        return [f"family {theirs.family}, here {mine.family}"]
    pairs = [(f.name, getattr(mine, f.name), getattr(theirs, f.name)) for f in dataclasses.fields(mine)]
    return [
        f"{name} {theirs}, here {mine}"
        for name, mine, theirs in pairs
        if mine != theirs and name not in FREE and not (name == "layer_scale" and mine and theirs)
    ]
