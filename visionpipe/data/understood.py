"""Says what `prepare` understood of the images: counts, what was left out and why, and warnings."""

import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from visionpipe.data.decoding import Usable
from visionpipe.data.listing import HIDDEN, Rejected
from visionpipe.data.prepared import MANIFEST, PREPARED, SPLITS, split_sizes
from visionpipe.data.walk import is_named_like_an_image
from visionpipe.data.wording import counted, quoted, shown

IMBALANCE = 10
CLASSES_SHOWN = 30
EXTREMES = 5  # classes shown of the most and of the least frequent, where there are more
REASONS_SHOWN = 20
NAME_WIDTH = 30


def suspicions(
    splits: dict[str, list[int]],
    usable: list[Usable],
    classes: Iterable[str],
    drawn_groups: Iterable[str] = (),
) -> list[str]:
    """Returns warnings: strong imbalance, classes missing from a split, pictures in two splits or two classes.

    Args:
        drawn_groups: the splits for which whole groups are drawn, so that another seed gives another result.
    """
    warnings = []
    (largest, most), *_, (smallest, least) = Counter(
        name for row in splits["train"] for name in usable[row].names
    ).most_common()
    if most > IMBALANCE * least:
        warnings.append(
            f"strong imbalance: {counted(most, 'training image')} of {largest!r}, {least:,} of {smallest!r}"
        )
    for split, rows in splits.items():
        absent = sorted(set(classes) - {name for row in rows for name in usable[row].names})
        if absent:
            advice = "; whole groups are drawn: another seed may draw others" if split in drawn_groups else ""
            warnings.append(
                f"classes without a {split} image: {len(absent):,}, such as {absent[0]!r}{advice}"
            )
    files = {split: {usable[row].digest: usable[row].file for row in rows} for split, rows in splits.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        shared = files[one].keys() & files[other].keys()
        if shared:
            first, second = min((files[one][digest], files[other][digest]) for digest in shared)
            warnings.append(
                f"pictures that are in both {one} and {other}: {len(shared):,}, such as {first!r} and {second!r}"
            )
    return [*warnings, *contradictions(usable)]


def contradictions(usable: list[Usable]) -> Iterator[str]:
    """Yields a warning where copies of one picture contradict each other: the two classes that share most pictures."""
    first: dict[bytes, Usable] = {}
    others: dict[bytes, Usable] = {}
    for image in usable:
        if first.setdefault(image.digest, image).contradicts(image):
            others.setdefault(image.digest, image)
    if others:
        pairs = Counter(tuple(sorted((first[key].class_name, others[key].class_name))) for key in others)
        (pair, count), *_ = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
        example = next(key for key in others if {first[key].class_name, others[key].class_name} == set(pair))
        one, other = first[example], others[example]
        where = "are in several classes" if one.labels is None else "have different labels"
        most = "" if len(pairs) == 1 else f"; {count:,} of them in {pair[0]!r} and {pair[1]!r}"
        yield f"pictures that {where}: {len(others):,}{most}, such as {one.file!r} and {other.file!r}"


def left_out_rows(rejected: Iterable[Rejected]) -> list[dict[str, Any]]:
    """Returns the rows of the manifest: `path` and `reason`, and for a folder the number of `images` in it."""
    return [
        {"path": item.file, "reason": item.reason} | ({} if item.images is None else {"images": item.images})
        for item in rejected
    ]


def summary(manifest: dict[str, Any]) -> str:
    """Describes a prepared data set for people, from its manifest."""
    height, width = manifest["size"]
    channels, depth = manifest["channels"], manifest["depth"]
    form = "" if (channels, depth) == (3, 8) else f", {counted(channels, 'channel')} of {depth} bits"
    splits = ", ".join(f"{size:,} {split}" for split, size in split_sizes(manifest).items())
    lines = [
        f"prepared {manifest['kept']:,} of {counted(manifest['found'], 'file')}: {splits} images, "
        f"{counted(len(manifest['classes']), 'class', 'classes')}, {height} × {width} pixels{form}",
        *class_table(manifest["counts"]),
        *label_lines(manifest),
    ]
    left_out = list(left_out_lines(manifest["quarantined"]))
    if left_out:
        lines += [f"left out, see {PREPARED / MANIFEST}:", *(f"  {line}" for line in left_out)]
    return "\n".join(lines + [f"WARNING: {warning}" for warning in manifest["warnings"]])


def label_lines(manifest: dict[str, Any]) -> Iterator[str]:
    """Yields how many images have no label, and how many labels nobody knows, where images may have several."""
    without = manifest.get("without_label", {})
    if any(without.values()):
        yield f"  images without a label: {', '.join(f'{count:,} {split}' for split, count in without.items())}"
    unknown = {split: sum(counts.values()) for split, counts in manifest.get("unknown", {}).items()}
    if any(unknown.values()):
        yield (
            f"  labels that are unknown, and left out of loss and metrics: "
            f"{', '.join(f'{count:,} {split}' for split, count in unknown.items())}"
        )


def class_table(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    """Yields the lines of a table: the images of each class in each split.

    Of more than CLASSES_SHOWN classes it has the most and the least frequent.
    """
    totals = {name: sum(counts[split][name] for split in counts) for name in counts["train"]}
    names = list(totals)
    gap = -1
    if len(names) > CLASSES_SHOWN:
        ranked = sorted(names, key=lambda name: (-totals[name], name))
        names, gap = ranked[:EXTREMES] + ranked[-EXTREMES:], EXTREMES
    lines = [["class", *counts]]
    lines += [[shortened(name), *(f"{counts[split][name]:,}" for split in counts)] for name in names]
    first, *others = (max(map(columns, column)) for column in zip(*lines, strict=True))
    for position, (name, *numbers) in enumerate(lines):
        if position == gap + 1 and gap > 0:
            yield f"  … {len(totals) - 2 * EXTREMES:,} more …"
        aligned = [number.rjust(width) for number, width in zip(numbers, others, strict=True)]
        yield "  " + "  ".join([name + " " * (first - columns(name)), *aligned])


def shortened(name: str) -> str:
    text = shown(name)
    return text if len(text) <= NAME_WIDTH else f"{text[: NAME_WIDTH - 1]}…"


def columns(text: str) -> int:
    """Returns how many columns a text takes in a terminal, where Chinese characters take two, and accents none."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def left_out_lines(quarantined: list[dict[str, Any]]) -> Iterator[str]:
    """Yields a line for each reason: how many files, or folders with how many images, and an example.

    Files that are named like images come before others, and hidden and system files last. Reasons that differ in
    numbers only are one.
    """
    groups: defaultdict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for row in quarantined:
        if row["reason"] == HIDDEN:
            order = 3
        elif "images" in row:
            order = 0
        else:
            order = 1 if is_named_like_an_image(row["path"]) else 2
        groups[order, re.sub(r"\d[\d,.]*", "#", row["reason"])].append(row)
    ranked = sorted(groups.items(), key=lambda item: (item[0][0], -len(item[1])))
    system = [rows for (order, _), rows in ranked if order == 3]
    others = [(order, rows) for (order, _), rows in ranked if order != 3]
    for order, rows in others[:REASONS_SHOWN]:
        first = rows[0]
        kind = "folder" if order == 0 else "file"
        images = sum(row.get("images", 0) for row in rows)
        holding = f" with {counted(images, 'image')}" if images else ""
        example = quoted(first["path"]) if len(rows) == 1 else f"such as {quoted(first['path'])}"
        yield f"{counted(len(rows), kind)}{holding}, {example}: {first['reason']}"
    if len(others) > REASONS_SHOWN:
        rest = sum(len(rows) for _, rows in others[REASONS_SHOWN:])
        yield f"{counted(rest, 'more file')} for {counted(len(others) - REASONS_SHOWN, 'other reason')}"
    for rows in system:
        yield f"{counted(len(rows), 'hidden or system file')}, such as {quoted(rows[0]['path'])}"
