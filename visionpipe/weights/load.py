"""Loads a checkpoint into a model: checks everything first, then assigns everything."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from visionpipe.errors import ConfigError, WeightsError
from visionpipe.models.variants import VARIANTS, fields, override, shown
from visionpipe.weights.channels import fitted_pixels
from visionpipe.weights.checkpoint import OWN, PretrainedCheckpoint
from visionpipe.weights.options import is_option, options_of
from visionpipe.weights.plan import Contents, ImportPlan
from visionpipe.weights.report import Report
from visionpipe.weights.sources import resolve
from visionpipe.weights.visionpipe_keras import OwnModel, copy_fixed_positions, layer_differences, open_own

if TYPE_CHECKING:
    import keras


def load_weights(
    model: "keras.Model",
    source: str | Path | PretrainedCheckpoint,
    *,
    sha256: str | None = None,
    offline: bool = False,
    head: Literal["load", "zero"] = "load",
    grid: tuple[int, int] | None = None,
    strict: bool = True,
    permitted: Collection[str] = (),
) -> Report:
    """Loads a checkpoint into `model`, either completely, or not at all.

    Args:
        source: a path, a URL, `hf:REPO[/FILE]`, `timm:NAME`, `kerashub:PRESET`, `models:/NAME@alias`, a name that
            `visionpipe models` lists, or what `resolve` returned.
        sha256: the expected hash of the file, or its first digits.
        offline: use the cache only.
        head: `load` takes the checkpoint's head, or zeros if that has another number of classes. `zero` takes zeros,
            for other classes that happen to have the same number.
        grid: (rows, columns) of the checkpoint's position embeddings, if they are not a square.
        strict: whether to refuse a model whose options (activation, padding, epsilon, normalisation …) differ from
            those that the checkpoint was trained with. Otherwise the report lists the differences.
        permitted: options that may differ even with `strict`, such as `pixel_mean`.

    Returns:
        A report of what became of each tensor.

    Raises:
        WeightsError: the file does not exist, is damaged, has no known format or another architecture, or contains a
            NaN.
    """
    checkpoint = (
        source
        if isinstance(source, PretrainedCheckpoint)
        else resolve(source, sha256=sha256, offline=offline)
    )
    own = open_own(checkpoint.path, model.input.shape[1:3]) if checkpoint.is_own else None
    contents = contents_of_own(own) if own else contents_of(checkpoint)
    contents = replace(contents, options=fitted_options(contents.options, model.input.shape[-1]))
    built = options_of(model)
    plan = ImportPlan(model, contents, checkpoint.source, grid, zero_head=head == "zero")
    differing = differences(contents.options, built)
    if own and not differing and not plan.wrong:
        differing = layer_differences(own.model, model)
    refused = [name for name in differing if strict and name not in permitted]
    if plan.wrong or refused:
        raise WeightsError(f"{checkpoint.source}{refusal(model, contents, plan, differing, refused)}")
    for variable, value in plan.values:
        variable.assign(value)
    if own:
        copy_fixed_positions(own, model)
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
            if name not in differing and (name in contents.assumed or name not in contents.options)
        ),
        differences=tuple(differing.values()),
    )


def contents_of(checkpoint: PretrainedCheckpoint) -> Contents:
    """Returns the contents of a checkpoint of another package."""
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


def fitted_options(options: dict[str, Any], channels: int) -> dict[str, Any]:
    """Returns the options with the normalisation of as many channels as the model's images have."""
    pixels = {
        name: fitted_pixels(options[name], channels)
        for name in ("pixel_mean", "pixel_std")
        if name in options
    }
    return options | pixels


def contents_of_own(own: OwnModel) -> Contents:
    """Returns the contents of a model that this package saved."""
    return Contents(OWN, own.tensors, tuple(own.rows), options_of(own.model), resized=own.resized)


def differences(options: Mapping[str, Any], built: Mapping[str, Any]) -> dict[str, str]:
    """Returns the options in which model and checkpoint differ, each with a description of both values.

    An option that no model here has is always a difference. Options of parts that this model lacks are left out,
    because the tensors differ then anyway.
    """
    differing = {}
    for name, wanted in options.items():
        if name not in built and not is_option(name):
            differing[name] = f"{name} {shown(wanted)}"
        elif name in built and not equal(wanted, built[name]):
            differing[name] = f"{name} {shown(wanted)}, the model has {shown(built[name])}"
    return differing


def refusal(
    model: "keras.Model",
    contents: Contents,
    plan: ImportPlan,
    differing: Mapping[str, str],
    refused: Collection[str],
) -> str:
    """Says why the checkpoint does not fit the model, and how to build a model that it fits.

    Overrides are named only if a model with all of them would fit.
    """
    refused = [
        name for name in refused if name not in plan.needs or plan.needs[name] != contents.options[name]
    ]
    trained = f"trained with {'; '.join(differing[name] for name in refused)}" if refused else ""
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
    """Whether a model of the same family can be built with the option."""
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
    """Whether two values of an option are equal up to rounding.

    Strides per stage are compared as far as both have stages; a different number of stages shows in the tensors.
    """
    if isinstance(wanted, tuple) and isinstance(built, tuple):
        wanted, built = zip(*zip(wanted, built, strict=False), strict=True)
    if isinstance(wanted, int | float | tuple) and not isinstance(wanted, bool):
        return np.shape(wanted) == np.shape(built) and np.allclose(wanted, built, rtol=1e-4, atol=1e-15)
    return bool(wanted == built)
