"""Divides the usable images into train, validation and test."""

import hashlib
from collections import defaultdict

from visionpipe.data.config import PrepareConfig
from visionpipe.data.decoding import Usable
from visionpipe.data.listing import Listing, Rejected
from visionpipe.data.prepared import SPLITS
from visionpipe.errors import DataError


def draw_splits(
    usable: list[Usable], given: frozenset[str], config: PrepareConfig, seed: int
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


def draw_key(seed: int, split: str, image: Usable) -> bytes:
    """Returns an image's place in the draw of a split."""
    return hashlib.sha256(f"{seed} {split} ".encode() + image.digest).digest()


def check_splits(
    splits: dict[str, list[int]], usable: list[Usable], quarantined: list[Rejected], listing: Listing
) -> None:
    """Raises DataError where a class has no training image, or a split no image."""
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
