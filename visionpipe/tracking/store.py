"""Opens the tracking store, also from several processes at once, and turns its failures into clear errors."""

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
from visionpipe.project.paths import dvc_root, state_folder
from visionpipe.project.sections import TrackingConfig
from visionpipe.tracking.places import artifact_root, relocate

# By default MLflow retries an unreachable server for minutes, and draws a progress bar for every small file.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "PGCONNECT_TIMEOUT": "5",
}
SECONDS_TO_CONNECT = 5
NOT_IN_AN_ADDRESS = re.compile(r"\?|%[0-9A-Fa-f]{2}")  # the start of options; an escaped character
CHECKOUT_TAG = "visionpipe.checkout."  # prefix of the tags of an experiment that name the checkouts using it
ADDRESS = re.compile(r"models:/(?P<name>[^/@:]+)(@(?P<alias>[^/@:]+)|/(?P<number>\d+))")


def read_address(address: str) -> tuple[str, str | None, str | None]:
    """Splits the address of a registered version into name and alias, or name and number. Raises RegistryError."""
    match = ADDRESS.fullmatch(address)
    if match is None:
        raise RegistryError(f"{address}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    return match["name"], match["alias"], match["number"]


def tracking_uri() -> str:
    """Returns `MLFLOW_TRACKING_URI`, or else the address of mlflow.db at the repository's root.

    The path is absolute, so that the copies that `dvc exp run --queue` works in use the same file. Raises RegistryError
    if the path contains characters that would make MLflow open another file.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    root = dvc_root().absolute()
    if match := NOT_IN_AN_ADDRESS.search(str(root)):
        raise RegistryError(
            f"the tracking store cannot be in {root}, because {match[0]} has another meaning in the store's address: "
            f"rename the folder, or set MLFLOW_TRACKING_URI"
        )
    return f"sqlite:///{root / 'mlflow.db'}"


def database_of(uri: str) -> Path | None:
    """Returns the file of a SQLite store, read from its address as SQLAlchemy does; None for other stores."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


class StoreError(RegistryError):
    """MLflow, its database, its server or its artifact store failed.

    `code`: MLflow's error code, such as RESOURCE_DOES_NOT_EXIST; empty if the error is not MLflow's.
    """

    def __init__(self, uri: str, doing: str, error: Exception):
        reason = str(getattr(error, "message", "") or error) or type(error).__name__
        super().__init__(f"the tracking store {uri} {doing}: {' '.join(reason.split())[:500]}")
        self.code = str(getattr(error, "error_code", ""))


class DeletedVersion(RegistryError):
    """An alias points to a deleted version."""

    def __init__(self, name: str, alias: str, number: str):
        super().__init__(
            f"the alias {alias} of {name} points to version {number}, which was deleted: set the alias on another "
            f"version in the MLflow UI, or run visionpipe register"
        )


@contextmanager
def failures_named(uri: str, doing: str) -> Iterator[None]:
    """Converts any exception of the block to a StoreError, except those that are VisionpipeErrors already."""
    try:
        yield
    except VisionpipeError:
        raise
    except (
        Exception
    ) as error:  # the exceptions of MLflow, databases, networks and artifact stores share no base class
        raise StoreError(uri, doing, error) from error


class Client:
    """Wraps a `mlflow.MlflowClient`, and raises StoreError for any failure."""

    def __init__(self, client: Any, uri: str):
        self._client, self._uri = client, uri

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        if not callable(attribute):
            return attribute

        def call(*arguments: Any, **options: Any) -> Any:
            with failures_named(self._uri, f"failed in {name}"):
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
        """Downloads the files at an MLflow address into `folder`; returns their path."""
        import mlflow

        with failures_named(self.uri, f"has no files for {address}"):
            return Path(mlflow.artifacts.download_artifacts(address, dst_path=str(folder)))


def connect(tracking: TrackingConfig) -> Store:
    """Opens the store, and creates the experiment if it does not exist; raises RegistryError."""
    uri = tracking_uri()
    database = database_of(uri)
    client = open_client(uri)
    with failures_named(uri, "cannot be opened"):
        location = artifact_root(database).as_uri() if database else None
        return Store(client, open_experiment(client, tracking.experiment, location), tracking.model, uri)


def open_client(uri: str) -> Client:
    """Opens the store at `uri`. Creates a SQLite file that does not exist, and updates its artifact locations."""
    configure_mlflow()
    import mlflow
    import mlflow.store.db.utils

    for name in ("alembic", "mlflow"):  # they log every step of creating the tables
        logging.getLogger(name).setLevel(logging.WARNING)
    # This module prints the traceback of an error, such as a full disk, and raises the error as well.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    mlflow.store.db.utils.MAX_RETRY_COUNT = 2  # the default of ten takes two minutes
    database = database_of(uri)
    with failures_named(uri, "cannot be opened"):
        mlflow.set_tracking_uri(uri)  # MLflow loads models by `models:/` address from this store
        mlflow.set_registry_uri(uri)
        reach(uri)
        if database:
            # If two processes create the tables of one SQLite file at once, the file is corrupted for good.
            with alone(uri, "store", "waiting for another process to open the tracking store"):
                make_database(database)
                relocate(database)
        return Client(mlflow.MlflowClient(uri, uri), uri)


def configure_mlflow(**changes: str) -> None:
    """Sets the environment variables of SETTINGS, with `changes`, unless the user has set them."""
    for name, value in (SETTINGS | changes).items():
        os.environ.setdefault(name, value)


def reach(uri: str) -> None:
    """Raises an error within seconds if a tracking server does not answer. Any answer is accepted, also an error."""
    if uri.startswith(("http://", "https://")):
        import requests

        with suppress(requests.exceptions.SSLError):  # MLflow has its own settings for certificates
            requests.get(uri, timeout=(SECONDS_TO_CONNECT, 3 * SECONDS_TO_CONNECT), stream=True).close()


def alone(uri: str, purpose: str, waiting: str) -> AbstractContextManager[None]:
    """Locks the store for `purpose` during the block. Prints `waiting` if another process holds the lock.

    The lock file of a SQLite store is beside the database, so it works for all checkouts. For other stores only this
    checkout is locked, so whatever is done there must tolerate other processes.
    """
    database = database_of(uri)
    if database is None:
        return exclusive(state_folder() / "locks" / purpose, waiting)
    real = Path(os.path.realpath(database))
    return exclusive(real.with_name(f"{real.name}.{purpose}.lock"), waiting)


def open_experiment(client: Client, name: str, location: str | None) -> str:
    """Creates or restores the experiment if needed; returns its id. Others may do the same at the same time."""
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
    """Returns the folders on this machine that use the experiment, the current one included."""
    tags = store.client.get_experiment(store.experiment_id).tags
    folders = {Path(value) for name, value in tags.items() if name.startswith(CHECKOUT_TAG)}
    return sorted({dvc_root(), *(folder for folder in folders if (folder / ".dvc").is_dir())})


def make_database(path: Path) -> None:
    """Creates an empty store beside `path` and renames it to `path`: MLflow cannot repair a half-created store."""
    import mlflow

    if path.exists():
        return
    real = Path(os.path.realpath(path))
    unfinished = real.with_name(f"{real.name}.new")
    unfinished.unlink(missing_ok=True)
    mlflow.MlflowClient(f"sqlite:///{quote(str(unfinished))}").search_experiments()
    unfinished.replace(real)
