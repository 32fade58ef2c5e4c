"""The `model.keras` behind a registered version: what a training can start from."""

import os
import re
import shutil
import tempfile
from pathlib import Path

from visionpipe.errors import RegistryError
from visionpipe.lineage import sha256_file, state_folder
from visionpipe.tracking.store import SETTINGS, tracking_uri


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
    for setting, value in SETTINGS.items():
        os.environ.setdefault(setting, value)
    import mlflow

    uri = tracking_uri()
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        raise RegistryError(f"{address}: there is no tracking store {uri} yet: run dvc repro")
    client = mlflow.MlflowClient(uri, uri)
    try:
        version = (
            client.get_model_version_by_alias(name, alias)
            if alias
            else client.get_model_version(name, number)
        )
        run = client.get_run(str(version.run_id))
    except mlflow.MlflowException as error:
        raise RegistryError(f"{address} is not in {uri}: {' '.join(str(error.message).split())}") from None
    sha256 = run.data.tags.get("model_sha256", "")
    path = state_folder() / "trained" / sha256 / "model.keras"
    beside = path.with_name("lineage.json")
    if beside.is_file() and path.is_file() and sha256_file(path) == sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        try:
            found, lineage = (
                Path(client.download_artifacts(run.info.run_id, file.name, folder)) for file in (path, beside)
            )
        except Exception as error:  # the artifact stores have their own kinds
            raise RegistryError(
                f"{address}: its run has no {path.name} or no {beside.name}: {error}"
            ) from error
        if sha256_file(found) != sha256:
            raise RegistryError(f"{address}: the model.keras of its run is not the one that was logged")
        shutil.move(lineage, beside)
        shutil.move(found, path)
    return path
