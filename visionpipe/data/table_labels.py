"""Reads the labels of a table: one column of classes, one column of sets, or one column for each label."""

import json
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

import yaml

from visionpipe.data.config import TableConfig
from visionpipe.data.labels import ABSENT, PRESENT, UNKNOWN, Labels, check_names, labels_of
from visionpipe.data.listing import Reader, merge_spellings
from visionpipe.data.measurements import NO_NUMBER, WHOLE, refuse_measured
from visionpipe.data.spreadsheet import Sheet, decoded
from visionpipe.data.table_files import Unusable
from visionpipe.data.wording import shown
from visionpipe.errors import DataError, ImageError
from visionpipe.escape import visible

FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), PRESENT),
    **dict.fromkeys(("0", "0.0", "false", "no"), ABSENT),
    **dict.fromkeys((*NO_NUMBER, "-1", "-1.0"), UNKNOWN),
}
SEPARATORS = "|;,"  # of several labels in one cell
MOST_NAMED = 8  # columns in a remark

Cell = Callable[[str], str]  # the name of a column → its cell in a row
Named = dict[str, str | Labels | Unusable]  # file → its class or its labels, or why it has none


class LabelKind(Protocol):
    """What the columns of the labels hold.

    `columns` are their names, `key` is the key of `prepare` that names them, and `said` what a sentence calls them.
    """

    columns: tuple[str, ...]
    key: str
    said: str

    def read(self, cell: Cell) -> str | Labels:
        """Reads the labels of a row; raises Unusable."""

    def named(self, labels: dict[str, str | Labels], classes: list[str] | None) -> tuple[Named, list[str]]:
        """Returns the class or the labels of each file, and notes; `classes` are those of prepare.table.classes."""

    def order(self, seen: set[str]) -> list[str]:
        """Returns the classes in the order of their numbers."""


class OneLabel:
    """A column with one class of each image."""

    key = "table.label"
    columns: tuple[str, ...]

    def __init__(self, options: TableConfig, sheet: Sheet, table: str):
        self.columns, self.said, self.table = (options.label,), f"the column {options.label!r}", table
        if options.label not in sheet.columns and len(flags := flag_columns(sheet)) > 1:
            raise DataError(
                f"prepare.table.label: {visible(table)} has no column {options.label!r}, but columns of 0 and 1, such "
                f"as {shown(flags[0])!r} and {shown(flags[1])!r}: if an image may have several of these labels, write "
                f"task: multi and prepare.table.labels"
            )

    def read(self, cell: Cell) -> str:
        label = cell(self.columns[0]).strip()
        if not label:
            raise Unusable("no label")
        return unicodedata.normalize("NFC", label)

    def named(self, labels: dict[str, str | Labels], classes: list[str] | None) -> tuple[Named, list[str]]:
        words = {file: str(label) for file, label in labels.items()}
        separator = guessed_separator(words.values())
        if separator is None:  # else "1,5" is no number
            refuse_measured(words.values(), f"prepare.table.label: {self.said} of {visible(self.table)}")
        named, notes = class_names(words, classes, self.table)
        if separator:
            example = next(word for word in words.values() if separator in word)
            notes.append(
                f"classes that look like several labels of an image, such as {shown(example)!r}: if they are, write "
                f"task: multi and prepare.table.separator: {separator!r}"
            )
        return dict(named), notes

    def order(self, seen: set[str]) -> list[str]:
        return sorted(seen, key=natural)


class Separated:
    """A column with the labels of each image, between separators. An empty cell is an image without a label."""

    key = "table.label"
    columns: tuple[str, ...]

    def __init__(self, options: TableConfig, table: str):
        self.columns, self.said, self.table = (options.label,), f"the column {options.label!r}", table
        self.separator = options.separator or ""

    def read(self, cell: Cell) -> Labels:
        return labels_of(separated(unicodedata.normalize("NFC", cell(self.columns[0])), self.separator))

    def named(self, labels: dict[str, str | Labels], classes: list[str] | None) -> tuple[Named, list[str]]:
        sets = {file: of_file for file, of_file in labels.items() if isinstance(of_file, Labels)}
        if all(len(of_file.present) == 1 for of_file in sets.values()):
            raise DataError(
                f"prepare.table.separator: each image has exactly one label, because no cell of the column "
                f"{self.columns[0]!r} of {visible(self.table)} holds {self.separator!r}: write another separator, or "
                f"task: single and separator: null"
            )
        words = {name: name for of_file in sets.values() for name in of_file.present}
        names, notes = class_names(words, classes, self.table)
        result: Named = {}
        for file, of_file in sets.items():
            of_names = [names[word] for word in of_file.present]
            unusable = next((name for name in of_names if isinstance(name, Unusable)), None)
            result[file] = unusable or labels_of(map(str, of_names))
        check_names(
            (name for name in names.values() if isinstance(name, str)),
            f"prepare.table.label: {visible(self.table)}",
        )
        return result, notes

    def order(self, seen: set[str]) -> list[str]:
        return sorted(seen, key=natural)


