"""Verifies the files in the artifact store: their content, their digest, and the model's answers in a fresh process."""

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.versions import not_registered
from visionpipe.data.deep import encoded
from visionpipe.errors import ArtifactError, RegistryError
from visionpipe.files import sha256_file, temporary_folder
from visionpipe.tracking.store import Store

GOLDEN_IMAGES = 8
REPAIR = "run visionpipe register in the project that holds its model, or delete the version in the MLflow UI"

# Runs in a fresh process outside the checkout, so that only the code and files of the MLflow model are used.
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
    """Reference answers of a model. `images`: base64 of image files; `answers`: label and probabilities of each."""

    images: list[str]
    answers: list[dict[str, Any]]


def golden_answers(classifier: Classifier, images: np.ndarray) -> Golden:
    """Computes the classifier's answers to prepared images, encoded as image files.

    The files are preprocessed like those of any client, so a crop ratio below 1 crops prepared images once more.
    """
    files = [encoded(image, classifier.form) for image in images]
    answers = [
        classifier.answer(row)
        for row in classifier.probabilities(np.stack([classifier.preprocess(file) for file in files]))
    ]
    return Golden([base64.b64encode(file).decode() for file in files], answers)


def verify_version(store: Store, version: Any) -> None:
    """Downloads a version, and verifies its digest and its answers in a fresh process.

    Raises RegistryError if the version is damaged or was not made by `visionpipe register`.
    """
    with temporary_folder() as folder:
        artifact = download_classifier(store, version, folder)
        try:
            classifier = Classifier(artifact)
            golden = golden_answers(classifier, classifier.noise(GOLDEN_IMAGES))
        except ArtifactError as error:
            raise RegistryError(f"{named(store, version)} does not run: {error}") from None
        compare_answers(artifact.parents[1], golden, named(store, version))


def download_classifier(store: Store, version: Any, folder: Path) -> Path:
    """Downloads a version into `folder`; returns its artifact folder. Raises RegistryError if it is damaged."""
    expected = version.tags.get("artifact_sha256")
    if not expected:
        raise RegistryError(not_registered(store.model_name, version.version))
    downloaded = store.download(f"models:/{store.model_name}/{version.version}", folder)
    exported = sorted((downloaded / "artifacts").glob("*/model.onnx"))
    if not exported:
        raise RegistryError(f"the files of {named(store, version)} were deleted: {REPAIR}")
    artifact = exported[0].parent
    try:
        received = artifact_sha256(artifact)
    except ArtifactError:
        raise RegistryError(
            f"{named(store, version)} is damaged: some of its files are missing; {REPAIR}"
        ) from None
    if received != expected:
        raise RegistryError(
            f"{named(store, version)} is damaged: its files have sha256 {received[:12]}…, but {expected[:12]}… was "
            f"registered; {REPAIR}"
        )
    return artifact


def named(store: Store, version: Any) -> str:
    """Returns the name of a version in messages, such as "version 3 of visionpipe"."""
    return f"version {version.version} of {store.model_name}"


def made_of(version: Any) -> str:
    """Returns the entry of `models:` that a version was made of."""
    return str(version.tags.get("model") or "not made by visionpipe register")


def compare_files(local: Path, downloaded: Path) -> None:
    """Raises RegistryError unless every uploaded file was downloaded unchanged."""
    for file in sorted(
        path for path in local.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ):
        copy = downloaded / file.relative_to(local)
        if not copy.is_file() or sha256_file(copy) != sha256_file(file):
            raise RegistryError(
                f"{file.relative_to(local)} was changed by the upload to the artifact store: run dvc repro again"
            )


def compare_answers(model: Path, golden: Golden, what: str = "the uploaded model") -> None:
    """Raises RegistryError unless a fresh process loads the downloaded model and computes the golden answers."""
    with temporary_folder() as temporary:
        images = temporary / "images.json"
        images.write_text(json.dumps(golden.images))
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        result = subprocess.run(
            [sys.executable, "-c", GOLDEN_SCRIPT, str(model), str(images)],
            cwd=temporary,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    lines = result.stdout.strip().splitlines()
    if result.returncode or not lines:
        reason = result.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RegistryError(f"{what} cannot be loaded: {reason[0]}")
    answers = json.loads(lines[-1])
    if len(answers) != len(golden.answers) or not all(map(same_answer, golden.answers, answers)):
        raise RegistryError(
            f"{what} does not answer like the evaluated model: nothing was registered or promoted"
        )


def same_answer(expected: dict[str, Any], received: dict[str, Any]) -> bool:
    """Whether a version answers as expected. The code of an older version may not know all keys of an answer."""
    return "probabilities" in received and all(
        agree(expected.get(key), value) for key, value in received.items()
    )


def agree(expected: Any, received: Any) -> bool:
    """Whether two values are the same, but for numbers that differ by at most 1e-5."""
    match expected, received:
        case dict(), dict():
            return expected.keys() == received.keys() and all(
                agree(expected[key], received[key]) for key in expected
            )
        case float(), float():
            return abs(expected - received) <= 1e-5
    return bool(expected == received)
