"""Writes model files in a canonical form: the same model always gives the same bytes.

Keras and the ONNX exporter write something different at every call: dates, memory addresses as
`shared_object_id`, and names and node orders that come from hash tables. This module removes these differences.
"""

import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visionpipe.errors import ArtifactError, ConfigError
from visionpipe.files import write_bytes

if TYPE_CHECKING:
    import keras
    import onnx

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
# The most float32 parameters in an ONNX file: Protobuf allows 2 GiB, and the graph without weights needs under 16 MiB.
MOST_PARAMETERS = (2**31 - 2**24) // 4


def check_parameters(count: int) -> None:
    """Raises ConfigError if a model of `count` parameters is too large to be exported."""
    if count > MOST_PARAMETERS:
        raise ConfigError(
            f"a model of {count:,} parameters, {count * 4 / 2**30:.1f} GiB, cannot be exported: an ONNX file holds at "
            f"most 2 GiB; choose a smaller variant"
        )


def save_keras(model: "keras.Model", path: Path) -> None:
    """Writes the model, without optimizer and loss, as a canonical `.keras` file."""
    import keras

    # A new, uncompiled model of the same layers: the file of a compiled model holds the optimizer's state, and
    # names an optimizer class of the backend, so that no other backend could train it.
    inference = keras.Model(model.input, model.output, name=model.name)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "model.keras"
        inference.save(raw)
        write_bytes(path, canonical_keras(raw.read_bytes()))


def canonical_keras(content: bytes) -> bytes:
    """Rewrites a `.keras` archive with fixed dates, sorted members and renumbered shared objects."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source, zipfile.ZipFile(result, "w") as target:
        for name in sorted(source.namelist()):
            member = source.read(name)
            if name == "metadata.json":
                metadata = json.loads(member)
                metadata.pop("date_saved", None)
                member = json.dumps(metadata, sort_keys=True).encode()
            elif name == "config.json":
                member = json.dumps(renumber(json.loads(member), {}), sort_keys=True).encode()
            target.writestr(zipfile.ZipInfo(name, ZIP_EPOCH), member)
    return result.getvalue()


def renumber(node: Any, seen: dict[int, int]) -> Any:
    """Replaces every `shared_object_id`, a memory address, by its order of appearance in the JSON value `node`.

    Layers that share an object still share it. `seen`: address → number; the function adds new addresses.
    """
    if isinstance(node, list):
        return [renumber(item, seen) for item in node]
    if isinstance(node, dict):
        return {
            key: seen.setdefault(value, len(seen)) if key == "shared_object_id" else renumber(value, seen)
            for key, value in node.items()
        }
    return node


def with_probabilities(model: bytes, output: str) -> bytes:
    """Adds the output `probabilities` to a serialised ONNX model; the same arguments give the same bytes.

    Args:
        model: its only output is `logits`, float32 (batch, classes).
        output: how probabilities follow from logits: "softmax", so that they sum to one, or "sigmoid", each by itself.
    """
    import onnx
    from onnx import helper

    operations: dict[str, tuple[str, dict[str, int]]] = {
        "softmax": ("Softmax", {"axis": -1}),
        "sigmoid": ("Sigmoid", {}),
    }
    operation, attributes = operations[output]
    parsed = onnx.load_from_string(model)
    parsed.graph.node.append(
        helper.make_node(operation, ["logits"], ["probabilities"], "probabilities", **attributes)
    )
    probabilities = parsed.graph.output.add()
    probabilities.CopyFrom(parsed.graph.output[0])
    probabilities.name = "probabilities"
    onnx.checker.check_model(parsed)
    return bytes(parsed.SerializeToString(deterministic=True))


def canonical_onnx(model: "onnx.ModelProto", input_name: str, *output_names: str) -> bytes:
    """Serialises an ONNX model with names and a node order that depend on its graph alone.

    Nodes are ordered by a depth-first walk from each output back to the input, and values are numbered in that order.
    Input and outputs get the names `input_name` and `output_names`. Raises ArtifactError unless the model has one input
    and as many outputs as names.
    """
    import onnx

    graph = model.graph
    if len(graph.input) != 1 or len(graph.output) != len(output_names):
        raise ArtifactError(
            f"expected an ONNX graph with one input and the outputs {', '.join(output_names)}, received "
            f"{len(graph.input)} and {len(graph.output)}"
        )
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = [output.name for output in graph.output]
    names = {graph.input[0].name: input_name, **dict(zip(outputs, output_names, strict=True))}
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    stack: list[tuple[str, bool]] = [(output, False) for output in reversed(outputs)]
    placed: set[str] = set()
    while stack:
        value, inputs_done = stack.pop()
        if value in constants:
            if value not in placed:
                names[value] = f"constant_{len(initializers):04d}"
                initializers.append(constants[value])
                placed.add(value)
        elif value in producers:
            node = producers[value]
            if node.output[0] in placed:
                continue
            if inputs_done:
                nodes.append(node)
                placed.add(node.output[0])
                for position, output in enumerate(node.output):
                    names.setdefault(output, f"value_{len(nodes):04d}_{position}")
            else:
                stack.append((value, True))
                stack.extend((name, False) for name in reversed(node.input))
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type}_{number:04d}"
        node.doc_string = ""
        node.input[:] = [names[name] if name else "" for name in node.input]
        node.output[:] = [names[name] if name else "" for name in node.output]
        attributes = sorted(node.attribute, key=lambda attribute: attribute.name)
        del node.attribute[:]
        node.attribute.extend(attributes)
    for tensor in initializers:
        tensor.name = names[tensor.name]
        tensor.doc_string = ""
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    result = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "visionpipe", list(graph.input), list(graph.output), initializers),
        opset_imports=[opset for opset in model.opset_import if opset.domain == ""],
        ir_version=model.ir_version,
        producer_name="visionpipe",
    )
    onnx.checker.check_model(result)
    return bytes(result.SerializeToString(deterministic=True))
