"""Tests int8: which products are quantized, how exactly, that the bytes repeat, and when `auto` chooses it."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from linear_models import downloaded, state, write_model
from onnx import TensorProto, helper, numpy_helper
from onnx_models import write_artifact
from repository import CHECKOUT

from visionpipe.artifact.canonical import with_probabilities
from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.quantization import Decision, calibration_images, decision_path, quantize
from visionpipe.artifact.speed import measurement_path
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.files import write_json
from visionpipe.project.paths import state_folder
from visionpipe.project.sections import ExportConfig
from visionpipe.stages.evaluate import evaluate
from visionpipe.stages.export import choose_precision
from visionpipe.stages.register import register
from visionpipe.tracking.tags import precision

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (64, 8, 8, 3), np.uint8)


def model_of(nodes, **constants):
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 8, 8, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])
    values = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "model", [images], [logits], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.load_from_string(with_probabilities(model.SerializeToString(), "softmax"))


def weights(*shape):
    return RANDOM.normal(0, 0.05, shape).astype(np.float32)


@pytest.fixture(scope="module")
def convolutional():
    """Builds two convolutions and a dense layer."""
    return model_of(
        [
            helper.make_node("Transpose", ["images"], ["x"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["x", "first"], ["a"], name="first"),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "second"], ["c"], name="second"),
            helper.make_node("ReduceMean", ["c", "axes"], ["d"], keepdims=0),
            helper.make_node("Gemm", ["d", "dense"], ["logits"], name="dense"),
        ],
        first=weights(8, 3, 3, 3),
        second=weights(8, 8, 3, 3),
        dense=weights(8, 4),
        axes=np.array([2, 3]),
    )


@pytest.fixture(scope="module")
def attentive():
    """Builds an embedding, a self-attention without softmax, a dense layer and a head."""
    return model_of(
        [
            helper.make_node("Reshape", ["images", "tokens"], ["x"]),
            helper.make_node("MatMul", ["x", "embedding"], ["e"], name="embedding"),
            helper.make_node("Transpose", ["e"], ["t"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["e", "t"], ["scores"], name="scores"),
            helper.make_node("MatMul", ["scores", "e"], ["mixed"], name="mixed"),
            helper.make_node("MatMul", ["mixed", "inner"], ["i"], name="inner"),
            helper.make_node("ReduceMean", ["i", "axes"], ["m"], keepdims=0),
            helper.make_node("MatMul", ["m", "head"], ["logits"], name="head"),
        ],
        tokens=np.array([0, 16, 12]),
        embedding=weights(12, 8) / 100,
        inner=weights(8, 8),
        head=weights(8, 4),
        axes=np.array([1]),
    )


def int8_products(content):
    """Lists the products whose inputs are both dequantized, and the ranks of their weights' scales."""
    graph = onnx.load_from_string(content).graph
    producers = {output: node for node in graph.node for output in node.output}
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    products = []
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            sources = [producers.get(name) for name in node.input[:2]]
            if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
                products.append((node.op_type, ranks[sources[1].input[1]]))
    return products


def test_every_product_of_a_resnet_is_int8_with_a_scale_per_channel(convolutional):
    content = quantize(convolutional.SerializeToString(), IMAGES)
    assert int8_products(content) == [("Conv", 1), ("Conv", 1), ("Gemm", 1)]


def test_attention_and_both_ends_of_a_transformer_stay_fp32(attentive):
    content = quantize(attentive.SerializeToString(), IMAGES)
    assert int8_products(content) == [("MatMul", 1)]
    assert sum(node.op_type == "MatMul" for node in onnx.load_from_string(content).graph.node) == 5


def test_int8_logits_are_close_to_those_in_fp32(convolutional, tmp_path):
    folder = write_artifact(tmp_path, ["a", "b", "c", "d"], (8, 8))
    onnx.save(convolutional, folder / "model.onnx")
    expected = Classifier(folder).logits(IMAGES)
    (folder / "model.onnx").write_bytes(quantize(convolutional.SerializeToString(), IMAGES))
    received = Classifier(folder).logits(IMAGES)
    assert 0 < np.abs(received - expected).max() / np.abs(expected).max() < 0.05


