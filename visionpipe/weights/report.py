"""What an import did, tensor by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Preprocessing:
    """What a checkpoint's images went through, as far as it says. `mean`, `std`: per channel (R, G, B), of
    pixels in [0, 255]; `interpolation`: of the resize; `crop_ratio`: side of the central crop, of the resized
    short side; `size`: (height, width) after the crop.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_ratio: float | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Report:
    """`used`: our variables, each with the tensors it was made of. `unused`: tensors that were left out, each
    with the reason that permits it. `missing`: our variables that the checkpoint does not have: of the head
    only. `resized`: position embeddings, with both grids. `head`: what became of it. `assumed`: options that
    the checkpoint leaves open. `differences`: options in which the model is another one than the
    checkpoint's, which `strict=False` permitted.
    """

    source: str
    path: Path
    sha256: str
    format: str
    used: Mapping[str, tuple[str, ...]]
    unused: Mapping[str, str]
    missing: tuple[str, ...]
    resized: Mapping[str, str]
    head: str
    preprocessing: Preprocessing | None
    assumed: tuple[str, ...] = ()
    differences: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {self.format}, sha256 {self.sha256[:12]}",
            f"  used: {sum(map(len, self.used.values()))} tensors in {len(self.used)} weights",
            f"  head: {self.head}",
        ]
        lines += [f"  resized: {name}, {how}" for name, how in self.resized.items()]
        if self.unused:
            reasons = sorted(set(self.unused.values()))
            lines.append(f"  unused: {len(self.unused)} tensors ({', '.join(reasons)})")
        lines += [f"  assumed: {text}" for text in self.assumed]
        lines += [f"  different: {text}" for text in self.differences]
        return "\n".join(lines)
