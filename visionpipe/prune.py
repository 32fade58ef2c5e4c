"""`visionpipe prune`: removes what nothing points at any more."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionpipe.config import Params
from visionpipe.lineage import state_folder
from visionpipe.promotion import champions_before, promotions
from visionpipe.tracking.store import Store, connect


@dataclass(frozen=True)
class Waste:
    """Something that nothing points at: `kind` is `version`, `run` or `checkpoint`."""

    kind: str
    identity: str
    description: str


def prune(params: Params, delete: bool) -> None:
    """Lists, and with `delete` removes: versions without an alias that no rollback needs, runs that made
    neither a kept version nor a model of this checkout, checkpoints of no training in progress.
    """
    store = connect(params.tracking)
    waste = [*old_versions(store), *old_runs(store, params), *old_checkpoints()]
    for item in waste:
        if delete:
            remove(store, item)
        print(f"{'removed' if delete else 'would remove'} {item.kind} {item.description}")
    if not waste:
        print("nothing to prune")
    elif not delete:
        print(
            "run visionpipe prune --delete to remove these; mlflow gc then frees the space of runs and models"
        )


def old_versions(store: Store) -> list[Waste]:
    kept = kept_versions(store)
    return [
        Waste("version", version.version, f"{version.version} ({version.tags.get('model', 'unknown')})")
        for version in store.client.search_model_versions(f"name = '{store.model_name}'")
        if version.version not in kept
    ]


def kept_versions(store: Store) -> set[str]:
    """Versions with an alias, and those that a rollback would go back to."""
    from mlflow.exceptions import MlflowException

    try:
        aliases = store.client.get_registered_model(store.model_name).aliases
    except MlflowException:
        return set()
    return {str(number) for number in aliases.values()} | set(champions_before(promotions(store)))


def old_runs(store: Store, params: Params) -> Iterator[Waste]:
    kept = kept_versions(store)
    versions = store.client.search_model_versions(f"name = '{store.model_name}'")
    needed = {version.run_id for version in versions if version.version in kept}
    here = current_lineages(params)
    for run in all_runs(store):
        if run.info.run_id in needed or run.data.tags.get("lineage_id") in here:
            continue
        key = run.data.tags.get("train_key", "")
        if run.info.status == "RUNNING" and is_locked(key):
            continue
        yield Waste("run", run.info.run_id, f"{run.info.run_name} ({run.info.status.lower()})")


def current_lineages(params: Params) -> set[str]:
    files = [Path("models") / name / "lineage.json" for name in params.models]
    return {json.loads(file.read_text())["lineage_id"] for file in files if file.exists()}


def all_runs(store: Store) -> Iterator[Any]:
    token = None
    while True:
        page = store.client.search_runs([store.experiment_id], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def old_checkpoints() -> list[Waste]:
    folders = (state_folder() / "checkpoints").glob("*")
    return [
        Waste("checkpoint", folder.name, folder.name[:6]) for folder in folders if not is_locked(folder.name)
    ]


def is_locked(key: str) -> bool:
    """Whether a training of this key runs now."""
    lock = state_folder() / "locks" / key
    if not key or not lock.exists():
        return False
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def remove(store: Store, item: Waste) -> None:
    if item.kind == "version":
        store.client.delete_model_version(store.model_name, item.identity)
    elif item.kind == "run":
        store.client.delete_run(item.identity)
    else:
        shutil.rmtree(state_folder() / "checkpoints" / item.identity)