class Flags:
    """A column for each label, which says whether an image has it."""

    key, said = "table.labels", "all columns"
    columns: tuple[str, ...]

    def __init__(self, options: TableConfig, sheet: Sheet, table: str, others: set[str | None]):
        self.table = table
        self.columns = options.labels or tuple(name for name in flag_columns(sheet) if name not in others)
        self.found = options.labels is None
        if not self.columns:
            raise DataError(
                f"prepare.table.labels: {visible(table)} has no columns of 0 and 1: with task: multi name the columns "
                f"of the labels there, or give prepare.table.separator, which stands between the labels of "
                f"prepare.table.label; where each image has one label, write task: single"
            )
        if len(self.columns) < 2:
            raise DataError(
                f"prepare.table.labels: {visible(table)} has only one column of labels, {self.columns[0]!r}: "
                f"task: multi needs two; for one, write task: single and prepare.table.label: {self.columns[0]}"
            )
        check_names(self.columns, f"prepare.table.labels: {visible(table)}")
        for place, name in enumerate(sheet.columns):
            if name in self.columns:
                cells = [row[place] for _, row in sheet.rows if place < len(row)]
                refuse_measured(cells, f"prepare.table.labels: the column {name!r} of {visible(table)}")

    def read(self, cell: Cell) -> Labels:
        values = {}
        for name in self.columns:
            word = cell(name).strip().casefold()
            if word not in FLAGS:
                raise Unusable(
                    f"the label {name}: {shown(cell(name).strip())!r} is neither 0 nor 1, nor empty"
                )
            values[name] = FLAGS[word]
        if all(value == UNKNOWN for value in values.values()):
            raise Unusable("no label is known")
        return labels_of(
            *([n for n, value in values.items() if value == kind] for kind in (PRESENT, UNKNOWN))
        )

    def named(self, labels: dict[str, str | Labels], classes: list[str] | None) -> tuple[Named, list[str]]:
        if classes is not None:
            raise DataError(
                "prepare.table.classes: names classes that are numbers, and the columns of prepare.table.labels have "
                "names of their own: leave it out"
            )
        notes = []
        if self.found:
            more = f" and {len(self.columns) - MOST_NAMED} more" if len(self.columns) > MOST_NAMED else ""
            notes.append(
                f"labels of {self.table}: the columns {', '.join(map(shown, self.columns[:MOST_NAMED]))}{more}; "
                f"prepare.table.labels chooses others"
            )
        sets = [of_file for of_file in labels.values() if isinstance(of_file, Labels)]
        if sets and all(len(of_file.present) == 1 and not of_file.unknown for of_file in sets):
            notes.append(
                f"each image of {self.table} has exactly one label: if that must be so, task: single with one column "
                f"of the classes is more accurate"
            )
        return dict(labels), notes

    def order(self, seen: set[str]) -> list[str]:
        return list(self.columns)


def label_kind(
    options: TableConfig, several: bool, sheet: Sheet, table: str, others: set[str | None]
) -> LabelKind:
    """Returns how the labels of a table are written.

    Args:
        several: whether an image may have several labels.
        others: columns that say something else.

    Raises:
        DataError: params.yaml names no labels of this kind.
    """
    if not several:
        for key in ("labels", "separator"):
            if getattr(options, key) is not None:
                raise DataError(f"prepare.table.{key}: is for images with several labels: write task: multi")
        return OneLabel(options, sheet, table)
    return (
        Separated(options, table) if options.separator is not None else Flags(options, sheet, table, others)
    )


def separated(text: str, separator: str) -> list[str]:
    """Returns the labels in a cell, without spaces around them and without empty ones."""
    return [part for part in map(str.strip, text.split(separator)) if part]


def guessed_separator(cells: Iterable[str]) -> str | None:
    """Returns the sign that separates labels in these cells; None where there is none.

    Some cells hold more labels than others, and most labels are in several different sets: so "Tomato, healthy" beside
    "Potato, healthy" is a name, and "tench, Tinca tinca" is one too.
    """
    cells = [cell for cell in cells if cell.strip()]
    for separator in SEPARATORS:
        sets = [frozenset(separated(cell, separator)) for cell in cells]
        counts = Counter(name for names in sets for name in names)
        different = Counter(name for names in set(sets) for name in names)
        recurring = sum(count > 1 for count in different.values())
        if (
            len(set(map(len, sets))) > 1
            and 2 * len(counts) <= counts.total()
            and 2 * recurring >= len(counts)
        ):
            return separator
    return None


