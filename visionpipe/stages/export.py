"""Stage `export`: converts a trained model into the artifact that is evaluated and served."""

import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionpipe.artifact.canonical import canonical_onnx, check_parameters, with_probabilities
from visionpipe.artifact.classifier import Classifier, labels_content, preprocessing
from visionpipe.artifact.digest import WITH_PREPROCESSING, artifact_sha256
from visionpipe.artifact.preprocessing import with_preprocessing
from visionpipe.artifact.quantization import Decision, calibration_images, decision_path, quantize
from visionpipe.artifact.speed import measure
from visionpipe.data.form import model_input
from visionpipe.data.prepared import PREPARED, Prepared, open_prepared
from visionpipe.errors import ArtifactError
from visionpipe.files import write_bytes, write_json
from visionpipe.project.backend import start_backend, thread_count
from visionpipe.project.params import Params
from visionpipe.project.paths import artifact_folder, model_folder, state_folder
from visionpipe.tasks import TASKS

if TYPE_CHECKING:
    import keras

PARITY_IMAGES = 64


def export(name: str, params: Params) -> None:
    """Writes `artifacts/NAME/`: model.onnx, labels.json, preprocessing.json, parity.json.

    model.onnx has the outputs `logits` and `probabilities`.

    With `export.include_preprocessing` model-with-preprocessing.onnx too, which resizes its picture itself.

    Exports with the TensorFlow backend, whichever backend trained, because its export is exact for all families.

    Raises:
        ArtifactError: the logits of ONNX and Keras differ by more than `export.max_logit_difference`.
        ConfigError: the model is larger than an ONNX file can be.
    """
    params.model(name)
    start_backend(params, backend="tensorflow")
    from visionpipe.models.saved import load_trained

    data = open_prepared(PREPARED, verify=False)
    folder = artifact_folder(name)
    model = load_trained(model_folder(name) / "model.keras")
    images = data.images("validation")[:PARITY_IMAGES]
    expected = np.asarray(model(model_input(images)))  # Keras exports only a model that has been called
    kind, validation = TASKS[data.task], (data.images("validation"), data.labels("validation"))
    output = kind.outputs[trained_loss(name)]
    write_model(folder, with_probabilities(onnx_bytes(model, params.export.opset), output), data, params)
    write_json(folder / "labels.json", labels_content(kind.unfitted(len(data.classes)), data.classes))
    write_json(folder / "preprocessing.json", preprocessing(data.framing, data.decoding))

    received = Classifier(folder).logits(images)
    difference = float(np.abs(received - expected).max() / np.abs(expected).max())
    same = bool((received.argmax(1) == expected.argmax(1)).all())
    parity = {"images": len(images), "relative_logit_difference": difference, "same_answers": same}
    write_json(folder / "parity.json", parity | {"precision": "fp32"})
    if not difference <= params.export.max_logit_difference:  # NaN must not pass either
        raise ArtifactError(
            f"{name}: the logits of ONNX and Keras differ by {difference:.2g} of the largest logit, more than the "
            f"{params.export.max_logit_difference:g} of export.max_logit_difference: raise this limit, or try "
            f"another export.opset"
        )
    decision = choose_precision(folder, data, params) if params.export.precision != "fp32" else None
    task = kind.fitted(Classifier(folder).parts(*validation), params.export)
    write_json(folder / "labels.json", labels_content(task, data.classes))
    if decision:
        write_json(folder / "parity.json", parity | decision.accuracies())
        write_json(decision_path(artifact_sha256(folder), state_folder()), decision.measured())
        print(f"{name}: {decision}")
    size = (folder / "model.onnx").stat().st_size / 2**20
    print(f"{name}: exported, {size:.1f} MiB, logits within {difference:.1g} of Keras's")


def trained_loss(name: str) -> str:
    """Returns `train.loss` of the recipe that a model was trained with; its probabilities depend on it."""
    lineage = json.loads((model_folder(name) / "lineage.json").read_text(encoding="utf-8"))
    return lineage["params"]["train"].get("loss", "softmax")


