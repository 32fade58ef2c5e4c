"""The source `table`: a table beside the images names the file, the class and more of each image."""

import math
import posixpath
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from visionpipe.data.config import PrepareConfig, TableConfig, group_pattern
from visionpipe.data.labels import Labels
from visionpipe.data.layout import split_notes, splits_named
from visionpipe.data.listing import HIDDEN, Listing, Reader, Record, Rejected, is_hidden
from visionpipe.data.spreadsheet import ENDINGS, Sheet, read_sheet
from visionpipe.data.table_files import Files, Unusable, guessed_root
from visionpipe.data.table_labels import class_list, content_of, label_kind
from visionpipe.errors import DataError, did_you_mean
from visionpipe.escape import visible


@dataclass(frozen=True)
class Row:
    """One row of the table whose file exists. `place`: such as "line 7"."""

    place: str
    file: str
    label: str | Labels
    split: str | None
    group: str | None
    weight: float
    metadata: tuple[str, ...]


def list_rows(
    config: PrepareConfig, files: dict[str, Reader], rejected: list[Rejected], several: bool = False
) -> Listing:
    """Lists the images that a table names.

    Args:
        several: whether an image may have several labels.
        files: path → function that reads the file, of everything in `prepare.path`; one of them is the table.
        rejected: files that are already known to be unusable.

    Raises:
        DataError: there is no such table or column, a split has an unknown name, or no file of the table exists.
    """
    options = config.table or TableConfig()
    table = table_name(options, files, config.path)
    sheet = read_sheet(content_of(files[table]), table)
    columns = Columns(options, config.group, sheet, table, several)
    found = Files(files, {item.file: item.reason for item in rejected}, config.path)
    base = posixpath.dirname(table) if options.root is None else folder_in(options.root, config.path)
    entries: list[Record | Rejected] = []
    rows: dict[str, list[Row]] = defaultdict(list)
    for line, cells in sheet.rows:
        place = f"{sheet.unit} {line}"
        try:
            row = columns.row(place, cells)
            file = found.resolve(base, row.file)
        except Unusable as error:
            name = columns.cell(cells, options.file).strip() or table
            entries.append(Rejected(name, f"{place} of {table}: {error}"))
        else:
            rows[file].append(row)
    if not rows:
        raise DataError(no_file(table, sheet, columns, found, base, entries))
    used, refused, notes = once(rows, table)
    entries += refused
    listed_classes = class_list(options, files, config.path)
    labels, label_notes = columns.labels.named(
        {file: row.label for file, row in used.items()}, listed_classes
    )
    entries += [
        Rejected(file, f"{used[file].place} of {table}: {error}")
        for file, error in labels.items()
        if isinstance(error, Unusable)
    ]
    entries += [
        Record(
            row.split,
            str(label),
            file,
            files[file],
            row.group,
            row.weight,
            row.metadata,
            label if isinstance(label, Labels) else None,
        )
        for file, row in used.items()
        if not isinstance(label := labels[file], Unusable)
    ]
    listed = {*rows, *(entry.file for entry in entries), table, options.classes}
    entries += [item for item in rejected if item.file not in listed]
    for file in files.keys() - listed:
        reason = HIDDEN if is_hidden(file) else f"not in {table}"
        entries.append(Rejected(file, reason))
    entries.sort(key=lambda entry: entry.file)
    seen = {name for entry in entries if isinstance(entry, Record) for name in entry.names}
    known = listed_classes or columns.labels.order(seen)
    if len(seen) == 1:
        raise DataError(
            f"prepare.{columns.labels.key}: {columns.labels.said} of {visible(table)} holds only the class "
            f"{next(iter(seen))!r}: a classifier needs at least two"
        )
    absent = [name for name in known if name not in seen]
    if absent:
        label_notes.append(
            f"classes of {options.classes or table} without an image are left out: {', '.join(absent)}"
        )
    splits = frozenset(row.split for row in used.values() if row.split)
    if splits and "train" not in splits:
        raise DataError(f"{table}: no image has the split train, only {' and '.join(sorted(splits))}")
    without = sum(row.split is None for row in used.values()) if splits else 0
    if without:
        notes.append(f"rows of {table} without a split, whose images are training images: {without:,}")
    return Listing(
        classes=tuple(name for name in known if name in seen),
        splits=splits,
        total=len(entries),
        entries=entries,
        notes=(*sheet.notes, *split_notes(columns.splits), *notes, *found.notes(), *label_notes),
        columns=tuple(columns.metadata),
        several=several,
    )


# Columns -------------------------------------------------------------------------------------------------