def flag_columns(sheet: Sheet) -> list[str]:
    """Returns the columns that hold 0 and 1, or the like, and nothing else."""
    found = []
    for place, name in enumerate(sheet.columns):
        values = {
            FLAGS.get(cells[place].strip().casefold()) if place < len(cells) else UNKNOWN
            for _, cells in sheet.rows
        }
        if values >= {PRESENT, ABSENT} and None not in values:
            found.append(name)
    return found


def class_list(options: TableConfig, files: dict[str, Reader], path: str) -> list[str] | None:
    """Reads the names of the classes from the file `prepare.table.classes`; None where there is none."""
    if options.classes is None:
        return None
    name = posixpath.normpath(options.classes.replace("\\", "/"))
    if name not in files:
        raise DataError(f"prepare.table.classes: there is no {visible(name)} in {path}")
    text, _ = decoded(content_of(files[name]), name)
    names: object = text.splitlines()
    if name.casefold().endswith((".json", ".yaml", ".yml")):
        try:
            names = json.loads(text) if name.casefold().endswith(".json") else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError):
            raise DataError(f"prepare.table.classes: {visible(name)} is damaged") from None
        if isinstance(names, dict):  # number → name, or name → number
            pairs = (
                names.items()
                if all(WHOLE.fullmatch(str(key)) for key in names)
                else [(value, key) for key, value in names.items()]
            )
            numbers = {str(number): str(name) for number, name in pairs}
            names = [numbers.get(str(number)) for number in range(len(numbers))]
    if not isinstance(names, list) or None in names:
        raise DataError(
            f"prepare.table.classes: {visible(name)} is no list of names, and does not count them from 0"
        )
    classes = [unicodedata.normalize("NFC", str(entry).strip()) for entry in names]
    while classes and not classes[-1]:
        classes.pop()
    if len(set(classes)) < len(classes) or "" in classes:
        raise DataError(f"prepare.table.classes: {visible(name)} must hold a different name for each class")
    return classes


def class_names(
    labels: dict[str, str], classes: list[str] | None, table: str
) -> tuple[dict[str, str | Unusable], list[str]]:
    """Returns file → class, or the reason why its label is none, and notes.

    Labels that are all whole numbers count the `classes` from 0, or are the names of classes themselves.
    """
    words = Counter(labels.values())
    numbers = {word: match[1] for word in words if (match := WHOLE.fullmatch(word))}
    notes: list[str] = []
    others = [word for word in words if word not in numbers]
    if numbers and all(word.casefold() in NO_NUMBER for word in others):
        floats = [word for word in numbers if "." in word]
        if floats:
            notes.append(
                f"labels of {table} that are whole numbers with decimals, as pandas writes them beside empty cells: "
                f"{floats[0]} is read as {int(numbers[floats[0]])}"
            )
        known = {word: str(int(number)) for word, number in numbers.items()}
        if classes is not None and not set(known.values()) <= set(classes):
            first = min(map(int, known.values()))
            if first == 1 and max(map(int, known.values())) == len(classes):
                raise DataError(
                    f"{visible(table)}: the labels count from 1, the {len(classes)} names of prepare.table.classes "
                    f"from 0: put a line for class 0 first, or write the names into the table"
                )
            inside = {word: int(number) for word, number in known.items()}
            names: dict[str, str | Unusable] = {
                word: classes[number]
                if 0 <= number < len(classes)
                else Unusable(f"the label {word} is none of the {len(classes)} classes, which count from 0")
                for word, number in inside.items()
            }
        else:
            names = dict(known)
        names |= {word: Unusable("no label") for word in others}
        return {file: names[word] for file, word in labels.items()}, notes
    if classes is not None:
        names = {
            word: word if word in classes else Unusable(f"the label {word!r} is not in prepare.table.classes")
            for word in words
        }
        return {file: names[word] for file, word in labels.items()}, notes
    spellings, merged = merge_spellings(set(words))
    notes += [note.replace("folders", "labels", 1) for note in merged]
    return {file: spellings[word] for file, word in labels.items()}, notes


def natural(name: str) -> tuple[bool, int, str]:
    """Sorts whole numbers by their value, before other names."""
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)


def content_of(read: Reader) -> bytes:
    """Reads a table or list; raises DataError."""
    try:
        return read()
    except ImageError as error:
        raise DataError(f"the table {error.reason}") from None
