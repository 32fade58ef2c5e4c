"""What a format's file is made of: rows of our variable, their tensors, and how theirs become ours."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visionpipe.weights.report import Preprocessing

Tensors = Mapping[str, np.ndarray]
Size = tuple[int, int]
Companions = Mapping[str, Any]  # the JSON files that were published beside the weights, by name


@dataclass(frozen=True)
class Assumed:
    """An option as the format's own code has it by default, where the file does not say."""

    value: Any


@dataclass(frozen=True)
class Row:
    """`ours`: a variable's path, where {block} stands for any number; `theirs`: the tensors that it is made
    of, where {block} is that number and {block-1} one less; `transform`: those tensors to our array.
    """

    ours: str
    theirs: tuple[str, ...]
    transform: Callable[..., np.ndarray]

    def tensors(self, path: str) -> tuple[str, ...] | None:
        """Their names for the variable at `path`, or None where this row is about others."""
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(self.ours))
        match = re.fullmatch(pattern, path)
        if match is None:
            return None
        numbers = {name: int(number) for name, number in match.groupdict().items()}

        def fill(place: re.Match[str]) -> str:
            return str(numbers[place[1]] + int(place[2] or 0))

        return tuple(re.sub(r"\{(\w+)([+-]\d+)?\}", fill, name) for name in self.theirs)


@dataclass(frozen=True)
class Format:
    """`signature`: tensors that every file of this format has, behind one of `prefixes`.
    `rows`: the table; of two rows for one variable the first counts whose tensors are there.
    `options`: what a model must have been built with to compute what the checkpoint's own code computes; Assumed
    where the file leaves it open.
    `image_size`: (height, width) of the images that the positions are for, where the companions say it.
    `positions`: how that code resizes position embeddings (positions.py).
    `class_position`: whether the tokens before the image's have positions; null: some files' have.
    `ignored`: pattern of tensors that no forward pass reads.
    `unpack`: the tensors as the table names them.
    """

    name: str
    signature: tuple[str, ...]
    rows: tuple[Row, ...]
    options: Callable[[Tensors, Companions], dict[str, Any]]
    positions: str = "linear"
    class_position: Callable[[Companions], bool | None] = lambda companions: True
    image_size: Callable[[Companions], Size | None] = lambda companions: None
    prefixes: tuple[str, ...] = ("",)
    ignored: str = r"(?!)"
    preprocessing: Callable[[Companions], Preprocessing | None] = lambda companions: None
    unpack: Callable[[Tensors], Tensors] = field(default=lambda tensors: tensors)

    def prefix(self, names: Iterable[str]) -> str | None:
        """What stands before the names of the table in a file with these tensors; None: not this format."""
        known = set(names)
        for prefix in self.prefixes:
            if all(prefix + name in known for name in self.signature):
                return prefix
        return None


def same(x: np.ndarray) -> np.ndarray:
    return x


def flat(x: np.ndarray) -> np.ndarray:
    """(1, 1, 1, channels), as older files have it, to (channels,)."""
    return x.reshape(-1)


def transposed(x: np.ndarray) -> np.ndarray:
    """torch's Linear (out, in) to (in, out)."""
    return x.T


def channels_last(x: np.ndarray) -> np.ndarray:
    """torch's Conv2d (out, in, rows, columns) to (rows, columns, in, out)."""
    return x.transpose(2, 3, 1, 0)


def heads_in(*kernels: np.ndarray) -> np.ndarray:
    """Query, key and value, each (in, heads, head_dim), side by side: (in, 3·heads·head_dim)."""
    return np.concatenate([kernel.reshape(len(kernel), -1) for kernel in kernels], axis=1)


def biases_in(*biases: np.ndarray) -> np.ndarray:
    """The biases of `heads_in`, each (heads, head_dim)."""
    return np.concatenate([bias.reshape(-1) for bias in biases])


def heads_out(kernel: np.ndarray) -> np.ndarray:
    """(heads, head_dim, out) to (heads·head_dim, out)."""
    return kernel.reshape(-1, kernel.shape[-1])


def keras_dense(ours: str, theirs: str) -> tuple[Row, ...]:
    """Kernel and bias, in our order."""
    return tuple(Row(f"{ours}/{name}", (f"{theirs}/{name}",), same) for name in ("kernel", "bias"))


def torch_dense(ours: str, theirs: str) -> tuple[Row, ...]:
    return (
        Row(f"{ours}/kernel", (f"{theirs}.weight",), transposed),
        Row(f"{ours}/bias", (f"{theirs}.bias",), same),
    )


def torch_conv(ours: str, theirs: str) -> tuple[Row, ...]:
    return (
        Row(f"{ours}/kernel", (f"{theirs}.weight",), channels_last),
        Row(f"{ours}/bias", (f"{theirs}.bias",), same),
    )


def torch_norm(ours: str, theirs: str) -> tuple[Row, ...]:
    """Of any kind: only a batch norm has the last two."""
    return tuple(
        Row(f"{ours}/{mine}", (f"{theirs}.{name}",), same)
        for mine, name in (
            ("gamma", "weight"),
            ("beta", "bias"),
            ("moving_mean", "running_mean"),
            ("moving_variance", "running_var"),
        )
    )
