"""Reads tables as people have them: CSV, TSV and Parquet, from spreadsheets, databases and pandas."""

import codecs
import csv
import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from visionpipe.errors import DataError
from visionpipe.escape import visible

ENDINGS = (".csv", ".tsv", ".parquet")
DELIMITERS = ",;\t|"
LOOKED_AT = 50  # records that decide on the delimiter
MARKS = {  # the first bytes of a text → its encoding; that of UTF-32 begins like that of UTF-16
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@dataclass(frozen=True)
class Sheet:
    """A table as text. Each row has its line in the file, or its number in a Parquet file, and a cell per column.

    `unit` is "line" or "row"; `notes` are remarks for the user; `delimiter` is that of a text.
    """

    columns: list[str]
    rows: list[tuple[int, list[str]]]
    unit: str = "line"
    notes: tuple[str, ...] = ()
    delimiter: str = ""


def read_sheet(content: bytes, name: str) -> Sheet:
    """Reads a table; `name` is that of its file, for messages.

    Raises:
        DataError: it is no table, or a line of it is damaged.
    """
    if content.startswith(b"PAR1"):
        return read_parquet(content, name)
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise DataError(f"{visible(name)} is a workbook: save the sheet as CSV")
    text, notes = decoded(content, name)
    first, _, rest = text.partition("\n")
    skipped, delimiter = 0, ""
    if first.strip().casefold().startswith("sep=") and len(first.strip("\r")) == 5:  # written by Excel
        skipped, delimiter, text = 1, first[4], rest
    delimiter = delimiter or sniff(text)
    header: list[str] | None = None
    rows = []
    try:
        for line, cells in records(text, delimiter):
            if not any(map(str.strip, cells)):
                continue
            if header is None:
                header = cells
            else:
                rows.append((line + skipped, cells))
    except csv.Error as error:
        raise DataError(f"{visible(name)}: {error}") from None
    if header is None:
        raise DataError(f"{visible(name)} is empty: its first line must name the columns")
    filled = {place for _, cells in rows for place, cell in enumerate(cells) if cell.strip()}
    empty = {place for place, name in enumerate(header) if not name.strip()} - filled
    if empty:  # as a spreadsheet writes beside its cells
        header, *others = (
            [cell for place, cell in enumerate(cells) if place not in empty]
            for cells in (header, *(cells for _, cells in rows))
        )
        rows = [(line, cells) for (line, _), cells in zip(rows, others, strict=True)]
    columns = unique([name.strip() for name in header])
    return Sheet(columns, rows, notes=notes, delimiter=delimiter)


def decoded(content: bytes, name: str) -> tuple[str, tuple[str, ...]]:
    """Decodes a text in UTF-8, UTF-16, UTF-32 or Windows-1252; returns it with a note where the encoding is a guess."""
    encoding = next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), "")
    if not encoding and b"\0" in content[:2]:  # ASCII characters in UTF-16 without its mark
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        return content.decode(encoding or "utf-8"), ()
    except UnicodeDecodeError:
        if encoding:
            raise DataError(f"{visible(name)} is a damaged text in {encoding}") from None
    try:
        return content.decode("cp1252"), (f"{name} is not UTF-8: read as Windows-1252",)
    except UnicodeDecodeError:
        raise DataError(f"{visible(name)} is neither UTF-8 nor Windows-1252: save it as UTF-8") from None


def sniff(text: str) -> str:
    """Returns the delimiter by which the first records have the same number of cells most often."""

    def consistency(delimiter: str) -> tuple[float, int]:
        widths = []
        try:
            for _, cells in itertools.islice(records(text, delimiter), LOOKED_AT):
                widths += [len(cells)] if any(map(str.strip, cells)) else []
        except csv.Error:
            pass
        if not widths or widths[0] < 2:
            return 0, 0
        return sum(width == widths[0] for width in widths) / len(widths), widths[0]

    return max(DELIMITERS, key=consistency)


def records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yields each record with the line that it begins on, counted from 1; raises csv.Error, which names the line."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            quotes = "a quoted cell is never closed" if "unexpected end" in str(error) else str(error)
            raise csv.Error(f"line {begins}: {quotes}") from None
        yield begins, cells
        begins = reader.line_num + 1


def unique(names: list[str]) -> list[str]:
    """Names columns that have no name, and those whose name another column has already."""
    seen: dict[str, int] = {}
    columns = []
    for place, name in enumerate(names, 1):
        name = name or f"column {place}"
        seen[name] = seen.get(name, 0) + 1
        columns.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return columns


def read_parquet(content: bytes, name: str) -> Sheet:
    """Reads a Parquet file; columns of bytes and nested columns are left out with a note."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{visible(name)} is a damaged Parquet file: {reason}") from None

    def is_text(kind: Any) -> bool:
        return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    used = [column.name for column in table.schema if is_text(column.type)]
    unused = [column for column in table.column_names if column not in used]
    cells = [[text_of(value) for value in table[column].to_pylist()] for column in used]
    note = f"{name} has columns that are no text and no number: {', '.join(map(repr, unused))}"
    return Sheet(
        unique([column.strip() for column in used]),
        [(number, list(row)) for number, row in enumerate(zip(*cells, strict=True), 1)],
        unit="row",
        notes=(note,) if unused else (),
    )


def text_of(value: Any) -> str:
    """Formats a cell; a missing value is "" as in a CSV file."""
    return "" if value is None or value != value else str(value)


def number_of(text: str) -> float | None:
    """Reads a number with a point or, as many spreadsheets write it, a comma; None for other texts."""
    try:
        number = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
