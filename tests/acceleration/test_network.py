"""What build_model makes, against keras.Model: on torch and TensorFlow it calls the layers itself."""

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

from visionpipe.acceleration.network import Network, accelerate
from visionpipe.models import build_model
from visionpipe.models.saved import load_model

SHARED = Path(__file__).parents[1] / "shared"
SMALL = {"patch_size": 8, "hidden_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}


def results(backend, kinds):
    """What network_on_backend.py prints."""
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    output = subprocess.run(
        [sys.executable, SHARED / "network_on_backend.py", backend, kinds],
        env=os.environ | {"PYTHONPATH": str(SHARED.parents[1])},
        capture_output=True, text=True, timeout=300, check=True,
    ).stdout  # fmt: skip
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module", params=["torch", "tensorflow"])
def network(request):
    return results(request.param, "few")


def assert_kinds_agree(network, kinds):
    """Checks outputs in inference and training, gradients and the batch norms' statistics of these kinds in float32,
    and of every fourth of them in half precision.

    A norm within its convolution rounds otherwise: by 6e-8 in float32, by 4e-3 in bfloat16, a layer.
    """
    assert {name: value for name, value in network["float32"].items() if not value < 1e-5} == {}
    assert {name: value for name, value in network["mixed_bfloat16"].items() if not value < 3e-2} == {}
    assert (list(network["float32"]), list(network["mixed_bfloat16"])) == (kinds, kinds[::4])


def test_a_kind_of_model_computes_what_keras_does(network):
    assert_kinds_agree(network, list(ZOO)[::7])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_every_kind_of_model_computes_what_keras_does(backend):
    assert_kinds_agree(results(backend, "all"), list(ZOO))


def test_convolutions_are_taken_together_with_what_follows_upon_them_alone(network):
    assert network["chains"]["difference"] < 1e-5
    assert network["chains"]["found"] == [  # convolution, norm, what is read, whether a ReLU follows
        ["a", "a_norm", 2, True], ["c", "c_norm", 1, False], ["i", None, 2, False]
    ]  # fmt: skip


def test_a_frozen_norm_keeps_its_averages(network):
    assert network["frozen"] == 0


def test_a_call_without_side_effects_has_none(network):
    variables, given, returned = network["stateless"]
    assert variables == given == 0 < returned


def test_a_tensor_goes_after_its_last_use(network):
    ours, keras_own = network["alive"]
    assert keras_own == [[], [True], [True, True]]
    assert ours == [[], [False], [False, False]]


def test_any_graph_is_followed(network):
    assert network["structures"] == 0


def test_a_layer_that_has_a_loss_of_its_own_keeps_it(network):
    ours, keras_own = network["losses"]
    assert ours == keras_own
    assert ours[0] > 0


def test_a_quantized_layer_computes_as_one(network):
    from_before, from_keras = network["quantized"]
    assert from_keras == 0 < from_before


def test_training_that_a_layer_was_told_is_overruled_by_the_models_own_alone(network):
    by_itself, overruled, mean = network["explicit training"]
    assert 400 < by_itself < 600
    assert overruled == 0
    assert mean < 1e-5


def test_inner_outputs_are_named_where_there_is_one(network):
    assert network["attention"] == [[2, 2, 4, 4], ["block_00"]]


def test_torchs_compiler_can_follow_every_layer(network):
    assert network["parts"] == 1


COMPILED = """
import keras, numpy as np
from visionpipe.acceleration.network import accelerate
from visionpipe.models import build_model
images = np.random.default_rng(0).normal(100, 50, (8, 16, 16, 3)).astype("float32")
shapes = {
    "ViT-S/16": {"patch_size": 4, "hidden_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8},
    "ResNet-20": {"blocks_per_stage": (1, 1), "filters": 16},
}
for name, shape in shapes.items():
    results = []
    for compiled in (True, False):
        keras.utils.set_random_seed(0)
        model = accelerate(build_model(name, 3, 16, **shape))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=compiled)
        model.fit(images, np.arange(8) % 3, verbose=0)
        results.append([model.predict(images, verbose=0), *model.get_weights()])
    for ours, uncompiled in zip(*results, strict=True):
        np.testing.assert_allclose(ours, uncompiled, rtol=1e-3, atol=1e-4)
"""


@pytest.mark.slow
def test_torch_compiles_a_network():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    environment = os.environ | {"KERAS_BACKEND": "torch", "PYTHONPATH": str(SHARED.parents[1])}
    subprocess.run([sys.executable, "-c", COMPILED], env=environment, timeout=600, check=True)


def test_a_models_file_makes_the_same_model(tmp_path):
    model = accelerate(build_model("ViT-S/16", 3, 16, **SMALL))
    images = np.ones((2, 16, 16, 3), "float32")
    model.save(tmp_path / "model.keras")
    for again in (accelerate(load_model(tmp_path / "model.keras")), Network.from_config(model.get_config())):
        assert type(again) is type(model)
        assert again.name == model.name
        again.set_weights(model.get_weights())
        np.testing.assert_array_equal(again(images), model(images))
    assert isinstance(keras.models.load_model(tmp_path / "model.keras"), Network)
