"""The prepared form of a data set: a few large files that training reads without copying.

images-SPLIT.npy   uint8 (n, height, width, 3), RGB
labels-SPLIT.npy   int32 (n,), positions in the manifest's `classes`
files-SPLIT.jsonl  n lines, each the name of a source file as a JSON string
manifest.json      what the data are (`content_sha256`), where every file went, and what looks suspicious
"""

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.errors import DataError
from visionpipe.files import flush_to_disk

PREPARED = Path("data/prepared")
MANIFEST = "manifest.json"
SPLITS = ("train", "validation", "test")
CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Prepared:
    """The prepared images; `write_manifest` says what `manifest` holds."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        return self.manifest["classes"]

    @property
    def framing(self) -> dict[str, Any]:
        """How the images were resized: `size` (height, width), `interpolation`, `crop_ratio`."""
        rest = {key: self.manifest[key] for key in ("interpolation", "crop_ratio")}
        return {"size": tuple(self.manifest["size"]), **rest}

    @property
    def splits(self) -> list[str]:
        return list(self.manifest["counts"])

    def images(self, split: str) -> np.memmap:
        """uint8 (n, height, width, 3), RGB, mapped from the file and read-only."""
        return np.load(self.folder / f"images-{split}.npy", mmap_mode="r")

    def labels(self, split: str) -> np.ndarray:
        """int32 (n,)."""
        return np.load(self.folder / f"labels-{split}.npy")

    def files(self, split: str) -> list[str]:
        """The source file of every image."""
        with (self.folder / f"files-{split}.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]


def open_prepared(folder: Path, verify: bool = True) -> Prepared:
    """Opens what `prepare` wrote; with `verify` every file is read and compared with its checksum.

    Raises DataError where the folder is missing, incomplete or damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if verify:
            verify_files(folder, manifest)
    except FileNotFoundError as error:
        raise DataError(f"{error.filename} is missing: run dvc repro --force prepare") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise damaged(folder / MANIFEST) from None
    return Prepared(folder, manifest)


def verify_files(folder: Path, manifest: dict[str, Any]) -> None:
    for name, expected in manifest["sha256"].items():
        if file_sha256(folder / name) != expected:
            raise damaged(folder / name)
    if content_sha256(manifest) != manifest["content_sha256"]:
        raise damaged(folder / MANIFEST)


def damaged(path: Path) -> DataError:
    return DataError(f"{path} is damaged: run dvc repro --force prepare")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well.

    Where the block fails or the process is killed, `folder` stays as it was.
    """
    partial, previous = (folder.with_name(folder.name + suffix) for suffix in (".partial", ".previous"))
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        for path in (*partial.iterdir(), partial):
            flush_to_disk(path)
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(previous, ignore_errors=True)


def write_split(
    folder: Path, split: str, images: np.ndarray, rows: list[int], labels: list[int], files: list[str]
) -> None:
    """Writes the three files of a split: `rows` of `images`, with a label and a source file for each.

    images: uint8 (all, height, width, 3); may be a memory map larger than memory.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(rows), *images.shape[1:])}
    with (folder / f"images-{split}.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks(images, rows):
            file.write(chunk.data)
    np.save(folder / f"labels-{split}.npy", np.array(labels, np.int32))
    with (folder / f"files-{split}.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(name, ensure_ascii=False) + "\n" for name in files)


def write_manifest(
    folder: Path,
    *,
    size: tuple[int, int],
    interpolation: str = "bicubic",
    crop_ratio: float = 1.0,
    classes: list[str],
    channel_mean: list[float],
    channel_std: list[float],
    quarantined: list[dict[str, str]],
    warnings: list[str],
) -> dict[str, Any]:
    """Writes and returns the manifest of the splits that lie in `folder`.

    Beside the arguments it holds `counts` (split → class → images), `kept` (images in all splits),
    `found` (kept and quarantined files), `sha256` of every file and `content_sha256`, which names the
    data: classes, size and arrays, whatever the source files were called. The channel statistics are
    the training split's, in [0, 255]; `quarantined` has a `path` and a `reason` for each file.
    """
    labels = {split: np.load(folder / f"labels-{split}.npy") for split in SPLITS}
    counts = {split: np.bincount(labels[split], minlength=len(classes)).tolist() for split in SPLITS}
    kept = sum(len(labels[split]) for split in SPLITS)
    manifest = {
        "size": list(size),
        "interpolation": interpolation,
        "crop_ratio": crop_ratio,
        "classes": classes,
        "counts": {split: dict(zip(classes, counts[split], strict=True)) for split in SPLITS},
        "channel_mean": channel_mean,
        "channel_std": channel_std,
        "found": kept + len(quarantined),
        "kept": kept,
        "quarantined": quarantined,
        "warnings": warnings,
        "sha256": {path.name: file_sha256(path) for path in sorted(folder.iterdir())},
    }
    manifest = {"content_sha256": content_sha256(manifest), **manifest}
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def content_sha256(manifest: dict[str, Any]) -> str:
    arrays = {name: sha256 for name, sha256 in manifest["sha256"].items() if name.endswith(".npy")}
    content = {"classes": manifest["classes"], "size": manifest["size"], "arrays": arrays}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def channel_statistics(images: np.ndarray, rows: list[int]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel over `rows` of uint8 (n, height, width, 3).

    From exact integer sums, so that the machine and the order of the images do not show in the result.
    """
    histograms = np.zeros((3, 256), np.int64)
    for chunk in chunks(images, rows):
        for channel in range(3):
            histograms[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    means, deviations = [], []
    for histogram in histograms.tolist():
        pixels = sum(histogram)
        total = sum(value * count for value, count in enumerate(histogram))
        squares = sum(value**2 * count for value, count in enumerate(histogram))
        means.append(total / pixels)
        deviations.append(math.sqrt(pixels * squares - total**2) / pixels)
    return means, deviations


def chunks(images: np.ndarray, rows: list[int]) -> Iterator[np.ndarray]:
    """`rows` of `images`, a few megabytes at a time."""
    step = max(1, CHUNK_BYTES // images[0].nbytes)
    for start in range(0, len(rows), step):
        yield images[rows[start : start + step]]
