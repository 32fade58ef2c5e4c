"""Guesses what the columns of a table of images say, for `visionpipe init`."""

import os
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from visionpipe.data.config import PrepareConfig, TableConfig
from visionpipe.data.labels import ABSENT, PRESENT
from visionpipe.data.layout import splits_named
from visionpipe.data.measurements import measured, refuse_measured
from visionpipe.data.sources import content_of_folder
from visionpipe.data.spreadsheet import ENDINGS, number_of, read_sheet
from visionpipe.data.table_files import Files, Unusable, guessed_root
from visionpipe.data.table_labels import FLAGS, guessed_separator, separated
from visionpipe.data.wording import shown
from visionpipe.errors import DataError, did_you_mean
from visionpipe.escape import visible

SAMPLED = 200  # rows
LABELS = (
    "label", "labels", "class", "class_name", "category", "target", "species", "diagnosis", "dx", "breed", "kind", "y",
)  # fmt: skip
SETS = (
    "tags",
    "findings",
    "finding_labels",
    "defects",
    "attributes",
    "genres",
    "categories",
    "classes",
    "targets",
)
SPLITS = ("split", "set", "subset", "partition", "usage", "phase")
GROUPS = (
    "patient", "subject", "participant", "person", "individual", "animal", "lesion", "case", "group", "video", "scene",
    "sequence", "session", "location", "site", "camera",
)  # fmt: skip
WEIGHTS = ("weight", "sample_weight", "weights")
MOST_CLASSES = 1000
LEAST_GROUPS = 5
COLUMNS_SHOWN = 8


@dataclass(frozen=True)
class Guess:
    """What a table says.

    `folder` becomes `prepare.path`; `reasons`: key of `prepare:` → why; `odd`: remarks; `task_reason`: why the task is
    not single.
    """

    folder: Path
    columns: TableConfig
    group: str | None
    reasons: dict[str, str]
    odd: tuple[str, ...] = ()
    task_reason: str = ""

    def params(self) -> dict[str, object]:
        """Returns the keys of `prepare:`; those with their defaults are left out, apart from the three that matter."""
        written = {f.name: getattr(self.columns, f.name) for f in fields(self.columns)}
        if self.columns.labels is not None:
            written |= {"label": None, "labels": list(self.columns.labels)}
        always = ("path", "file")
        table = {f: v for f, v in written.items() if f in always or v is not None}
        return {"table": table} | ({"group": self.group} if self.group else {})


def is_table(path: Path) -> bool:
    """Whether a path is that of a table, by its ending."""
    return path.is_file() and path.name.casefold().endswith(ENDINGS)


def guess_columns(table: Path, label: str | None = None) -> Guess:
    """Finds the columns of the files, the labels, the splits and the groups.

    Args:
        label: the column of the labels, where it is known.

    Raises:
        DataError: no column names files, or it is not clear which one holds the labels.
    """
    name = visible(table.name)
    sheet = read_sheet(table.read_bytes(), str(table))
    values = {
        column: [cells[place].strip() if place < len(cells) else "" for _, cells in sheet.rows]
        for place, column in enumerate(sheet.columns)
    }
    if label is not None and label not in values:
        raise DataError(
            f"--label: {name} has no column {label!r}{did_you_mean(label, values)}; it has {', '.join(values)}"
        )
    folder = folder_around(table, values)
    files = content_of_folder(PrepareConfig("table", str(folder))).files
    path = table.resolve().relative_to(folder).as_posix()
    file, root = file_column(values, files, folder, posixpath.dirname(path), name)
    rest = {column: cells for column, cells in values.items() if column != file}
    odd = []
    split = named(rest, SPLITS, lambda cells: len(splits_named(set(cells))) == len(set(cells) - {""}))
    weight = named(rest, WEIGHTS, lambda cells: all(is_weight(cell) for cell in cells))
    several = several_labels({c: v for c, v in rest.items() if c not in (split, weight)}, label)
    chosen = several.columns if several else (label or label_column(rest, {split, weight}, name),)
    if label is not None and not several:
        refuse_measured(values[label], f"--label: {name}: the column {label!r}")
    group = group_column({c: v for c, v in rest.items() if c not in (*chosen, split, weight)})
    if group and split and (torn := torn_groups(values[group], values[split])):
        odd.append(
            f"the column {group} has values in two splits, such as {visible(torn)}: images that belong together may be "
            f"learned and tested"
        )
        group = None
    columns = TableConfig(path=path, file=file, split=split, weight=weight, root=root)
    if several and several.separator is None:
        columns = replace(columns, labels=chosen)
    else:
        columns = replace(columns, label=chosen[0], separator=several.separator if several else None)
    reasons = {
        "prepare.table.file": f"its values are files{f' in {root}' if root else ''}",
        "prepare.table.label": several.reason
        if several
        else f"{len(set(values[chosen[0]]) - {''}):,} classes",
        "prepare.table.labels": several.reason if several else "",
    }
    if group:
        count = len(set(values[group]) - {""})
        reasons["prepare.group"] = (
            f"{count:,} groups: images of one {group} are never in two splits, so the fractions are approximate"
        )
    if further := [name for name in values if name and name not in (file, split, weight, *chosen)]:
        more = f" and {len(further) - COLUMNS_SHOWN} more" if len(further) > COLUMNS_SHOWN else ""
        reasons["prepare.table"] = (
            f"the other columns are metadata: {', '.join(map(shown, further[:COLUMNS_SHOWN]))}{more}"
        )
    if weight:
        reasons["prepare.table.weight"] = "multiplies the training loss; metrics are not weighted"
    return Guess(folder, columns, group, reasons, tuple(odd), several.task_reason if several else "")


