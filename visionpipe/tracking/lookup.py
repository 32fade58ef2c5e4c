"""Which version an alias is on, fast: the server asks every second and must be ready in two.

Importing MLflow takes longer than that. A SQLite store whose artifacts are files, which is the default, is
read directly, and never written. Any other store is asked by a child process that imports MLflow and
stays: `python -m visionpipe.tracking.lookup NAME`.
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
from visionpipe.files import claim_folder
from visionpipe.tracking.places import local_path, present_location
from visionpipe.tracking.store import DeletedVersion, database_of, tracking_uri

ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(@(?P<alias>[^/@:]+)|/(?P<number>\d+))")
QUALITY = ("validation.", "test.")  # the metrics that `evaluate` made
PARTIAL = "partial."  # of what is being downloaded
DAMAGED = "damaged"  # a file beside a download that is not what was registered
LOOK_AGAIN = 60  # seconds before such a one is downloaded again
KEPT = 4  # downloads: the version that answers, those before it, and one that was refused
PATIENCE = 90  # seconds for an answer: MLflow is imported first, and asks an unreachable server three times
DOWNLOAD_PATIENCE = 3600
LONGEST_PAUSE = 60  # seconds between two processes that die
DOWNLOADING = "downloading"  # what the child says instead of an answer that takes longer


class Lookup:
    """Answers `current()` for an address: `models:/NAME@ALIAS` or `models:/NAME/NUMBER`."""

    def __init__(self, address: str):
        match = ADDRESS.fullmatch(address)
        if match is None:
            raise RegistryError(f"{address}: expected models:/NAME@ALIAS, models:/NAME/NUMBER or a folder")
        self.name, self.alias, self.number = match["name"], match["alias"], match["number"]
        self.uri = tracking_uri()
        self._child: MLflowChild | None = None

    def current(self) -> Version:
        """The version now; raises RegistryError where there is none, or the store does not answer."""
        database = database_of(self.uri)
        if self._child is None and database:
            found = self._read_sqlite(database)
            if found is not None:
                return found
        if self._child is None:
            self._child = MLflowChild(self.name)
        return self._child.ask(self.alias, self.number)

    def close(self) -> None:
        if self._child is not None:
            self._child.close()

    def _read_sqlite(self, path: Path) -> Version | None:
        """None where the artifacts are not files of this machine."""
        if not path.exists():
            raise RegistryError(f"there is no tracking store {path}: run make repro first")
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


def open_target(target: str) -> tuple[Version, Lookup | None]:
    """The version that a folder holds, or that an address means now, with what can be asked again."""
    if not target.startswith("models:"):
        return version_in(Path(target)), None
    lookup = Lookup(target)
    try:
        return lookup.current(), lookup
    except BaseException:
        lookup.close()
        raise


@contextlib.contextmanager
def find_version(target: str) -> Iterator[Version]:
    """The same for once: what had to be downloaded is there until the block ends."""
    version, lookup = open_target(target)
    try:
        yield version
    finally:
        if lookup:
            lookup.close()


def missing(name: str, alias: str | None, number: str | None) -> RegistryError:
    """number: of the version that was looked for, or that the alias points to."""
    if alias and number:
        return DeletedVersion(name, alias, number)
    wanted, store = f"alias {alias}" if alias else f"version {number}", without_password(tracking_uri())
    return RegistryError(f"{name} has no {wanted} in {store}: run visionpipe register, or dvc repro first")


def without_password(text: str) -> str:
    """User and password of an address are left out."""
    return re.sub(r"://[^/\s]*@", "://", text)


def artifact_in(model: Path) -> Path:
    """The artifact folder within an MLflow model's folder."""
    found = sorted((model / "artifacts").glob("*/model.onnx"))
    if not found:
        raise RegistryError(
            f"{model} holds no exported classifier: run visionpipe register where its model lies, or give the alias to "
            f"another version in the MLflow UI"
        )
    return found[0].parent


