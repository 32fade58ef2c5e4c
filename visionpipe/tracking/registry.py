"""Registers versions of exported models, each verified after its upload, and sets their aliases.

`challenger` is on the version with the best validation score; `champion` is on the version that serves.
"""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from visionpipe import __version__
from visionpipe.artifact.digest import artifact_sha256 as artifact_digest
from visionpipe.artifact.package import pyfunc_arguments
from visionpipe.errors import ArtifactError, RegistryError
from visionpipe.files import copy_contents, temporary_folder
from visionpipe.tasks import TASKS, Task
from visionpipe.tracking.processes import is_abandoned, process_identity
from visionpipe.tracking.store import DeletedVersion, Store, StoreError
from visionpipe.tracking.verification import (
    Golden,
    compare_answers,
    compare_files,
    download_classifier,
    named,
)

CHAMPION, CHALLENGER = "champion", "challenger"
UPLOADER = "uploader"  # tag of a logged model: the process that uploads it
DESCRIPTION_LENGTH = 5000  # characters, MLflow's limit; the MLflow model holds the whole card


def all_versions(store: Store, more: str = "") -> dict[str, Any]:
    """Returns number → version, the oldest first, without deleted versions. `more` is appended to the query."""
    quote = '"' if "'" in store.model_name else "'"
    versions, token = [], None
    while True:
        page = store.client.search_model_versions(
            f"name = {quote}{store.model_name}{quote}{more}", page_token=token
        )
        versions += page
        token = page.token
        if not token:
            break
    return {str(version.version): version for version in sorted(versions, key=lambda v: int(v.version))}


def find_version(store: Store, artifact_sha256: str) -> Any | None:
    """Returns the oldest version of this artifact, or None."""
    versions = all_versions(store, f" and tags.artifact_sha256 = '{artifact_sha256}'")
    return next(iter(versions.values()), None)


def registered_model(store: Store) -> Any | None:
    """Returns the registered model with its aliases and tags; None before the first registration."""
    try:
        return store.client.get_registered_model(store.model_name)
    except StoreError as error:
        if error.code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def aliases(store: Store) -> dict[str, str]:
    """Returns alias → number of the version that it points to."""
    model = registered_model(store)
    return {alias: str(number) for alias, number in model.aliases.items()} if model else {}


def version_by_alias(store: Store, alias: str) -> Any | None:
    """Returns the version that an alias points to, or None; raises DeletedVersion if that version was deleted."""
    number = aliases(store).get(alias)
    if number is None:
        return None
    try:
        return store.client.get_model_version(store.model_name, number)
    except StoreError as error:
        if error.code == "RESOURCE_DOES_NOT_EXIST":
            raise DeletedVersion(store.model_name, alias, number) from None
        raise


def version_to_replace(store: Store, alias: str) -> Any | None:
    """Returns the version that an alias points to; None if there is none, or if it was deleted."""
    try:
        return version_by_alias(store, alias)
    except DeletedVersion:
        return None


def publish(
    store: Store, run_id: str, name: str, artifact: Path, card: str, golden: Golden, tags: dict[str, str]
) -> Any:
    """Uploads the artifact as a pyfunc model, verifies the upload, and only then creates the version.

    Returns the version, which is an earlier one if the artifact is registered already. Missing or damaged files of an
    earlier version are uploaded again.

    It may be interrupted at any point, repeated, and run by several processes at once: unfinished uploads of dead
    processes are deleted, and of two versions of one artifact the older one remains.
    """
    existing = find_version(store, tags["artifact_sha256"])
    if existing is not None:
        restore_files(store, existing, artifact, card, golden)
        if existing.run_id == run_id:
            link_output(store, run_id, logged_model_id(existing))
        return existing
    model, uploaded_here = finished_upload(store, run_id, tags["artifact_sha256"]), False
    if model is None:
        model, uploaded_here = upload(store, run_id, name, artifact, card, golden, tags), True
    ensure_registered_model(store)
    version = store.client.create_model_version(
        store.model_name,
        source=model.model_uri,
        run_id=run_id,
        tags=tags,
        description=card[:DESCRIPTION_LENGTH],
        model_id=model.model_id,
    )
    oldest = find_version(store, tags["artifact_sha256"]) or version
    if str(oldest.version) != str(version.version):  # another process created its version first
        store.client.delete_model_version(store.model_name, version.version)
        if uploaded_here:
            store.client.delete_logged_model(model.model_id)
        return oldest
    link_output(store, run_id, model.model_id)
    return version


def finished_upload(store: Store, run_id: str, artifact_sha256: str) -> Any | None:
    """Returns a verified upload of this artifact that has no version yet, if its files are still intact; else None.

    Deletes unfinished uploads of dead processes.
    """
    verified = None
    for logged in store.client.search_logged_models(
        [store.experiment_id], f"tags.artifact_sha256 = '{artifact_sha256}'"
    ):
        if logged.status == "READY":
            verified = logged if logged.source_run_id == run_id else verified
        elif is_abandoned(logged.tags.get(UPLOADER, "")):
            store.client.delete_logged_model(logged.model_id)
    if verified is not None:
        with temporary_folder() as folder:
            try:
                exported = sorted((store.download(verified.model_uri, folder)).glob("artifacts/*/model.onnx"))
            except StoreError:
                exported = []
            if exported and digest(exported[0].parent) == artifact_sha256:
                return verified
    return None


def digest(artifact: Path) -> str | None:
    """Returns the artifact's sha256; None if it is incomplete."""
    try:
        return artifact_digest(artifact)
    except ArtifactError:
        return None


