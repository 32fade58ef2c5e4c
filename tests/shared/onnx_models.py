"""Writes tiny exported artifacts without Keras."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from visionpipe.artifact.canonical import with_probabilities
from visionpipe.artifact.classifier import labels_content
from visionpipe.tasks import Task
from visionpipe.tasks.single import Single

SINGLE = Single()
COLOURS = ["red", "green", "blue"]


def write_artifact(
    folder: Path,
    classes: list[str],
    size: tuple[int, int],
    weights: np.ndarray | None = None,
    task: Task = SINGLE,
) -> Path:
    """Writes the artifact of a linear model. `weights`: float (height·width·3, classes), random by default."""
    height, width = size
    if weights is None:
        weights = np.random.default_rng(0).normal(0, 0.002, (height * width * 3, len(classes)))
        weights -= weights.mean(axis=0)  # otherwise brightness alone would decide the class
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", height, width, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", weights.shape[1]])
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["images"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        ],
        "linear",
        [images],
        [logits],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    return write_files(folder, graph, classes, size, task)


def write_colours(folder: Path, size: tuple[int, int] = (48, 48)) -> Path:
    """Writes a model of COLOURS. A class's logit is the mean of how much its channel exceeds the mean of the others."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", *size, 3])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    excess = 1.5 * np.eye(3, dtype=np.float32) - 0.5
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["images", "excess"], ["signed"]),
            helper.make_node("Relu", ["signed"], ["found"]),
            helper.make_node("ReduceMean", ["found", "places"], ["mean"], keepdims=0),
            helper.make_node("Mul", ["mean", "gain"], ["logits"]),
        ],
        "colours",
        [images],
        [logits],
        [
            numpy_helper.from_array(excess, "excess"),
            numpy_helper.from_array(np.array([1, 2]), "places"),
            numpy_helper.from_array(np.float32(0.1), "gain"),
        ],
    )
    return write_files(folder, graph, COLOURS, size)


def write_files(
    folder: Path, graph: onnx.GraphProto, classes: list[str], size: tuple[int, int], task: Task = SINGLE
) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(
        with_probabilities(model.SerializeToString(), next(iter(task.outputs.values())))
    )
    (folder / "labels.json").write_text(json.dumps(labels_content(task, classes)))
    (folder / "preprocessing.json").write_text(json.dumps({"size": list(size)}))
    return folder