class Columns:
    """The columns of a table by what they say; raises DataError for a column that the table does not have."""

    def __init__(self, options: TableConfig, group: str | None, sheet: Sheet, table: str, several: bool):
        self.options, self.table, self.decimal_comma = options, table, sheet.delimiter != ","
        self.places = {name: place for place, name in enumerate(sheet.columns)}
        self.group = options.group or (group if group in self.places else None)
        named = {
            "file": options.file,
            "split": options.split,
            "group": options.group,
            "weight": options.weight,
        }
        for key, column in named.items():
            self.check(f"table.{key}", column)
        others = {options.file, options.split, self.group, options.weight, *(options.metadata or ())}
        self.labels = label_kind(options, several, sheet, table, others)
        for column in self.labels.columns:
            self.check(self.labels.key, column)
        for column in options.metadata or ():
            self.check("table.metadata", column)
        if group is not None and self.group is None and group_pattern(group) is None:
            self.check("group", group)
        said = {options.file, *self.labels.columns, options.split, self.group, options.weight}
        self.splits = splits_named({self.cell(cells, options.split).strip() for _, cells in sheet.rows})
        # A group is metadata too: slices by patient or site are what one looks at first.
        further = [name for name in sheet.columns if name not in said or name == self.group]
        self.metadata = [*options.metadata] if options.metadata is not None else further

    def check(self, key: str, column: str | None) -> None:
        if column is not None and column not in self.places:
            hint = did_you_mean(column, self.places)
            raise DataError(
                f"prepare.{key}: {visible(self.table)} has no column {column!r}{hint}; its first line names "
                f"{', '.join(map(repr, self.places))}"
            )

    def cell(self, cells: Sequence[str], column: str | None) -> str:
        place = self.places[column] if column is not None else len(cells)
        return cells[place] if place < len(cells) else ""

    def row(self, place: str, cells: list[str]) -> Row:
        """Reads the cells of a row; raises Unusable."""
        if any(cell.strip() for cell in cells[len(self.places) :]):
            raise Unusable(f"{len(cells)} cells, but the table has {len(self.places)} columns")
        options = self.options
        file = self.cell(cells, options.file)
        if not file.strip():
            raise Unusable("no file")
        return Row(
            place,
            file,
            self.labels.read(lambda column: self.cell(cells, column)),
            self.split(place, self.cell(cells, options.split).strip()),
            self.cell(cells, self.group).strip() or None,
            self.weight(self.cell(cells, options.weight).strip()),
            tuple(self.cell(cells, name).strip() for name in self.metadata),
        )

    def split(self, place: str, word: str) -> str | None:
        if not word:
            return None
        if word not in self.splits:
            raise DataError(
                f"prepare.table.split: {visible(self.table)}, {place}: {word!r} is no split; expected names like "
                f"train, validation and test"
            )
        return self.splits[word]

    def weight(self, text: str) -> float:
        if not text:
            return 1.0
        try:
            weight = float(text.replace(",", ".") if self.decimal_comma else text)
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            raise Unusable(f"the weight {text!r} is not a number of at least 0")
        return weight


# Files ---------------------------------------------------------------------------------------------------


def table_name(options: TableConfig, files: dict[str, Reader], path: str) -> str:
    """Returns the path of the table in `prepare.path`; raises DataError where it is missing or not the only one."""
    if options.path is not None:
        name = posixpath.normpath(options.path.replace("\\", "/"))
        if name not in files:
            hint = did_you_mean(name, (file for file in files if file.casefold().endswith(ENDINGS)))
            raise DataError(
                f"prepare.table.path: there is no {visible(name)} in {path}{hint}: the table lies in the folder or "
                f"archive of the images, so that DVC watches both"
            )
        return name
    tables = [file for file in sorted(files) if "/" not in file and file.casefold().endswith(ENDINGS)]
    if len(tables) != 1:
        several = (
            f"{len(tables)} tables at its top: {', '.join(map(visible, tables))}" if tables else "no table"
        )
        raise DataError(
            f"prepare.path: {path} has {several}: set prepare.table.path to the CSV, TSV or Parquet file, relative "
            f"to prepare.path"
        )
    return tables[0]


def folder_in(root: str, path: str) -> str:
    """Returns `prepare.table.root` relative to `prepare.path`; raises DataError if it lies elsewhere."""
    expanded = posixpath.expanduser(root.replace("\\", "/"))
    if posixpath.isabs(expanded):
        expanded = posixpath.relpath(posixpath.realpath(expanded), posixpath.realpath(path))
    inside = posixpath.normpath(expanded)
    if inside == ".." or inside.startswith("../"):
        raise DataError(
            f"prepare.table.root: {root} is not in prepare.path, {path}, so DVC would not notice changed images: set "
            f"prepare.path to a folder that holds the table and the images"
        )
    return "" if inside == "." else inside


def no_file(
    table: str, sheet: Sheet, columns: Columns, found: Files, base: str, entries: Sequence[Record | Rejected]
) -> str:
    """Says why no row of the table can be used, and what to do about it."""
    if not sheet.rows:
        return f"{visible(table)} has no rows below its first line, which names the columns"
    names = [columns.cell(cells, columns.options.file) for _, cells in sheet.rows]
    root = guessed_root(names, found.files)
    if root is not None and root != base:
        return (
            f"{visible(table)} names files that are not in {found.path}/{base}, but in its folder "
            f"{root or '.'}: set prepare.table.root: {root or '.'}"
        )
    first = next(entry for entry in entries if isinstance(entry, Rejected))
    return f"no row of {visible(table)} can be used; the first, {first.file!r}: {first.reason}"


def once(rows: dict[str, list[Row]], table: str) -> tuple[dict[str, Row], list[Rejected], list[str]]:
    """Returns one row for each file, the files that several rows contradict each other about, and notes."""
    used, refused, repeated = {}, [], []
    for file, of_file in rows.items():
        first, *others = of_file
        for key in ("label", "split", "group"):
            other = next((row for row in others if getattr(row, key) != getattr(first, key)), None)
            if other:
                said = f"{getattr(first, key)!r} on {first.place}, {getattr(other, key)!r} on {other.place}"
                refused.append(Rejected(file, f"two {key}s in {table}: {said}"))
                break
        else:
            used[file] = first
            if others:
                repeated.append((file, first.place, others[0].place))
    notes = []
    if repeated:
        file, first_place, place = repeated[0]
        notes.append(
            f"files that {table} lists more than once, of which the first row counts: {len(repeated):,}, such as "
            f"{file!r} on {first_place} and {place}"
        )
    return used, refused, notes
