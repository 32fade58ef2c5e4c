"""Measures how many injected faults the doctor finds: wrong labels, copies, and shortcuts.

    python -m benchmarks.accuracy.doctor
    python -m benchmarks.accuracy.doctor --model    # also with a model that was trained on the wrong labels

The sample: 225 of its 4,500 training labels are changed, at random or to a class that its class is confused with.
Edited copies of 300 images are sought among all 6,000. A white patch of 3 × 3 pixels is put into a corner of one class.
Larger pictures: those of Debian's package openclipart-png, in the 22 classes of their folders, shrunk to 256 pixels;
200 of at least 64 pixels are edited. Raw numbers go to benchmarks/accuracy/doctor.json, the table to
docs/results/accuracy.md.
"""

import argparse
import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks import results
from benchmarks.accuracy.tables import DOCTOR, doctor_table
from benchmarks.facts import ROOT
from visionpipe.artifact.hardware import hardware
from visionpipe.data.config import PrepareConfig
from visionpipe.data.decode import decode_image
from visionpipe.data.duplicates import PLAIN, TURNS, find_copies
from visionpipe.data.measures import ALIGNABLE, RECORD, Small, measure, read_measured, records
from visionpipe.data.prepared import Prepared, open_prepared
from visionpipe.doctor.diagnosis import diagnose
from visionpipe.doctor.features import features
from visionpipe.doctor.labels import confidently_wrong, predict_out_of_fold, votes
from visionpipe.doctor.models import model_probabilities
from visionpipe.errors import ImageError
from visionpipe.project.params import Params
from visionpipe.stages.prepare import prepare

SAMPLE = ROOT / "data" / "fashion-mini.zip"
CLIPART = Path("/usr/share/openclipart/png")
SIDE = 256
FLIPS = 225
PATCHED = "pullover"
PARTS = ("labels", "copies", "patches", "clipart")
Pictures = dict[str, bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}; the others stay as they are"
    )
    parser.add_argument("--model", action="store_true", help="also train a model on the wrong labels")
    options = parser.parse_args()
    with zipfile.ZipFile(SAMPLE) as archive:
        sample = {name: archive.read(name) for name in archive.namelist() if name.endswith(".png")}
    result: dict[str, Any] = results.read(DOCTOR) if DOCTOR.exists() else {}
    result["hardware"] = hardware()
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(temporary):
        if "labels" in options.parts:
            result["labels"] = labels(sample, options.model)
        if "copies" in options.parts:
            result["copies"] = copies(sample, 300, PHOTOMETRIC, align=False)
        if "patches" in options.parts:
            result["patches"] = {str(share): patches(sample, share) for share in (0.9, 0.5, 0.2, 0.0)}
        if "clipart" in options.parts:
            clipart = clip_art()
            result["clipart"] = clip_art_project(clipart)
            result["larger_copies"] = copies(clipart, 200, PHOTOMETRIC | GEOMETRIC, align=True)
    results.write(DOCTOR, result)
    from benchmarks.tables import write_pages

    write_pages()
    print(doctor_table())


# Wrong labels ---------------------------------------------------------------------------------------------


def labels(sample: Pictures, with_model: bool) -> dict[str, Any]:
    """Flips labels of the training images, and ranks all of them by their margin."""
    data = project(sample, (28, 28), "labels")
    described = features(data, Path("labels"))
    true, classes = data.labels("train").astype(np.int64), len(data.classes)
    described = described[: len(true)]
    clean = predict_out_of_fold(described, true, classes)
    found: dict[str, Any] = {"unmodified": {"flagged": float(confidently_wrong(clean, true, classes).mean())}}
    random = np.random.default_rng(0)
    rows = random.choice(len(true), FLIPS, replace=False)
    confused_with = confusions(data, true, classes)
    for kind in ("random", "confused"):
        given = true.copy()
        if kind == "random":
            given[rows] = (true[rows] + random.integers(1, classes, FLIPS)) % classes
        else:
            given[rows] = [random.choice(classes, p=confused_with[label]) for label in true[rows]]
        flipped = given != true
        margin = predict_out_of_fold(described, given, classes).margin(given)
        found[kind] = {"features": rates(margin, flipped)}
        if with_model:
            table = trained_probabilities(sample, data, given, kind)[: len(true)]
            margin = predict_out_of_fold(described, given, classes, [table] if len(table) else []).margin(
                given
            )
            found[kind]["features and model"] = rates(margin, flipped)
    return found


