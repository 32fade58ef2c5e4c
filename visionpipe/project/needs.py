"""Which entries of `models:` need which others. DVC learns it from `needs`; what would train something else, or in no
order at all, is refused here.
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

IMAGES = "data/prepared/manifest.json"  # not of data/prepared.py, which imports NumPy
OUTPUT = re.compile(r"(?:\./)?(?:models|artifacts|reports)/([^/]+)(?:/.*)?")
# They make no weight of another shape, and no model that computes something else in inference.
FREE = {"dropout_rate", "stochastic_depth_rate", "position_stddev", "zero_last_scale", "norm_momentum"}


def check_needs(params: "Params") -> None:
    """Refuses an entry that DVC would not train after what it starts or learns from, and cycles."""
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
                f"must be {stamp}, with needs: {{{name}: [{', '.join(both)}]}} beside models:, for {name} needs two "
                f"models, in {' and '.join(files.values())}",
            )
        require(
            name not in params.needs or len(files) == 2,
            f"needs.{name}", f"is for an entry with two models, in init and train.distill.teacher; {name} has not",
        )  # fmt: skip
        require(
            files or entry.needs in (IMAGES, entry.init, *map(model_file, params.models)),
            f"models.{name}.needs",
            f"must be {IMAGES}, or {model_file('NAME')} to train {name} after the entry NAME of models:, or the file "
            f"in init",
        )
        if "init" in needed:
            check_same_weights(params, name, needed["init"])
    for name in params.needs:
        require(
            name in params.models,
            f"needs.{name}",
            f"no such entry of models:{did_you_mean(name, params.models)}",
        )
    for name in params.models:
        check_order(params, [name])


def needed_models(params: "Params", name: str) -> dict[str, str]:
    """Key → the other entry that it names."""
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
    """Refuses an `init` of one word that is no file, and no checkpoint of the table."""
    from visionpipe.models.known import KNOWN  # not above: help and most recipes need none of it

    require(
        word in KNOWN or Path(word).exists(),
        f"models.{name}.init",
        f"no other model {word!r}{did_you_mean(word, [*(params.models.keys() - {name}), *KNOWN])}; give an entry of "
        "models:, a file, or one of the checkpoints that visionpipe models lists",
    )


def model_file(name: str) -> str:
    return (model_folder(name) / "model.keras").as_posix()


def check_order(params: "Params", chain: list[str]) -> None:
    """`chain`: entries of which each needs the next."""
    files = (params.model(chain[-1]).needs, *params.needs.get(chain[-1], ()))
    for match in filter(None, map(OUTPUT.fullmatch, files)):
        if match[1] in params.models:
            require(
                match[1] not in chain,
                f"models.{chain[-1]}.needs",
                f"goes in a circle, {' needs '.join([*chain, match[1]])}: there is no order to train them in",
            )
            check_order(params, [*chain, match[1]])


def check_same_weights(params: "Params", name: str, other: str) -> None:
    """Refuses a start from a model of another variant, whose weights have no place."""
    mine, theirs = params.model_spec(name), params.model_spec(other)
    different = differences(mine, theirs)
    require(
        not different,
        f"models.{name}.init", f"{other} is another model, whose weights do not fit: {'; '.join(different)}",
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
