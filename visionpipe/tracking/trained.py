"""Downloads the `model.keras` of a registered version, for a training that starts from it."""

import shutil
from pathlib import Path

from visionpipe.errors import RegistryError
from visionpipe.files import sha256_file, temporary_folder
from visionpipe.project.paths import state_folder
from visionpipe.tracking.store import StoreError, database_of, open_client, read_address, tracking_uri


def download_trained(address: str) -> Path:
    """Downloads the trained model of a version, once, into `.visionpipe/trained/SHA256`; returns its path.

    The file comes from the version's run, and is compared with the sha256 in the run's tags. The run's `lineage.json`
    is stored beside it.

    address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        RegistryError: the version does not exist, its run was deleted, or the file was changed after it was logged.
    """
    name, alias, number = read_address(address)
    uri = tracking_uri()
    database = database_of(uri)
    if database and not database.exists():
        raise RegistryError(
            f"{address}: there is no tracking store {uri}: run dvc repro, or set MLFLOW_TRACKING_URI to the store"
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
            f"{address} is not in {uri}, or its run was deleted: name another version, or run visionpipe register "
            f"in the project that holds its model"
        ) from error
    sha256 = run.data.tags.get("model_sha256", "") if run else ""
    if not sha256:
        raise RegistryError(
            f"{address} was not made by visionpipe register, so it has no known model.keras: name another version"
        )
    path = state_folder() / "trained" / sha256 / "model.keras"
    beside = path.with_name("lineage.json")
    if beside.is_file() and path.is_file() and sha256_file(path) == sha256:
        return path
    with temporary_folder(path.parent) as folder:
        try:
            model, lineage = (
                Path(client.download_artifacts(version.run_id, file.name, str(folder)))
                for file in (path, beside)
            )
        except StoreError as error:
            raise RegistryError(
                f"{address}: {path.name} or {beside.name} of its run was deleted: run visionpipe register in the "
                f"project that holds its model, or name another version ({error})"
            ) from error
        if sha256_file(model) != sha256:
            raise RegistryError(
                f"{address}: the model.keras of its run was changed after it was logged: name another version"
            )
        shutil.move(lineage, beside)
        shutil.move(model, path)
    return path
