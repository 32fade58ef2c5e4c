"""Records one MLflow run per trained model, also after interruptions, repetitions, restores and deletions.

Runs are identified by their tags, never by a stored id: by `train_key`, which is known when training starts, and
`lineage_id`, which is known when training ends.
"""

import csv
import json
import shutil
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from visionpipe.artifact.hardware import hardware
from visionpipe.errors import Interrupted
from visionpipe.files import copy_contents, sha256_file, temporary_folder
from visionpipe.project.lineage import code_sha256
from visionpipe.project.paths import state_folder
from visionpipe.project.sections import TrackingConfig
from visionpipe.tracking.commits import commit_that_makes
from visionpipe.tracking.processes import is_abandoned, is_alive, process_identity
from visionpipe.tracking.store import Store, connect

PROCESS = "trainer"  # tag: the process that trains
SETTLED = "settled"  # tag: the run that was chosen, if several processes created runs for one training
ATTEMPTS, PAUSE = 20, 0.25  # PAUSE in seconds, while processes agree on one of the runs that they created
ROWS_PER_REQUEST = 100  # of about ten metrics each: MLflow splits requests of more than 1,000 metrics
OTHER_WEIGHTS = ("init_sha256", "teacher_sha256")  # tags of trainings that used other weights
Epoch = dict[str, float]  # the metrics of an epoch, and its number as "epoch"


def find_run(store: Store, **tags: str) -> Any | None:
    """Returns the newest run with these tags, or None."""
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    runs = store.client.search_runs([store.experiment_id], query, max_results=1, order_by=["start_time DESC"])
    return runs[0] if runs else None


def runs_of(store: Store, key: str) -> list[Any]:
    """Returns all runs with this train_key."""
    return list(store.client.search_runs([store.experiment_id], f"tags.train_key = '{key}'"))


class LiveRun:
    """The run of a training in progress.

    A failure of the store never stops the training: it is reported once, and `register` completes the run later.
    """

    def __init__(self, tracking: TrackingConfig, name: str, key: str, identity: dict[str, Any]):
        self.store: Store | None = None
        self.run_id: str | None = None
        self.tracking = tracking
        failure = None
        try:
            self.store = connect(tracking)
            run = find_settled(self.store, key)
            if run is None:
                run = create_run_once(self.store, name, key, identity, trained_here=True)
            if run.info.status == "FINISHED":
                return  # trained before: no epochs to log; `finish` checks whether the result is a new model
            owner, me = run.data.tags.get(PROCESS, ""), process_identity()
            if run.info.status == "RUNNING" and owner != me and is_alive(owner):
                return  # another checkout is running the same training, and logs its epochs
            if run.info.status != "RUNNING":
                self.store.client.update_run(run.info.run_id, status="RUNNING")
            if owner != me:
                self.store.client.set_tag(run.info.run_id, PROCESS, me)
            self.run_id = run.info.run_id
        except Exception as error:
            failure = error
        if failure is not None:
            self.give_up(failure)

    def __enter__(self) -> "LiveRun":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Marks the run as failed after an error. After an interruption the training will be resumed."""
        if isinstance(error, Exception) and not isinstance(error, Interrupted) and self.run_id and self.store:
            with suppress(Exception):  # must not hide the error that ended the training
                self.store.client.set_terminated(self.run_id, "FAILED")

    def log_epoch(self, row: Epoch) -> None:
        """Logs one epoch."""
        if self.run_id and self.store:
            try:
                log_history(self.store, self.run_id, [row])
            except Exception as error:
                self.give_up(error)

    def finish(self, folder: Path) -> None:
        """Completes the run from the training's output files in `folder`."""
        if self.store:
            try:  # opens the store again, because the project may have been moved during the training
                record(connect(self.tracking), folder)
            except Exception as error:
                self.give_up(error)

    def give_up(self, error: Exception) -> None:
        """Prints the error, and stops tracking."""
        self.store = self.run_id = None
        print(
            f"  not tracked: {' '.join(str(error).split())[:300]}\n"
            f"  training continues; visionpipe register completes the run later",
            flush=True,
        )