def confusions(data: Prepared, labels: np.ndarray, classes: int) -> np.ndarray:
    """Returns how often raw pixels take a class for each other one, in shares of its mistakes: (classes, classes)."""
    pixels = data.images("train").reshape(len(labels), -1).astype(np.float32) / 255
    predicted = predict_by_neighbours(pixels, labels, classes)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels, predicted), 1)
    np.fill_diagonal(counts, 0)
    return counts / counts.sum(axis=1, keepdims=True)


def predict_by_neighbours(values: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    shares, _ = votes(values, (values**2).sum(axis=1), labels, classes, np.arange(len(labels)))
    return shares.argmax(axis=1)


def rates(margin: np.ndarray, flipped: np.ndarray) -> dict[str, float]:
    order = np.argsort(margin, kind="stable")
    hits, count = flipped[order], int(flipped.sum())
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return {
        "precision at k": float(precision[count - 1]),
        "recall at 2k": float(hits[: 2 * count].sum() / count),
        "average precision": float(precision[hits].mean()),
        "right of the first 100": float(hits[:100].mean()),
    }


def trained_probabilities(sample: Pictures, data: Prepared, given: np.ndarray, kind: str) -> np.ndarray:
    """Trains and exports the sample's ResNet on the given labels; returns its probabilities of all images."""
    renamed = dict(sample)
    for file, label in zip(data.files("train"), given, strict=True):
        content = renamed.pop(file)
        renamed[f"train/{data.classes[label]}/{file.replace('/', '-')}"] = content
    folder = Path(f"model-{kind}")
    (folder / "data").mkdir(parents=True)
    write_zip(folder / "data" / SAMPLE.name, renamed)
    shutil.copy(ROOT / "params.yaml", folder)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in ("lock", "prepare", "train resnet", "export resnet", "evaluate resnet"):
        subprocess.run(
            [sys.executable, "-m", "visionpipe", *command.split()], cwd=folder, env=environment, check=True
        )
    with contextlib.chdir(folder):
        relabelled = open_prepared(Path("data/prepared"))
        table, note = model_probabilities(relabelled, "resnet", Path(), None)
        print(note)
        rows = {file.replace("/", "-"): row for row, file in enumerate(data.files("train"))}
        order = np.zeros(len(given), np.int64)
        start = 0
        for split in relabelled.splits:
            for row, file in enumerate(relabelled.files(split)):
                name = file.split("/", 2)[2]
                if name in rows:
                    order[rows[name]] = start + row
            start += len(relabelled.files(split))
        return np.asarray(table)[order] if len(table) else np.asarray(table)


# Copies ---------------------------------------------------------------------------------------------------


def encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def cropped(picture: Image.Image, share: float) -> Image.Image:
    """Cuts a part of this share of both sides out, at a place that depends on the picture's size."""
    random = np.random.default_rng(picture.size)
    width, height = (max(1, round(side * share)) for side in picture.size)
    left, top = (
        int(random.integers(picture.width - width + 1)),
        int(random.integers(picture.height - height + 1)),
    )
    return picture.crop((left, top, left + width, top + height))


def turned(picture: Image.Image, degrees: float) -> Image.Image:
    return picture.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=picture.getpixel((0, 0)))


Edits = dict[str, Callable[[Image.Image], bytes]]
PHOTOMETRIC: Edits = {
    "JPEG of quality 75": lambda picture: encoded(picture, "JPEG", quality=75),
    "JPEG of quality 30": lambda picture: encoded(picture, "JPEG", quality=30),
    "brightness × 0.7": lambda picture: encoded(ImageEnhance.Brightness(picture).enhance(0.7)),
    "contrast × 0.7": lambda picture: encoded(ImageEnhance.Contrast(picture).enhance(0.7)),
    "blur": lambda picture: encoded(
        picture.filter(ImageFilter.GaussianBlur(1 if picture.width > 64 else 0.7))
    ),
    "mirrored": lambda picture: encoded(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}
GEOMETRIC: Edits = {
    "half the size": lambda picture: encoded(
        picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)))
    ),
    "turned by 5°": lambda picture: encoded(turned(picture, 5)),
    "cropped by 10 %": lambda picture: encoded(cropped(picture, 0.9)),
    "cropped by 20 %": lambda picture: encoded(cropped(picture, 0.8)),
}


