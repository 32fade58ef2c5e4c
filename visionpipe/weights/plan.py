"""Which tensor goes where: everything is found and checked before anything is assigned."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from visionpipe.errors import WeightsError
from visionpipe.models.positions import resize_positions
from visionpipe.weights.layout import Row, Tensors
from visionpipe.weights.read import bfloat16

if TYPE_CHECKING:
    import keras

HEADS = ("logits", "logits_class", "logits_distillation")


@dataclass(frozen=True)
class Contents:
    """A checkpoint as far as the import reads it; see `Format` for the fields. `size`: (height, width) of the
    images that it was trained on, where it says so.
    """

    format: str
    tensors: Tensors
    rows: tuple[Row, ...]
    options: dict[str, Any]
    positions: str
    class_position: bool | None
    ignored: str
    resized: dict[str, str] = field(default_factory=dict)
    size: tuple[int, int] | None = None


class Plan:
    """What will be assigned, and the report of it. Making it changes nothing."""

    def __init__(
        self,
        model: "keras.Model",
        contents: Contents,
        source: str,
        grid: tuple[int, int] | None,
        zero_head: bool,
    ):
        self.contents, self.source, self.grid = contents, source, grid
        self.image_size = model.input.shape[1:3]
        self.tokens = next((layer for layer in model.layers if layer.name == "tokens"), None)
        self.values: list[tuple[Any, np.ndarray]] = []
        self.used: dict[str, tuple[str, ...]] = {}
        self.unused: dict[str, str] = {}
        self.missing: list[str] = []
        self.resized: dict[str, str] = {}
        variables = [variable for variable in model.variables if "seed_generator" not in variable.path]
        wanted = {
            name for variable in variables for names, _ in self.candidates(variable.path) for name in names
        }
        self.placeless = [name for name in contents.tensors if name not in wanted]
        heads = [variable for variable in variables if variable.path.split("/")[0] in HEADS]
        body = [variable for variable in variables if variable.path.split("/")[0] not in HEADS]
        self.place_head(heads, zero_head)
        self.place(body)
        self.check_unused()

    def candidates(self, path: str) -> list[tuple[tuple[str, ...], Row]]:
        """The rows for a variable, with the names of their tensors."""
        named = [(row.tensors(path), row) for row in self.contents.rows]
        return [(names, row) for names, row in named if names is not None]

    def find(self, path: str) -> tuple[tuple[str, ...], np.ndarray] | None:
        """The tensors for a variable and its value from them, or None where one of them is not there."""
        for names, row in self.candidates(path):
            if all(name in self.contents.tensors for name in names):
                arrays = [self.number(name) for name in names]
                try:
                    return names, row.transform(*arrays)
                except (ValueError, IndexError, TypeError):
                    shapes = " and ".join(str(array.shape) for array in arrays)
                    raise WeightsError(
                        f"{self.source}: {' and '.join(names)} of shape {shapes} cannot become {path}"
                    ) from None
        return None

    def number(self, name: str) -> np.ndarray:
        """A tensor in float32, every entry of it finite."""
        array = np.asarray(self.contents.tensors[name])
        if array.dtype == np.dtype("V2"):  # NumPy's files have no name for bfloat16
            array = bfloat16(array.view("<u2"))
        if array.dtype.kind not in "fiu":
            raise WeightsError(f"{self.source}: {name} is of type {array.dtype}, expected numbers")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise WeightsError(
                f"{self.source}: {name} holds {np.count_nonzero(~np.isfinite(array))} entries that are NaN "
                f"or infinite: the file is damaged, or its training failed"
            )
        return array

    def place_head(self, heads: list[Any], zero_head: bool) -> None:
        """All of the head, or zeros for all of it (Dosovitskiy et al. 2021, section 3.2)."""
        found = {variable.path: self.find(variable.path) for variable in heads}
        classes = {tuple(variable.shape)[-1] for variable in heads}
        theirs = {item[1].shape[-1] for item in found.values() if item}
        counts = f"{max(theirs, default=0):,} classes, the model {max(classes):,}"
        if not all(found.values()):
            self.head, reason = "zeros: the checkpoint has none", "head"
        elif theirs != classes:
            self.head, reason = f"zeros: the checkpoint has {counts}", "head of other classes"
        elif zero_head:
            self.head, reason = "zeros, as asked for", "head, as asked for"
        else:
            self.head = f"loaded, {max(classes):,} classes"
            self.place(heads)
            return
        for variable in heads:
            self.values.append((variable, np.zeros(variable.shape, np.float32)))
            item = found[variable.path]
            if item is None:
                self.missing.append(variable.path)
            else:
                self.unused |= dict.fromkeys(item[0], reason)

    def place(self, variables: list[Any]) -> None:
        absent: list[str] = []
        misshapen: list[str] = []
        for variable in variables:
            found = self.find(variable.path)
            if found is None:
                candidates = self.candidates(variable.path)
                absent.append(f"{variable.path} ({candidates[0][0][0]})" if candidates else variable.path)
                continue
            names, value = found
            if variable.path == "tokens/position_embedding":
                value = self.at_grid(value, names[0])
            if value.shape != tuple(variable.shape):
                stored = " and ".join(str(self.contents.tensors[name].shape) for name in names)
                misshapen.append(
                    f"{' and '.join(names)} has shape {stored}, for {variable.path} of shape "
                    f"{tuple(variable.shape)}"
                )
                continue
            self.values.append((variable, value))
            self.used[variable.path] = names
        if absent or misshapen:
            wrong = (
                [f"{len(absent)} weights of the model are not in it, the first {absent[0]}"] if absent else []
            )
            if misshapen:
                wrong.append(f"{len(misshapen)} tensors have another shape, the first: {misshapen[0]}")
            raise self.refusal("; ".join(wrong))

    def at_grid(self, value: np.ndarray, name: str) -> np.ndarray:
        """Positions (1, tokens, channels) at the model's grid; tokens that have none there have zeros."""
        tokens = self.tokens
        assert tokens is not None
        if value.ndim != 3:
            return value
        count, first, new = value.shape[1], tokens.first, tuple(tokens.grid)
        old, kept = self.old_grid(count, first, new)
        if old is None:
            raise self.refusal(
                f"{name} has {count} positions, which are no square grid with {first} other tokens: "
                f"give grid=(rows, columns)"
            )
        before = value[0, :kept] if kept else np.zeros((first, value.shape[2]), np.float32)
        image = value[0, kept:].reshape(*old, -1)
        if old != new:
            image = resize_positions(image, new, self.contents.positions).astype(np.float32)
            self.resized["tokens/position_embedding"] = (
                f"{old[0]}×{old[1]} → {new[0]}×{new[1]}, {self.contents.positions}"
            )
        return np.concatenate([before, image.reshape(-1, value.shape[2])])[None]

    def old_grid(self, count: int, first: int, new: tuple[int, ...]) -> tuple[tuple[int, ...] | None, int]:
        """The checkpoint's grid, and how many positions stand before it: given, told by its images' size, a
        square, or that of the model.
        """
        before = {True: [first], False: [0], None: [first, 0]}[self.contents.class_position]
        told: list[tuple[int, ...]] = [self.grid] if self.grid else []
        if not told:
            square = {count - kept: round(max(count - kept, 0) ** 0.5) for kept in before}
            told = [(side, side) for image, side in square.items() if side * side == image]
            if self.contents.size:
                pixels = [image // side for image, side in zip(self.image_size, new, strict=True)]
                told.insert(0, tuple(n // p for n, p in zip(self.contents.size, pixels, strict=True)))
            told.append(new)
        for grid in told:
            for kept in before:
                if grid[0] * grid[1] == count - kept:
                    return grid, kept
        return None, 0

    def check_unused(self) -> None:
        known = {name for names in self.used.values() for name in names} | self.unused.keys()
        left = [name for name in self.contents.tensors if name not in known]
        for name in left:
            if re.fullmatch(self.contents.ignored, name):
                self.unused[name] = "no weight"
        left = [name for name in left if name not in self.unused]
        if left:
            raise self.refusal(
                f"{len(left)} of its tensors have no place in the model, the first {left[0]} of shape "
                f"{self.contents.tensors[left[0]].shape}"
            )

    def refusal(self, what: str) -> WeightsError:
        """With what to build the model with, where tensors that it has no place for tell."""
        advice = [
            advice for pattern, advice in HINTS if any(re.search(pattern, name) for name in self.placeless)
        ]
        hint = f" ({'; '.join(advice)})" if advice else ""
        return WeightsError(
            f"{self.source}: a {self.contents.format} checkpoint, but not of this model: {what}{hint}"
        )


HINTS = (
    (r"dist_token|distillation_token", "it needs distillation_token: true"),
    (r"pre_logits|pooler", "it needs representation_dim"),
    (r"reg_token", "it needs register_tokens"),
    (r"(^|\.)ls1\.", "it needs layer_scale"),
    (r"^cls$|cls_token", "it needs pool: token"),
    (r"fc_norm", "its norm stands behind the pooling, which no model here has"),
    (r"MAPHead|attn_pool", "it pools with attention, which no model here does"),
)
