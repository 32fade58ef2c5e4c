"""The model registry: a version for each artifact that proved itself, and the two aliases.

`challenger` is the best verified version by validation accuracy; `champion` is the one that serves.
"""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from visionpipe.artifact.digest import artifact_sha256 as artifact_digest
from visionpipe.artifact.package import pyfunc_arguments
from visionpipe.errors import ArtifactError, RegistryError
from visionpipe.files import copy_contents, temporary_folder
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
DESCRIPTION_LENGTH = 5000  # what MLflow's databases hold; the whole card lies in the artifact


def all_versions(store: Store, more: str = "") -> dict[str, Any]:
    """Number → version, the oldest first, of all that were not deleted; `more` narrows the search."""
    quote = '"' if "'" in store.model_name else "'"
    found, token = [], None
    while True:
        page = store.client.search_model_versions(
            f"name = {quote}{store.model_name}{quote}{more}", page_token=token
        )
        found += page
        token = page.token
        if not token:
            break
    return {str(version.version): version for version in sorted(found, key=lambda v: int(v.version))}


def find_version(store: Store, artifact_sha256: str) -> Any | None:
    """The oldest version made of this artifact, or None."""
    found = all_versions(store, f" and tags.artifact_sha256 = '{artifact_sha256}'")
    return next(iter(found.values()), None)


def registered_model(store: Store) -> Any | None:
    """The registered model, with its aliases and tags, or None before the first registration."""
    try:
        return store.client.get_registered_model(store.model_name)
    except StoreError as error:
        if error.code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def aliases(store: Store) -> dict[str, str]:
    """Alias → number of the version that it is on."""
    model = registered_model(store)
    return {alias: str(number) for alias, number in model.aliases.items()} if model else {}


def version_by_alias(store: Store, alias: str) -> Any | None:
    """The version that an alias is on, or None; raises DeletedVersion where that version was deleted."""
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
    """The same; None for a version that was deleted too: another one may take its alias."""
    try:
        return version_by_alias(store, alias)
    except DeletedVersion:
        return None


def publish(
    store: Store, run_id: str, name: str, artifact: Path, card: str, golden: Golden, tags: dict[str, str]
) -> Any:
    """Uploads the artifact as a pyfunc model, verifies the upload, and only then creates the version.

    Safe to interrupt at any point, to repeat, and to be done by several at once: an unfinished upload is thrown away
    where its process is dead, the version is found by the artifact's sha256, and of two versions of one artifact the
    older one stays. A version whose files are gone or damaged has them uploaded again.
    """
    found = find_version(store, tags["artifact_sha256"])
    if found is not None:
        restore_files(store, found, artifact, card, golden)
        if found.run_id == run_id:
            link_output(store, run_id, logged_model_id(found))
        return found
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
    if str(oldest.version) != str(version.version):  # another process was a moment earlier
        store.client.delete_model_version(store.model_name, version.version)
        if uploaded_here:
            store.client.delete_logged_model(model.model_id)
        return oldest
    link_output(store, run_id, model.model_id)
    return version


def finished_upload(store: Store, run_id: str, artifact_sha256: str) -> Any | None:
    """The upload of this artifact that was verified before a version was made of it, if its files are whole still;
    unfinished ones of dead processes are thrown away.
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
                found = sorted((store.download(verified.model_uri, folder)).glob("artifacts/*/model.onnx"))
            except StoreError:
                found = []
            if found and digest(found[0].parent) == artifact_sha256:
                return verified
    return None


def digest(artifact: Path) -> str | None:
    """The artifact's sha256; None where it is incomplete."""
    try:
        return artifact_digest(artifact)
    except ArtifactError:
        return None


def upload(
    store: Store, run_id: str, name: str, artifact: Path, card: str, golden: Golden, tags: dict[str, str]
) -> Any:
    """Logs the model to its run and verifies what arrived; returns the READY logged model."""
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
        with suppress(StoreError):  # the error to be seen is the upload's
            store.client.delete_logged_model(model.model_id)
        raise
    return store.client.finalize_logged_model(model.model_id, "READY")


