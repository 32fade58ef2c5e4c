"""Stage `prepare`: decodes the images of a source into RGB arrays of one size, in data/prepared/."""

import hashlib
import itertools
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from visionpipe.data.config import PrepareConfig
from visionpipe.data.decode import decode_image, resize_and_crop
from visionpipe.data.listing import Listing, Record, Rejected
from visionpipe.data.prepared import (
    MANIFEST,
    PREPARED,
    SPLITS,
    channel_statistics,
    replacing_folder,
    write_manifest,
    write_split,
)
from visionpipe.data.sources import SOURCES
from visionpipe.errors import DataError, ImageError
from visionpipe.project.params import Params

DECODED_AHEAD = 64
IMBALANCE = 10
QUARANTINED_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Kept:
    """A usable image without its pixels. `digest`: the sha256 of the picture before resizing."""

    split: str | None
    class_name: str
    file: str
    digest: bytes


@dataclass(frozen=True)
class Decoded:
    """A decoded and resized image. `pixels`: uint8 (height, width, 3)."""

    kept: Kept
    pixels: np.ndarray


def prepare(params: Params) -> None:
    """Reads, decodes, splits and writes the images of `params.prepare`, and prints a summary.

    Only the pixels of a few images are in memory at a time; each image takes some 300 bytes more.

    Raises:
        DataError: no images, a single class, a class without a training image, or an empty split.
    """
    config = params.prepare
    listing = SOURCES[config.source](config)
    if len(listing.classes) < 2:
        classes = f"only the class {listing.classes[0]!r}" if listing.classes else "no class"
        raise DataError(f"{config.path} holds {classes}: expected one folder of images for each class")
    with replacing_folder(PREPARED) as folder:
        spool = folder / "decoded"
        usable, quarantined = decode_into(spool, listing, params)
        splits = draw_splits(usable, listing.splits, config, params.seed)
        check_splits(splits, usable, quarantined, listing)
        images = np.memmap(spool, np.uint8, "r", shape=(len(usable), *config.size, 3))
        positions = {name: position for position, name in enumerate(listing.classes)}
        for split, rows in splits.items():
            labels = [positions[usable[row].class_name] for row in rows]
            write_split(folder, split, images, rows, labels, [usable[row].file for row in rows])
        channel_mean, channel_std = channel_statistics(images, splits["train"])
        spool.unlink()
        manifest = write_manifest(
            folder,
            size=config.size,
            interpolation=config.interpolation,
            crop_ratio=config.crop_ratio,
            classes=list(listing.classes),
            channel_mean=channel_mean,
            channel_std=channel_std,
            quarantined=[{"path": item.file, "reason": item.reason} for item in quarantined],
            warnings=[*listing.notes, *suspicions(splits, usable, listing.classes)],
        )
    print(summary(manifest))


def decode_into(spool: Path, listing: Listing, params: Params) -> tuple[list[Kept], list[Rejected]]:
    """Writes the pixels of all usable images to the file `spool`, in the order of the listing."""
    usable: list[Kept] = []
    quarantined: list[Rejected] = []
    decoded = decode_all(listing.entries, params.prepare, params.threads)
    with spool.open("wb") as file:
        for image in tqdm(decoded, "prepare", listing.total, unit=" images", disable=None):
            if isinstance(image, Rejected):
                quarantined.append(image)
            else:
                file.write(image.pixels.data)
                usable.append(image.kept)
    return usable, quarantined


def decode_all(
    entries: Iterable[Record | Rejected], config: PrepareConfig, threads: int | None
) -> Iterator[Decoded | Rejected]:
    """Decodes in threads and yields in order, at most DECODED_AHEAD images ahead."""
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[Decoded | Rejected]] = deque()
        for entry in entries:
            ahead.append(pool.submit(decode, entry, config))
            if len(ahead) > DECODED_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def decode(entry: Record | Rejected, config: PrepareConfig) -> Decoded | Rejected:
    if isinstance(entry, Rejected):
        return entry
    try:
        image = decode_image(entry.read())
    except ImageError as error:
        return Rejected(entry.file, error.reason)
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(image.data)
    usable = Kept(entry.split, entry.class_name, entry.file, digest.digest())
    return Decoded(usable, resize_and_crop(image, config.size, config.interpolation, config.crop_ratio))


