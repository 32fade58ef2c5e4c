"""The report of an import, tensor by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Preprocessing:
    """How the images of a checkpoint were prepared; None where the checkpoint does not say.

    Args:
        mean, std: per channel (R, G, B), of pixels in [0, 255].
        interpolation: how the images were resized.
        crop_ratio: side of the central crop, relative to the short side of the resized image.
        size: (height, width) after the crop, in pixels.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_ratio: float | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Report:
    """Says what an import did.

    Args:
        source: the address that the user gave; `path` is the local file or folder.
        sha256: hash of the file.
        format: name of the checkpoint's format.
        used: model variable → the tensors that it was made of.
        unused: tensor → the reason why it was not needed.
        missing: model variables that the checkpoint lacks; these can only belong to the head.
        resized: position embedding → old and new grid; first convolution → old and new channels.
        head: what the head was initialised with.
        preprocessing: how the checkpoint's images were prepared.
        assumed: options that the checkpoint does not state.
        differences: options that differ between model and checkpoint, which `strict=False` or `permitted` allowed.
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
