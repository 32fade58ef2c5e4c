"""`visionpipe prune`: removes versions, runs, uploads and checkpoints that nothing needs any more."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import shlex
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from visionpipe.commands.promote import champions_before, promotions
from visionpipe.data.prepared import MANIFEST, PREPARED, open_prepared
from visionpipe.errors import VisionpipeError
from visionpipe.escape import without_password
from visionpipe.files import open_lock, temporary_folder
from visionpipe.project.backend import check_backend
from visionpipe.project.lock import read_lock
from visionpipe.project.params import Params
from visionpipe.project.paths import model_folder, state_folder
from visionpipe.stages.training_plan import resolve_training
from visionpipe.tracking.commits import NoGit, git
from visionpipe.tracking.processes import is_abandoned, is_alive
from visionpipe.tracking.registry import (
    CHAMPION,
    UPLOADER,
    aliases,
    all_versions,
    locked_files,
    logged_model_id,
)
from visionpipe.tracking.runs import PROCESS
from visionpipe.tracking.store import ADDRESS, Store, StoreError, alone, checkouts, connect, tracking_uri
from visionpipe.tracking.verification import made_of

REFS = ("refs/heads", "refs/remotes", "refs/exps")  # whose models are needed; those of a tag are history


@dataclass(frozen=True)
class Waste:
    """An item that nothing needs: `kind` is `version`, `run`, `upload` or `checkpoint`."""

    kind: str
    identity: str
    description: str
    upload: str = ""  # the logged model that is removed together with a version


def prune(params: Params, delete: bool) -> None:
    """Lists, and with `delete` removes, the items that nothing needs (see `read_needs`).

    - versions that are not needed;
    - runs that made neither a needed version nor a needed model, and that are not running;
    - uploads that belong neither to a version nor to a needed model;
    - checkpoints, unless their training is running or `dvc repro` would continue it.

    A tracking store on a server may also serve other checkouts, so only checkpoints are removed then.
    """
    store, uri = connect(params.tracking), tracking_uri()
    waste = old_checkpoints(params)
    with alone(uri, "register", "waiting for another process to register"):
        if uri.startswith("sqlite:"):
            needed = read_needs(store, params)
            waste = [
                *old_versions(store, needed),
                *old_runs(store, params, needed),
                *old_uploads(store, needed),
                *waste,
            ]
        else:
            print(
                f"{without_password(uri)} may serve other checkouts too: its runs and versions are not removed"
            )
        for item in waste:
            if delete:
                remove(store, item)
            print(f"{'removed' if delete else 'would remove'} {item.kind} {item.description}")
    if not waste:
        print("nothing to prune")
    elif not delete:
        print("to remove these, run visionpipe prune --delete")
    elif any(item.kind != "checkpoint" for item in waste):
        address = shlex.quote(uri)
        print(
            f"MLflow can restore what was removed from it until this command frees the space: "
            f"MLFLOW_TRACKING_URI={address} mlflow gc --backend-store-uri {address}"
        )


@dataclass(frozen=True)
class Needs:
    """The needed items: `versions` of the registered model by number, `runs` by id, and all items of `lineages`."""

    versions: set[str]
    runs: set[str]
    lineages: set[str]


def read_needs(store: Store, params: Params) -> Needs:
    """Finds what is needed.

    - versions that have an alias, and those that a rollback would go back to;
    - versions and runs of the models in each checkout that uses the store;
    - versions and runs of the models in the dvc.lock of each branch, experiment and worktree;
    - versions that a params.yaml of these starts from or learns from.
    """
    versions, on = all_versions(store), aliases(store)
    roots = checkouts(store)
    lineages = current_lineages(params).union(*map(lineages_in, roots))
    locked = set().union(*map(locked_models, roots))
    named = addresses(dataclasses.asdict(params)).union(*map(addresses_in, roots))
    needed = {*on.values(), *champions_before(promotions(store), on.get(CHAMPION))}
    for address in named:
        match = ADDRESS.fullmatch(address)
        if match and match["name"] == store.model_name:
            needed.add(on.get(match["alias"], "") if match["alias"] else match["number"])
    for run in all_runs(store):
        if locked and run.data.tags.get("lineage_id") and lineage_md5(store, run) in locked:
            lineages.add(run.data.tags["lineage_id"])
    for number, version in versions.items():
        in_lock = locked.intersection(locked_files(version).values())
        if version.tags.get("lineage_id") in lineages or in_lock:
            needed.add(number)
    runs = {version.run_id for number, version in versions.items() if number in needed}
    runs |= {version.run_id for version in versions_of_others(store)}
    return Needs(needed, runs, lineages)


def old_versions(store: Store, needed: Needs) -> list[Waste]:
    versions = all_versions(store)
    used = uploads_of(
        store, {number: version for number, version in versions.items() if number in needed.versions}
    )
    return [
        Waste(
            "version",
            number,
            f"{number} ({made_of(version)})",
            upload="" if logged_model_id(version) in used else logged_model_id(version),
        )
        for number, version in versions.items()
        if number not in needed.versions
    ]


def old_runs(store: Store, params: Params, needed: Needs) -> Iterator[Waste]:
    keys = current_keys(params)
    for run in all_runs(store):
        if run.info.run_id in needed.runs or run.data.tags.get("lineage_id") in needed.lineages:
            continue
        key = run.data.tags.get("train_key", "")
        if run.info.status == "RUNNING" and (
            key in keys or is_locked(key) or is_alive(run.data.tags.get(PROCESS, ""))
        ):
            continue
        yield Waste("run", run.info.run_id, f"{run.info.run_name} ({run.info.status.lower()})")


def old_uploads(store: Store, needed: Needs) -> Iterator[Waste]:
    """Yields the logged models that have no version, and of which the next `register` would not make one."""
    used = uploads_of(store, all_versions(store))
    for logged in store.client.search_logged_models([store.experiment_id]):
        finished, uploader = logged.status == "READY", logged.tags.get(UPLOADER, "")
        if logged.model_id in used or (finished and logged.tags.get("lineage_id") in needed.lineages):
            continue
        if finished or is_abandoned(uploader):
            yield Waste("upload", logged.model_id, f"{logged.model_id} ({str(logged.status).lower()})")


def uploads_of(store: Store, versions: dict[str, Any]) -> set[str]:
    """Returns the ids of the logged models of these versions and of the versions of other registered models."""
    return {logged_model_id(version) for version in (*versions.values(), *versions_of_others(store))}


def versions_of_others(store: Store) -> list[Any]:
    """Returns the versions of all other registered models."""
    return [version for version in store.client.search_model_versions() if version.name != store.model_name]


def lineage_md5(store: Store, run: Any) -> str:
    """Returns the md5 of the lineage.json of a run, to compare with dvc.lock; empty if the run's files are lost."""
    with temporary_folder() as folder:
        try:
            file = Path(store.client.download_artifacts(run.info.run_id, "lineage.json", str(folder)))
        except StoreError:
            return ""
        return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def current_lineages(params: Params) -> set[str]:
    return lineages_of(model_folder(name) / "lineage.json" for name in params.models)


