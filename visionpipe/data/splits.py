"""Divides the usable images into train, validation and test."""

import hashlib
from collections import defaultdict

from visionpipe.data.config import PrepareConfig
from visionpipe.data.decoding import Usable
from visionpipe.data.layout import counted, quoted
from visionpipe.data.listing import HIDDEN, Listing, Rejected
from visionpipe.data.prepared import SPLITS
from visionpipe.errors import DataError

LOST_SHOWN = 2


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


def check_classes(listing: Listing, path: str) -> None:
    """Raises DataError where there are fewer than two classes."""
    if len(listing.classes) > 1:
        return
    classes = f"only the class {listing.classes[0]!r}" if listing.classes else "no class"
    cause = "".join(f"; {sentence}" for sentence in listing.lost[:LOST_SHOWN])
    if not listing.classes and not cause:
        loose = [entry for entry in listing.entries if isinstance(entry, Rejected) and entry.reason != HIDDEN]
        cause = first_reason(loose)
    raise DataError(f"{path} holds {classes}: expected one folder of images for each class{cause}")


def check_splits(
    splits: dict[str, list[int]], usable: list[Usable], quarantined: list[Rejected], listing: Listing
) -> None:
    """Raises DataError where a class has no training image, or a split no image; it says the first reason."""
    if not usable:
        refused = [item for item in quarantined if item.reason != HIDDEN]
        if not refused:
            raise DataError("there is no file in the class folders")
        none = f"none of the {len(refused):,} files is" if len(refused) > 1 else "the only file is not"
        raise DataError(f"{none} a usable image{first_reason(refused)}")
    trained = {usable[row].class_name for row in splits["train"]}
    untrained = [name for name in listing.classes if name not in trained]
    if untrained:
        name = untrained[0]
        subject = f"class {name!r} has" if len(untrained) == 1 else f"{len(untrained):,} classes have"
        example = "" if len(untrained) == 1 else f"; the first, {name!r}"
        elsewhere = sorted({image.split or "train" for image in usable if image.class_name == name})
        if elsewhere:
            cause = f"{example}, only in {' and '.join(elsewhere)}"
        elif refused := [item for item in quarantined if item.class_name == name]:
            cause = (
                f"{example}: repair its files or remove it; {counted(len(refused), 'file')} cannot be used"
                + first_reason(refused)
            )
        else:
            cause = f"{example}: its folder has no file: put images into it or remove it"
        raise DataError(f"{subject} no usable image in train{cause}")
    for split, rows in splits.items():
        if not rows:
            refused = [item for item in quarantined if item.reason != HIDDEN]
            cause = (
                f"its folder has no usable image{first_reason(refused)}"
                if split in listing.splits
                else "too few images to draw it, add more"
            )
            raise DataError(f"the {split} split is empty: {cause}")


def first_reason(refused: list[Rejected]) -> str:
    """Returns the first file that was refused and why, to end a sentence with."""
    if not refused:
        return ""
    start = "; the first" if len(refused) > 1 else ""
    return f"{start}, {quoted(refused[0].file)}: {refused[0].reason}"