@dataclass(frozen=True)
class Several:
    """How a table writes several labels of an image: a column for each, or one column with a separator."""

    columns: tuple[str, ...]
    separator: str | None
    reason: str
    task_reason: str


def several_labels(values: dict[str, list[str]], label: str | None) -> Several | None:
    """Recognises a column with a separator, or columns of 0 and 1 of which not exactly one is 1 in each row.

    A column of classes that is named like one comes before columns of 0 and 1. So do as many columns of classes as
    there are columns of 0 and 1, for these may be metadata.

    Args:
        values: the cells of each column that may hold labels.
        label: the column of the labels, where it is known.
    """
    named_labels = [column for column in values if words(column) in (*LABELS, *SETS)]
    for column in [label] if label else named_labels:
        cells = values[column]
        if (separator := guessed_separator(cells)) is not None:
            names = {name for cell in cells for name in separated(cell, separator)}
            example = next(cell for cell in cells if separator in cell)
            return Several(
                (column,), separator, f"{len(names):,} labels",
                f"cells of the column {shown(column)} hold several labels, such as {shown(example)}",
            )  # fmt: skip
    if label or any(len(set(values[column]) - {""}) >= 2 for column in named_labels):
        return None
    flags = {column: cells for column, cells in values.items() if is_flags(cells)}
    sums = [
        sum(FLAGS[cell.casefold()] == PRESENT for cell in row) for row in zip(*flags.values(), strict=True)
    ]
    few = [c for c, cells in values.items() if c not in flags and has_classes(cells) and not group_word(c)]
    by_name = any(words(column) in LABELS for column in few)
    if label or by_name or len(flags) <= max(1, len(few)) or set(sums) == {1}:
        return None
    unlike = next(number for number in sums if number != 1)
    return Several(
        tuple(flags), None, f"{len(flags):,} columns of 0 and 1",
        f"{len(flags):,} columns of 0 and 1, and some images have {'none' if unlike == 0 else unlike} of these labels",
    )  # fmt: skip


def folder_around(table: Path, values: dict[str, list[str]]) -> Path:
    """Returns the folder of the table, or the one around it and the files that it names elsewhere."""
    here = table.resolve().parent
    for cells in values.values():
        for cell in cells[:SAMPLED]:
            outside = cell.startswith(("../", "..\\")) or os.path.isabs(cell)
            path = Path(os.path.normpath(here / cell.replace("\\", "/"))) if outside else None
            if path is not None and path.is_file():
                here = Path(os.path.commonpath([here, path.parent]))
    return here


