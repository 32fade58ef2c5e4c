"""The exported graph answers as Keras does, whatever ONNX Runtime makes of it."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import dataclasses

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from visionpipe.artifact.canonical import MOST_PARAMETERS, check_parameters, with_probabilities
from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.quantization import quantize
from visionpipe.errors import ArtifactError, ConfigError
from visionpipe.models import build_model
from visionpipe.models.saved import load_trained
from visionpipe.project.sections import ModelConfig
from visionpipe.stages.export import keep_paddings, onnx_bytes

NEEDS = "data/prepared/manifest.json"


def answers(exported, images, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL):
    """Of a session as anybody makes one."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def assert_close(received, expected):
    assert np.abs(received - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("pooling", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize("own", [[0, 0, 0, 0], [1, 1, 0, 0]])
@pytest.mark.parametrize("widths", [[1, 1, 1, 1], [0, 2, 1, 0], [4, 4, 4, 4]])
@pytest.mark.parametrize("laid_out", [False, True])
def test_zeros_around_negative_values_stay_zeros_in_every_pooling(pooling, own, widths, laid_out):
    """ONNX Runtime takes a Pad into the pooling behind it, whose own padding is minus infinity or nothing."""
    pads = [0, 0, *widths[:2], 0, 0, *widths[2:]]
    pads = [pads[axis] for axis in (0, 2, 3, 1, 4, 6, 7, 5)] if laid_out else pads
    settings = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": own}
    turned = [helper.make_node("Transpose", ["padded"], ["turned"], perm=(0, 3, 1, 2))] if laid_out else []
    graph = helper.make_graph(
        [
            helper.make_node("Pad", ["images", "pads"], ["padded"]),
            *turned,
            helper.make_node(pooling, ["turned" if laid_out else "padded"], ["logits"], **settings),
        ],
        "padded",
        [
            helper.make_tensor_value_info(
                "images", TensorProto.FLOAT, [2, 9, 11, 3] if laid_out else [2, 3, 9, 11]
            )
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [helper.make_tensor("pads", TensorProto.INT64, [8], pads)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    images = np.random.default_rng(0).uniform(-3, -1, (2, 9, 11, 3)).astype(np.float32)
    images = images if laid_out else images.transpose(0, 3, 1, 2)
    expected = answers(model.SerializeToString(), images, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    keep_paddings(model.graph)
    assert_close(answers(model.SerializeToString(), images), expected)


@pytest.fixture(scope="module")
def preactivated():
    """What its first pooling reads has negative values, and zeros around them."""
    keras.utils.set_random_seed(0)
    model = build_model("BiT-R50x1", 3, (17, 19), blocks_per_stage=[1, 1], filters=32, padding="symmetric")
    model(np.zeros((1, 17, 19, 3), np.float32))
    return model, onnx_bytes(model, 18)


def test_a_preactivated_model_with_torchs_padding_answers_as_keras_does(preactivated, tmp_path):
    model, exported = preactivated
    images = np.random.default_rng(0).integers(0, 256, (3, 17, 19, 3), np.uint8)
    expected = np.asarray(model(images))
    assert_close(answers(exported, images.astype(np.float32)), expected)
    files = {"labels.json": b'["a", "b", "c"]', "preprocessing.json": b'{"size": [17, 19]}'}
    for name, content in (files | {"model.onnx": exported}).items():
        (tmp_path / name).write_bytes(content)
    assert_close(Classifier(tmp_path, threads=1).logits(images), expected)
    int8 = answers(quantize(with_probabilities(exported, "softmax"), images), images.astype(np.float32))
    assert np.abs(int8 - expected).max() < 0.2 * np.abs(expected).max()


def test_zeros_behind_a_relu_are_left_to_onnx_runtime(preactivated):
    model = build_model("ResNet-18", 3, 16, blocks_per_stage=[1], filters=8, padding="symmetric")
    model(np.zeros((1, 16, 16, 3), np.float32))
    for exported, expected in ((onnx_bytes(model, 18), 0), (preactivated[1], 1)):
        operations = [node.op_type for node in onnx.load_from_string(exported).graph.node]
        assert operations.count("Max") == expected


@pytest.mark.parametrize(("count", "refused"), [(MOST_PARAMETERS, False), (2**29, True), (632_045_800, True)])
def test_what_one_onnx_file_cannot_hold_is_refused(count, refused):
    if not refused:
        return check_parameters(count)
    with pytest.raises(ConfigError, match="cannot be exported: an ONNX file holds at most 2 GiB"):
        check_parameters(count)


def test_a_model_above_two_gibibytes_is_refused_in_params_yaml_and_before_it_is_exported(params):
    models = {
        "large": ModelConfig("ViT-H/14", NEEDS),
        "deep": ModelConfig("ViT-L/16", NEEDS, overrides={"depth": 60}),
    }
    params = dataclasses.replace(
        params, models=models, prepare=dataclasses.replace(params.prepare, size=(224, 224))
    )
    for name in models:
        with pytest.raises(ConfigError, match=f"models.{name}: a model of .* cannot be exported"):
            params.model_spec(name)
    with keras.StatelessScope(initialize_variables=False):
        model = build_model("ViT-H/14", 1000, 224)
    with pytest.raises(ConfigError, match="a model of 632,045,800 parameters"):
        onnx_bytes(model, 18)


@pytest.mark.parametrize(
    "damage", [None, lambda whole: b"", lambda whole: b"text", lambda whole: whole[:-500]]
)
def test_a_trained_model_that_is_missing_or_damaged_is_one_sentence_with_advice(tmp_path, damage):
    file = tmp_path / "vit" / "model.keras"
    file.parent.mkdir()
    inputs = keras.Input((2, 2, 3))
    keras.Model(inputs, keras.layers.Flatten()(inputs)).save(file)
    assert load_trained(file).output_shape == (None, 12)
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(
        ArtifactError, match=r"model\.keras .*: run dvc repro, or visionpipe train vit first$"
    ) as refused:
        load_trained(file)
    assert "\n" not in str(refused.value)
