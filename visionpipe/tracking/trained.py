"""The `model.keras` behind a registered version: what a training can start from."""

import re
import shutil
from pathlib import Path

from visionpipe.errors import RegistryError
from visionpipe.files import sha256_file, temporary_folder
from visionpipe.project.paths import state_folder
from visionpipe.tracking.store import StoreError, database_of, open_client, tracking_uri


def download_trained(address: str) -> Path:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` to the file that its run logged, verified by the run's
    tag; kept below `.visionpipe/trained/` by its sha256, with its `lineage.json` beside it.

    Raises:
        RegistryError: no such version, or a file that is not the one that was logged.
    """
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", address)
    if match is None:
        raise RegistryError(f"{address}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match.groups()
    uri = tracking_uri()
    database = database_of(uri)
    if database and not database.exists():
        raise RegistryError(
            f"{address}: there is no tracking store {uri}: run dvc repro, or visionpipe register where its model lies"
        )
    client = open_client(uri)
    try:
        version = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, number)
        )
        run = client.get_run(version.run_id) if version.run_id else None
    except StoreError as error:
        if error.code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise RegistryError(
            f"{address} is not in {uri}, or its run was deleted: give another version, or run visionpipe register "
            f"where its model lies"
        ) from error
    sha256 = run.data.tags.get("model_sha256", "") if run else ""
    if not sha256:
        raise RegistryError(
            f"{address} was not made by visionpipe register: nobody knows the model.keras behind it; give another "
            f"version"
        )
    path = state_folder() / "trained" / sha256 / "model.keras"
    beside = path.with_name("lineage.json")
    if beside.is_file() and path.is_file() and sha256_file(path) == sha256:
        return path
    with temporary_folder(path.parent) as folder:
        try:
            found, lineage = (
                Path(client.download_artifacts(version.run_id, file.name, str(folder)))
                for file in (path, beside)
            )
        except StoreError as error:
            raise RegistryError(
                f"{address}: its run has no {path.name} or no {beside.name} any more, as after its deletion: run "
                f"visionpipe register where its model lies, or give another version ({error})"
            ) from error
        if sha256_file(found) != sha256:
            raise RegistryError(f"{address}: the model.keras of its run is not the one that was logged")
        shutil.move(lineage, beside)
        shutil.move(found, path)
    return path
