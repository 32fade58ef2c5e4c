"""`visionpipe predict`: labels any number of image files, and writes one table."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from tqdm import tqdm

from visionpipe import __version__
from visionpipe.artifact.classifier import BATCH, Classifier
from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.versions import load
from visionpipe.data.paths import File, find_files, is_small, read, state
from visionpipe.errors import ConfigError, DataError, ImageError
from visionpipe.escape import csv_line, visible
from visionpipe.files import exclusive, replacing_file, temporary_name
from visionpipe.tracking.lookup import looked_up

ROWS_AT_ONCE = 10_000  # in a Parquet row group, unless they hold more than NUMBERS_AT_ONCE
NUMBERS_AT_ONCE = 10_000_000  # in a row group; a worker's task has at most a fiftieth of them
Row = dict[str, Any]  # of the journal
Values = list[Any]  # of the table, in the order of its columns
Columns = dict[str, type]


def predict(
    paths: list[str], output: Path, target: str, probabilities: bool, follow_links: bool = False
) -> None:
    """Writes one row per file to `output`: file, label, probability, error.

    Args:
        paths: folders, zip archives, image files, glob patterns, or "-" for a list of them on stdin.
        output: a .csv, .jsonl or .parquet file, which is written at the end. Until then the rows are in
            `output`.partial, from which the same command continues after an interruption.
        target: `models:/NAME@ALIAS`, `models:/NAME/NUMBER` or a folder.
        probabilities: adds a column `p(CLASS)` for each class.
        follow_links: follows links in folders to files and folders outside of them.

    Raises:
        ConfigError: `output` cannot be written.
        DataError: some files have no label. The table is written first, and its column `error` says why.
        RegistryError, ArtifactError: there is no such model, or its files are damaged.
    """
    check_output(output)
    with looked_up(target) as version:
        classifier, sha256 = load(version, threads=1), artifact_sha256(version.folder)
    answered = classifier.task.columns(classifier.labels)
    columns: Columns = {"file": str, **answered}
    columns |= {f"p({label})": float for label in classifier.labels} if probabilities else {}
    columns["error"] = str
    notes: list[str] = []
    files = list(find_files(paths, follow_links, notes))
    for note in dict.fromkeys(notes):
        print(f"WARNING: {note}", file=sys.stderr)
    journal = Path(f"{output}.partial")
    output.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(Path(f"{journal}.lock"), f"waiting for another process that writes {output}"):
        header = {"artifact_sha256": sha256, "columns": list(columns), "visionpipe": __version__}
        with open_journal(journal, header, files) as (lines, places):
            remaining, start = [file for file in files if file.name not in places], time.perf_counter()
            names = iter([file.name for file in remaining])
            tqdm.monitor_interval = 0  # no monitor thread, because a process with threads must not be forked
            bar = tqdm(total=len(files), initial=len(files) - len(remaining), unit=" images", disable=None)
            with bar, contextlib.closing(answers(remaining, classifier, probabilities)) as tasks:
                for rows in tasks:
                    for row in rows.splitlines(keepends=True):
                        places[next(names)] = lines.tell()
                        lines.write(row)
                    lines.flush()
                    bar.update(rows.count(b"\n"))
            rate = len(remaining) / (time.perf_counter() - start)
        broken = Broken()
        with replacing_file(output) as table:
            WRITERS[output.suffix](broken.seen(values(journal, places, files, columns)), columns, table)
        journal.unlink()
    Path(f"{journal}.lock").unlink(missing_ok=True)
    speed = f", {rate:,.0f} images/s" if remaining else ""
    print(f"{len(files):,} files, {version.name} version {version.number}{speed}: {output}")
    if broken.count:
        raise DataError(
            f"{broken.count:,} of {len(files):,} files have no label, such as {broken.first}; the column error of "
            f"{output} says why"
        )


def check_output(output: Path) -> None:
    """Checks before hours of work that the table can be written.

    Raises:
        ConfigError: it cannot.
    """
    given = f"--output {visible(str(output))}"
    if output.suffix not in WRITERS:
        raise ConfigError(f"{given}: expected a name that ends in {', '.join(WRITERS)}")
    for path in (output, Path(f"{output}.partial"), Path(f"{output}.partial.lock")):
        if os.path.isdir(path):  # Path.is_dir raises an error for a name that is too long
            raise ConfigError(f"{given}: {visible(str(path))} is a folder, and a file would be written there")
    parent = next(path for path in output.absolute().parents if os.path.lexists(path))
    if not parent.is_dir():
        raise ConfigError(f"{given}: {visible(str(parent))} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{given}: you may not write to {visible(str(parent))}")
    longest, most = os.fsencode(temporary_name(output, os.getpid())), os.pathconf(parent, "PC_NAME_MAX")
    if len(longest) > most:
        raise ConfigError(f"{given}: the name is {len(longest) - most} bytes too long")


class Broken:
    """Counts the rows without a label, and remembers the first."""

    def __init__(self) -> None:
        self.count, self.first = 0, ""

    def seen(self, rows: Iterable[Values]) -> Iterator[Values]:
        for row in rows:
            file, *_, error = row
            if error is not None:
                self.count += 1
                self.first = self.first or f"{visible(file)}: {error}"
            yield row


# Answers -----------------------------------------------------------------------------------------------


def answers(files: list[File], classifier: Classifier, probabilities: bool) -> Generator[bytes]:
    """Yields rows as lines of JSON, in the order of the files; each item has the rows of one task.

    One process per core decodes and classifies. Threads would not do: decoding a small file is mostly Python, which a
    process runs in one thread at a time. So the classifier should use a single thread.
    """
    # Passing a task to a worker takes as long as some small images, so a task of small images has more of them.
    size = 4 * BATCH if files and is_small(files[0]) else BATCH
    if probabilities:
        size = max(1, min(size, NUMBERS_AT_ONCE // 50 // len(classifier.labels)))
    workers = os.cpu_count() or 1
    # A forked process shares the model's memory. The system libraries of other systems do not support a fork.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(workers, context, begin_worker, (classifier, probabilities)) as pool:
        ahead: deque[Future[bytes]] = deque()
        try:
            for start in range(0, len(files), size):
                ahead.append(pool.submit(answer, files[start : start + size]))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                "a worker process was killed, perhaps because memory ran out: the same command continues from here"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_classifier: Classifier  # global variables of a worker process
_probabilities: bool


def begin_worker(classifier: Classifier, probabilities: bool) -> None:
    global _classifier, _probabilities
    _classifier, _probabilities = classifier, probabilities
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends its workers
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Ends this worker when its parent ends; a parent that was killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def answer(files: list[File]) -> bytes:
    images: list[np.ndarray] = []
    rows: list[Row] = []
    for file in files:
        # The state is taken before the file is read: a file that changes from now on is classified again.
        rows.append({"file": file.name, "state": state(file), "error": None})
        try:
            images.append(_classifier.preprocess(read(file)))
        except ImageError as error:
            rows[-1]["error"] = error.reason
    table: Any = _classifier.probabilities(np.stack(images)) if images else []
    for row, numbers in zip((row for row in rows if row["error"] is None), table, strict=True):
        row["answer"] = _classifier.task.cells(numbers, _classifier.labels)
        if _probabilities:
            row["probabilities"] = numbers
    return b"".join(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n" for row in rows)


# The journal and the table -----------------------------------------------------------------------------


@contextlib.contextmanager
def open_journal(path: Path, header: Row, files: list[File]) -> Iterator[tuple[BinaryIO, dict[str, int]]]:
    """Opens the journal for appending. Yields it, and file name → position of the file's row in it.

    A journal of another model or of other columns is emptied. Rows of files that have changed since are ignored. An
    incomplete last line is removed.
    """
    wanted = {file.name: file for file in files}
    places: dict[str, int] = {}
    with path.open("a+b") as lines:
        lines.seek(0)
        if parsed(lines.readline()) != header:
            lines.truncate(0)
            lines.write(orjson.dumps(header) + b"\n")
        else:
            place = lines.tell()
            for line in lines:
                row = parsed(line)
                if row is None:
                    break
                file = wanted.get(row["file"])
                if file and row["state"] and row["state"] == state(file):
                    places[file.name] = place
                place += len(line)
            lines.truncate(place)
        lines.flush()
        lines.seek(0, os.SEEK_END)
        yield lines, places


def parsed(line: bytes) -> Row | None:
    """Parses a line of the journal; returns None if the line is incomplete or not JSON."""
    try:
        return orjson.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None


def values(journal: Path, places: dict[str, int], files: list[File], columns: Columns) -> Iterator[Values]:
    """Yields the rows of the table, in the order of the files."""
    unknown = [None] * (len(columns) - 2)
    with journal.open("rb") as lines:
        for file in files:
            lines.seek(places[file.name])
            row = orjson.loads(lines.readline())
            answer = [*row["answer"], *row.get("probabilities", [])] if row["error"] is None else unknown
            yield [row["file"], *answer, row["error"]]


def write_csv(rows: Iterator[Values], columns: Columns, file: BinaryIO) -> None:
    file.write(csv_line(columns))
    file.writelines(map(csv_line, rows))


def write_jsonl(rows: Iterator[Values], columns: Columns, file: BinaryIO) -> None:
    for row in rows:
        file.write(orjson.dumps(dict(zip(columns, row, strict=True))) + b"\n")


def write_parquet(rows: Iterator[Values], columns: Columns, file: BinaryIO) -> None:
    import pyarrow
    import pyarrow.parquet

    text = [name for name, kind in columns.items() if kind is str]
    kinds = {str: pyarrow.string(), int: pyarrow.int8(), float: pyarrow.float64()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in columns.items()])
    is_text = np.array([kind is str for kind in columns.values()])
    at_once = max(1, min(ROWS_AT_ONCE, NUMBERS_AT_ONCE // len(columns)))
    # For numbers, a dictionary and the minimum and maximum of each group would take more space than they save.
    options: Any = {"use_dictionary": text, "write_statistics": text}
    with pyarrow.parquet.ParquetWriter(file, schema, **options) as writer:
        while group := [compact(row, is_text) for row in itertools.islice(rows, at_once)]:
            texts, numbers = zip(*group, strict=True)
            words, table = zip(*texts, strict=True), np.ascontiguousarray(np.transpose(numbers))
            of_text, of_numbers = iter(words), iter(table)
            arrays = [
                pyarrow.array(next(of_text if text else of_numbers), from_pandas=True).cast(
                    kind
                )  # NaN becomes null
                for text, kind in zip(is_text, schema.types, strict=True)
            ]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def compact(row: Values, is_text: np.ndarray) -> tuple[list[str | None], np.ndarray]:
    """Separates a row's texts and its numbers, float64. With many classes a list would take four times the memory."""
    texts = [cell for cell, text in zip(row, is_text, strict=True) if text]
    return texts, np.array([cell for cell, text in zip(row, is_text, strict=True) if not text], np.float64)


WRITERS: dict[str, Callable[[Iterator[Values], Columns, BinaryIO], None]] = {
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
}
