"""Looks up the version that an alias points to, fast: the server asks every second, and starts within two seconds.

Importing MLflow alone takes longer than two seconds. A SQLite store whose artifacts are files, which is the default, is
therefore read directly, and never written. For any other store a child process, `python -m visionpipe.tracking.lookup
NAME FOLDER`, imports MLflow and answers all questions.
"""

import contextlib
import json
import os
import re
import selectors
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.versions import Version, version_in
from visionpipe.errors import RegistryError, VisionpipeError
from visionpipe.escape import without_password
from visionpipe.files import claim_folder
from visionpipe.tracking.places import local_path, present_location
from visionpipe.tracking.store import (
    DeletedVersion,
    configure_mlflow,
    database_of,
    read_address,
    tracking_uri,
)

QUALITY = ("validation.", "test.")  # prefixes of the metrics that `evaluate` logs
PARTIAL = "partial."  # prefix of a folder that is being downloaded
DAMAGED = "damaged"  # name of a file that marks a download whose digest is not the registered one
RETRY_SECONDS = 60  # before a damaged download is repeated
MOST_DOWNLOADS = 4  # that are not deleted: the live version, earlier ones, and one that was refused
ANSWER_SECONDS = 90  # the first answer includes importing MLflow and three attempts at an unreachable server
DOWNLOAD_SECONDS = 3600
LONGEST_PAUSE = 60  # seconds before a child process that has died is replaced
DOWNLOADING = "downloading"  # the child's message that its answer takes longer because of a download


class Lookup:
    """Looks up the version of an address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`."""

    def __init__(self, address: str):
        self.name, self.alias, self.number = read_address(address)
        self.uri = tracking_uri()
        self._child: MLflowChild | None = None

    def current(self) -> Version:
        """Returns the present version. Raises RegistryError if there is none, or the store does not answer."""
        database = database_of(self.uri)
        if self._child is None and database:
            version = self._read_sqlite(database)
            if version is not None:
                return version
        if self._child is None:
            self._child = MLflowChild(self.name)
        return self._child.ask(self.alias, self.number)

    def close(self) -> None:
        """Ends the child process, and removes its downloads."""
        if self._child is not None:
            self._child.close()

    def _read_sqlite(self, path: Path) -> Version | None:
        """Reads the version from a SQLite store; returns None if its artifacts are not files on this machine."""
        if not path.exists():
            raise RegistryError(f"there is no tracking store {path}: run dvc repro first")
        try:
            with contextlib.closing(
                sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
            ) as store:
                return self._query(store, path)
        except sqlite3.Error as error:
            raise RegistryError(f"the tracking store {path} cannot be read: {error}") from None

    def _query(self, store: sqlite3.Connection, path: Path) -> Version | None:
        number = self.number
        if self.alias:
            row = store.execute(
                "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?",
                (self.name, self.alias),
            ).fetchone()
            number = str(row[0]) if row else None
        row = store.execute(
            "SELECT run_id, storage_location FROM model_versions "
            "WHERE name = ? AND version = ? AND current_stage != 'Deleted_Internal'",
            (self.name, number),
        ).fetchone()
        if row is None:
            raise missing(self.name, self.alias, number)
        run_id, location = row
        if not location or urlsplit(location).scheme not in ("", "file"):
            return None
        tags = store.execute(
            "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?", (self.name, number)
        )
        metrics = store.execute(
            "SELECT key, value FROM latest_metrics WHERE run_uuid = ? AND NOT is_nan", (run_id,)
        )
        return Version(
            self.name,
            str(number),
            artifact_in(local_path(present_location(location, path))),
            {**dict(tags.fetchall()), "run_id": run_id},
            {name: value for name, value in metrics.fetchall() if name.startswith(QUALITY)},
        )


def look_up(target: str) -> tuple[Version, Lookup | None]:
    """Returns the version that `target` names and, for an address, the Lookup that can be asked again.

    target: an artifact's folder, or an address such as models:/NAME@ALIAS.
    """
    if not target.startswith("models:"):
        return version_in(Path(target)), None
    lookup = Lookup(target)
    try:
        return lookup.current(), lookup
    except BaseException:
        lookup.close()
        raise