def file_column(
    values: dict[str, list[str]], files: Iterable[str], folder: Path, base: str, name: str
) -> tuple[str, str | None]:
    """Returns the column whose values are files most often, and `prepare.table.root` where it is needed."""
    best: tuple[int, str, str | None] = (0, "", None)
    found = Files(files, {}, str(folder))
    for column, cells in values.items():
        sample = [cell for cell in cells[:SAMPLED] if cell]
        for root in dict.fromkeys((base, guessed_root(sample, files))):
            if root is None:
                continue
            count = sum(exists(found, root, cell) for cell in sample)
            if count > best[0]:
                best = count, column, None if root == base else root
    addresses = next(
        (c for c, cells in values.items() if sum(map(is_address, cells)) > len(cells) // 2), None
    )
    if not best[1] and addresses is not None:
        raise DataError(
            f"{name}: the column {visible(addresses)} has addresses: download the images, and name the files"
        )
    if exists(found, best[2] or base, best[1]):
        raise DataError(
            f"{name}: the first line must name the columns, but {visible(best[1])!r} is a file: add a line such as "
            "file,label above it"
        )
    if not best[1]:
        raise DataError(
            f"{name}: no column names files in {visible(str(folder))}: put the table into the folder of the images"
        )
    return best[1], best[2]


def is_address(cell: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+://", cell.casefold()) is not None


def exists(found: Files, root: str, cell: str) -> bool:
    try:
        return bool(found.resolve(root, cell))
    except Unusable:
        return False


def named(
    values: dict[str, list[str]], names: tuple[str, ...], fits: Callable[[list[str]], bool]
) -> str | None:
    """Returns the first column of one of these names whose values fit."""
    for name in names:
        for column, cells in values.items():
            if words(column) == words(name) and any(cells) and fits(cells):
                return column
    return None


def words(name: str) -> str:
    return "_".join(re.findall(r"[a-z0-9]+", name.casefold()))


def is_weight(cell: str) -> bool:
    return not cell or re.fullmatch(r"\d+([.,]\d+)?", cell) is not None


def label_column(values: dict[str, list[str]], used: set[str | None], name: str) -> str:
    """Returns the column of the labels: by its name, or else the only one with few values."""
    by_name = named({c: v for c, v in values.items() if c not in used}, LABELS, has_classes)
    if by_name:
        return by_name
    few = [c for c, cells in values.items() if c not in used and has_classes(cells) and not group_word(c)]
    numbers = [c for c, cells in values.items() if c not in used and measured(cells)]
    for column in numbers:
        if words(column) in LABELS or (not few and len(numbers) == 1):
            refuse_measured(values[column], f"{visible(name)}: the column {column!r}")
    one_hot = one_hot_columns({c: cells for c, cells in values.items() if c not in used})
    if one_hot and set(few) <= set(one_hot):
        columns = ", ".join(map(shown, one_hot[:COLUMNS_SHOWN]))
        others = " and others" if len(one_hot) > COLUMNS_SHOWN else ""
        raise DataError(
            f"{visible(name)}: the columns {columns}{others} stand for a class each: add one column with the name of "
            "the class, in pandas with table[columns].idxmax(axis=1), or name another column with --label COLUMN"
        )
    if len(few) == 1:
        return few[0]
    which = f"it may be any of {', '.join(few)}" if few else f"the columns are {', '.join(values)}"
    raise DataError(f"{visible(name)}: which column holds the labels? {which}: name it with --label COLUMN")


def has_classes(cells: list[str]) -> bool:
    """Whether the cells of a column may be classes: several different ones, and each of them several times."""
    several = 2 <= len(set(cells) - {""}) <= min(MOST_CLASSES, max(2, len(cells) // 2))
    return several and measured(cells) is None


def is_flags(cells: list[str]) -> bool:
    """Whether the cells of a column say yes and no, and nothing else but that it is unknown."""
    values = {FLAGS.get(cell.casefold()) for cell in cells}
    return values >= {PRESENT, ABSENT} and None not in values


def one_hot_columns(values: dict[str, list[str]]) -> list[str]:
    """Returns the columns of zeros and ones of which exactly one is 1 in each row; none if they are fewer than two."""
    flags = {c: cells for c, cells in values.items() if {number_of(cell) for cell in cells} == {0.0, 1.0}}
    sums = {sum(number_of(cell) or 0 for cell in row) for row in zip(*flags.values(), strict=True)}
    return list(flags) if len(flags) > 1 and sums == {1.0} else []


def group_word(column: str) -> str | None:
    """Returns the word of GROUPS that names a column, such as patient for PatientID."""
    plain = words(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column))
    return next(
        (word for word in GROUPS if re.fullmatch(rf"{word}s?(_?(id|no|nr|number|name|code))?", plain)), None
    )


def group_column(values: dict[str, list[str]]) -> str | None:
    """Returns the column of what must not be in two splits: enough values, and some of them several times."""
    ranked = sorted((c for c in values if group_word(c)), key=lambda c: GROUPS.index(group_word(c) or ""))
    for column in ranked:
        counts = Counter(cell for cell in values[column] if cell)
        if len(counts) >= LEAST_GROUPS and max(counts.values()) > 1:
            return column
    return None


def torn_groups(groups: list[str], splits: list[str]) -> str | None:
    """Returns a group that has images in two splits; None if there is none."""
    seen: dict[str, set[str]] = defaultdict(set)
    names = splits_named(set(splits))
    for group, split in zip(groups, splits, strict=True):
        seen[group].add(names.get(split, "train"))
    return next((group for group, of_group in seen.items() if group and len(of_group) > 1), None)
