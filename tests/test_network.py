"""What build_model makes, against keras.Model: on torch it calls the layers itself."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from zoo import ZOO

from visionpipe.models import build_model
from visionpipe.models.network import Network, load_network

TESTS = Path(__file__).parent
SMALL = {"patch_size": 8, "hidden_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}


@pytest.fixture(scope="module")
def on_torch():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    output = subprocess.run(
        [sys.executable, TESTS / "network_on_torch.py"],
        env=os.environ | {"PYTHONPATH": str(TESTS.parent)}, capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    return json.loads(output.splitlines()[-1])


def test_every_kind_of_model_has_the_very_numbers_of_keras(on_torch):
    """Outputs in inference and training, gradients, batch norms' statistics; in half precision every fourth kind."""
    assert on_torch["float32"] == dict.fromkeys(ZOO, 0.0)
    assert on_torch["mixed_bfloat16"] == dict.fromkeys(list(ZOO)[::4], 0.0)


def test_a_tensor_goes_after_its_last_use(on_torch):
    ours, keras_own = on_torch["alive"]
    assert keras_own == [[], [True], [True, True]]
    assert ours == [[], [False], [False, False]]


def test_any_graph_is_followed(on_torch):
    assert on_torch["structures"] == 0


def test_a_layer_that_has_a_loss_of_its_own_keeps_it(on_torch):
    ours, keras_own = on_torch["losses"]
    assert ours == keras_own
    assert ours[0] > 0


def test_a_quantized_layer_computes_as_one(on_torch):
    from_before, from_keras = on_torch["quantized"]
    assert from_keras == 0 < from_before


def test_training_that_a_layer_was_told_is_overruled_by_the_models_own_alone(on_torch):
    by_itself, overruled = on_torch["explicit training"]
    assert 400 < by_itself < 600
    assert overruled == 0


def test_inner_outputs_are_named_where_there_is_one(on_torch):
    assert on_torch["attention"] == [[2, 2, 4, 4], ["block_00"]]


def test_a_models_file_makes_the_same_model(tmp_path):
    model = build_model("ViT-S/16", 3, 16, **SMALL)
    images = np.ones((2, 16, 16, 3), "float32")
    model.save(tmp_path / "model.keras")
    for again in (load_network(tmp_path / "model.keras"), Network.from_config(model.get_config())):
        assert type(again) is type(model)
        assert again.name == model.name
        again.set_weights(model.get_weights())
        np.testing.assert_array_equal(again(images), model(images))
    assert isinstance(keras.models.load_model(tmp_path / "model.keras"), Network)
