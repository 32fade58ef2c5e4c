"""Writes and reads the prepared form of a data set: a few large files that training reads without copying.

images-SPLIT.npy   uint8 or uint16 (n, height, width, channels); three channels are RGB
labels-SPLIT.npy   int32 (n,), positions in the manifest's `classes`; with `task: multi` int8 (n, classes): 1 where an
                   image has a label, 0 where not, -1 where nobody knows
files-SPLIT.jsonl  n lines, each the name of a source file as a JSON string
measures-SPLIT.npz what was measured on the original pictures; `content_sha256` does not count it
thumbnails-SPLIT.raw uint8 (n, 32, 32), grey thumbnails of the original pictures, if one of them has 64 pixels a side

Only where the source has them:
metadata-SPLIT.jsonl  n lines, each the values of the manifest's `columns` as a JSON list of strings
weights-train.npy     float32 (n,), factors of the training loss
folds.json            the parts for cross-validation: split → fold of each image

manifest.json      the identity of the data (`content_sha256`), counts, quarantined files and warnings

The arrays of measures-SPLIT.npz:

hash          uint8 (n, 32): 256 bits of a perceptual hash
colour        uint8 (n, 8, 8, 3): the mean colours of 8 × 8 parts
brightness    float32 (n,): the mean of the grey levels, [0, 255]
contrast      float32 (n,): their standard deviation
sharpness     float32 (n,): the variance of the Laplacian at 129 to 256 pixels, or fewer in small pictures
border        float32 (n, 3): the mean colour of the outer eighth
corners       float32 (n, 4, 3): the mean colours of the four corners, each an eighth of the sides
quantisation  float32 (n,): the mean of a JPEG file's first quantisation table, which says its quality; or 0
height, width int32 (n,): of the original picture
bytes         int64 (n,): the size of the file
format        uint8 (n,): the position of the file's format in `measures.FORMATS`
digest        uint8 (n, 32): sha256 of the original pixels
copies        int32 (n,): images of one number, in all splits, are copies; -1 for an image without a copy
"""

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visionpipe.data.headers import PADDING
from visionpipe.data.labels import ABSENT, PRESENT, UNKNOWN
from visionpipe.errors import DataError
from visionpipe.files import flush_to_disk, sha256_file, sha256_json

PREPARED = Path("data/prepared")
MANIFEST = "manifest.json"
SPLITS = ("train", "validation", "test")
FOLDED = ("train", "validation")
CHUNK_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Prepared:
    """A prepared data set in `folder`; `write_manifest` describes the `manifest`."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of the labels."""
        return self.manifest["classes"]

    @property
    def task(self) -> str:
        """What a model says of an image, as in params.yaml."""
        return self.manifest.get("task", "single")

    @property
    def framing(self) -> dict[str, Any]:
        """How the images were resized: the keyword arguments of `frame`, of which older manifests lack the last two."""
        rest = {key: self.manifest[key] for key in ("interpolation", "crop_ratio")}
        framing = self.manifest.get("framing", "crop")
        pad_color = tuple(self.manifest.get("pad_color", PADDING))
        return {"size": tuple(self.manifest["size"]), **rest, "framing": framing, "pad_color": pad_color}

    @property
    def decoding(self) -> dict[str, Any]:
        """How the images were decoded: the arguments of PixelFormat, which older manifests lack."""
        levels = self.manifest.get("levels")
        return {
            "levels": tuple(levels) if isinstance(levels, list) else levels,
            "channels": self.manifest.get("channels", 3),
            "depth": self.manifest.get("depth", 8),
            "reduced_to": self.manifest.get("reduced_to"),
        }

    @property
    def splits(self) -> list[str]:
        """The names of the splits."""
        return list(self.manifest["counts"])

    def images(self, split: str) -> np.memmap:
        """Returns the images of a split, uint8 or uint16 (n, height, width, channels), as a read-only memory map."""
        return np.load(self.folder / f"images-{split}.npy", mmap_mode="r")

    def labels(self, split: str) -> np.ndarray:
        """Returns the labels of a split, int32 (n,); with `task: multi` int8 (n, classes), 1, 0 or -1 for unknown."""
        return np.load(self.folder / f"labels-{split}.npy")

    def measures(self, split: str) -> dict[str, np.ndarray] | None:
        """Returns the measures of a split; None for data that an older version has prepared."""
        try:
            with np.load(self.folder / f"measures-{split}.npz") as arrays:
                measures = dict(arrays)
        except FileNotFoundError:
            return None
        thumbnails = self.folder / f"thumbnails-{split}.raw"
        if thumbnails.exists():
            measures["thumbnail"] = np.memmap(thumbnails, np.uint8, "r").reshape(-1, 32, 32)
        return measures

    def files(self, split: str) -> list[str]:
        """Returns the name of the source file of every image of a split."""
        with (self.folder / f"files-{split}.jsonl").open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def metadata(self, split: str) -> dict[str, list[str]]:
        """Returns column → the value of every image of a split; empty where the source has no further columns."""
        columns = self.manifest.get("columns", [])
        if not columns:
            return {}
        with (self.folder / f"metadata-{split}.jsonl").open(encoding="utf-8") as lines:
            values = [json.loads(line) for line in lines]
        return {column: [row[place] for row in values] for place, column in enumerate(columns)}

    def weights(self) -> np.ndarray | None:
        """Returns the factors of the training images' loss, float32 (n,); None where the source has none."""
        name = "weights-train.npy"
        return np.load(self.folder / name) if name in self.manifest["sha256"] else None

    def folds(self) -> dict[str, np.ndarray] | None:
        """Returns split → the fold of each image, int64 (n,), of train and validation; None without `prepare.folds`."""
        if "folds.json" not in self.manifest["sha256"]:
            return None
        content = json.loads((self.folder / "folds.json").read_text(encoding="utf-8"))
        return {split: np.array(content[split]) for split in FOLDED}