class MLflowChild:
    """A process that imports MLflow, asks the store, and downloads each version once.

    A process that has died, or does not answer, is replaced at the next question: at once, then after one, two, four
    seconds, and so on up to LONGEST_PAUSE. What was downloaded stays.
    """

    def __init__(self, name: str):
        self.name = name
        self._folder, self._claim = claim_folder()
        self._process: subprocess.Popen[bytes] | None = None
        self._failures, self._not_before = 0, 0.0
        self._lock, self._closed = (
            threading.Lock(),
            False,
        )  # for `close`, which may come while a question waits

    def ask(self, alias: str | None, number: str | None) -> Version:
        process = self._start()
        try:
            answer = converse(process, [alias, number])
        except (OSError, EOFError) as error:
            process.kill()
            self._failures += 1
            pause = min(LONGEST_PAUSE, 2 ** (self._failures - 2)) if self._failures > 1 else 0
            self._not_before = time.monotonic() + pause
            ended = isinstance(error, EOFError | BrokenPipeError)  # found out by reading or by writing
            why = f"has ended (exit code {process.wait()})" if ended else str(error)
            raise RegistryError(f"the process that asks MLflow {why}; another one is tried") from None
        self._failures = 0
        if "error" in answer:
            raise RegistryError(answer["error"])
        return Version(**answer | {"folder": Path(answer["folder"])})

    def _start(self) -> "subprocess.Popen[bytes]":
        """The process that runs, or a new one; raises RegistryError before its time has come."""
        with self._lock:
            if self._closed:
                raise RegistryError("the process that asks MLflow was ended")
            if self._process is not None and self._process.poll() is None:
                return self._process
            if time.monotonic() < self._not_before:
                raise RegistryError(
                    f"the process that asks MLflow has ended {self._failures} times; it is tried again soon"
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
        """Ends the process and removes what it downloaded."""
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
    """One question and its answer; raises EOFError or OSError where the process does not give one in time."""
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(question).encode() + b"\n")
    line, deadline = bytearray(), time.monotonic() + PATIENCE
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
                deadline = time.monotonic() + DOWNLOAD_PATIENCE


# In the child's process ------------------------------------------------------------------------------------


def answer_questions(name: str, folder: Path) -> None:
    """One line of JSON in, one out, until the parent closes the pipe. Where the parent was killed, nobody else removes
    the folder.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print would be taken for an answer

    def say(answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    uri, client = tracking_uri(), None
    for line in sys.stdin:
        try:
            alias, number = json.loads(line)
            client = client or make_client(uri)
            say(find(client, name, alias, number, folder, lambda: say(DOWNLOADING)))
        except RegistryError as error:
            say({"error": str(error)})
        except Exception as error:  # of the network, the server, the artifact store's own client
            reason = without_password(" ".join(str(error).split()))
            say({"error": f"the tracking store {without_password(uri)} does not answer: {reason}"})
    shutil.rmtree(folder, ignore_errors=True)


def make_client(uri: str) -> Any:
    """A `mlflow.MlflowClient`; raises at once where a database does not answer, which MLflow would try for minutes."""
    from visionpipe.tracking.store import SETTINGS

    for variable, value in (SETTINGS | {"PGCONNECT_TIMEOUT": "10"}).items():
        os.environ.setdefault(variable, value)
    if re.match(r"(postgresql|mysql|mssql)\b", uri):
        import sqlalchemy

        sqlalchemy.create_engine(uri).connect().close()
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.MlflowClient(uri, uri)


def find(
    client: Any, name: str, alias: str | None, number: str | None, folder: Path, downloads: Callable[[], None]
) -> dict[str, Any]:
    """What `Version` is made of. Calls `downloads` before it downloads what `folder` does not hold yet."""
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
    target = folder / f"{version.version}-{digest[:16]}"  # a store made anew has another version 1
    if is_old(target / DAMAGED):
        shutil.rmtree(target)  # perhaps it was repaired
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
    """The number that an alias points to, whether there is such a version or not."""
    import mlflow

    try:
        number = client.get_registered_model(name).aliases.get(alias)
    except mlflow.exceptions.MlflowException:  # no such model: the first error is the one to be told
        return None
    return str(number) if number else None


def download(uri: str, target: Path, digest: str) -> None:
    """Downloads a version; removes the oldest ones, and what a killed process has begun to download."""
    import mlflow

    for begun in target.parent.glob(f"{PARTIAL}*"):
        shutil.rmtree(begun, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=PARTIAL) as partial:
        Path(mlflow.artifacts.download_artifacts(uri, dst_path=partial)).rename(target)
    try:
        whole = artifact_sha256(artifact_in(target)) == digest
    except VisionpipeError:
        whole = False
    if not whole:
        (target / DAMAGED).touch()
    for old in sorted(target.parent.glob("*-*"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def is_old(mark: Path) -> bool:
    return mark.exists() and time.time() - mark.stat().st_mtime > LOOK_AGAIN


if __name__ == "__main__":
    answer_questions(sys.argv[1], Path(sys.argv[2]))
