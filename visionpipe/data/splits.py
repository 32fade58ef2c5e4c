"""Divides the usable images into train, validation and test, and into folds.

Images of one group are never in two splits. There are two ways to draw:

- Where `prepare.group` names the groups, the split of a group follows from a hash of the seed and of its key alone. So
  images that are added or removed move no other image, and the sizes of the splits are approximate. The one exception
  is a set with so few groups that none is drawn for a split: the nearest one is taken.
- Otherwise each class is divided exactly, as `test_fraction` and `validation_fraction` say. Images that are added or
  removed may move a few others. Images with several labels are divided by iterative stratification, where they may
  move many others.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from visionpipe.data.config import DECISIONS, PrepareConfig
from visionpipe.data.decoding import Usable
from visionpipe.data.groups import Splits, check_groups, draw_key, group_key, missing_splits, split_of
from visionpipe.data.listing import HIDDEN, Listing, Rejected
from visionpipe.data.prepared import SPLITS
from visionpipe.data.stratification import stratified
from visionpipe.data.wording import counted, quoted
from visionpipe.errors import DataError

LOST_SHOWN = 2


def draw_splits(usable: list[Usable], given: frozenset[str], config: PrepareConfig, seed: int) -> Splits:
    """Returns split → indices into `usable`. Splits that the source does not have are drawn from train.

    Raises:
        DataError: a group is in two of the splits that the source has.
    """
    splits: Splits = {split: [] for split in SPLITS}
    for row, image in enumerate(usable):
        splits[image.split or "train"].append(row)
    check_groups(splits, usable, "prepare.group" if config.has_groups else str(DECISIONS))
    missing = missing_splits(given, config)
    if config.has_groups:
        pool, splits["train"] = splits["train"], []
        for row in pool:
            splits[split_of(group_key(usable[row]), missing, seed)].append(row)
        for split in (*missing, "train"):
            if not splits[split]:
                take_nearest(splits, split, ("train", *missing), usable, seed)
        return splits
    draw = draw_exactly if all(image.labels is None for image in usable) else draw_iteratively
    draw(splits, usable, missing, seed)
    unite_groups(splits, usable)
    return splits


def draw_iteratively(splits: Splits, usable: list[Usable], missing: dict[str, float], seed: int) -> None:
    """Draws images with several labels so that each split has its share of every label.

    Copies and groups stay together. Where several are equal, the hash of the seed and the original picture decides.
    """
    shares, rest = {}, 1.0
    for split, fraction in missing.items():
        shares[split] = rest * fraction
        rest -= shares[split]
    pool, splits["train"] = splits["train"], []
    for row, part in divided(usable, pool, [rest, *shares.values()], "split", seed).items():
        splits[("train", *shares)[part]].append(row)
    for split in ("train", *shares):
        splits[split].sort()


def divided(
    usable: list[Usable], rows: list[int], shares: list[float], purpose: str, seed: int
) -> dict[int, int]:
    """Returns row → part of images with several labels; images of one `group_key` are in one part."""
    members = defaultdict(list)
    for row in rows:
        members[group_key(usable[row])].append(row)
    sets = [members[key] for key in sorted(members, key=lambda key: draw_key(seed, purpose, key.encode()))]
    parts = stratified([[usable[row].names for row in of_set] for of_set in sets], shares)
    return {row: part for of_set, part in zip(sets, parts, strict=True) for row in of_set}


def draw_exactly(splits: Splits, usable: list[Usable], missing: dict[str, float], seed: int) -> None:
    """Draws from each class separately, with at least one image per split if there are enough.

    An image's place in the draw depends on the seed and the original picture only, not on file names or other images.
    So copies of a picture are in the same split wherever the counts allow it.
    """
    firsts = first_digests(usable)
    for position, split in enumerate(missing):
        rows_of_class = defaultdict(list)
        for row in splits["train"]:
            rows_of_class[usable[row].class_name].append(row)
        for rows in rows_of_class.values():
            needed_later = (
                len(missing) - position
            )  # one for train, and one for each split that is drawn later
            count = min(max(round(len(rows) * missing[split]), 1), len(rows) - needed_later)
            rows.sort(
                key=lambda row: draw_key(seed, split, firsts.get(usable[row].group, usable[row].digest))
            )
            splits[split] += rows[: max(count, 0)]
        splits[split].sort()
        splits["train"] = sorted(set(splits["train"]) - set(splits[split]))


def first_digests(usable: list[Usable]) -> dict[str | None, bytes]:
    """Returns group → the smallest digest of its images, which is the place of all of them in the draw."""
    digests: dict[str | None, bytes] = {}
    for image in usable:
        if image.group is not None:
            digests[image.group] = min(image.digest, digests.get(image.group, image.digest))
    return digests


def unite_groups(splits: Splits, usable: list[Usable]) -> None:
    """Moves each group that the draw has divided to the split with most of its images, or else to train."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for split, rows in splits.items():
        for row in rows:
            if (group := usable[row].group) is not None:
                counts[group][split] += 1
    homes: dict[str | None, str] = {
        group: max(SPLITS, key=of_group.__getitem__)
        for group, of_group in counts.items()
        if len(of_group) > 1
    }
    if homes:
        moved = [(homes.get(usable[row].group, split), row) for split, rows in splits.items() for row in rows]
        for split in splits:
            splits[split] = sorted(row for home, row in moved if home == split)