def test_the_same_model_gives_the_same_bytes_in_another_process(attentive, tmp_path):
    onnx.save(attentive, tmp_path / "model.onnx")
    np.save(tmp_path / "images.npy", IMAGES)
    script = """
import hashlib, sys, numpy
from visionpipe.artifact.quantization import quantize
folder = sys.argv[1]
content = quantize(open(f"{folder}/model.onnx", "rb").read(), numpy.load(f"{folder}/images.npy"))
print(hashlib.sha256(content).hexdigest())
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    own = quantize((tmp_path / "model.onnx").read_bytes(), IMAGES)
    assert result.stdout.split()[-1] == hashlib.sha256(own).hexdigest()


def test_calibration_images_are_spread_over_all_training_images():
    images = np.arange(1000)
    chosen = calibration_images(images)
    assert len(chosen) == 256
    assert chosen[-1] > 700
    assert calibration_images(images[:10]).tolist() == list(range(10))


@pytest.mark.parametrize(
    ("requested", "accuracies", "speeds", "expected"),
    [
        ("auto", (0.90, 0.896), (100, 131), "int8"),
        ("auto", (0.90, 0.894), (100, 300), "fp32"),
        ("auto", (0.90, 0.95), (100, 129), "fp32"),
        ("int8", (0.90, 0.50), (100, 50), "int8"),
    ],
)
def test_auto_chooses_int8_if_it_is_faster_and_hardly_less_accurate(requested, accuracies, speeds, expected):
    assert Decision(requested, *accuracies, *speeds).precision == expected


def chosen(params, requested, speeds):
    """Chooses a precision for model "one", with `speeds` (fp32, int8) in place of measurements."""
    write_model("one", params)
    folder, data = Path("artifacts/one"), open_prepared(PREPARED, verify=False)
    params = replace(params, export=ExportConfig(precision=requested))
    fp32 = (folder / "model.onnx").read_bytes()
    remember(folder, speeds[0])
    (folder / "model.onnx").write_bytes(quantize(fp32, calibration_images(data.images("train"))))
    remember(folder, speeds[1])
    (folder / "model.onnx").write_bytes(fp32)
    decision = choose_precision(folder, data, params)
    write_json(folder / "parity.json", decision.accuracies())
    write_json(decision_path(artifact_sha256(folder), state_folder()), decision.measured())
    return folder, fp32, decision


def remember(folder, images_per_second):
    speed = {"latency_p50_ms": 1.0, "latency_p95_ms": 1.0, "images_per_second": images_per_second}
    write_json(measurement_path(artifact_sha256(folder), 1, state_folder()), speed | {"peak_memory_mib": 1.0})


def test_the_choice_reaches_run_version_and_card(params):
    params = replace(params, models={"one": params.models["one"]})
    folder, fp32, decision = chosen(params, "auto", (100.0, 250.0))
    assert decision.precision == "int8"
    assert decision.accuracy_int8 == decision.accuracy_fp32 == 1.0
    assert (folder / "model.onnx").read_bytes() != fp32
    evaluate("one", params)
    register(params)
    store = state(params)
    run, (version,) = store.run("one"), store.versions
    assert run.data.tags["precision"] == version.tags["precision"] == "int8"
    assert run.data.metrics["export.speedup"] == 2.5
    assert run.data.metrics["export.accuracy_int8"] == 1.0
    card = next(downloaded(version).rglob("MODEL_CARD.md")).read_text()
    assert "computes in int8. Its validation accuracy is 1.0000 in int8 and 1.0000 in fp32" in card
    assert "int8 is 2.50 times as fast" in card


def test_a_model_that_gains_too_little_stays_fp32_and_says_so(params):
    params = replace(params, models={"one": params.models["one"]})
    folder, fp32, decision = chosen(params, "auto", (100.0, 120.0))
    assert decision.precision == "fp32"
    assert (folder / "model.onnx").read_bytes() == fp32
    assert precision("one")["speedup"] == 1.2
    decision_path(artifact_sha256(folder), state_folder()).unlink()  # as on another machine
    assert precision("one") == {"precision": "fp32", "accuracy_fp32": 1.0, "accuracy_int8": 1.0}
    assert json.loads((folder / "parity.json").read_text())["validation_accuracy"] == {
        "fp32": 1.0,
        "int8": 1.0,
    }
