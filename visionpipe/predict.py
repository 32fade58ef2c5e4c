"""`visionpipe predict`: labels for any number of image files, in one table."""

import contextlib
import csv
import glob
import itertools
import os
import sys
import threading
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from tqdm import tqdm

from visionpipe.data.listing import is_hidden
from visionpipe.data.sources import MAX_FILE_BYTES, member_name, member_refusal, read_file, read_member
from visionpipe.errors import ConfigError, DataError, ImageError
from visionpipe.files import exclusive
from visionpipe.lineage import artifact_sha256
from visionpipe.serving.classifier import BATCH, Classifier
from visionpipe.serving.versions import load
from visionpipe.tracking.lookup import find_version

STDIN = "-"
ROWS_AT_ONCE = 10_000  # of a Parquet row group
Row = dict[str, Any]


@dataclass(frozen=True)
class File:
    """`read` raises ImageError where there is nothing to read."""

    name: str
    read: Callable[[], bytes]


def predict(paths: list[str], output: Path, target: str, probabilities: bool) -> None:
    """Writes one row per file to `output`: file, label, probability, error.

    Args:
        paths: folders, zip archives, image files, glob patterns, or "-" for a list of them on stdin.
        output: .csv, .jsonl or .parquet; appears when all is done. Until then `output`.partial has the rows,
            and the same command goes on from there.
        target: `models:/NAME@ALIAS`, `models:/NAME/NUMBER` or a folder.
        probabilities: adds a column `p(CLASS)` for each class.

    Raises DataError at the end where files could not be used: `error` says why, and the others have labels.
    """
    if output.suffix not in WRITERS:
        raise ConfigError(f"--output {output}: expected a name that ends in {', '.join(WRITERS)}")
    with find_version(target) as version:
        classifier, sha256 = load(version, threads=1), artifact_sha256(version.folder)
    columns = ["file", "label", "probability"]
    columns += [f"p({label})" for label in classifier.labels] if probabilities else []
    files = list(find_files(paths))
    journal = Path(f"{output}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(Path(f"{journal}.lock"), f"waiting for another process that writes {output}"):
        header = {"artifact_sha256": sha256, "columns": columns}
        with open_journal(journal, header) as (lines, done):
            left, start = [file for file in files if file.name not in done], time.perf_counter()
            bar = tqdm(total=len(files), initial=len(files) - len(left), unit=" images", disable=None)
            with bar:
                for rows in answers(left, classifier, probabilities):
                    lines.write(b"".join(orjson.dumps(row) + b"\n" for row in rows))
                    lines.flush()
                    bar.update(len(rows))
            rate = len(left) / (time.perf_counter() - start)
        wanted = {file.name for file in files}
        partial_output = output.with_name(f".{output.name}.tmp")
        broken = Broken()
        WRITERS[output.suffix](broken.seen(rows_of(journal, wanted)), [*columns, "error"], partial_output)
        partial_output.replace(output)
        journal.unlink()
    Path(f"{journal}.lock").unlink(missing_ok=True)
    speed = f", {rate:,.0f} images/s" if left else ""
    print(f"{len(files):,} files, {version.name} version {version.number}{speed}: {output}")
    if broken.count:
        raise DataError(f"{broken.count:,} of {len(files):,} files have no label, such as {broken.first}")


class Broken:
    """Counts the rows without a label while they pass."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def seen(self, rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            if row["error"] is not None:
                self.count += 1
                self.first = self.first or f"{row['file']}: {row['error']}"
            yield row


# Files -------------------------------------------------------------------------------------------------


def find_files(paths: Iterable[str]) -> Iterator[File]:
    """Every file once, in the order of the arguments and by name within each; raises DataError."""
    seen = set()
    for file in itertools.chain.from_iterable(map(expand, paths)):
        if file.name not in seen:
            seen.add(file.name)
            yield file


def expand(path: str) -> Iterator[File]:
    if path == STDIN:
        for line in sys.stdin:
            if line.rstrip("\n"):
                yield from expand(line.rstrip("\n"))
    elif os.path.isdir(path):
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in sorted(names):
                if not is_hidden(name):
                    yield plain_file(os.path.join(folder, name))
    elif zipfile.is_zipfile(path):
        yield from members(path)
    elif os.path.lexists(path):
        yield plain_file(path)
    elif found := sorted(glob.glob(path, recursive=True)):
        yield from itertools.chain.from_iterable(map(expand, found))
    else:
        raise DataError(f"{path}: there is no such file or folder, and nothing matches it as a pattern")


def plain_file(path: str) -> File:
    name = os.fsencode(path).decode(errors="backslashreplace")
    if not os.path.isfile(path):
        return File(name, partial(refuse, "neither a file nor a folder"))
    if os.path.getsize(path) > MAX_FILE_BYTES:
        return File(name, partial(refuse, "larger than 256 MiB"))
    return File(name, partial(read_file, Path(path)))


def members(path: str) -> Iterator[File]:
    """The files of an archive, as ARCHIVE/MEMBER; nothing is unpacked."""
    archive, lock = zipfile.ZipFile(path), threading.Lock()
    for member in sorted(archive.infolist(), key=lambda member: member.filename):
        name = member_name(member) or member.filename
        reason = member_refusal(member)
        if name.endswith("/") or (is_hidden(name) and not reason):
            continue
        read = partial(refuse, reason) if reason else partial(read_member, archive, member, lock)
        yield File(f"{path}/{name}", read)


def refuse(reason: str) -> bytes:
    raise ImageError("unsupported", reason)


# Answers -----------------------------------------------------------------------------------------------


def answers(files: list[File], classifier: Classifier, probabilities: bool) -> Iterator[list[Row]]:
    """Rows in the order of the files, a batch at a time. A thread for each core decodes and classifies whole
    batches, so that no core waits for another within one; the classifier's own threads should be one.
    """
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[list[Row]]] = deque()
        try:
            for start in range(0, len(files), BATCH):
                ahead.append(pool.submit(answer, files[start : start + BATCH], classifier, probabilities))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def answer(files: list[File], classifier: Classifier, probabilities: bool) -> list[Row]:
    images: list[np.ndarray] = []
    rows: list[Row] = []
    for file in files:
        rows.append({"file": file.name, "error": None})
        try:
            images.append(classifier.preprocess(file.read()))
        except ImageError as error:
            rows[-1]["error"] = error.reason
    if not images:
        return rows
    table = classifier.probabilities(np.stack(images)).tolist()
    for row, values in zip((row for row in rows if row["error"] is None), table, strict=True):
        best = max(range(len(values)), key=values.__getitem__)
        row |= {"label": classifier.labels[best], "probability": values[best]}
        if probabilities:
            row |= {f"p({label})": value for label, value in zip(classifier.labels, values, strict=True)}
    return rows


# The journal and the table -----------------------------------------------------------------------------


@contextlib.contextmanager
def open_journal(path: Path, header: Row) -> Iterator[tuple[BinaryIO, set[str]]]:
    """The journal to append to, and the files that it has already. One of another model begins anew.

    A last line that was cut off is removed.
    """
    done: set[str] = set()
    with path.open("a+b") as file:
        file.seek(0)
        first = file.readline()
        if not first.endswith(b"\n") or orjson.loads(first) != header:
            file.truncate(0)
            file.write(orjson.dumps(header) + b"\n")
        else:
            end = file.tell()
            for line in file:
                if not line.endswith(b"\n"):
                    break
                done.add(orjson.loads(line)["file"])
                end += len(line)
            file.truncate(end)
        file.flush()
        yield file, done


def rows_of(journal: Path, wanted: set[str]) -> Iterator[Row]:
    """The rows of the files that were asked for: an interrupted run may have been asked for others."""
    with journal.open("rb") as file:
        file.readline()
        for line in file:
            row = orjson.loads(line)
            if row["file"] in wanted:
                yield row


def write_csv(rows: Iterator[Row], columns: list[str], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(rows: Iterator[Row], columns: list[str], path: Path) -> None:
    with path.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps({name: row.get(name) for name in columns}) + b"\n")


def write_parquet(rows: Iterator[Row], columns: list[str], path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    text = ("file", "label", "error")
    types = [(name, pyarrow.string() if name in text else pyarrow.float64()) for name in columns]
    schema = pyarrow.schema(types)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(rows, ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema))


WRITERS: dict[str, Callable[[Iterator[Row], list[str], Path], None]] = {
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}
