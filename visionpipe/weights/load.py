"""Puts a checkpoint into a model: everything is checked first, then everything is assigned."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from visionpipe.errors import ConfigError, WeightsError
from visionpipe.models.variants import VARIANTS, fields, override, shown
from visionpipe.weights.checkpoint import OWN, Checkpoint
from visionpipe.weights.options import is_option, options_of
from visionpipe.weights.plan import Contents, Plan
from visionpipe.weights.report import Report
from visionpipe.weights.sources import resolve
from visionpipe.weights.visionpipe_keras import Own, layer_differences, open_own, place_sines

if TYPE_CHECKING:
    import keras


def load_weights(
    model: "keras.Model",
    source: str | Path | Checkpoint,
    *,
    sha256: str | None = None,
    offline: bool = False,
    head: Literal["load", "zero"] = "load",
    grid: tuple[int, int] | None = None,
    strict: bool = True,
    permitted: Collection[str] = (),
) -> Report:
    """Loads a checkpoint into `model`; either all of it, or the model stays as it is.

    Args:
        source: a path, a URL, `hf:REPO[/FILE]`, `timm:NAME`, `kerashub:PRESET`, `models:/NAME@alias`, or what
            `resolve` returned.
        sha256: what the file must have; its first digits are enough.
        offline: take it from the cache or not at all.
        head: `load`: the checkpoint's, or zeros where that has another number of classes; `zero`: zeros,
            for classes that are other ones by chance of the same number.
        grid: rows and columns of the checkpoint's position embeddings, where they are not a square.
        strict: refuse a model whose options (activation, padding, epsilon, normalisation …) are not those
            that the checkpoint was trained with; otherwise the report names them.
        permitted: options that may differ all the same, such as `pixel_mean`.

    Raises:
        WeightsError: the file is not there, damaged, of no known format, of another architecture, or holds
            a NaN.
    """
    checkpoint = source if isinstance(source, Checkpoint) else resolve(source, sha256=sha256, offline=offline)
    own = open_own(checkpoint.path, model.input.shape[1:3]) if checkpoint.is_own else None
    contents = contents_of_own(own) if own else contents_of(checkpoint)
    built = options_of(model)
    plan = Plan(model, contents, checkpoint.source, grid, zero_head=head == "zero")
    said = differences(contents.options, built)
    if own and not said and not plan.wrong:
        said = layer_differences(own.model, model)
    refused = [name for name in said if strict and name not in permitted]
    if plan.wrong or refused:
        raise WeightsError(f"{checkpoint.source}{refusal(model, contents, plan, said, refused)}")
    for variable, value in plan.values:
        variable.assign(value)
    if own:
        place_sines(own, model)
    return Report(
        source=checkpoint.source,
        path=checkpoint.path,
        sha256=checkpoint.sha256,
        format=contents.format,
        used=plan.used,
        unused=plan.unused,
        missing=tuple(plan.missing),
        resized=plan.resized | contents.resized,
        head=plan.head,
        preprocessing=checkpoint.preprocessing,
        assumed=tuple(
            f"{name} {shown(value)}"
            for name, value in built.items()
            if name not in said and (name in contents.assumed or name not in contents.options)
        ),
        differences=tuple(said.values()),
    )


def contents_of(checkpoint: Checkpoint) -> Contents:
    return Contents(
        checkpoint.format.name,
        checkpoint.tensors,
        checkpoint.format.rows,
        checkpoint.options,
        checkpoint.format.positions,
        checkpoint.class_position,
        checkpoint.format.ignored,
        checkpoint.image_size,
        checkpoint.assumed,
    )


def contents_of_own(own: Own) -> Contents:
    return Contents(OWN, own.tensors, tuple(own.rows), options_of(own.model), resized=own.resized)


def differences(options: Mapping[str, Any], built: Mapping[str, Any]) -> dict[str, str]:
    """The options in which the model is not the checkpoint's, each with both values. Of what the model has no part
    for, that is for the tensors to show; what no model has is always a difference.
    """
    said = {}
    for name, wanted in options.items():
        if name not in built and not is_option(name):
            said[name] = f"{name} {shown(wanted)}"
        elif name in built and not equal(wanted, built[name]):
            said[name] = f"{name} {shown(wanted)}, the model has {shown(built[name])}"
    return said


def refusal(
    model: "keras.Model", contents: Contents, plan: Plan, said: Mapping[str, str], refused: Collection[str]
) -> str:
    """Why the checkpoint is not the model's, and what to build the model with. Overrides are named only where a model
    with all of them is the checkpoint's.
    """
    refused = [
        name for name in refused if name not in plan.needs or plan.needs[name] != contents.options[name]
    ]
    trained = f"trained with {'; '.join(said[name] for name in refused)}" if refused else ""
    wanted = {**plan.needs, **{name: contents.options.get(name) for name in refused}}
    impossible = [f"{name} {shown(v)}" for name, v in wanted.items() if not is_possible(model, name, v)]
    if plan.wrong:
        text = f": {plan.refusal()}{f'; and it was {trained}' if trained else ''}"
    else:
        text = f" ({contents.format}) was {trained}"
    if impossible:
        return f"{text}; no model of this family has {', '.join(impossible)}"
    if plan.unexplained or not wanted:
        return text
    overrides = [f"{name}: {shown(value)}" for name, value in wanted.items() if not name.startswith("pixel_")]
    advice = [f"overrides: {{{', '.join(overrides)}}}"] if overrides else []
    advice += [f"{name}={shown(value)}" for name, value in wanted.items() if name.startswith("pixel_")]
    return f"{text}: build it with {' and '.join(advice)}"


def is_possible(model: "keras.Model", name: str, value: Any) -> bool:
    """Whether a model of this one's family can be built with the option."""
    if name.startswith("pixel_"):
        return True
    spec = next((row.spec for row in VARIANTS.values() if row.spec.family == model.name), None)
    if spec is None or name not in fields(spec):
        return False
    try:
        override(spec, name, value)
    except ConfigError:
        return False
    return True


def equal(wanted: Any, built: Any) -> bool:
    """Of strides per stage, as many as both have: how many stages there are is for the tensors to show."""
    if isinstance(wanted, tuple) and isinstance(built, tuple):
        wanted, built = zip(*zip(wanted, built, strict=False), strict=True)
    if isinstance(wanted, int | float | tuple) and not isinstance(wanted, bool):
        return np.shape(wanted) == np.shape(built) and np.allclose(wanted, built, rtol=1e-4, atol=1e-15)
    return bool(wanted == built)
