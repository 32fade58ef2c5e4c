"""Plans an import: which tensor goes into which weight, checked completely before anything is assigned."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from visionpipe.errors import WeightsError
from visionpipe.models.names import DISTILLATION_LOGITS, HEADS, LOGITS, TOKENS
from visionpipe.models.positions import resize_positions
from visionpipe.models.variants import shown
from visionpipe.weights.channels import RGB, fitted_kernel, fitting
from visionpipe.weights.hints import NOTES, OURS, POSITION, THEIRS
from visionpipe.weights.layout import FormatRow, Size, Tensors
from visionpipe.weights.read import bfloat16

if TYPE_CHECKING:
    import keras

POSITIONS = f"{TOKENS}/position_embedding"


@dataclass(frozen=True)
class Contents:
    """The parts of a checkpoint that an import reads. `Format` describes the fields that both have.

    Args:
        format: the name of the format.
        options: the options that a model needs for these weights.
        assumed: the names of the options that the checkpoint does not state.
        resized: variable → how it was already resized to the model's image size.
    """

    format: str
    tensors: Tensors
    rows: tuple[FormatRow, ...]
    options: dict[str, Any]
    positions: str = "linear"
    class_position: bool | None = True
    ignored: str = r"(?!)"
    image_size: Size | None = None
    assumed: frozenset[str] = frozenset()
    resized: dict[str, str] = field(default_factory=dict)


class ImportPlan:
    """Plans an import without changing the model.

    `values` lists the variables with the arrays to assign. `used`, `unused`, `missing`, `resized` and `head` are those
    of the report. If the checkpoint does not fit the model, `wrong` lists the reasons, and `needs` has the overrides of
    a model that it would fit. `needs` is empty if no such model exists, or none is certain.
    """

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
        kernels = (layer.kernel for layer in model.layers if hasattr(layer, "kernel"))
        self.first_kernel = next((kernel.path for kernel in kernels if len(kernel.shape) == 4), None)
        self.tokens = next((layer for layer in model.layers if layer.name == TOKENS), None)
        self.values: list[tuple[Any, np.ndarray]] = []
        self.used: dict[str, tuple[str, ...]] = {}
        self.unused: dict[str, str] = {}
        self.missing: list[str] = []
        self.resized: dict[str, str] = {}
        self.seen: set[str] = set()
        self.absent: list[str] = []
        self.misshapen: list[str] = []
        self.misplaced: list[str] = []
        self.unexplained = False
        variables = [variable for variable in model.variables if "seed_generator" not in variable.path]
        self.needs, self.notes = self.other_model([variable.path for variable in variables])
        heads = [variable for variable in variables if variable.path.split("/")[0] in HEADS]
        body = [variable for variable in variables if variable.path.split("/")[0] not in HEADS]
        self.place_head(heads, zero_head)
        self.place(body)
        left = self.left_over()
        self.wrong = self.differences(left)
        if self.notes or self.unexplained or not self.explains(left):
            self.unexplained, self.needs = True, {}

    def differences(self, left: list[str]) -> list[str]:
        """Returns the reasons why the checkpoint does not fit; `left` are the tensors without a place in the model."""
        wrong = self.misplaced
        if self.absent:
            wrong.append(f"it lacks {len(self.absent)} weights of the model, the first is {self.absent[0]}")
        if self.misshapen:
            wrong.append(f"{len(self.misshapen)} tensors have another shape, the first: {self.misshapen[0]}")
        if left and not wrong:
            shape = self.contents.tensors[left[0]].shape
            wrong.append(
                f"{len(left)} of its tensors have no place in the model, the first is {left[0]} of shape {shape}"
            )
        return wrong

    def explains(self, left: list[str]) -> bool:
        """Whether a model with the overrides of `needs` has a place for all tensors of `left`."""
        patterns = [pattern for pattern, name, _ in THEIRS if name in self.needs]
        if self.needs.get("distillation_token") is False:  # such a model has a single head
            heads = [*self.candidates(f"{LOGITS}/kernel"), *self.candidates(f"{LOGITS}/bias")]
            patterns += [re.escape(name) for names, _ in heads for name in names]
        return all(any(re.search(pattern, name) for pattern in patterns) for name in left)

    def candidates(self, path: str) -> list[tuple[tuple[str, ...], FormatRow]]:
        """Returns the rows for a variable, each with the names of its tensors."""
        named = [(row.tensors(path), row) for row in self.contents.rows]
        return [(names, row) for names, row in named if names is not None]

    def has(self, path: str) -> bool:
        """Whether the checkpoint has all tensors that a variable is made of."""
        return any(all(name in self.contents.tensors for name in names) for names, _ in self.candidates(path))

    def other_model(self, paths: list[str]) -> tuple[dict[str, Any], list[str]]:
        """Returns the overrides of a model that the checkpoint fits, and the reasons why no model here fits it.

        Such a model has a place for every tensor, and no weight that the checkpoint lacks. The overrides concern the
        presence of parts only, not their sizes.
        """
        tensors = self.contents.tensors
        wanted = {name for path in paths for names, _ in self.candidates(path) for name in names}
        placeless = [name for name in tensors if name not in wanted]
        needs = {
            name: value
            for pattern, name, value in OURS
            if any(re.fullmatch(pattern, path) and not self.has(path) for path in paths)
        }
        position = self.contents.options.get("position")
        if self.tokens is not None and position not in (None, self.tokens.position):
            needs["position"] = position
        for pattern, name, read in THEIRS:
            values = [read(tensors[tensor]) for tensor in placeless if re.search(pattern, tensor)]
            if name != "position" and any(values):
                needs[name] = next(filter(None, values))
        notes = [note for pattern, note in NOTES if any(re.search(pattern, name) for name in placeless)]
        pooler = self.contents.options.get("pooler_act", "tanh")
        if needs.get("representation_dim") and pooler != "tanh":
            notes.append(f"its pooler_act is {pooler}, which no model here has")
        if needs.get("distillation_token", self.tokens is not None and self.tokens.has_distillation_token):
            if needs.get("representation_dim"):
                notes.append("it has a pooler beside a distillation token, which no model here has")
            if self.has(f"{LOGITS}/kernel") and not self.has(f"{DISTILLATION_LOGITS}/kernel"):
                notes.append("it has a distillation token without a separate head, which no model here has")
        return needs, notes

    def find(self, path: str) -> tuple[tuple[str, ...], np.ndarray] | None:
        """Returns the names of a variable's tensors and its value, or None if a tensor is missing."""
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
        """Returns a tensor in float32; raises WeightsError if an entry is not a finite number."""
        array = np.asarray(self.contents.tensors[name])
        if array.dtype == np.dtype("V2"):  # how NumPy stores bfloat16
            array = bfloat16(array.view("<u2"))
        if array.dtype.kind not in "fiu":
            raise WeightsError(f"{self.source}: {name} is of type {array.dtype}, expected numbers")
        array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise WeightsError(
                f"{self.source}: {name} has {np.count_nonzero(~np.isfinite(array))} entries that are NaN or "
                f"infinite: the file is damaged, or its training failed"
            )
        return array

    def place_head(self, heads: list[Any], zero_head: bool) -> None:
        """Plans the whole head, or zeros for all of it (Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.2)."""
        sources = {variable.path: self.find(variable.path) for variable in heads}
        classes = {tuple(variable.shape)[-1] for variable in heads}
        theirs = {source[1].shape[-1] for source in sources.values() if source}
        counts = f"{max(theirs, default=0):,} classes, the model {max(classes):,}"
        if not all(sources.values()):
            self.head, reason = "zeros: the checkpoint has none", "head"
        elif theirs != classes:
            self.head, reason = f"zeros: the checkpoint has {counts}", "head of other classes"
        elif zero_head:
            self.head, reason = "zeros, as requested", "head, as requested"
        else:
            self.head = f"loaded, {max(classes):,} classes"
            self.place(heads)
            return
        for variable in heads:
            self.values.append((variable, np.zeros(variable.shape, np.float32)))
            source = sources[variable.path]
            if source is None:
                self.missing.append(variable.path)
            else:
                self.unused |= dict.fromkeys(source[0], reason)

    def place(self, variables: list[Any]) -> None:
        """Plans variables, or records why they cannot be made of the checkpoint's tensors."""
        for variable in variables:
            path = variable.path
            source = self.find(path)
            if source is None:
                candidates = self.candidates(path)
                self.absent.append(f"{path} ({candidates[0][0][0]})" if candidates else path)
                self.unexplained |= not any(
                    re.fullmatch(p, path) for p, name, _ in (*OURS, POSITION) if name in self.needs
                )
                continue
            names, value = source
            self.seen.update(names)
            if path == POSITIONS:
                positions = self.at_grid(value, names[0])
                if positions is None:
                    continue
                value = positions
            if path == self.first_kernel and value.shape[2:3] == (RGB,) and variable.shape[2] != RGB:
                value = fitted_kernel(value, variable.shape[2])
                self.resized[path] = fitting(variable.shape[2])
            if value.shape != tuple(variable.shape):
                stored = " and ".join(str(self.contents.tensors[name].shape) for name in names)
                self.misshapen.append(
                    f"{' and '.join(names)} has shape {stored}, for {path} of shape {tuple(variable.shape)}"
                )
                head = path.split("/")[0] in HEADS and "representation_dim" in self.needs
                self.unexplained |= not head
                continue
            self.values.append((variable, value))
            self.used[path] = names

    def at_grid(self, value: np.ndarray, name: str) -> np.ndarray | None:
        """Resizes positions (1, tokens, channels) to the model's grid; returns None if their grid is unknown.

        Tokens that have no position in the checkpoint get zeros.
        """
        tokens = self.tokens
        assert tokens is not None
        if value.ndim != 3:
            return value
        count, first, new = value.shape[1], tokens.first, tuple(tokens.grid)
        layout = self.old_grid(count, first)
        if layout is None:
            wrong = f"{name} has {count} positions, which are no grid of the model with {first} other tokens"
            # The number of tokens that precede the image tokens in the checkpoint's model.
            pool = self.needs.get("pool", "token" if tokens.has_class_token else "gap")
            theirs = (pool == "token") + self.needs.get("distillation_token", tokens.has_distillation_token)
            if self.grid:
                wrong = (
                    f"{name} has {count} positions, which are not grid={self.grid} with {first} other tokens"
                )
                self.unexplained = True
            elif self.old_grid(count, theirs + self.needs.get("register_tokens", tokens.register_count)):
                if self.old_grid(count, theirs) is None:
                    self.notes.append("its register tokens have positions, which no model here has")
            elif self.old_grid(count, theirs) is None:
                wrong += (
                    ", and no square: give grid=(rows, columns), in params.yaml init_grid: [rows, columns]"
                )
            self.misplaced.append(wrong)
            return None
        old, preceding = layout
        before = value[0, :preceding] if preceding else np.zeros((first, value.shape[2]), np.float32)
        image = value[0, preceding:].reshape(*old, -1)
        if old != new:
            image = resize_positions(image, new, self.contents.positions).astype(np.float32)
            self.resized[POSITIONS] = f"{old[0]}×{old[1]} → {new[0]}×{new[1]}, {self.contents.positions}"
        return np.concatenate([before, image.reshape(-1, value.shape[2])])[None]

    def old_grid(self, count: int, first: int) -> tuple[tuple[int, ...], int] | None:
        """Returns the checkpoint's grid and the number of positions that precede it, or None if that is unknown.

        The grid is, in this order: the one that the user gave; the one that follows from the checkpoint's image size;
        the model's; a square. If it is uncertain whether the preceding tokens have positions, a square is only assumed
        with them: 169 positions may be 13·13 without, or 1 + 12·14 with a class token.

        Args:
            count: the number of positions in the checkpoint.
            first: the number of tokens that may precede the image tokens.
        """
        assert self.tokens is not None
        new, image_size = tuple(self.tokens.grid), self.contents.image_size
        preceding = {True: [first], False: [0], None: [first, 0]}[self.contents.class_position]
        side = round(max(count - preceding[0], 0) ** 0.5)
        options: list[tuple[tuple[int, ...], list[int]]] = [(new, preceding), ((side, side), preceding[:1])]
        if image_size:
            pixels = [length // side for length, side in zip(self.image_size, new, strict=True)]
            options.insert(0, (tuple(n // p for n, p in zip(image_size, pixels, strict=True)), preceding))
        if self.grid:
            options = [(self.grid, preceding)]
        fitting = [
            (grid, n) for grid, counts in options for n in counts if grid[0] * grid[1] == count - n > 0
        ]
        return fitting[0] if fitting else None

    def left_over(self) -> list[str]:
        """Returns the tensors that have no place in the model, except those that no forward pass reads."""
        known = self.seen | self.unused.keys()
        left = [name for name in self.contents.tensors if name not in known]
        for name in left:
            if re.fullmatch(self.contents.ignored, name):
                self.unused[name] = "no weight"
        return [name for name in left if name not in self.unused]

    def refusal(self) -> str:
        """Says why the checkpoint does not fit, and which model it would fit, if the tensors tell."""
        needs = [f"it needs {name}: {shown(value)}" for name, value in self.needs.items()]
        hint = f" ({'; '.join([*needs, *self.notes])})" if needs or self.notes else ""
        return f"a {self.contents.format} checkpoint, but not of this model: {'; '.join(self.wrong)}{hint}"