def open_prepared(folder: Path, verify: bool = True) -> Prepared:
    """Opens a prepared data set; with `verify` it reads every file and compares its checksum.

    Raises:
        DataError: the folder is missing, incomplete or damaged.
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
    """Raises DataError for a file that differs from its checksum in the manifest."""
    for name, expected in manifest["sha256"].items():
        if sha256_file(folder / name) != expected:
            raise damaged(folder / name)
    if content_sha256(manifest) != manifest["content_sha256"]:
        raise damaged(folder / MANIFEST)


def damaged(path: Path) -> DataError:
    """Returns the error for a damaged file."""
    return DataError(f"{path} is damaged: run dvc repro --force prepare")


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder to fill, which replaces `folder` when the block ends without an error.

    If the block fails or the process is killed, `folder` is unchanged.
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


def split_sizes(manifest: dict[str, Any]) -> dict[str, int]:
    """Returns split → number of images."""
    sizes = {split: sum(counts.values()) for split, counts in manifest["counts"].items()}
    return manifest.get("images", sizes)


def write_split(
    folder: Path,
    split: str,
    images: np.ndarray,
    rows: list[int],
    labels: Sequence[int] | np.ndarray,
    files: list[str],
) -> None:
    """Writes the three files of a split.

    Args:
        images: uint8 or uint16 (all, height, width, channels); may be a memory map larger than memory.
        rows: the positions of the split's images in `images`.
        labels, files: the label and the name of the source file of each row; with `task: multi` the labels are int8
            (rows, classes).
    """
    header = {"descr": images.dtype.str, "fortran_order": False, "shape": (len(rows), *images.shape[1:])}
    with (folder / f"images-{split}.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks(images, rows):
            file.write(chunk.data)
    array = np.asarray(labels)
    np.save(folder / f"labels-{split}.npy", array.astype(np.int32 if array.ndim == 1 else np.int8))
    with (folder / f"files-{split}.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(name, ensure_ascii=False) + "\n" for name in files)


def write_metadata(folder: Path, split: str, rows: list[tuple[str, ...]]) -> None:
    """Writes the metadata of the images of a split."""
    with (folder / f"metadata-{split}.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_weights(folder: Path, weights: list[float]) -> None:
    """Writes the factors of the training loss, unless all are 1; raises DataError where all are 0."""
    if not any(weights):
        raise DataError("prepare.table.weight: the weights of all training images are 0")
    if any(weight != 1 for weight in weights):
        np.save(folder / "weights-train.npy", np.array(weights, np.float32))


def write_folds(folder: Path, splits: dict[str, list[int]], folds: dict[int, int]) -> None:
    """Writes the fold of each training and validation image; `folds` maps the rows of `splits` to theirs."""
    content = {split: [folds[row] for row in splits[split]] for split in FOLDED}
    (folder / "folds.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def write_measures(folder: Path, split: str, measures: dict[str, np.ndarray], rows: list[int]) -> None:
    """Writes measures-SPLIT.npz and, if there are thumbnails, thumbnails-SPLIT.raw, of `rows` of all images."""
    small = {name: values[rows] for name, values in measures.items() if name != "thumbnail"}
    np.savez(folder / f"measures-{split}.npz", **small)  # type: ignore[arg-type]
    if "thumbnail" in measures:
        with (folder / f"thumbnails-{split}.raw").open("wb") as file:
            for chunk in chunks(measures["thumbnail"], rows):
                file.write(chunk.data)


def write_manifest(
    folder: Path,
    *,
    size: tuple[int, int],
    interpolation: str = "bicubic",
    crop_ratio: float = 1.0,
    framing: str = "crop",
    pad_color: tuple[int, int, int] = PADDING,
    levels: Literal["file"] | tuple[float, float] | None = None,
    channels: int = 3,
    depth: int = 8,
    reduced_to: int | None = None,
    task: str = "single",
    classes: list[str],
    channel_mean: list[float],
    channel_std: list[float],
    quarantined: list[dict[str, str]],
    warnings: list[str],
    columns: Sequence[str] = (),
    decisions: Sequence[dict[str, str]] = (),
    findings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes and returns the manifest of the splits in `folder`.

    The manifest contains the arguments and:

    - `counts`: split → class → number of images with this label
    - `kept`: number of images in all splits
    - `found`: number of images and quarantined files
    - `sha256`: file → hash
    - `content_sha256`: a hash of classes, size and arrays, but not of the names of the source files

    And only where an image may have several labels:

    - `task`
    - `images`: split → number of images
    - `without_label`: split → number of images without any label
    - `unknown`: split → class → number of images of which nobody knows whether they have this label

    Args:
        task: what a model says of an image, as in params.yaml.
        channel_mean, channel_std: statistics of the training split per channel, in [0, 255].
        quarantined: `path` and `reason` of each file that could not be used.
        columns: the names of the metadata; the key is left out where there are none, and so is `decisions`.
        decisions: `file`, `finding` and `decision` of each row of decisions.csv that changed something.
        findings: counts of copies, pictures of bad quality and shortcuts, from `doctor.checkup`.
    """
    labels = {split: np.load(folder / f"labels-{split}.npy") for split in SPLITS}
    counts = {split: counts_of(labels[split], len(classes)) for split in SPLITS}
    total = sum(len(labels[split]) for split in SPLITS)
    manifest = {
        "size": list(size),
        "interpolation": interpolation,
        "crop_ratio": crop_ratio,
        "framing": framing,
        "pad_color": list(pad_color),
        "levels": list(levels) if isinstance(levels, tuple) else levels,
        "channels": channels,
        "depth": depth,
        "reduced_to": reduced_to,
        "classes": classes,
        "counts": {split: dict(zip(classes, counts[split], strict=True)) for split in SPLITS},
        **({"task": task, **several_labels(labels, classes)} if labels["train"].ndim > 1 else {}),
        "channel_mean": channel_mean,
        "channel_std": channel_std,
        "found": total + len(quarantined),
        "kept": total,
        "quarantined": quarantined,
        "warnings": warnings,
        **({"columns": list(columns)} if columns else {}),
        **({"decisions": list(decisions)} if decisions else {}),
        "findings": findings or {},
        "sha256": {path.name: sha256_file(path) for path in sorted(folder.iterdir())},
    }
    manifest = {"content_sha256": content_sha256(manifest), **manifest}
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return manifest