@contextlib.contextmanager
def looked_up(target: str) -> Iterator[Version]:
    """Looks up a version, like `look_up`, as a context manager. Downloads are removed at the end of the block."""
    version, lookup = look_up(target)
    try:
        yield version
    finally:
        if lookup:
            lookup.close()


def missing(name: str, alias: str | None, number: str | None) -> RegistryError:
    """Makes the error for a missing version. `number`: the requested number, or the one that the alias points to."""
    if alias and number:
        return DeletedVersion(name, alias, number)
    wanted, store = f"alias {alias}" if alias else f"version {number}", without_password(tracking_uri())
    return RegistryError(f"{name} has no {wanted} in {store}: run visionpipe register, or dvc repro first")


def artifact_in(model: Path) -> Path:
    """Returns the artifact folder within the folder of an MLflow model; raises RegistryError if there is none."""
    exported = sorted((model / "artifacts").glob("*/model.onnx"))
    if not exported:
        raise RegistryError(
            f"{model} holds no exported model: run visionpipe register in the project that holds its model, or set the "
            f"alias on another version in the MLflow UI"
        )
    return exported[0].parent


class MLflowChild:
    """A child process that imports MLflow, asks the store, and downloads each version once.

    A process that died or does not answer is replaced at the next question: the first time at once, then after one,
    two, four seconds, and so on up to LONGEST_PAUSE. The downloads remain.
    """

    def __init__(self, name: str):
        self.name = name
        self._folder, self._claim = claim_folder()
        self._process: subprocess.Popen[bytes] | None = None
        self._failures, self._not_before = 0, 0.0
        self._lock = threading.Lock()  # `close` may be called while another thread waits in `ask`
        self._closed = False

    def ask(self, alias: str | None, number: str | None) -> Version:
        """Asks for the version of an alias, or for a number; raises RegistryError."""
        process = self._start()
        try:
            answer = converse(process, [alias, number])
        except (OSError, EOFError) as error:
            process.kill()
            self._failures += 1
            pause = min(LONGEST_PAUSE, 2 ** (self._failures - 2)) if self._failures > 1 else 0
            self._not_before = time.monotonic() + pause
            ended = isinstance(error, EOFError | BrokenPipeError)  # raised by reading or by writing
            why = f"ended (exit code {process.wait()})" if ended else str(error)
            raise RegistryError(f"the process that asks MLflow {why}; a new one will be started") from None
        self._failures = 0
        if "error" in answer:
            raise RegistryError(answer["error"])
        return Version(**answer | {"folder": Path(answer["folder"])})

    def _start(self) -> "subprocess.Popen[bytes]":
        """Returns the running process, or starts a new one; raises RegistryError during the pause before a restart."""
        with self._lock:
            if self._closed:
                raise RegistryError("the process that asks MLflow was stopped")
            if self._process is not None and self._process.poll() is None:
                return self._process
            if time.monotonic() < self._not_before:
                raise RegistryError(
                    f"the process that asks MLflow failed {self._failures} times; it will be restarted soon"
                )
            self._end()
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, self.name, str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
            )
            return self._process

    def close(self) -> None:
        """Ends the process, and removes its downloads."""
        with self._lock:
            self._closed = True
            self._end()
            shutil.rmtree(self._folder, ignore_errors=True)
            os.close(self._claim)

    def _end(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None


def converse(process: "subprocess.Popen[bytes]", question: list[str | None]) -> dict[str, Any]:
    """Sends one question and returns the answer; raises EOFError or OSError if the process gives none in time."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(question).encode() + b"\n")
    line, deadline = bytearray(), time.monotonic() + ANSWER_SECONDS
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError("does not answer")
            received = os.read(process.stdout.fileno(), 2**16)
            if not received:
                raise EOFError
            line += received
            while b"\n" in line:
                first, _, rest = line.partition(b"\n")
                line = bytearray(rest)
                answer = json.loads(first)
                if answer != DOWNLOADING:
                    return dict(answer)
                deadline = time.monotonic() + DOWNLOAD_SECONDS


# In the child's process ------------------------------------------------------------------------------------


def answer_questions(name: str, folder: Path) -> None:
    """Answers questions, one line of JSON each, until the parent closes the pipe; then removes `folder`.

    The child removes the folder because a parent that was killed cannot.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the parent would read the output of libraries as an answer

    def say(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    uri, client = tracking_uri(), None
    for line in sys.stdin:
        try:
            alias, number = json.loads(line)
            client = client or make_client(uri)
            say(describe_version(client, name, alias, number, folder, lambda: say(DOWNLOADING)))
        except RegistryError as error:
            say({"error": str(error)})
        except Exception as error:  # raised by the network, the server or the client of the artifact store
            reason = without_password(" ".join(str(error).split()))
            say({"error": f"the tracking store {without_password(uri)} does not answer: {reason}"})
    shutil.rmtree(folder, ignore_errors=True)


def make_client(uri: str) -> Any:
    """Makes a `mlflow.MlflowClient`. Raises an error at once if a database does not answer; MLflow would retry."""
    configure_mlflow(PGCONNECT_TIMEOUT="10")
    if re.match(r"(postgresql|mysql|mssql)\b", uri):
        import sqlalchemy

        sqlalchemy.create_engine(uri).connect().close()
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri, uri)


def describe_version(
    client: Any, name: str, alias: str | None, number: str | None, folder: Path, downloads: Callable[[], None]
) -> dict[str, Any]:
    """Returns the arguments for a `Version`. Calls `downloads` before it downloads files that `folder` lacks."""
    import mlflow

    try:
        version = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, number)
        )
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise missing(name, alias, aliased(client, name, alias) if alias else number) from None
        raise
    digest = version.tags.get("artifact_sha256", "")
    target = folder / f"{version.version}-{digest[:16]}"  # a recreated store has another version 1
    if is_old(target / DAMAGED):
        shutil.rmtree(target)  # the store's files may have been repaired since
    if not target.exists():
        downloads()
        download(f"models:/{name}/{version.version}", target, digest)
    metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
    return {
        "name": name,
        "number": str(version.version),
        "folder": str(artifact_in(target)),
        "tags": {**version.tags, "run_id": version.run_id},
        "metrics": {key: value for key, value in metrics.items() if key.startswith(QUALITY)},
    }


