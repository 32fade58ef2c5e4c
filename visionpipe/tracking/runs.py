"""One MLflow run per trained model, whatever was interrupted, repeated, restored or deleted.

A run is found by its tags, never by a stored id: `train_key` (known when training starts) and
`lineage_id` (known when it ends).
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
from visionpipe.files import copied, sha256_file, temporary_folder
from visionpipe.project.lineage import code_sha256
from visionpipe.project.params import TrackingConfig
from visionpipe.project.paths import state_folder
from visionpipe.tracking.commits import commit_that_makes
from visionpipe.tracking.processes import is_abandoned, is_alive, process_identity
from visionpipe.tracking.store import Store, connect

UNFINISHED = ("RUNNING", "FAILED", "KILLED", "SCHEDULED")
PROCESS, SETTLED = (
    "trainer",
    "settled",
)  # tags: the process that trains; that no other run was created at once
ATTEMPTS, PAUSE = 20, 0.25  # seconds, while runs that were created at once agree on one of them
ROWS_PER_REQUEST = 100  # MLflow would cut a request of more than 1,000 numbers in two
OTHER_WEIGHTS = ("init_sha256", "teacher_sha256")  # where a training had them
Row = dict[str, float]


def find_run(store: Store, **tags: str) -> Any | None:
    """The newest run that has these tags, or None."""
    query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
    runs = store.client.search_runs([store.experiment_id], query, max_results=1, order_by=["start_time DESC"])
    return runs[0] if runs else None


def runs_of(store: Store, key: str) -> list[Any]:
    """All runs of one training key."""
    return list(store.client.search_runs([store.experiment_id], f"tags.train_key = '{key}'"))


class LiveRun:
    """The run of a training in progress. No failure of the store ever reaches the training: it is
    reported once, and `register` completes the run from the files.
    """

    def __init__(self, tracking: TrackingConfig, name: str, key: str, identity: dict[str, Any]):
        self.store: Store | None = None
        self.run_id: str | None = None
        self.tracking = tracking
        with_reason = None
        try:
            self.store = connect(tracking)
            run = find_settled(self.store, key)
            if run is None:
                run = create_run_once(self.store, name, key, identity, trained_here=True)
            if run.info.status == "FINISHED":
                return  # trained before: nothing to show live, `record` sees whether the result is new
            owner, me = run.data.tags.get(PROCESS, ""), process_identity()
            if run.info.status == "RUNNING" and owner != me and is_alive(owner):
                return  # another checkout trains the same now: its epochs are shown
            if run.info.status != "RUNNING":
                self.store.client.update_run(run.info.run_id, status="RUNNING")
            if owner != me:
                self.store.client.set_tag(run.info.run_id, PROCESS, me)
            self.run_id = run.info.run_id
        except Exception as error:
            with_reason = error
        if with_reason is not None:
            self.give_up(with_reason)

    def __enter__(self) -> "LiveRun":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """A training that failed says so; one that was interrupted goes on, and must end now."""
        if isinstance(error, Exception) and not isinstance(error, Interrupted) and self.run_id and self.store:
            with suppress(Exception):  # the error that ends the training is the one to be seen
                self.store.client.set_terminated(self.run_id, "FAILED")

    def log_epoch(self, row: Row) -> None:
        if self.run_id and self.store:
            try:
                log_history(self.store, self.run_id, [row])
            except Exception as error:
                self.give_up(error)

    def finish(self, folder: Path) -> None:
        """Completes the run from the files that the training wrote to `folder`."""
        if self.store:
            try:  # opened anew: the project may have been moved meanwhile
                record(connect(self.tracking), folder)
            except Exception as error:
                self.give_up(error)

    def give_up(self, error: Exception) -> None:
        self.store = self.run_id = None
        print(
            f"  not tracked: {' '.join(str(error).split())[:300]}\n"
            f"  training goes on; visionpipe register completes the run later",
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
    """A new run, or the one that another process has created for the same training at the same moment.

    MLflow has nothing that only one can create for a run. So each creates its own, looks for others, and gives its own
    up where another has settled already or has the smaller id; it settles when it sees no other. One that is alone
    when it looks is seen by all that come later. `known`: ids of earlier runs of the same key that are no rivals.
    """
    own = create_run(store, name, key, identity, trained_here)
    gave_up = False
    for attempt in range(ATTEMPTS):
        runs = {run.info.run_id: run for run in runs_of(store, key) if run.info.run_id not in known}
        rivals = [run for run_id, run in sorted(runs.items()) if run_id != own.info.run_id]
        settled = [run for run in rivals if SETTLED in run.data.tags]
        if not gave_up and (not rivals or (attempt == ATTEMPTS - 1 and not settled)):
            store.client.set_tag(own.info.run_id, SETTLED, "true")
            return own
        if not gave_up and (settled or rivals[0].info.run_id < own.info.run_id):
            store.client.delete_run(own.info.run_id)
            gave_up = True
        if settled:
            return settled[0]
        time.sleep(PAUSE)
    return rivals[0] if rivals else create_run(store, name, key, identity, trained_here)


def find_settled(store: Store, key: str) -> Any | None:
    """The newest run of a training key, once those that create it agree on it; None where there is none."""
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
    """`trained_here`: otherwise nobody here knows on what, and from which commit."""
    here = {"hardware": hardware()} | commit_tag(name, identity)
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
        | (here if trained_here else {"hardware": "unknown: restored from the model's files"}),
    )


def commit_tag(name: str, identity: dict[str, Any]) -> dict[str, str]:
    """MLflow's tag for the commit, where the checkout of one makes this model."""
    made = commit_that_makes(name, identity)
    return {"mlflow.source.git.commit": made.commit} if made.commit and not made.note else {}