def copies(pictures: Pictures, count: int, edits: Edits, align: bool) -> dict[str, Any]:
    """Adds edited copies of `count` pictures to all, one edit at a time; returns the shares that are found."""
    names = list(pictures)
    sizes = [min(Image.open(io.BytesIO(data)).size) for data in pictures.values()]
    large = np.flatnonzero(np.array(sizes) >= ALIGNABLE) if align else np.arange(len(names))
    chosen = np.random.default_rng(0).choice(large, count, replace=False)
    start = time.perf_counter()
    natural = search(list(pictures.values()), align)
    found: dict[str, Any] = {
        "images": len(names),
        "seconds": time.perf_counter() - start,
        "natural groups": int(natural.max()) + 1,
        "natural images": int((natural >= 0).sum()),
        "edits": {},
    }
    for name, edit in edits.items():
        edited = [edit(Image.fromarray(decode_image(pictures[names[row]]))) for row in chosen]
        groups = search([*pictures.values(), *edited], align)
        same = groups[chosen] == groups[len(names) :]
        found["edits"][name] = float((same & (groups[chosen] >= 0)).mean())
        print(name, found["edits"][name], flush=True)
    return found


def search(files: list[bytes], align: bool) -> np.ndarray:
    def one(data: bytes) -> tuple[bytes | Small, bytes]:
        picture = decode_image(data)
        return measure(picture, data), hashlib.sha256(
            str(picture.shape).encode() + picture.tobytes()
        ).digest()

    with ThreadPoolExecutor() as pool:
        measured, digests = zip(*pool.map(one, files), strict=True)
    measures = read_measured(np.frombuffer(records(list(measured)), RECORD), Path("thumbnails"))
    return find_copies(
        np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32), measures, PLAIN + TURNS, align
    )


# Shortcuts ------------------------------------------------------------------------------------------------


def patches(sample: Pictures, share: float) -> list[str]:
    """Puts a patch into the lower right corner of a share of one class; returns what the doctor says of shortcuts."""
    random = np.random.default_rng(0)
    changed = dict(sample)
    for name, data in sample.items():
        if f"/{PATCHED}/" in name and random.random() < share:
            pixels = decode_image(data).copy()
            pixels[-3:, -3:] = 255
            changed[name] = encoded(Image.fromarray(pixels))
    folder = f"patches-{share}"
    diagnosis = diagnose(project(changed, (28, 28), folder), Path(folder), [], None)
    return [
        item.note for finding in diagnosis.findings if finding.key == "shortcut" for item in finding.items
    ]


# Clip art -------------------------------------------------------------------------------------------------


def clip_art() -> Pictures:
    """Reads the clip art, shrunk to SIDE pixels; links count as files, since they put a picture into a second class."""
    pictures = {}
    for path in sorted(CLIPART.rglob("*.png")):
        with contextlib.suppress(ImageError, OSError):
            picture = Image.fromarray(decode_image(path.read_bytes()))
            picture.thumbnail((SIDE, SIDE))
            pictures[str(path.relative_to(CLIPART))] = encoded(picture, compress_level=1)
    return pictures


def clip_art_project(clipart: Pictures) -> dict[str, Any]:
    """Runs prepare and the doctor on the clip art; compares what they find with the equal pictures of two classes."""
    by_content: dict[bytes, list[str]] = defaultdict(list)
    for name, data in clipart.items():
        by_content[hashlib.sha256(data).digest()].append(name)
    twice = {
        name
        for names in by_content.values()
        if len({name.split("/")[0] for name in names}) > 1
        for name in names
    }
    write_zip(Path("clipart.zip"), clipart)
    start = time.perf_counter()
    data = project(clipart, (64, 64), "clipart")
    prepared = time.perf_counter()
    diagnosis = diagnose(data, Path("clipart"), [], None)
    seconds = time.perf_counter() - prepared
    images = diagnosis.images
    found = {
        images.files[row]
        for finding in diagnosis.findings
        if finding.key == "label-conflict"
        for item in finding.items
        for row in item.rows
    }
    return {
        "images": len(clipart),
        "in two classes": len(twice),
        "found": len(twice & found),
        "prepare seconds": prepared - start,
        "doctor seconds": seconds,
        "findings": {finding.key: finding.count for finding in diagnosis.findings},
    }


def write_zip(path: Path, pictures: Pictures) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(pictures):
            archive.writestr(zipfile.ZipInfo(name), pictures[name])


def project(pictures: Pictures, size: tuple[int, int], folder: str) -> Prepared:
    """Prepares pictures in a new folder."""
    here = Path.cwd() / folder
    here.mkdir()
    write_zip(here / "images.zip", pictures)
    with contextlib.chdir(here):
        (here / ".dvc").mkdir()
        config = PrepareConfig(source="zip", path="images.zip", size=size, validation_fraction=0.1)
        prepare(Params(prepare=config, models={}))
    return open_prepared(here / "data" / "prepared")


if __name__ == "__main__":
    main()