def create_run_once(
    store: Store,
    name: str,
    key: str,
    identity: dict[str, Any],
    trained_here: bool,
    known: Collection[str] = (),
) -> Any:
    """Creates a run, or returns the run that another process created for the same training at the same time.

    MLflow has no operation that creates a run only if none exists. So each process creates a run, and then looks for
    rivals: runs of other processes for the same training. It deletes its run if a rival is settled or has a smaller id,
    and settles its run if there is no rival. All later processes see a run that had no rival.

    known: ids of earlier runs with the same train_key, which are not rivals.
    """
    created = create_run(store, name, key, identity, trained_here)
    deleted = False
    for attempt in range(ATTEMPTS):
        runs = {run.info.run_id: run for run in runs_of(store, key) if run.info.run_id not in known}
        rivals = [run for run_id, run in sorted(runs.items()) if run_id != created.info.run_id]
        settled = [run for run in rivals if SETTLED in run.data.tags]
        if not deleted and (not rivals or (attempt == ATTEMPTS - 1 and not settled)):
            store.client.set_tag(created.info.run_id, SETTLED, "true")
            return created
        if not deleted and (settled or rivals[0].info.run_id < created.info.run_id):
            store.client.delete_run(created.info.run_id)
            deleted = True
        if settled:
            return settled[0]
        time.sleep(PAUSE)
    return rivals[0] if rivals else create_run(store, name, key, identity, trained_here)


def find_settled(store: Store, key: str) -> Any | None:
    """Returns the newest run with this train_key, once its creators agree on it; None if there is none."""
    for attempt in range(ATTEMPTS):
        run = find_run(store, train_key=key)
        if run is None or run.info.status == "FINISHED" or SETTLED in run.data.tags:
            return run
        owner = run.data.tags.get(PROCESS, "")
        if attempt == ATTEMPTS - 1 or not owner or owner == process_identity() or is_abandoned(owner):
            store.client.set_tag(run.info.run_id, SETTLED, "true")
            return run
        time.sleep(PAUSE)
    return None


def create_run(store: Store, name: str, key: str, identity: dict[str, Any], trained_here: bool) -> Any:
    """Creates a run. Records hardware and commit only if the model was trained on this machine."""
    origin = {"hardware": hardware()} | commit_tag(name, identity)
    return store.client.create_run(
        store.experiment_id,
        run_name=f"{name} · {key[:6]}",
        tags={
            "train_key": key,
            PROCESS: process_identity(),
            "model": name,
            "family": identity["params"]["model"]["family"],
            "data_sha256": identity["data_sha256"],
            "code_sha256": code_sha256(identity),
            "backend": identity["params"]["backend"],
            "versions": json.dumps(identity["versions"]),
        }
        | {other: identity[other] for other in OTHER_WEIGHTS if other in identity}
        | (origin if trained_here else {"hardware": "unknown: restored from the model's files"}),
    )


def commit_tag(name: str, identity: dict[str, Any]) -> dict[str, str]:
    """Returns MLflow's tag for the commit whose checkout makes this model; empty if there is none."""
    made = commit_that_makes(name, identity)
    return {"mlflow.source.git.commit": made.commit} if made.commit and not made.note else {}


def record(store: Store, folder: Path) -> str:
    """Ensures that the model in `folder` has exactly one finished run; returns the run's id.

    folder: `models/NAME/`, with model.keras, history.csv and lineage.json.
    """
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    run = find_run(store, lineage_id=lineage["lineage_id"])
    if run is not None and run.info.status == "FINISHED":
        return str(run.info.run_id)
    if run is None:
        run = find_settled(store, lineage["train_key"])
    another_model = run is not None and run.info.status == "FINISHED"
    if run is None or another_model:
        trained_here = measurement(lineage).exists()
        key = lineage["train_key"]
        known = {earlier.info.run_id for earlier in runs_of(store, key)}
        run = create_run_once(store, lineage["name"], key, lineage, trained_here, known)
    client, run_id = store.client, str(run.info.run_id)
    client.set_tag(run_id, "lineage_id", lineage["lineage_id"])
    client.set_tag(run_id, "model_sha256", lineage["model_sha256"])
    if another_model:
        client.set_tag(
            run_id, "note", "same train_key as an earlier run, but another model: another CPU or device"
        )
    log_params(store, run_id, flatten(lineage["params"]))
    with (folder / "history.csv").open(encoding="utf-8") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        log_history(store, run_id, rows, at=run.info.start_time)
    log_metrics(store, run_id, {"parameters": lineage["parameters_count"]} | training_measurement(lineage))
    with temporary_folder() as temporary:
        for file_name in ("model.keras", "lineage.json"):
            client.log_artifact(run_id, str(shutil.copyfile(folder / file_name, temporary / file_name)))
    client.set_terminated(run_id, "FINISHED")
    return run_id