def aliased(client: Any, name: str, alias: str) -> str | None:
    """Returns the number that an alias points to, even if that version was deleted."""
    import mlflow

    try:
        number = client.get_registered_model(name).aliases.get(alias)
    except mlflow.exceptions.MlflowException:  # the caller reports that there is no such model
        return None
    return str(number) if number else None


def download(uri: str, target: Path, digest: str) -> None:
    """Downloads a version to `target`, and marks it if it is damaged. Removes the oldest downloads and partial ones."""
    import mlflow

    for interrupted in target.parent.glob(f"{PARTIAL}*"):
        shutil.rmtree(interrupted, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=PARTIAL) as partial:
        Path(mlflow.artifacts.download_artifacts(uri, dst_path=partial)).rename(target)
    try:
        intact = artifact_sha256(artifact_in(target)) == digest
    except VisionpipeError:
        intact = False
    if not intact:
        (target / DAMAGED).touch()
    for old in sorted(target.parent.glob("*-*"), key=lambda path: path.stat().st_mtime)[:-MOST_DOWNLOADS]:
        shutil.rmtree(old, ignore_errors=True)


def is_old(mark: Path) -> bool:
    """Whether the mark of a damaged download is older than RETRY_SECONDS."""
    return mark.exists() and time.time() - mark.stat().st_mtime > RETRY_SECONDS


if __name__ == "__main__":
    answer_questions(sys.argv[1], Path(sys.argv[2]))
