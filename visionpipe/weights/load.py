"""Puts a checkpoint into a model: everything is checked first, then everything is assigned."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from visionpipe.errors import WeightsError
from visionpipe.models.variants import shown
from visionpipe.weights.checkpoint import OWN, Checkpoint
from visionpipe.weights.options import options_of
from visionpipe.weights.plan import Contents, Plan
from visionpipe.weights.report import Report
from visionpipe.weights.sources import resolve
from visionpipe.weights.visionpipe_keras import open_own

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
    if checkpoint.is_own:
        contents = own_contents(checkpoint, model)
    else:
        contents = Contents(
            checkpoint.format.name,
            checkpoint.tensors,
            checkpoint.format.rows,
            checkpoint.options,
            checkpoint.format.positions,
            checkpoint.format.class_position,
            checkpoint.format.ignored,
            size=checkpoint.preprocessing.size if checkpoint.preprocessing else None,
        )
    differences, assumed = compare_options(contents, options_of(model), checkpoint.source, strict, permitted)
    plan = Plan(model, contents, checkpoint.source, grid, zero_head=head == "zero")
    for variable, value in plan.values:
        variable.assign(value)
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
        assumed=assumed,
        differences=differences,
    )


def own_contents(checkpoint: Checkpoint, model: "keras.Model") -> Contents:
    own = open_own(checkpoint.path, model.input.shape[1:3])
    return Contents(
        OWN, own.tensors, tuple(own.rows), options_of(own.model), "linear", True, r"(?!)", own.resized
    )


def compare_options(
    contents: Contents, built: dict[str, Any], source: str, strict: bool, permitted: Collection[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Where model and checkpoint differ, and what the checkpoint leaves open; WeightsError with `strict`."""
    wanted = {name: value for name, value in contents.options.items() if name in built}
    wrong = {name: value for name, value in wanted.items() if not equal(value, built[name])}
    said = {
        name: f"{name} {shown(value)}, the model has {shown(built[name])}" for name, value in wrong.items()
    }
    differences = tuple(said.values())
    wrong = {name: value for name, value in wrong.items() if strict and name not in permitted}
    if wrong:
        pixels = [name for name in wrong if name.startswith("pixel_")]
        overrides = [f"{name}: {shown(value)}" for name, value in wrong.items() if name not in pixels]
        advice = [f"overrides: {{{', '.join(overrides)}}}"] if overrides else []
        advice += [f"{name}={shown(wrong[name])}" for name in pixels]
        raise WeightsError(
            f"{source} ({contents.format}) was trained with {'; '.join(said[name] for name in wrong)}: build it with "
            f"{' and '.join(advice)}"
        )
    open_ones = [name for name in built if name not in contents.options]
    return differences, tuple(f"{name} {shown(built[name])}" for name in open_ones)


def equal(wanted: Any, built: Any) -> bool:
    if isinstance(wanted, int | float | tuple) and not isinstance(wanted, bool):
        return np.shape(wanted) == np.shape(built) and np.allclose(wanted, built, rtol=1e-4, atol=1e-15)
    return bool(wanted == built)