def complete(store: Store, run_id: str, report: Path, measured: dict[str, float]) -> None:
    """Logs the results of `evaluate` to the run, once: test and validation metrics, pictures and speed."""
    evaluated = sha256_file(report / "metrics.json")
    if store.client.get_run(run_id).data.tags.get("evaluated") == evaluated:
        return
    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    log_metrics(
        store, run_id, flatten(metrics) | {f"serving.{name}": value for name, value in measured.items()}
    )
    with temporary_folder() as temporary:  # the files may be read-only links into DVC's cache
        store.client.log_artifacts(run_id, str(copy_contents(report, temporary / report.name)), "evaluation")
    store.client.set_tag(run_id, "evaluated", evaluated)


def record_precision(store: Store, run_id: str, precision: dict[str, Any]) -> None:
    """Logs the exported precision as a tag, and the numbers that decided it as metrics `export.*`."""
    if store.client.get_run(run_id).data.tags.get("precision") != precision["precision"]:
        store.client.set_tag(run_id, "precision", precision["precision"])
    log_metrics(store, run_id, {f"export.{name}": value for name, value in precision.items()})


def log_history(store: Store, run_id: str, rows: Iterable[Epoch], at: int | None = None) -> None:
    """Logs the metrics of epochs, with the epoch as the step. Skips the steps that the run already has.

    MLflow stores a request completely or not at all, so a step with a loss has all metrics of its epoch.

    at: time of the points in milliseconds, by default now. MLflow stores equal points with equal times once.
    """
    from mlflow.entities import Metric

    known = {point.step for point in store.client.get_metric_history(run_id, "loss")}
    missing = [row for row in rows if int(row["epoch"]) not in known]
    now = at or int(time.time() * 1000)
    for start in range(0, len(missing), ROWS_PER_REQUEST):
        metrics = [
            Metric(name, value, now, int(row["epoch"]))
            for row in missing[start : start + ROWS_PER_REQUEST]
            for name, value in sorted(row.items())
            if name not in ("epoch", "seconds")
        ]
        store.client.log_batch(run_id, metrics=metrics)


def log_metrics(store: Store, run_id: str, values: dict[str, Any]) -> None:
    """Logs the values that are numbers, unless the run has the same value already."""
    from mlflow.entities import Metric

    run = store.client.get_run(run_id)
    known, now = run.data.metrics, int(time.time() * 1000)
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    changed = [
        # A first value gets the run's time, so that it is stored once if two processes log it.
        Metric(name, value, now if name in known else run.info.start_time, 0)
        for name, value in numbers.items()
        if known.get(name) != value
    ]
    if changed:
        store.client.log_batch(run_id, metrics=changed)


def log_params(store: Store, run_id: str, values: dict[str, Any]) -> None:
    """Logs parameters, each cut to MLflow's limit of 6000 characters."""
    from mlflow.entities import Param

    store.client.log_batch(run_id, params=[Param(name, str(value)[:6000]) for name, value in values.items()])


def measurement(lineage: dict[str, Any]) -> Path:
    """Returns the path of a training's measurements. Only the machine that trained has the file."""
    return state_folder() / "measurements" / f"train-{lineage['model_sha256']}.json"


def training_measurement(lineage: dict[str, Any]) -> dict[str, Any]:
    """Returns minutes, images per second and memory of the training; empty if another machine trained."""
    file = measurement(lineage)
    measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {f"training.{name}": value for name, value in measured.items()}


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dictionaries: {"a": {"b": 1}} becomes {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
