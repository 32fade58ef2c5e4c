"""What visionpipe 0.1 wrote still loads: `.keras` files and exported models, and both give the same answers."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import visionpipe
from visionpipe.artifact.canonical import save_keras
from visionpipe.models.saved import load_model
from visionpipe.weights import resolve

WRITTEN = Path(__file__).parents[1] / "shared" / "version_0.1"


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_model_and_its_export_agree(name, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    model = load_model(WRITTEN / "models" / name / "model.keras")
    exported = visionpipe.load(WRITTEN / "artifacts" / name)
    logits = np.asarray(model(images.astype(np.float32)))
    np.testing.assert_allclose(exported.classifier.logits(images), logits, rtol=1e-4, atol=1e-5)
    save_keras(model, tmp_path / "again.keras")
    again = load_model(tmp_path / "again.keras")
    np.testing.assert_array_equal(np.asarray(again(images.astype(np.float32))), logits)


def test_a_training_can_start_from_a_model_of_before():
    lineage = json.loads((WRITTEN / "models/vit/lineage.json").read_text())
    file = WRITTEN / "models/vit/model.keras"
    assert resolve(file).sha256 == lineage["model_sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
