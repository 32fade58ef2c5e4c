"""Which version an alias is on, fast: the server asks every second and must be ready in two.

Importing MLflow takes longer than that. A SQLite store whose artifacts are files, which is the default, is
read directly, and never written. Any other store is asked by a child process that imports MLflow and
stays: `python -m visionpipe.tracking.lookup NAME`.
"""

import contextlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from visionpipe.errors import RegistryError
from visionpipe.serving.versions import Version, version_in
from visionpipe.tracking.store import tracking_uri

ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(@(?P<alias>[^/@:]+)|/(?P<number>\d+))")
QUALITY = ("validation.", "test.")  # the metrics that `evaluate` made


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
        if self._child is None and self.uri.startswith("sqlite:///"):
            found = self._read_sqlite(Path(self.uri.removeprefix("sqlite:///")))
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
                return self._query(store)
        except sqlite3.Error as error:
            raise RegistryError(f"the tracking store {path} cannot be read: {error}") from None

    def _query(self, store: sqlite3.Connection) -> Version | None:
        number = self.number
        if self.alias:
            row = store.execute(
                "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?",
                (self.name, self.alias),
            ).fetchone()
            number = str(row[0]) if row else None
        row = store.execute(
            "SELECT run_id, storage_location FROM model_versions WHERE name = ? AND version = ?",
            (self.name, number),
        ).fetchone()
        if row is None:
            raise missing(self.name, self.alias, self.number)
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
            artifact_in(Path(unquote(urlsplit(location).path))),
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
    wanted = f"alias {alias}" if alias else f"version {number}"
    return RegistryError(f"{name} has no {wanted} in {tracking_uri()}: run dvc repro, then visionpipe check")


def artifact_in(model: Path) -> Path:
    """The artifact folder within an MLflow model's folder."""
    found = sorted((model / "artifacts").glob("*/model.onnx"))
    if not found:
        raise RegistryError(f"{model} holds no exported classifier")
    return found[0].parent


class MLflowChild:
    """A process that imports MLflow, asks the store, and downloads each version once."""

    def __init__(self, name: str):
        self._folder = tempfile.TemporaryDirectory(prefix="visionpipe-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, name, self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, alias: str | None, number: str | None) -> Version:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(json.dumps([alias, number]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise RegistryError("the process that asks MLflow has died: start the server again")
        answer = json.loads(line)
        if "error" in answer:
            raise RegistryError(answer["error"])
        return Version(**answer | {"folder": Path(answer["folder"])})

    def close(self) -> None:
        """Ends the process and removes what it downloaded."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._folder.cleanup()


def find(client: Any, name: str, alias: str | None, number: str | None, folder: Path) -> dict[str, Any]:
    """What `Version` is made of, downloaded to `folder` where it is not there yet."""
    import mlflow

    try:
        version = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, number)
        )
    except mlflow.exceptions.MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise missing(name, alias, number) from None
        raise
    target = folder / str(version.version)
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as partial:
            uri = f"models:/{name}/{version.version}"
            Path(mlflow.artifacts.download_artifacts(uri, dst_path=partial)).rename(target)
    metrics = client.get_run(version.run_id).data.metrics if version.run_id else {}
    return {
        "name": name,
        "number": str(version.version),
        "folder": str(artifact_in(target)),
        "tags": {**version.tags, "run_id": version.run_id},
        "metrics": {key: value for key, value in metrics.items() if key.startswith(QUALITY)},
    }


def answer_questions(name: str, folder: Path) -> None:
    """One line of JSON in, one out, until the parent closes the pipe."""
    import os

    from visionpipe.tracking.store import SETTINGS

    for variable, value in SETTINGS.items():
        os.environ.setdefault(variable, value)
    import mlflow

    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)
    client = mlflow.MlflowClient(uri, uri)
    for line in sys.stdin:
        try:
            alias, number = json.loads(line)
            answer = find(client, name, alias, number, folder)
        except Exception as error:  # of the network, the server, the artifact store's own client
            answer = {"error": " ".join(str(error).split())}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    try:
        answer_questions(sys.argv[1], Path(sys.argv[2]))
    finally:  # a parent that was killed cannot remove it
        shutil.rmtree(sys.argv[2], ignore_errors=True)
