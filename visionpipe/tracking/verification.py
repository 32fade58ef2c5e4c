"""Whether what lies in the artifact store is what was made: files, digest, and answers in a fresh process."""

import base64
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.versions import not_registered
from visionpipe.errors import ArtifactError, RegistryError
from visionpipe.files import sha256_file, temporary_folder
from visionpipe.tracking.store import Store

GOLDEN_IMAGES = 8

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


def golden_answers(classifier: Classifier, images: np.ndarray) -> Golden:
    """The classifier's answers to `images` (uint8, n, height, width, 3) as PNG files: a crop ratio below 1 crops
    prepared images once more.
    """
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        files.append(buffer.getvalue())
    answers = [
        {
            "label": classifier.labels[row.argmax()],
            "probabilities": dict(zip(classifier.labels, row.tolist(), strict=True)),
        }
        for row in classifier.probabilities(np.stack([classifier.preprocess(file) for file in files]))
    ]
    return Golden([base64.b64encode(file).decode() for file in files], answers)


def verify_version(store: Store, version: Any) -> None:
    """Downloads a version, compares it with its registered sha256, and lets a fresh process answer as this one does.

    Raises RegistryError where the version is not whole, or not one of `visionpipe register`.
    """
    with temporary_folder() as folder:
        artifact = download_classifier(store, version, folder)
        try:
            classifier = Classifier(artifact)
            noise = np.random.default_rng(0).integers(0, 256, (GOLDEN_IMAGES, *classifier.size, 3), np.uint8)
            golden = golden_answers(classifier, noise)
        except ArtifactError as error:
            raise RegistryError(f"{named(store, version)} does not run: {error}") from None
        compare_answers(artifact.parents[1], golden, named(store, version))


def download_classifier(store: Store, version: Any, folder: Path) -> Path:
    """The version's artifact folder, as `Classifier` reads it, with the bytes that were registered."""
    expected = version.tags.get("artifact_sha256")
    if not expected:
        raise RegistryError(not_registered(store.model_name, version.version))
    downloaded = store.download(f"models:/{store.model_name}/{version.version}", folder)
    found = sorted((downloaded / "artifacts").glob("*/model.onnx"))
    if not found:
        raise RegistryError(
            f"{named(store, version)} has no files any more: run visionpipe register where its model lies, or delete "
            f"the version in the MLflow UI"
        )
    artifact = found[0].parent
    try:
        received = artifact_sha256(artifact)
    except ArtifactError:
        received = "an incomplete artifact"
    if received != expected:
        raise RegistryError(
            f"{named(store, version)} is damaged: its files have sha256 {received[:12]}…, {expected[:12]}… was "
            f"registered; run visionpipe register where its model lies, or delete the version in the MLflow UI"
        )
    return artifact


def named(store: Store, version: Any) -> str:
    return f"version {version.version} of {store.model_name}"


def made_of(version: Any) -> str:
    """The entry of `models:` that a version was made of."""
    return str(version.tags.get("model") or "not of visionpipe register")


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


def compare_answers(model: Path, golden: Golden, what: str = "the uploaded model") -> None:
    """The downloaded model, loaded in a fresh process, must give the golden answers."""
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
        raise RegistryError(f"{what} does not load: {reason[0]}")
    answers = json.loads(lines[-1])
    if len(answers) != len(golden.answers) or not all(map(agree, golden.answers, answers)):
        raise RegistryError(
            f"{what} answers otherwise than the evaluated one: nothing was registered or promoted"
        )


def agree(expected: dict[str, Any], received: dict[str, Any]) -> bool:
    pairs = [(p, received["probabilities"].get(label, -1)) for label, p in expected["probabilities"].items()]
    return received["label"] == expected["label"] and all(abs(a - b) <= 1e-5 for a, b in pairs)
