"""`visionpipe predict`: labels for any number of image files, in one table."""

import contextlib
import csv
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
from tqdm import tqdm

from visionpipe.data.paths import File, find_files, is_small, read
from visionpipe.errors import ConfigError, DataError, ImageError
from visionpipe.files import exclusive
from visionpipe.lineage import artifact_sha256
from visionpipe.serving.classifier import BATCH, Classifier
from visionpipe.serving.versions import load
from visionpipe.tracking.lookup import find_version

ROWS_AT_ONCE = 10_000  # of a Parquet row group
Row = dict[str, Any]


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
            tqdm.monitor_interval = 0  # no thread of its own, which processes must not be forked beside
            bar = tqdm(total=len(files), initial=len(files) - len(left), unit=" images", disable=None)
            with bar:
                for rows in answers(left, classifier, probabilities):
                    lines.write(rows)
                    lines.flush()
                    bar.update(rows.count(b"\n"))
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


# Answers -----------------------------------------------------------------------------------------------


def answers(files: list[File], classifier: Classifier, probabilities: bool) -> Iterator[bytes]:
    """Rows as lines of JSON, in the order of the files, a task at a time.

    A process for each core decodes and classifies: decoding a small file is mostly Python, of which
    a process runs one thread at a time. The classifier's own threads should be one.
    """
    # Handing a task over takes as long as some small images.
    size = 4 * BATCH if files and is_small(files[0]) else BATCH
    workers = os.cpu_count() or 1
    # A fork shares the model's memory. Elsewhere its system libraries do not survive one.
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
                "a worker was killed, perhaps for want of memory: the same command goes on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


_classifier: Classifier  # of a worker
_probabilities: bool


def begin_worker(classifier: Classifier, probabilities: bool) -> None:
    global _classifier, _probabilities
    _classifier, _probabilities = classifier, probabilities
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """A parent that was killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os._exit(1)


def answer(files: list[File]) -> bytes:
    images: list[np.ndarray] = []
    rows: list[Row] = []
    for file in files:
        rows.append({"file": file.name, "error": None})
        try:
            images.append(_classifier.preprocess(read(file)))
        except ImageError as error:
            rows[-1]["error"] = error.reason
    table = _classifier.probabilities(np.stack(images)).tolist() if images else []
    for row, values in zip((row for row in rows if row["error"] is None), table, strict=True):
        best = max(range(len(values)), key=values.__getitem__)
        row |= {"label": _classifier.labels[best], "probability": values[best]}
        if _probabilities:
            row |= {f"p({label})": value for label, value in zip(_classifier.labels, values, strict=True)}
    return b"".join(orjson.dumps(row) + b"\n" for row in rows)


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
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([row.get(name) for name in columns] for row in rows)


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