def take_nearest(splits: Splits, split: str, drawn: Sequence[str], usable: list[Usable], seed: int) -> None:
    """Moves a group into an empty split, from the drawn split with the most groups: the one nearest to it."""
    keys = {name: {group_key(usable[row]) for row in splits[name]} for name in drawn}
    source = max(drawn, key=lambda name: len(keys[name]))
    if len(keys[source]) > 1:
        nearest = min(keys[source], key=lambda key: draw_key(seed, split, key.encode()))
        splits[split] = [row for row in splits[source] if group_key(usable[row]) == nearest]
        splits[source] = [row for row in splits[source] if group_key(usable[row]) != nearest]


# Folds -------------------------------------------------------------------------------------------------


def draw_folds(usable: list[Usable], splits: Splits, folds: int, seed: int) -> dict[int, int]:
    """Returns index → fold of the training and validation images: groups stay together, classes are spread evenly.

    The groups, the largest first, each go to the fold that has the fewest images of their classes, relative to the
    class. Groups of one size come in an order that the seed draws. Images with several labels are divided by iterative
    stratification.
    """
    members = defaultdict(list)
    rows = sorted(splits["train"] + splits["validation"])
    if any(image.labels is not None for image in usable):
        return divided(usable, rows, [1 / folds] * folds, "folds", seed)
    for row in rows:
        members[group_key(usable[row])].append(row)
    totals = Counter(usable[row].class_name for row in rows)
    counts: dict[str, list[int]] = {name: [0] * folds for name in totals}
    sizes = [0] * folds
    order = sorted(members, key=lambda key: (-len(members[key]), draw_key(seed, "folds", key.encode())))
    fold_of: dict[int, int] = {}
    for key in order:
        classes = Counter(usable[row].class_name for row in members[key])
        fold = min(
            range(folds),
            key=lambda fold: (
                sum(count * counts[name][fold] / totals[name] for name, count in classes.items()),
                sizes[fold],
            ),
        )
        for name, count in classes.items():
            counts[name][fold] += count
        sizes[fold] += len(members[key])
        fold_of |= dict.fromkeys(members[key], fold)
    return fold_of


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
    splits: Splits, usable: list[Usable], quarantined: list[Rejected], listing: Listing, grouped: bool = False
) -> None:
    """Raises DataError where a class has no training image, or a split no image; it says the first reason."""
    if not usable:
        refused = [item for item in quarantined if item.reason != HIDDEN]
        if not refused:
            raise DataError("there is no file in the class folders")
        none = f"none of the {len(refused):,} files is" if len(refused) > 1 else "the only file is not"
        raise DataError(f"{none} a usable image{first_reason(refused)}")
    trained = {name for row in splits["train"] for name in usable[row].names}
    untrained = [name for name in listing.classes if name not in trained]
    if untrained:
        name = untrained[0]
        subject = f"class {name!r} has" if len(untrained) == 1 else f"{len(untrained):,} classes have"
        example = "" if len(untrained) == 1 else f"; the first, {name!r}"
        elsewhere = sorted(
            split for split in SPLITS if any(name in usable[row].names for row in splits[split])
        )
        if elsewhere:
            cause = f"{example}, only in {' and '.join(elsewhere)}"
            if grouped:
                cause += ": with prepare.group whole groups are drawn; another seed may draw others"
        elif refused := [item for item in quarantined if item.class_name == name]:
            cause = (
                f"{example}: repair its files or remove it; {counted(len(refused), 'file')} cannot be used"
                + first_reason(refused)
            )
        elif usable[0].labels is not None:
            cause = f"{example}: add images that have this label, or remove it from the labels"
        else:
            cause = f"{example}: its folder has no file: put images into it or remove it"
        raise DataError(f"{subject} no usable image in train{cause}")
    for split, rows in splits.items():
        if not rows:
            refused = [item for item in quarantined if item.reason != HIDDEN]
            cause = (
                f"its folder has no usable image{first_reason(refused)}"
                if split in listing.splits
                else "prepare.group makes a single group of the images, add more"
                if grouped
                else "too few images to draw it, add more"
            )
            raise DataError(f"the {split} split is empty: {cause}")


def first_reason(refused: list[Rejected]) -> str:
    """Returns the first file that was refused and why, to end a sentence with."""
    if not refused:
        return ""
    start = "; the first" if len(refused) > 1 else ""
    return f"{start}, {quoted(refused[0].file)}: {refused[0].reason}"