def counts_of(labels: np.ndarray, classes: int) -> list[int]:
    """Returns the number of images with each label, from int32 (n,) or int8 (n, classes)."""
    if labels.ndim == 1:
        return np.bincount(labels, minlength=classes).tolist()
    return (labels == PRESENT).sum(axis=0).tolist()


def several_labels(labels: dict[str, np.ndarray], classes: list[str]) -> dict[str, Any]:
    """Returns the keys of the manifest that only images with several labels have."""
    unknown = {split: (of_split == UNKNOWN).sum(axis=0).tolist() for split, of_split in labels.items()}
    return {
        "images": {split: len(of_split) for split, of_split in labels.items()},
        "without_label": {
            split: int((of_split == ABSENT).all(axis=1).sum()) for split, of_split in labels.items()
        },
        "unknown": {split: dict(zip(classes, numbers, strict=True)) for split, numbers in unknown.items()},
    }


def content_sha256(manifest: dict[str, Any]) -> str:
    """Hashes the classes, the image size and the arrays of a data set."""
    arrays = {name: sha256 for name, sha256 in manifest["sha256"].items() if name.endswith(".npy")}
    return sha256_json({"classes": manifest["classes"], "size": manifest["size"], "arrays": arrays})


def channel_statistics(images: np.ndarray, rows: list[int]) -> tuple[list[float], list[float]]:
    """Computes the mean and standard deviation of each channel over `rows` of the images, in [0, 255].

    `images` are uint8 or uint16 (n, height, width, channels). uint16 are in [0, 255] after a division by 257, as the
    model sees them. The sums are exact integers, so the result depends neither on the machine nor on the order of the
    images.
    """
    levels, unit = (65536, 257) if images.dtype == np.uint16 else (256, 1)
    histograms = np.zeros((images.shape[-1], levels), np.int64)
    for chunk in chunks(images, rows):
        for channel in range(len(histograms)):
            histograms[channel] += np.bincount(chunk[..., channel].ravel(), minlength=levels)
    means, deviations = [], []
    for histogram in histograms.tolist():
        pixels = sum(histogram)
        total = sum(value * count for value, count in enumerate(histogram))
        squares = sum(value**2 * count for value, count in enumerate(histogram))
        means.append(total / (unit * pixels))
        deviations.append(math.sqrt(pixels * squares - total**2) / (unit * pixels))
    return means, deviations


def chunks(images: np.ndarray, rows: list[int]) -> Iterator[np.ndarray]:
    """Yields `rows` of `images`, a few megabytes at a time."""
    step = max(1, CHUNK_BYTES // images[0].nbytes)
    for start in range(0, len(rows), step):
        yield images[rows[start : start + step]]