def lineages_in(root: Path) -> set[str]:
    """Returns the lineage ids of the models in a checkout."""
    return lineages_of((root / "models").glob("*/lineage.json"))


def lineages_of(files: Iterable[Path]) -> set[str]:
    return {json.loads(file.read_text(encoding="utf-8"))["lineage_id"] for file in files if file.exists()}


def locked_models(root: Path) -> set[str]:
    """Returns the md5 of each lineage.json in the dvc.lock of a checkout, its branches, experiments and worktrees."""
    md5s = set()
    for lock in every_version_of("dvc.lock", root):
        stages = lock.get("stages")
        for stage in stages.values() if isinstance(stages, dict) else ():
            match stage:
                case {"outs": [*outputs]}:
                    for output in outputs:
                        match output:
                            case {"path": str(path), "md5": str(md5)} if path.endswith("/lineage.json"):
                                md5s.add(md5)
    return md5s


def addresses_in(root: Path) -> set[str]:
    return set().union(*(addresses(params) for params in every_version_of("params.yaml", root)))


def addresses(content: Any) -> set[str]:
    """Returns all texts in the content of params.yaml that begin with `models:/`."""
    if isinstance(content, str):
        return {content} if content.startswith("models:/") else set()
    values = (
        content.values()
        if isinstance(content, dict)
        else content
        if isinstance(content, list | tuple)
        else ()
    )
    return set().union(*map(addresses, values))


def every_version_of(name: str, root: Path) -> Iterator[dict[str, Any]]:
    """Yields the contents of a YAML file in a checkout, and at the tip of each branch, experiment and worktree."""
    texts = [(root / name).read_bytes()] if (root / name).is_file() else []
    with contextlib.suppress(NoGit):
        listed = git("for-each-ref", "--format=%(objectname)", *REFS, folder=root).split()
        listed += [
            line.split()[1]
            for line in git("worktree", "list", "--porcelain", folder=root).splitlines()
            if line.startswith(b"HEAD ")
        ]
        for commit in sorted(set(listed)):
            with contextlib.suppress(NoGit):
                texts.append(git("show", f"{commit.decode()}:./{name}", folder=root))
    for text in set(texts):
        with contextlib.suppress(yaml.YAMLError):
            content = yaml.safe_load(text)
            if isinstance(content, dict):
                yield content


def current_keys(params: Params) -> set[str]:
    """Returns the keys of the trainings in params.yaml, which `dvc repro` would continue after an interruption."""
    manifest = PREPARED / MANIFEST
    if not manifest.exists():
        return set()
    check_backend(params)
    data = open_prepared(PREPARED, verify=False)
    read_lock()  # without code.lock no key is known, and every interrupted training would look unneeded
    keys = set()
    for name in params.models:
        # A training whose initial weights or teacher are missing cannot have been interrupted.
        with contextlib.suppress(VisionpipeError, FileNotFoundError):
            keys.add(resolve_training(name, params, data).key)
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
    """Whether a training of this key is running."""
    lock = state_folder() / "locks" / key
    if not key or not lock.exists():
        return False
    with open_lock(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def remove(store: Store, item: Waste) -> None:
    if item.kind == "version":
        store.client.delete_model_version(store.model_name, item.identity)
        if item.upload.startswith("m-"):
            with contextlib.suppress(StoreError):  # it is deleted already
                store.client.delete_logged_model(item.upload)
    elif item.kind == "upload":
        store.client.delete_logged_model(item.identity)
    elif item.kind == "run":
        store.client.delete_run(item.identity)
    else:
        shutil.rmtree(state_folder() / "checkpoints" / item.identity)
