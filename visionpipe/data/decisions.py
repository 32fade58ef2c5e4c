"""decisions.csv: what the user has decided about single images, in the project's root.

The columns are file, finding, suggestion and decision. `visionpipe doctor` appends rows without a decision, which
change nothing. The user decides by writing one of these into the last column:

drop            leaves the image out
keep            leaves it as it is
relabel         gives it the class in `suggestion`; `relabel CLASS` gives it another. With `task: multi` it is the whole
                set of its labels: `relabel cat | dog`, `relabel no label`; labels that are unknown stay so
group           puts it into the group in `suggestion`; `group KEY` into another
"""

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from visionpipe.data.config import DECISIONS, DECISIONS_HEADER
from visionpipe.data.decoding import Usable
from visionpipe.data.groups import united
from visionpipe.data.labels import Labels, labels_of
from visionpipe.data.listing import Listing, Record, Rejected
from visionpipe.data.spreadsheet import Sheet, read_sheet
from visionpipe.errors import DataError, did_you_mean
from visionpipe.escape import FORMULA, csv_line, visible
from visionpipe.files import write_bytes

COLUMNS = tuple(DECISIONS_HEADER.decode().strip().split(","))
VERBS = ("drop", "keep", "relabel", "group")


@dataclass(frozen=True)
class Decision:
    """One decided row. `value` is the class of a relabelled image, or the key of the group of a grouped one."""

    line: int
    file: str
    finding: str
    verb: str
    value: str = ""


@dataclass(frozen=True)
class Decisions:
    """The decided rows. `dropped`, `relabelled` and `grouped` are those of each file that change something."""

    rows: tuple[Decision, ...]
    dropped: dict[str, Decision]
    relabelled: dict[str, Decision]
    grouped: dict[str, list[Decision]]

    def applied_to(self, listing: Listing) -> Listing:
        """Returns the listing without the dropped images and with the classes of the relabelled ones.

        Dropped images become files that cannot be used.

        Raises:
            DataError: a class of a relabelled image does not exist.
        """
        labels: dict[str, Labels | None] = {}
        for row in self.relabelled.values():
            try:
                labels[row.file] = listing.labels_from(row.value)
            except KeyError as error:
                name = str(error.args[0])
                hint = did_you_mean(name, listing.classes)
                raise DataError(f"{DECISIONS}, line {row.line}: there is no class {name!r}{hint}") from None
        if not self.dropped and not self.relabelled:
            return listing

        def decided(entry: Record | Rejected) -> Record | Rejected:
            if isinstance(entry, Rejected):
                return entry
            if entry.file in self.dropped:
                return Rejected(entry.file, f"dropped by {DECISIONS}")
            row = self.relabelled.get(entry.file)
            if row is None:
                return entry
            of_file = labels[entry.file]
            if of_file is not None and entry.labels is not None:  # what nobody knows stays unknown
                of_file = labels_of(of_file.present, set(entry.labels.unknown) - set(of_file.present))
            return replace(entry, class_name=row.value if of_file is None else str(of_file), labels=of_file)

        return replace(listing, entries=map(decided, listing.entries))

    def with_groups(self, usable: list[Usable]) -> list[Usable]:
        """Returns the images with the groups that were decided on, which unite groups that they share images with."""
        if not self.grouped:
            return usable
        keys: list[set[Hashable]] = []
        for image in usable:
            decided: set[Hashable] = {("decided", row.value) for row in self.grouped.get(image.file, ())}
            keys.append(decided if image.group is None else decided | {image.group})
        firsts = united(keys)
        names = {
            firsts[row]: usable[firsts[row]].group or self.grouped[image.file][0].value
            for row, image in enumerate(usable)
            if image.file in self.grouped
        }
        return [
            replace(image, group=names.get(first, image.group))
            for image, first in zip(usable, firsts, strict=True)
        ]

    def applied(self, usable: list[Usable], quarantined: list[Rejected]) -> list[dict[str, str]]:
        """Returns the decisions that changed something, as the manifest lists them."""
        files = {image.file for image in usable}
        out = {item.file for item in quarantined if item.reason == f"dropped by {DECISIONS}"}
        return [
            {"file": row.file, "finding": row.finding, "decision": said(row)}
            for row in self.rows
            if row.file in (out if row.verb == "drop" else files) and row.verb != "keep"
        ]

    def warnings(self, usable: list[Usable], quarantined: list[Rejected]) -> list[str]:
        """Says which decisions name no file of the data."""
        files = {image.file for image in usable} | {item.file for item in quarantined}
        lost = [row for row in self.rows if row.file not in files]
        if not lost:
            return []
        first = f"line {lost[0].line}, {lost[0].file!r}"
        return [f"rows of {DECISIONS} that name no file of these images: {len(lost):,}, such as {first}"]


