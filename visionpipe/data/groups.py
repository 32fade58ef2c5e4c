"""Groups: images that must not be in two splits, such as those of one patient, and copies of one picture."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

from visionpipe.data.config import DECISIONS, PrepareConfig, group_pattern
from visionpipe.data.decoding import Usable
from visionpipe.data.listing import Listing, Record, Rejected
from visionpipe.errors import DataError

Splits = dict[str, list[int]]  # split → indices into the usable images


def with_groups(listing: Listing, config: PrepareConfig) -> Listing:
    """Returns the listing with the groups that the pattern `prepare.group` finds in the paths.

    The groups are one more column of metadata. Images whose path does not match have no group.
    """
    pattern = group_pattern(config.group)
    if pattern is None or config.group in listing.columns:
        return listing

    def grouped(entry: Record | Rejected) -> Record | Rejected:
        if isinstance(entry, Rejected):
            return entry
        match = pattern.search(entry.file)
        group = match[1] if match else None
        return replace(entry, group=group, metadata=(*entry.metadata, group or ""))

    name = next(name for name in ("group", "group of the path") if name not in listing.columns)
    return replace(listing, entries=map(grouped, listing.entries), columns=(*listing.columns, name))


def group_column(columns: Sequence[str], group: str | None) -> str | None:
    """Returns the column of the metadata that holds the groups of `prepare.group`: for a pattern the last one."""
    if not group or not columns:
        return None
    return group if group in columns else columns[-1]


def check_groups(splits: Splits, usable: list[Usable], source: str) -> None:
    """Raises DataError where images of one group are in two splits; `source`: what makes the groups."""
    first: dict[str, tuple[str, str]] = {}
    torn: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {}
    for split, rows in splits.items():
        for row in rows:
            image = usable[row]
            if image.group is None:
                continue
            before = first.setdefault(image.group, (split, image.file))
            if before[0] != split:
                torn.setdefault(image.group, (before, (split, image.file)))
    if torn:
        (group, (one, other)) = next(iter(torn.items()))
        count = f"the group {group!r} is" if len(torn) == 1 else f"{len(torn):,} groups are"
        example = f"{one[1]!r} in {one[0]} and {other[1]!r} in {other[0]}"
        of_group = "" if len(torn) == 1 else f" of {group!r}"
        raise DataError(
            f"{source}: {count} in two of the splits that the images come with: {example}{of_group}: move these "
            f"images, or drop those in one of the splits in {DECISIONS}"
        )


def group_notes(
    usable: list[Usable], splits: Splits, given: frozenset[str], config: PrepareConfig, seed: int
) -> list[str]:
    """Says how many images have no group, and which split has too few groups for a draw.

    Raises:
        DataError: no image has a group.
    """
    if not config.has_groups:
        return []
    alone = [image.file for image in usable if image.group is None]
    if len(alone) == len(usable):
        raise DataError(
            f"prepare.group: no image has a group: {config.group!r} matches no path, such as {alone[0]!r}"
            if group_pattern(config.group)
            else "prepare.group: no image has a group: the column is empty"
        )
    missing = missing_splits(given, config)
    notes = [
        f"few groups: none was drawn for {split}, so the nearest, that of {usable[rows[0]].file!r}, is there; it may "
        f"move when groups are added"
        for split, rows in splits.items()
        if split in (*missing, "train")
        and rows
        and split_of(group_key(usable[rows[0]]), missing, seed) != split
    ]
    if alone:
        groups = len({image.group for image in usable}) - 1
        notes.append(
            f"images without a group, each of which is a group of its own: {len(alone):,}, such as {alone[0]!r}; the "
            f"others are in {groups:,} group{'' if groups == 1 else 's'}"
        )
    return notes


def group_key(image: Usable) -> str:
    """Returns what decides on an image's split: its group, or else its picture, so that copies stay together."""
    return f"picture {image.digest.hex()}" if image.group is None else f"group {image.group}"


def split_of(key: str, missing: dict[str, float], seed: int) -> str:
    """Returns the split of a group: the first whose hash is below the split's fraction, or else train."""
    for split, fraction in missing.items():
        place = int.from_bytes(draw_key(seed, split, key.encode())[:8], "big") / 2**64
        if place < fraction:
            return split
    return "train"