def draw_splits(
    usable: list[Kept], given: frozenset[str], config: PrepareConfig, seed: int
) -> dict[str, list[int]]:
    """Returns split → indices into `usable`. Splits that the source does not have are drawn from train.

    Each class is drawn separately, with at least one image per split if there are enough. An image's place in the draw
    depends on the seed and the original picture only, not on file names or other images. So copies of a picture are in
    the same split wherever the counts allow it.
    """
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    for row, image in enumerate(usable):
        splits[image.split or "train"].append(row)
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    missing = [split for split in fractions if split not in given]
    for position, split in enumerate(missing):
        rows_of_class = defaultdict(list)
        for row in splits["train"]:
            rows_of_class[usable[row].class_name].append(row)
        for rows in rows_of_class.values():
            needed_later = (
                len(missing) - position
            )  # one for train, and one for each split that is drawn later
            count = min(max(round(len(rows) * fractions[split]), 1), len(rows) - needed_later)
            rows.sort(key=lambda row: draw_key(seed, split, usable[row]))
            splits[split] += rows[: max(count, 0)]
        splits[split].sort()
        splits["train"] = sorted(set(splits["train"]) - set(splits[split]))
    return splits


def draw_key(seed: int, split: str, image: Kept) -> bytes:
    return hashlib.sha256(f"{seed} {split} ".encode() + image.digest).digest()


def check_splits(
    splits: dict[str, list[int]], usable: list[Kept], quarantined: list[Rejected], listing: Listing
) -> None:
    if not usable:
        first = f"; the first, {quarantined[0].file!r}: {quarantined[0].reason}" if quarantined else ""
        raise DataError(f"none of the {len(quarantined):,} files is a usable image{first}")
    trained = {usable[row].class_name for row in splits["train"]}
    for name in listing.classes:
        if name not in trained:
            elsewhere = sorted({image.split or "train" for image in usable if image.class_name == name})
            others = (
                f", only in {' and '.join(elsewhere)}" if elsewhere else ": repair its files or remove it"
            )
            raise DataError(f"class {name!r} has no usable image in train{others}")
    for split, rows in splits.items():
        if not rows:
            cause = (
                "its folder has no usable image"
                if split in listing.splits
                else "too few images to draw it, add more"
            )
            raise DataError(f"the {split} split is empty: {cause}")


def suspicions(splits: dict[str, list[int]], usable: list[Kept], classes: Iterable[str]) -> list[str]:
    """Returns warnings: strong imbalance, classes that are missing from a split, pictures that are in two splits."""
    warnings = []
    (largest, most), *_, (smallest, least) = Counter(
        usable[row].class_name for row in splits["train"]
    ).most_common()
    if most > IMBALANCE * least:
        warnings.append(
            f"strong imbalance: {most:,} training images of {largest!r}, {least:,} of {smallest!r}"
        )
    for split, rows in splits.items():
        absent = sorted(set(classes) - {usable[row].class_name for row in rows})
        if absent:
            warnings.append(f"classes without a {split} image: {len(absent):,}, such as {absent[0]!r}")
    files = {split: {usable[row].digest: usable[row].file for row in rows} for split, rows in splits.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        shared = files[one].keys() & files[other].keys()
        if shared:
            first, second = min((files[one][digest], files[other][digest]) for digest in shared)
            warnings.append(
                f"pictures that are in both {one} and {other}: {len(shared):,}, such as {first!r} and {second!r}"
            )
    return warnings


def summary(manifest: dict[str, Any]) -> str:
    height, width = manifest["size"]
    splits = ", ".join(f"{sum(counts.values()):,} {split}" for split, counts in manifest["counts"].items())
    lines = [
        f"prepared {manifest['kept']:,} of {manifest['found']:,} files: {splits} images, "
        f"{len(manifest['classes'])} classes, {height} × {width} pixels"
    ]
    quarantined = manifest["quarantined"]
    if quarantined:
        lines.append(f"{len(quarantined):,} files cannot be used, see {PREPARED / MANIFEST}:")
        lines += [f"  {row['path']!r}: {row['reason']}" for row in quarantined[:QUARANTINED_SHOWN]]
        if len(quarantined) > QUARANTINED_SHOWN:
            lines.append(f"  and {len(quarantined) - QUARANTINED_SHOWN:,} more")
    return "\n".join(lines + [f"WARNING: {warning}" for warning in manifest["warnings"]])
