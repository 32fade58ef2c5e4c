"""Which tracking store, how it is opened without two processes breaking it, and what its failures say."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from visionpipe.errors import RegistryError, VisionpipeError
from visionpipe.files import exclusive, sha256_json
from visionpipe.project.params import TrackingConfig
from visionpipe.project.paths import dvc_root, state_folder
from visionpipe.tracking.places import artifact_root, relocate

# MLflow's own defaults retry an unreachable server for minutes, and draw a bar for every small file.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PGCONNECT_TIMEOUT": "5",
}
SECONDS_TO_CONNECT = 5
NOT_IN_AN_ADDRESS = re.compile(r"\?|%[0-9A-Fa-f]{2}")  # begins the options, or is read as another character
CHECKOUT_TAG = "visionpipe.checkout."  # of an experiment: a checkout that uses it


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file at the repository's root, absolute so that it is the same
    one from the copies that `dvc exp run --queue` works in. Raises RegistryError where the root's path cannot stand in
    such an address: MLflow would open another file.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    root = dvc_root().absolute()
    if found := NOT_IN_AN_ADDRESS.search(str(root)):
        raise RegistryError(
            f"the tracking store cannot lie in {root}, as {found[0]} has another meaning in the store's address: "
            f"rename the folder, or set MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{root / 'mlflow.db'}"


def database_of(uri: str) -> Path | None:
    """The file of a SQLite store, as SQLAlchemy reads its address; None for any other."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


class StoreError(RegistryError):
    """MLflow, its database, its server or its artifact store has failed. `code`: MLflow's, such as
    RESOURCE_DOES_NOT_EXIST; empty where the failure is not MLflow's own.
    """

    def __init__(self, uri: str, doing: str, error: Exception):
        said = str(getattr(error, "message", "") or error) or type(error).__name__
        super().__init__(f"the tracking store {uri} {doing}: {' '.join(said.split())[:500]}")
        self.code = str(getattr(error, "error_code", ""))


class DeletedVersion(RegistryError):
    """An alias points to a version that is not there."""

    def __init__(self, name: str, alias: str, number: str):
        super().__init__(
            f"the alias {alias} of {name} points to version {number}, which was deleted: give the alias to another "
            f"version in the MLflow UI, or run visionpipe register"
        )


@contextmanager
def failures_named(uri: str, doing: str) -> Iterator[None]:
    """Raises StoreError in place of whatever the block raises that is not ours already."""
    try:
        yield
    except VisionpipeError:
        raise
    except Exception as error:  # MLflow, databases, networks, artifact stores: no common base
        raise StoreError(uri, doing, error) from error


class Client:
    """A `mlflow.MlflowClient` whose failures are StoreErrors."""

    def __init__(self, client: Any, uri: str):
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            with failures_named(self._uri, f"has failed in {name}"):
                return attribute(*arguments, **options)

        return call


@dataclass(frozen=True)
class Store:
    """An open tracking store; `client` has the methods of `mlflow.MlflowClient`."""

    client: Client
    experiment_id: str
    model_name: str
    uri: str

    def download(self, address: str, folder: Path) -> Path:
        """What MLflow has at `address`, copied into `folder`."""
        import mlflow

        with failures_named(self.uri, f"has no files for {address}"):
            return Path(mlflow.artifacts.download_artifacts(address, dst_path=str(folder)))


def connect(tracking: TrackingConfig) -> Store:
    """Opens the store and makes the experiment where it is missing; raises RegistryError."""
    uri = tracking_uri()
    database = database_of(uri)
    client = open_client(uri)
    with failures_named(uri, "cannot be opened"):
        location = artifact_root(database).as_uri() if database else None
        return Store(client, open_experiment(client, tracking.experiment, location), tracking.model, uri)


def open_client(uri: str) -> Client:
    """A client of the store at `uri`. A SQLite file is made where it is missing, and has its artifacts beside it."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow
    import mlflow.store.db.utils

    for name in ("alembic", "mlflow"):  # they tell every step of making the tables
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints the traceback of an error, such as a full disk, that it raises too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    mlflow.store.db.utils.MAX_RETRY_COUNT = 2  # ten attempts at a database that is not there take two minutes
    database = database_of(uri)
    with failures_named(uri, "cannot be opened"):
        mlflow.set_tracking_uri(uri)  # loading a model by `models:/` address reads it from here
        mlflow.set_registry_uri(uri)
        reach(uri)
        if database:
            # Two processes that create the tables of one SQLite file at once corrupt it for good.
            with alone(uri, "store", "waiting for another process to open the tracking store"):
                make_database(database)
                relocate(database)
        return Client(mlflow.MlflowClient(uri, uri), uri)


def reach(uri: str) -> None:
    """Fails within seconds where a tracking server does not answer; any answer will do."""
    if uri.startswith(("http://", "https://")):
        import requests

        with suppress(requests.exceptions.SSLError):  # whom to trust is MLflow's own setting
            requests.get(uri, timeout=(SECONDS_TO_CONNECT, 3 * SECONDS_TO_CONNECT), stream=True).close()


def alone(uri: str, purpose: str, waiting: str) -> AbstractContextManager[None]:
    """Holds a lock against all that use the same SQLite file, from whatever checkout: it lies beside the file. What is
    done on a server must bear others at the same time; there the lock is for this checkout only.
    """
    database = database_of(uri)
    if database is None:
        return exclusive(state_folder() / "locks" / purpose, waiting)
    real = Path(os.path.realpath(database))
    return exclusive(real.with_name(f"{real.name}.{purpose}.lock"), waiting)


def open_experiment(client: Client, name: str, location: str | None) -> str:
    """The experiment's id. Others may create or restore it at the same time."""
    tag = CHECKOUT_TAG + sha256_json(str(dvc_root()))[:12]
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(
                client.create_experiment(name, artifact_location=location, tags={tag: str(dvc_root())})
            )
        except StoreError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage != "active":
        try:
            client.restore_experiment(experiment.experiment_id)
        except StoreError:
            if client.get_experiment(experiment.experiment_id).lifecycle_stage != "active":
                raise
    if location and tag not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, tag, str(dvc_root()))
    return str(experiment.experiment_id)


def checkouts(store: Store) -> list[Path]:
    """Folders of this machine that use the experiment, the present one among them."""
    tags = store.client.get_experiment(store.experiment_id).tags
    folders = {Path(value) for name, value in tags.items() if name.startswith(CHECKOUT_TAG)}
    return sorted({dvc_root(), *(folder for folder in folders if (folder / ".dvc").is_dir())})


def make_database(path: Path) -> None:
    """Makes an empty store beside `path` and renames it: one that was left half made is broken for good."""
    import mlflow

    if path.exists():
        return
    real = Path(os.path.realpath(path))
    unfinished = real.with_name(f"{real.name}.new")
    unfinished.unlink(missing_ok=True)
    mlflow.MlflowClient(f"sqlite:///{quote(str(unfinished))}").search_experiments()
    unfinished.replace(real)