def upload(
    store: Store, run_id: str, name: str, artifact: Path, card: str, golden: Golden, tags: dict[str, str]
) -> Any:
    """Logs the model to its run, and verifies the upload; returns the logged model, with status READY."""
    model = store.client.create_logged_model(
        store.experiment_id,
        name=name,
        source_run_id=run_id,
        tags={
            "artifact_sha256": tags["artifact_sha256"],
            "lineage_id": tags["lineage_id"],
            UPLOADER: process_identity(),
        },
        model_type="image-classifier",
    )
    try:
        upload_files(store, model, run_id, artifact, card, golden)
    except BaseException:
        with suppress(StoreError):  # must not hide the error of the upload
            store.client.delete_logged_model(model.model_id)
        raise
    return store.client.finalize_logged_model(model.model_id, "READY")


def upload_files(store: Store, model: Any, run_id: str, artifact: Path, card: str, golden: Golden) -> None:
    """Uploads the files of a logged model, downloads them again, and compares the files and the model's answers."""
    import mlflow

    with temporary_folder() as temporary:
        local = temporary / "model"
        save_pyfunc(local, artifact, card, mlflow.models.Model(run_id=run_id, model_id=model.model_id))
        store.client.log_model_artifacts(model.model_id, str(local))
        downloaded = store.download(model.model_uri, temporary / "downloaded")
        compare_files(local, downloaded)
        compare_answers(downloaded, golden)


def restore_files(store: Store, version: Any, artifact: Path, card: str, golden: Golden) -> None:
    """Uploads the files of a version again if they are missing or damaged."""
    with temporary_folder() as folder:
        try:
            download_classifier(store, version, folder)
            return
        except RegistryError as error:
            reason = error
    try:
        model = store.client.get_logged_model(logged_model_id(version))
    except StoreError as error:
        raise RegistryError(
            f"{reason}; its logged model was deleted too: delete {named(store, version)} in the MLflow UI, then run "
            f"visionpipe register"
        ) from error
    upload_files(store, model, version.run_id, artifact, card, golden)
    print(f"{named(store, version)} had missing or damaged files: they were uploaded again")


def logged_model_id(version: Any) -> str:
    """Returns the id of a version's logged model; empty if it was not made from a logged model."""
    return version.model_id or (version.source or "").removeprefix("models:/")


def link_output(store: Store, run_id: str, model_id: str) -> None:
    """Shows the model on its run's page. Checks first, because MLflow would list it again at every call."""
    from mlflow.entities import LoggedModelOutput

    outputs = store.client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in outputs.model_outputs}:
        store.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def save_pyfunc(local: Path, artifact: Path, card: str, model: Any) -> None:
    """Writes an MLflow model that holds the artifact and the serving code: ONNX, JSON and text files, no pickle."""
    import mlflow

    with temporary_folder() as temporary:
        model_card = temporary / "MODEL_CARD.md"
        model_card.write_text(card, encoding="utf-8")
        # The files may be links into DVC's cache. MLflow rejects links, and would copy the cache's permissions.
        files = copy_contents(artifact, temporary / artifact.name)
        arguments = pyfunc_arguments(files, temporary / "code")
        arguments["artifacts"] |= {"model_card": str(model_card)}
        mlflow.pyfunc.save_model(local, mlflow_model=model, **arguments)


def ensure_registered_model(store: Store) -> None:
    """Creates the registered model if it does not exist. Other processes may create it at the same time."""
    if registered_model(store) is None:
        try:
            store.client.create_registered_model(
                store.model_name, description="Made by visionpipe: see each version's card."
            )
        except StoreError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise


def move_aliases(store: Store, version: Any) -> list[str]:
    """Sets `challenger` and `champion` to `version` where it should have them; returns the aliases that were set.

    `challenger` is set if `version` has a better validation score than the present challenger, or if the two cannot
    be compared: the present one was trained on other data, or has no validation score. `champion` is set if there
    is none.
    """
    moved = []
    challenger = version_to_replace(store, CHALLENGER)
    score, best = validation_score(version), validation_score(challenger) if challenger else None
    if best is None or (score is not None and score > best) or other_data(version, challenger):
        if challenger is not None and best is None:
            print(
                f"{named(store, challenger)}, the challenger until now, has no validation score, because it was not "
                f"made by visionpipe register: it was not compared"
            )
        store.client.set_registered_model_alias(store.model_name, CHALLENGER, version.version)
        moved.append(CHALLENGER)
    if version_to_replace(store, CHAMPION) is None:
        store.client.set_registered_model_alias(store.model_name, CHAMPION, version.version)
        moved.append(CHAMPION)
    return moved


def task_of(version: Any) -> type[Task]:
    """Returns the task of a version; raises RegistryError if it is one that this code does not know."""
    name = version.tags.get("task", "single")  # older versions have no such tag
    if name not in TASKS:
        raise RegistryError(
            f"version {version.version} of {version.name} has the task {name!r}, which visionpipe {__version__} does "
            f"not know: expected {' or '.join(TASKS)}"
        )
    return TASKS[name]


def validation_score(version: Any) -> float | None:
    """Returns the validation score that `register` recorded; None for a version that was made differently."""
    try:
        score = float(version.tags[f"validation_{task_of(version).score}"])
    except (RegistryError, KeyError, ValueError):
        return None
    return score if math.isfinite(score) else None


def locked_files(version: Any) -> dict[str, str]:
    """Returns path → md5 from dvc.lock at the registration. A tag that was edited to anything else counts as empty."""
    try:
        files = json.loads(version.tags.get("dvc_lock", "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(files, dict):
        return {}
    return {path: md5 for path, md5 in files.items() if isinstance(md5, str)}


def other_data(one: Any, other: Any) -> bool:
    """Whether two versions were trained on different data."""
    return bool(one.tags.get("data_sha256") != other.tags.get("data_sha256"))