def draw_key(seed: int, split: str, digest: bytes) -> bytes:
    """Returns an image's place in the draw of a split."""
    return hashlib.sha256(f"{seed} {split} ".encode() + digest).digest()


def missing_splits(given: frozenset[str], config: PrepareConfig) -> dict[str, float]:
    """Returns the fractions of the splits that must be drawn, in the order of the draw."""
    fractions = {"test": config.test_fraction, "validation": config.validation_fraction}
    return {split: fraction for split, fraction in fractions.items() if split not in given}


def united(keys: Sequence[Iterable[Hashable]]) -> list[int]:
    """Unites the rows that share a key, directly or through other rows.

    Args:
        keys: the keys of each row, of any kind: a group, a picture, a number of a set of near duplicates.

    Returns:
        The first row that each row is united with; its own number where it is the first.
    """
    parent = list(range(len(keys)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    owner: dict[Hashable, int] = {}
    for row, of_row in enumerate(keys):
        for key in of_row:
            one, other = sorted((root(owner.setdefault(key, row)), root(row)))
            parent[other] = one
    return [root(row) for row in range(len(keys))]


def join_groups(
    usable: list[Usable],
    sets: Sequence[Sequence[int]],
    given: frozenset[str],
    config: PrepareConfig,
    seed: int,
) -> tuple[list[Usable], dict[int, str]]:
    """Makes images that belong together, such as near duplicates, one group.

    An image without a group joins that of the others of its set; a set without one becomes a group of its own. A set
    that joins several groups unites them where the draw is exact. Where `prepare.group` names the groups, no group
    moves: if the groups are in different splits, the images of the set that would leak are left out. These are its
    images without a group, and those in train.

    Args:
        sets: indices into `usable`; an image may be in several sets. Images of splits that the source has, other than
            train, stay out of it.

    Returns:
        The images with their groups, and index → reason of those to leave out.
    """
    sets = [[row for row in rows if usable[row].split in (None, "train")] for rows in sets]
    if config.has_groups:
        return join_where_groups_stay(usable, sets, given, config, seed)
    keys: list[set[Hashable]] = [set() if image.group is None else {image.group} for image in usable]
    for number, rows in enumerate(sets):
        for row in rows:
            keys[row].add(number)
    firsts = united(keys)
    names = {
        first: usable[first].group or f"pictures like {usable[first].file}"
        for first, count in Counter(firsts).items()
        if count > 1
    }
    return [
        replace(image, group=names.get(first, image.group))
        for image, first in zip(usable, firsts, strict=True)
    ], {}


def join_where_groups_stay(
    usable: list[Usable],
    sets: Sequence[Sequence[int]],
    given: frozenset[str],
    config: PrepareConfig,
    seed: int,
) -> tuple[list[Usable], dict[int, str]]:
    """Does what `join_groups` does where `prepare.group` names the groups."""
    missing = missing_splits(given, config)
    keys: list[set[Hashable]] = [set() for _ in usable]
    for number, rows in enumerate(sets):
        for row in rows:
            keys[row].add(number)
    members = defaultdict(list)
    for row, first in enumerate(united(keys)):
        members[first].append(row)
    images = list(usable)
    left_out: dict[int, str] = {}
    for rows in members.values():
        named = [row for row in rows if usable[row].group is not None]
        homes = {row: split_of(group_key(usable[row]), missing, seed) for row in named}
        if len(set(homes.values())) > 1:
            one, other = named[0], next(row for row in named if homes[row] != homes[named[0]])
            reason = (
                f"a copy in two groups that are in different splits: {usable[one].file!r} of the group "
                f"{usable[one].group!r} in {homes[one]} and {usable[other].file!r} of {usable[other].group!r} in "
                f"{homes[other]}"
            )
            left_out |= {row: reason for row in rows if homes.get(row, "train") == "train"}
        group = usable[named[0]].group if named else f"pictures like {usable[rows[0]].file}"
        for row in rows if len(rows) > 1 else ():
            if row not in homes:
                images[row] = replace(usable[row], group=group)
    return images, left_out