def record(store: Store, folder: Path) -> str:
    """Makes sure that exactly one finished run stands for the model in `folder`; returns its id.

    folder: `models/NAME/` with model.keras, history.csv and lineage.json.
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
    """Adds what `evaluate` found to the run, once: test and validation metrics, pictures, speed."""
    evaluated = sha256_file(report / "metrics.json")
    if store.client.get_run(run_id).data.tags.get("evaluated") == evaluated:
        return
    metrics = json.loads((report / "metrics.json").read_text(encoding="utf-8"))
    log_metrics(
        store, run_id, flatten(metrics) | {f"serving.{name}": value for name, value in measured.items()}
    )
    with temporary_folder() as temporary:  # DVC may have linked the files, and made them read-only
        store.client.log_artifacts(run_id, str(copied(report, temporary / report.name)), "evaluation")
    store.client.set_tag(run_id, "evaluated", evaluated)


def record_precision(store: Store, run_id: str, precision: dict[str, Any]) -> None:
    """Which precision ships, as a tag, and the numbers that decided it, as metrics `export.*`."""
    if store.client.get_run(run_id).data.tags.get("precision") != precision["precision"]:
        store.client.set_tag(run_id, "precision", precision["precision"])
    log_metrics(store, run_id, {f"export.{name}": value for name, value in precision.items()})


def log_history(store: Store, run_id: str, rows: Iterable[Row], at: int | None = None) -> None:
    """Logs per-epoch rows at step = epoch, leaving out steps that the run already has.

    A request arrives whole or not at all, so a step that has its loss has all of its row. `at`: milliseconds, by
    default now. Two processes that log the same point with the same time log one point.
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
    """Logs single numbers, where the run has not got them already; what is not a number is left out."""
    from mlflow.entities import Metric

    run = store.client.get_run(run_id)
    known, now = run.data.metrics, int(time.time() * 1000)
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
    news = [
        # A first value has the run's time: two processes that log it at once log one point.
        Metric(name, value, now if name in known else run.info.start_time, 0)
        for name, value in numbers.items()
        if known.get(name) != value
    ]
    if news:
        store.client.log_batch(run_id, metrics=news)


def log_params(store: Store, run_id: str, values: dict[str, Any]) -> None:
    from mlflow.entities import Param

    store.client.log_batch(run_id, params=[Param(name, str(value)[:6000]) for name, value in values.items()])


def measurement(lineage: dict[str, Any]) -> Path:
    return state_folder() / "measurements" / f"train-{lineage['model_sha256']}.json"


def training_measurement(lineage: dict[str, Any]) -> dict[str, Any]:
    """Minutes, images per second and memory of the training, where this machine did it."""
    file = measurement(lineage)
    measured = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {f"training.{name}": value for name, value in measured.items()}


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
