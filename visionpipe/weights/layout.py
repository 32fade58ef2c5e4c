"""The description of a checkpoint format: a table that says which tensors become which of our variables, and how."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visionpipe.weights.report import Preprocessing

Tensors = Mapping[str, np.ndarray]
Size = tuple[int, int]
Companions = Mapping[str, Any]  # name → content of each JSON file that was published beside the weights


@dataclass(frozen=True)
class Assumed:
    """The default value of an option in the format's code, for a file that does not state the option."""

    value: Any


@dataclass(frozen=True)
class FormatRow:
    """One row of a format's table.

    Args:
        ours: the path of a variable, in which {block} or {stage} stands for any number.
        theirs: the names of the tensors that it is made of, in which {block} is that number and {block-1} one less.
        transform: a function from these tensors to our array.
    """

    ours: str
    theirs: tuple[str, ...]
    transform: Callable[..., np.ndarray]

    def tensors(self, path: str) -> tuple[str, ...] | None:
        """Returns the names of the tensors for the variable at `path`, or None if the row is for other variables."""
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
    """A checkpoint format.

    Args:
        name: how messages call the format.
        signature: tensors that every file of this format has, after one of `prefixes`.
        rows: the table. Of several rows for a variable, the first whose tensors all exist is used.
        options: the options with which a model computes the same as the format's code; Assumed where the file does
            not state them.
        positions: how the format's code resizes position embeddings (a method of `resize_positions`).
        class_position: whether the tokens before the image tokens have positions; None if it depends on the file.
        image_size: (height, width) of the images that the positions are for; None if the file does not say.
        ignored: pattern of tensors that the forward pass does not read.
        preprocessing: how the images were prepared; None if the file does not say.
        unpack: converts the tensors of a file to those that the table names.
    """

    name: str
    signature: tuple[str, ...]
    rows: tuple[FormatRow, ...]
    options: Callable[[Tensors, Companions], dict[str, Any]]
    positions: str = "linear"
    class_position: Callable[[Companions], bool | None] = lambda companions: True
    image_size: Callable[[Companions], Size | None] = lambda companions: None
    prefixes: tuple[str, ...] = ("",)
    ignored: str = r"(?!)"
    preprocessing: Callable[[Companions], Preprocessing | None] = lambda companions: None
    unpack: Callable[[Tensors], Tensors] = field(default=lambda tensors: tensors)

    def prefix(self, names: Iterable[str]) -> str | None:
        """Returns the prefix of the tensors' names in a file with `names`, or None if it has another format."""
        known = set(names)
        for prefix in self.prefixes:
            if all(prefix + name in known for name in self.signature):
                return prefix
        return None


def same(x: np.ndarray) -> np.ndarray:
    """Returns a tensor unchanged."""
    return x


def flat(x: np.ndarray) -> np.ndarray:
    """Reshapes (1, 1, 1, channels), which older files have, to (channels,)."""
    return x.reshape(-1)


def transposed(x: np.ndarray) -> np.ndarray:
    """Converts the weight of torch's Linear (out, in) to (in, out)."""
    return x.T


def channels_last(x: np.ndarray) -> np.ndarray:
    """Converts the weight of torch's Conv2d (out, in, rows, columns) to (rows, columns, in, out)."""
    return x.transpose(2, 3, 1, 0)


def heads_in(*kernels: np.ndarray) -> np.ndarray:
    """Joins query, key and value, each (in, heads, head_dim), to (in, 3·heads·head_dim)."""
    return np.concatenate([kernel.reshape(len(kernel), -1) for kernel in kernels], axis=1)


def biases_in(*biases: np.ndarray) -> np.ndarray:
    """Joins the biases of query, key and value, each (heads, head_dim) or flat, to (3·heads·head_dim,)."""
    return np.concatenate([bias.reshape(-1) for bias in biases])


def heads_out(kernel: np.ndarray) -> np.ndarray:
    """Reshapes (heads, head_dim, out) to (heads·head_dim, out)."""
    return kernel.reshape(-1, kernel.shape[-1])


def keras_dense(ours: str, theirs: str) -> tuple[FormatRow, ...]:
    """Returns the rows of a dense layer or convolution whose kernel has our order of axes."""
    return tuple(FormatRow(f"{ours}/{name}", (f"{theirs}/{name}",), same) for name in ("kernel", "bias"))


def torch_dense(ours: str, theirs: str) -> tuple[FormatRow, ...]:
    """Returns the rows of torch's Linear."""
    return (
        FormatRow(f"{ours}/kernel", (f"{theirs}.weight",), transposed),
        FormatRow(f"{ours}/bias", (f"{theirs}.bias",), same),
    )


def torch_conv(ours: str, theirs: str) -> tuple[FormatRow, ...]:
    """Returns the rows of torch's Conv2d."""
    return (
        FormatRow(f"{ours}/kernel", (f"{theirs}.weight",), channels_last),
        FormatRow(f"{ours}/bias", (f"{theirs}.bias",), same),
    )


def torch_norm(ours: str, theirs: str) -> tuple[FormatRow, ...]:
    """Returns the rows of a norm of any kind; only a batch norm has the last two."""
    return tuple(
        FormatRow(f"{ours}/{mine}", (f"{theirs}.{name}",), same)
        for mine, name in (
            ("gamma", "weight"),
            ("beta", "bias"),
            ("moving_mean", "running_mean"),
            ("moving_variance", "running_var"),
        )
    )