def upload_files(store: Store, model: Any, run_id: str, artifact: Path, card: str, golden: Golden) -> None:
    """Uploads the files of a logged model, and compares them and their answers with what was sent."""
    import mlflow

    with temporary_folder() as temporary:
        local = temporary / "model"
        save_pyfunc(local, artifact, card, mlflow.models.Model(run_id=run_id, model_id=model.model_id))
        store.client.log_model_artifacts(model.model_id, str(local))
        downloaded = store.download(model.model_uri, temporary / "downloaded")
        compare_files(local, downloaded)
        compare_answers(downloaded, golden)


def restore_files(store: Store, version: Any, artifact: Path, card: str, golden: Golden) -> None:
    """Uploads the files of a version again where they are gone or damaged."""
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
    print(f"{named(store, version)} had lost files, or damaged ones: uploaded again")


def logged_model_id(version: Any) -> str:
    """The id of the logged model that a version stands for; empty where it was made of something else."""
    return version.model_id or (version.source or "").removeprefix("models:/")


def link_output(store: Store, run_id: str, model_id: str) -> None:
    """Shows the model on its run's page; MLflow itself would list it again at every call."""
    from mlflow.entities import LoggedModelOutput

    outputs = store.client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in outputs.model_outputs}:
        store.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def save_pyfunc(local: Path, artifact: Path, card: str, model: Any) -> None:
    """Writes a models-from-code pyfunc: text, JSON and ONNX only, with the serving code inside."""
    import mlflow

    with temporary_folder() as temporary:
        model_card = temporary / "MODEL_CARD.md"
        model_card.write_text(card, encoding="utf-8")
        # DVC may have linked the files into its cache: MLflow refuses links, and copies the cache's permissions.
        files = copy_contents(artifact, temporary / artifact.name)
        arguments = pyfunc_arguments(files, temporary / "code")
        arguments["artifacts"] |= {"model_card": str(model_card)}
        mlflow.pyfunc.save_model(local, mlflow_model=model, **arguments)


def ensure_registered_model(store: Store) -> None:
    """Makes the registered model where it is missing; others may make it at the same time."""
    if registered_model(store) is None:
        try:
            store.client.create_registered_model(
                store.model_name, description="Made by visionpipe: see each version's card."
            )
        except StoreError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise


def move_aliases(store: Store, version: Any) -> list[str]:
    """Sets `challenger` where `version` is better on validation than the present one or cannot be compared with it,
    because that one comes from other data or nobody has measured it, and `champion` where there is none; returns the
    aliases that were set.
    """
    moved = []
    challenger = version_to_replace(store, CHALLENGER)
    score, best = validation_accuracy(version), validation_accuracy(challenger) if challenger else None
    if best is None or (score is not None and score > best) or other_data(version, challenger):
        if challenger is not None and best is None:
            print(
                f"{named(store, challenger)}, challenger so far, has no validation accuracy: it was not made by "
                f"visionpipe register, and cannot be compared"
            )
        store.client.set_registered_model_alias(store.model_name, CHALLENGER, version.version)
        moved.append(CHALLENGER)
    if version_to_replace(store, CHAMPION) is None:
        store.client.set_registered_model_alias(store.model_name, CHAMPION, version.version)
        moved.append(CHAMPION)
    return moved


def validation_accuracy(version: Any) -> float | None:
    """As `register` noted it; None for a version that was made otherwise."""
    try:
        accuracy = float(version.tags["validation_accuracy"])
    except (KeyError, ValueError):
        return None
    return accuracy if math.isfinite(accuracy) else None


def locked_files(version: Any) -> dict[str, str]:
    """Path → md5, as dvc.lock had them when the version was registered. People can edit tags: what is not such a
    mapping counts as none.
    """
    try:
        files = json.loads(version.tags.get("dvc_lock", "{}"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(files, dict):
        return {}
    return {path: md5 for path, md5 in files.items() if isinstance(md5, str)}


def other_data(one: Any, other: Any) -> bool:
    return bool(one.tags.get("data_sha256") != other.tags.get("data_sha256"))
