"""The model registry: a version for each artifact that proved itself, and the two aliases.

`challenger` is the best verified version by validation accuracy; `champion` is the one that serves.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionpipe.errors import RegistryError
from visionpipe.lineage import sha256_file
from visionpipe.serving.package import pyfunc_arguments
from visionpipe.tracking.store import Store

CHAMPION, CHALLENGER = "champion", "challenger"
DESCRIPTION_LENGTH = 5000  # what MLflow's databases hold; the whole card lies in the artifact

# Runs in a fresh process outside the checkout, so that only what travels in the artifact can answer.
GOLDEN_SCRIPT = """
import json, sys, logging
logging.disable(logging.WARNING)
import mlflow, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
images = json.load(open(sys.argv[2]))
print(json.dumps(model.predict(pandas.DataFrame({"image": images}))))
"""


@dataclass(frozen=True)
class Golden:
    """What the model must answer. `images`: base64 of image files; `answers`: label and probabilities."""

    images: list[str]
    answers: list[dict[str, Any]]


def find_version(store: Store, artifact_sha256: str) -> Any | None:
    """The version made of this artifact, or None."""
    query = f"name = '{store.model_name}' and tags.artifact_sha256 = '{artifact_sha256}'"
    versions = store.client.search_model_versions(query, max_results=1)
    return versions[0] if versions else None


def registered_model(store: Store) -> Any | None:
    """The registered model, with its aliases and tags, or None before the first registration."""
    found = store.client.search_registered_models(f"name = '{store.model_name}'")
    return found[0] if found else None


def aliases(store: Store) -> dict[str, str]:
    """Alias → number of the version that it is on."""
    model = registered_model(store)
    return {alias: str(number) for alias, number in model.aliases.items()} if model else {}


def all_versions(store: Store) -> dict[str, Any]:
    """Number → version, of all that were not deleted."""
    found = store.client.search_model_versions(f"name = '{store.model_name}'")
    return {str(version.version): version for version in found}


def version_by_alias(store: Store, alias: str) -> Any | None:
    number = aliases(store).get(alias)
    return store.client.get_model_version(store.model_name, number) if number else None


def publish(
    store: Store, run_id: str, name: str, artifact: Path, card: str, golden: Golden, tags: dict[str, str]
) -> Any:
    """Uploads the artifact as a pyfunc model, verifies the upload, and only then creates the version.

    Safe to interrupt at any point and to repeat: a logged model that is READY has been verified, one
    that is not is thrown away, and the version is found by the artifact's sha256.
    """
    found = find_version(store, tags["artifact_sha256"])
    if found is not None:
        return found
    client = store.client
    model = None
    for logged in client.search_logged_models(
        [store.experiment_id], f"tags.artifact_sha256 = '{tags['artifact_sha256']}'"
    ):
        if logged.status == "READY" and logged.source_run_id == run_id:
            model = logged
        elif logged.status != "READY":
            client.delete_logged_model(logged.model_id)
    if model is None:
        model = upload(store, run_id, name, artifact, card, golden, tags)
    link_output(store, run_id, model.model_id)
    ensure_registered_model(store)
    return client.create_model_version(
        store.model_name,
        source=model.model_uri,
        run_id=run_id,
        tags=tags,
        description=card[:DESCRIPTION_LENGTH],
        model_id=model.model_id,
    )


def upload(
    store: Store, run_id: str, name: str, artifact: Path, card: str, golden: Golden, tags: dict[str, str]
) -> Any:
    """Logs the model to its run and verifies what arrived; returns the READY logged model."""
    import mlflow

    client = store.client
    model = client.create_logged_model(
        store.experiment_id,
        name=name,
        source_run_id=run_id,
        tags={"artifact_sha256": tags["artifact_sha256"], "lineage_id": tags["lineage_id"]},
        model_type="image-classifier",
    )
    with tempfile.TemporaryDirectory() as temporary:
        local = Path(temporary) / "model"
        save_pyfunc(local, artifact, card, mlflow.models.Model(run_id=run_id, model_id=model.model_id))
        client.log_model_artifacts(model.model_id, str(local))
        downloaded = Path(
            mlflow.artifacts.download_artifacts(model.model_uri, dst_path=f"{temporary}/downloaded")
        )
        compare_files(local, downloaded)
        compare_answers(downloaded, golden)
    return client.finalize_logged_model(model.model_id, "READY")


def link_output(store: Store, run_id: str, model_id: str) -> None:
    """Shows the model on its run's page; MLflow itself would list it again at every call."""
    from mlflow.entities import LoggedModelOutput

    outputs = store.client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in outputs.model_outputs}:
        store.client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])


