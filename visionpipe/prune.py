"""`visionpipe prune`: removes what nothing points at any more."""

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionpipe.backend import check_backend
from visionpipe.config import Params
from visionpipe.data.prepared import MANIFEST, PREPARED
from visionpipe.errors import VisionpipeError
from visionpipe.lineage import state_folder, train_key
from visionpipe.promotion import champions_before, promotions
from visionpipe.tracking.registry import aliases, all_versions
from visionpipe.tracking.store import Store, connect, tracking_uri
from visionpipe.train import training_identity


@dataclass(frozen=True)
class Waste:
    """Something that nothing points at: `kind` is `version`, `run` or `checkpoint`."""

    kind: str
    identity: str
    description: str


def prune(params: Params, delete: bool) -> None:
    """Lists, and with `delete` removes: versions without an alias that no rollback needs, runs that made
    neither a kept version nor a model of this checkout, checkpoints of no training that runs or that
    `dvc repro` would take up again. A store on a server may belong to other checkouts too: it is left alone.
    """
    store, uri = connect(params.tracking), tracking_uri()
    waste = old_checkpoints(params)
    if uri.startswith("sqlite:"):
        waste = [*old_versions(store, params), *old_runs(store, params), *waste]
    else:
        print(f"{uri} may serve other checkouts too: its runs and versions are left alone")
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


def old_versions(store: Store, params: Params) -> list[Waste]:
    kept = kept_versions(store, params)
    return [
        Waste("version", number, f"{number} ({version.tags.get('model', 'unknown')})")
        for number, version in all_versions(store).items()
        if number not in kept
    ]


def kept_versions(store: Store, params: Params) -> set[str]:
    """Numbers of the versions with an alias, of those that a rollback would go back to, and of those made
    from the models of this checkout.
    """
    here = current_lineages(params)
    made_here = {n for n, version in all_versions(store).items() if version.tags.get("lineage_id") in here}
    return {*aliases(store).values(), *champions_before(promotions(store)), *made_here}


def old_runs(store: Store, params: Params) -> Iterator[Waste]:
    kept = kept_versions(store, params)
    needed = {version.run_id for number, version in all_versions(store).items() if number in kept}
    here, keys = current_lineages(params), current_keys(params)
    for run in all_runs(store):
        if run.info.run_id in needed or run.data.tags.get("lineage_id") in here:
            continue
        key = run.data.tags.get("train_key", "")
        if run.info.status == "RUNNING" and (key in keys or is_locked(key)):
            continue
        yield Waste("run", run.info.run_id, f"{run.info.run_name} ({run.info.status.lower()})")


def current_lineages(params: Params) -> set[str]:
    files = [Path("models") / name / "lineage.json" for name in params.models]
    return {json.loads(file.read_text())["lineage_id"] for file in files if file.exists()}


def current_keys(params: Params) -> set[str]:
    """train_keys of the models as params.yaml has them: an interrupted training would be taken up again."""
    manifest = PREPARED / MANIFEST
    if not manifest.exists():
        return set()
    check_backend(params)
    data_sha256 = json.loads(manifest.read_text())["content_sha256"]
    keys = set()
    for name in params.models:
        # Without the weights that it starts from or its teacher's, it has no training to take up again.
        with contextlib.suppress(VisionpipeError, FileNotFoundError):
            keys.add(train_key(training_identity(name, params, data_sha256)))
    return keys


def all_runs(store: Store) -> Iterator[Any]:
    token = None
    while True:
        page = store.client.search_runs([store.experiment_id], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def old_checkpoints(params: Params) -> list[Waste]:
    keys, folders = current_keys(params), (state_folder() / "checkpoints").glob("*")
    return [
        Waste("checkpoint", folder.name, folder.name[:6])
        for folder in folders
        if folder.name not in keys and not is_locked(folder.name)
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