def write_model(folder: Path, model: bytes, data: Prepared, params: Params) -> None:
    """Writes a serialised ONNX model, and once more with the resizing in front of it where that is asked for."""
    write_bytes(folder / "model.onnx", model)
    (folder / WITH_PREPROCESSING).unlink(missing_ok=True)
    if params.export.include_preprocessing:
        write_bytes(folder / WITH_PREPROCESSING, with_preprocessing(model, data.framing))


def choose_precision(folder: Path, data: Prepared, params: Params) -> Decision:
    """Quantises the model to int8, and replaces that of the artifact `folder` if int8 is chosen.

    `precision: int8` always chooses it; `auto` only if int8 is much faster and hardly less accurate. Speeds are
    measured once per artifact and CPU.
    """
    threads, state = thread_count(params), state_folder()
    task, images, labels = TASKS[data.task], data.images("validation"), data.labels("validation")
    fp32 = (folder / "model.onnx").read_bytes()
    accuracies, speeds = [], []
    with tempfile.TemporaryDirectory() as temporary:
        candidate = Path(temporary)
        for name in ("labels.json", "preprocessing.json"):
            write_bytes(candidate / name, (folder / name).read_bytes())
        int8 = quantize(fp32, calibration_images(data.images("train")))
        write_bytes(candidate / "model.onnx", int8)
        for model in (folder, candidate):
            accuracies.append(task.score_of(Classifier(model, threads).parts(images, labels)))
            speeds.append(measure(model, artifact_sha256(model), threads, state)["images_per_second"])
    decision = Decision(params.export.precision, *accuracies, *speeds)
    if decision.precision == "int8":
        write_model(folder, int8, data, params)
    return decision


def onnx_bytes(model: "keras.Model", opset: int) -> bytes:
    """Exports a model as ONNX with a dynamic batch; the same model gives the same bytes in every process.

    Raises:
        ConfigError: the model is larger than an ONNX file can be.
    """
    import onnx

    from visionpipe.kernels import keras_operations_only

    check_parameters(model.count_params())
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        raw = Path(temporary) / "model.onnx"
        warnings.simplefilter("ignore", FutureWarning)  # Keras reads np.object, which NumPy 2 warns about
        with keras_operations_only():
            model.export(raw, format="onnx", opset_version=opset, verbose=False)
        exported = onnx.load(raw)
    keep_paddings(exported.graph)
    return canonical_onnx(exported, "images", "logits")


def keep_paddings(graph: Any) -> None:
    """Prevents ONNX Runtime from fusing a Pad of zeros into the pooling after it where that would change numbers.

    The padding of max pooling is minus infinity, not zero, and a pooling cannot be padded by its window's width or
    more. A maximum with minus infinity between the two changes no number and prevents the fusion. After a ReLU this
    maximum is not needed, because zeros never win a maximum there; and one operation is faster than two.
    """
    from onnx import helper, numpy_helper

    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def origin(value: str) -> Any:
        """Returns the node that computed `value`, without transpositions."""
        node = producers.get(value)
        return origin(node.input[0]) if node and node.op_type in ("Transpose", "Identity") else node

    nodes, lowest = [], "lowest_of_padded"
    for node in graph.node:
        if node.op_type in ("MaxPool", "AveragePool"):
            pad = origin(node.input[0])
            if pad and pad.op_type == "Pad" and not fuses_rightly(pad, origin(pad.input[0]), node, constants):
                unfused = f"{node.output[0]}_unfused"
                nodes.append(helper.make_node("Max", [node.input[0], lowest], [unfused]))
                node.input[0] = unfused
        nodes.append(node)
    if len(nodes) > len(graph.node):
        graph.initializer.append(numpy_helper.from_array(np.array(-np.inf, np.float32), lowest))
        del graph.node[:]
        graph.node.extend(nodes)


def fuses_rightly(pad: Any, padded: Any, pooling: Any, constants: dict[str, np.ndarray]) -> bool:
    """Whether `pooling` gives the same numbers if ONNX Runtime fuses `pad`, which pads the output of `padded`, into it.

    An average pooling of ONNX Runtime counts the padding.
    """
    settings = {attribute.name: attribute.ints for attribute in pooling.attribute}
    widths, window = constants.get(pad.input[1]), settings["kernel_shape"]
    if widths is None or max(widths) + max(settings.get("pads", [0])) >= min(window):
        return False
    return pooling.op_type == "AveragePool" or (padded is not None and padded.op_type == "Relu")