def save_pyfunc(local: Path, artifact: Path, card: str, model: Any) -> None:
    """Writes a models-from-code pyfunc: text, JSON and ONNX only, with the serving code inside."""
    import mlflow

    with tempfile.TemporaryDirectory() as temporary:
        model_card = Path(temporary) / "MODEL_CARD.md"
        model_card.write_text(card)
        arguments = pyfunc_arguments(artifact, Path(temporary) / "code")
        arguments["artifacts"] |= {"model_card": str(model_card)}
        mlflow.pyfunc.save_model(local, mlflow_model=model, **arguments)


def compare_files(local: Path, downloaded: Path) -> None:
    """Every file must have come back as it went."""
    for file in sorted(
        path for path in local.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ):
        copy = downloaded / file.relative_to(local)
        if not copy.is_file() or sha256_file(copy) != sha256_file(file):
            raise RegistryError(
                f"{file.relative_to(local)} came back changed from the artifact store: run dvc repro again"
            )


def compare_answers(model: Path, golden: Golden) -> None:
    """The downloaded model, loaded in a fresh process, must give the golden answers."""
    with tempfile.TemporaryDirectory() as temporary:
        images = Path(temporary) / "images.json"
        images.write_text(json.dumps(golden.images))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(
            [sys.executable, "-c", GOLDEN_SCRIPT, str(model), str(images)],
            cwd=temporary,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RegistryError(f"the uploaded model does not load: {reason[0]}")
    answers = json.loads(result.stdout.strip().splitlines()[-1])
    for expected, received in zip(golden.answers, answers, strict=True):
        pairs = [
            (p, received["probabilities"].get(label, -1)) for label, p in expected["probabilities"].items()
        ]
        if received["label"] != expected["label"] or any(abs(a - b) > 1e-5 for a, b in pairs):
            raise RegistryError(
                "the uploaded model answers otherwise than the evaluated one: nothing was registered"
            )


def ensure_registered_model(store: Store) -> None:
    if registered_model(store) is None:
        store.client.create_registered_model(
            store.model_name, description="Made by visionpipe: see each version's card."
        )


def move_aliases(store: Store, version: Any) -> list[str]:
    """Sets `challenger` where `version` is better on validation than the present one or comes from other
    data, which cannot be compared, and `champion` where there is none; returns the aliases that were set.
    """
    moved = []
    challenger = version_by_alias(store, CHALLENGER)
    if (
        challenger is None
        or validation_accuracy(version) > validation_accuracy(challenger)
        or version.tags["data_sha256"] != challenger.tags["data_sha256"]
    ):
        store.client.set_registered_model_alias(store.model_name, CHALLENGER, version.version)
        moved.append(CHALLENGER)
    if version_by_alias(store, CHAMPION) is None:
        store.client.set_registered_model_alias(store.model_name, CHAMPION, version.version)
        moved.append(CHAMPION)
    return moved


def validation_accuracy(version: Any) -> float:
    return float(version.tags["validation_accuracy"])


def download_classifier(store: Store, version: Any, folder: Path) -> Path:
    """The version's artifact folder, as `Classifier` reads it."""
    import mlflow

    uri = f"models:/{store.model_name}/{version.version}"
    downloaded = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    return next((downloaded / "artifacts").glob("*/model.onnx")).parent
