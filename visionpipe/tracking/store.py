"""Which tracking store, and how it is opened without two processes breaking it."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from visionpipe.config import TrackingConfig
from visionpipe.errors import RegistryError
from visionpipe.files import exclusive
from visionpipe.lineage import dvc_root, state_folder

# MLflow's own defaults retry an unreachable server for minutes, and draw a bar for every small file.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or a SQLite file at the repository's root, absolute so that it is the same
    one from the copies that `dvc exp run --queue` works in.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{dvc_root() / 'mlflow.db'}"


@dataclass(frozen=True)
class Store:
    """An open tracking store: `client` is a `mlflow.MlflowClient`."""

    client: "mlflow.MlflowClient"  # type: ignore[name-defined]  # noqa: F821
    experiment_id: str
    model_name: str


def connect(tracking: TrackingConfig) -> Store:
    """Opens the store and makes the experiment where it is missing; raises RegistryError."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    for name in ("alembic", "mlflow"):  # they tell every step of making the tables
        logging.getLogger(name).setLevel(logging.WARNING)
    # It prints the traceback of an error, such as a full disk, that it raises too.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)

    uri = tracking_uri()
    mlflow.set_tracking_uri(uri)  # loading a model by `models:/` address reads it from here
    try:
        # Two processes that create the tables of one SQLite file at once corrupt it for good.
        with exclusive(
            state_folder() / "locks" / "store", "waiting for another process to open the tracking store"
        ):
            if uri.startswith("sqlite:///"):
                make_database(Path(uri.removeprefix("sqlite:///")))
            client = mlflow.MlflowClient(uri, uri)
            experiment = client.get_experiment_by_name(tracking.experiment)
            if experiment is None:
                location = (dvc_root() / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
                experiment_id = client.create_experiment(tracking.experiment, artifact_location=location)
            elif experiment.lifecycle_stage != "active":
                client.restore_experiment(experiment.experiment_id)
                experiment_id = experiment.experiment_id
            else:
                experiment_id = experiment.experiment_id
    except Exception as error:
        raise RegistryError(
            f"the tracking store {uri} cannot be opened: {' '.join(str(error).split())}"
        ) from error
    return Store(client, experiment_id, tracking.model)


def make_database(path: Path) -> None:
    """Makes an empty store beside `path` and renames it: one that was left half made is broken for good."""
    import mlflow

    if path.exists():
        return
    unfinished = path.with_name(f"{path.name}.new")
    unfinished.unlink(missing_ok=True)
    mlflow.MlflowClient(f"sqlite:///{unfinished}").search_experiments()
    unfinished.replace(path)