def read_decisions(path: Path = DECISIONS) -> Decisions:
    """Reads the decided rows; none where there is no such file.

    Raises:
        DataError: a row is damaged, decides on something unknown, or contradicts another row about its file.
    """
    rows: list[Decision] = []
    final: dict[str, Decision] = {}  # drop or relabel
    grouped: dict[str, list[Decision]] = defaultdict(list)
    for line, (file, finding, suggestion, decision) in rows_of(path):
        if not decision:
            continue
        row = decided_row(path, line, file, finding, suggestion, decision)
        rows.append(row)
        if row.verb == "group":
            grouped[file].append(row)
        elif row.verb != "keep":
            other = final.setdefault(file, row)
            if (other.verb, other.value) != (row.verb, row.value):
                raise DataError(
                    f"{path}, line {line}: {said(row)} contradicts line {other.line}, {said(other)}, about the same "
                    f"file {visible(file)}: clear one of the two"
                )
    dropped = {file: row for file, row in final.items() if row.verb == "drop"}
    relabelled = {file: row for file, row in final.items() if row.verb == "relabel"}
    return Decisions(tuple(rows), dropped, relabelled, dict(grouped))


def decided_row(path: Path, line: int, file: str, finding: str, suggestion: str, decision: str) -> Decision:
    """Reads the decision of one row; raises DataError."""
    verb, _, value = decision.partition(" ")
    verb, value = verb.casefold(), value.strip()
    if verb not in VERBS or (value and verb in ("drop", "keep")):
        raise DataError(
            f"{path}, line {line}: {decision!r} is no decision{did_you_mean(verb, VERBS)}; write drop, keep, relabel, "
            f"relabel CLASS, group or group KEY, or leave it empty"
        )
    if not file:
        raise DataError(f"{path}, line {line}: a decision without a file")
    if verb in ("relabel", "group") and not value:
        value = suggestion
        if not value:
            what = "CLASS" if verb == "relabel" else "KEY"
            raise DataError(f"{path}, line {line}: there is no suggestion: write {verb} {what}")
    return Decision(line, file, finding, verb, unicodedata.normalize("NFC", value))


def decided_lines(manifest: dict[str, Any]) -> list[str]:
    """Says how many decisions a prepared data set obeys, from its manifest."""
    verbs = Counter(row["decision"].partition(" ")[0] for row in manifest.get("decisions", ()))
    words = {"drop": "dropped", "relabel": "relabelled", "group": "grouped"}
    counts = ", ".join(f"{verbs[verb]:,} {word}" for verb, word in words.items() if verbs[verb])
    return [f"by {DECISIONS}: {counts}"] if counts else []


def said(row: Decision) -> str:
    return f"{row.verb} {row.value}".strip()


def written_decisions(path: Path = DECISIONS) -> dict[tuple[str, str], str]:
    """Reads the decision of each row by its file and finding; "" for a row without one. Raises DataError."""
    return {(file, finding): decision for _, (file, finding, _, decision) in rows_of(path)}


def append_undecided(rows: Iterable[Sequence[str]], path: Path = DECISIONS) -> int:
    """Appends rows of (file, finding, suggestion) without a decision, and returns their number.

    Rows of the same file and finding are left out. The rows of the file do not change, whatever their encoding and
    delimiter were; a file that is not UTF-8 with commas is written anew as such.

    Raises:
        DataError: the file is damaged.
    """
    old = path.read_bytes() if path.exists() else b""
    known = {(cells[0], cells[1]) for _, cells in rows_of(path)}
    lines = []
    for file, finding, suggestion in rows:
        if (file, finding) not in known:
            known.add((file, finding))
            lines.append(csv_line([file, finding, suggestion, ""]))
    if not lines:
        return 0
    sheet = sheet_of(path)
    if sheet is None or not plain(old, sheet):
        old = DECISIONS_HEADER + b"".join(csv_line(cells) for _, cells in rows_of(path))
    elif not old.endswith(b"\n"):
        old += b"\n"
    write_bytes(path, old + b"".join(lines))
    return len(lines)


def plain(content: bytes, sheet: Sheet) -> bool:
    """Whether a file is UTF-8 with commas and exactly the four columns, so that lines can be added to it."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return sheet.delimiter == "," and tuple(sheet.columns) == COLUMNS and not content.startswith(b"sep=")


def sheet_of(path: Path) -> Sheet | None:
    """Reads the table; None where there is no file, or an empty one."""
    content = path.read_bytes() if path.exists() else b""
    return read_sheet(content, str(path)) if content.strip() else None


def rows_of(path: Path) -> list[tuple[int, list[str]]]:
    """Reads the line and the four cells of each row, whatever the order of the columns; raises DataError."""
    sheet = sheet_of(path)
    if sheet is None:
        return []
    missing = [column for column in COLUMNS if column not in sheet.columns]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}: its first line must be {','.join(COLUMNS)}")
    places = [sheet.columns.index(column) for column in COLUMNS]
    return [
        (line, [true_text(cells[place]) if place < len(cells) else "" for place in places])
        for line, cells in sheet.rows
    ]


def true_text(cell: str) -> str:
    """Removes the sign that keeps a spreadsheet from executing a cell."""
    text = cell.strip()
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text
