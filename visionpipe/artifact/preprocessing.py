"""Puts the resizing of `frame` in front of an exported model, so that one ONNX file takes pictures of any size.

ONNX's own operation, Resize, has no Lanczos and no part of a pixel as the start of a crop, and its antialiasing differs
from Pillow's by up to 17 levels. So both passes of Pillow's resampling (ImagingResample) are written as
products of matrices, which are computed from the size of the picture: a row of a matrix has the weights of the source
pixels of one pixel of the result.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL

if TYPE_CHECKING:
    import onnx

PILLOW = int(PIL.__version__.split(".")[0])
SUPPORT = {
    "bilinear": 1.0,
    "bicubic": 2.0,
    "lanczos": 3.0,
}  # source pixels on each side, without antialiasing


def with_preprocessing(model: bytes, framing: dict[str, Any]) -> bytes:
    """Returns a model that resizes its picture and answers with probabilities; the same arguments give the same bytes.

    Its input is `image`, uint8 (height, width, 3), RGB, upright; its output `probabilities`, float32 (classes,).

    Args:
        model: a serialised ONNX model that maps `images`, float32 (batch, height, width, 3), to `probabilities`.
        framing: the keyword arguments of `frame`.
    """
    import onnx
    from onnx import TensorProto, helper

    inner = onnx.load_from_string(model)
    graph = Graph()
    images = resized(graph, "image", **framing)
    for node in inner.graph.node:
        node.input[:] = [images if name == "images" else name for name in node.input]
        node.output[:] = ["batch" if name == "probabilities" else name for name in node.output]
    graph.nodes.extend(inner.graph.node)
    first = graph.constant(np.array([0]))
    graph.nodes.append(helper.make_node("Squeeze", ["batch", first], ["probabilities"], "first"))
    classes = inner.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    result = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "visionpipe",
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["height", "width", 3])],
            [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [classes])],
            [*graph.constants, *inner.graph.initializer],
        ),
        opset_imports=list(inner.opset_import),
        ir_version=inner.ir_version,
        producer_name="visionpipe",
    )
    onnx.checker.check_model(result)
    return bytes(result.SerializeToString(deterministic=True))


class Graph:
    """Nodes and constants of an ONNX graph. Values are named in the order of their creation."""

    def __init__(self, name: str = "resizing") -> None:
        self.name = name
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node, and returns the name of its output."""
        from onnx import helper

        output = f"{self.name}_{len(self.nodes):04d}"
        self.nodes.append(helper.make_node(operation, list(inputs), [output], output, **attributes))
        return output

    def branch(self, result: str) -> "onnx.GraphProto":
        """Returns the nodes as one branch of an If, whose result is the float32 value `result`."""
        from onnx import TensorProto, helper

        output = helper.make_tensor_value_info(result, TensorProto.FLOAT, None)
        return helper.make_graph(self.nodes, self.name, [], [output], self.constants)

    def constant(self, value: Any) -> str:
        """Adds a constant, of type double unless `value` is an array, and returns its name."""
        from onnx import numpy_helper

        name = f"{self.name}_constant_{len(self.constants):04d}"
        array = value if isinstance(value, np.ndarray) else np.array(value, np.float64)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def cast(self, value: str, kind: type) -> str:
        from onnx import helper

        return self.add("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


def resized(
    graph: Graph,
    image: str,
    size: tuple[int, int],
    interpolation: str,
    crop_ratio: float,
    framing: str,
    pad_color: tuple[int, int, int],
) -> str:
    """Adds the operations of `frame`; returns the name of their result, float32 (1, height, width, 3)."""
    sides = graph.cast(graph.add("Shape", image), np.float64)
    sources = [graph.add("Gather", sides, graph.constant(np.array(axis))) for axis in (0, 1)]
    scales = [
        graph.add("Div", graph.constant(side), source) for side, source in zip(size, sources, strict=True)
    ]
    if framing != "stretch":
        scales = [graph.add("Max" if framing == "crop" else "Min", *scales)] * 2
    scales = [graph.add("Div", scale, graph.constant(crop_ratio)) for scale in scales]
    padded = framing == "pad"
    rows, columns = (
        resampled(graph, source, scale, side, interpolation, padded)
        for source, scale, side in zip(sources, scales, size, strict=True)
    )
    pixels = graph.cast(graph.add("Transpose", image, perm=[2, 0, 1]), np.float32)
    down, across = rows.weights, graph.add("Transpose", columns.weights, perm=[1, 0])
    one, other = Graph("columns_first"), Graph("rows_first")
    columns_first = whole(one, one.add("MatMul", down, whole(one, one.add("MatMul", pixels, across))))
    rows_first = whole(other, other.add("MatMul", whole(other, other.add("MatMul", down, pixels)), across))
    pixels = graph.add(
        "If",
        is_tall(graph, rows, columns),
        then_branch=other.branch(rows_first),
        else_branch=one.branch(columns_first),
    )
    if padded:
        shown = graph.add("Unsqueeze", rows.visible, graph.constant(np.array([1])))
        shown = graph.add("And", shown, columns.visible)
        color = graph.constant(np.array(pad_color, np.float32)[:, None, None])
        pixels = graph.add("Where", shown, pixels, color)
    pixels = graph.add("Transpose", pixels, perm=[1, 2, 0])
    return graph.add("Reshape", pixels, graph.constant(np.array([1, *size, 3])))


@dataclass(frozen=True)
class Resampled:
    """Names of the values of one axis: its side in the source and in the result; the weights, float32 (side of the
    result with its margins, source); and which of its pixels are no margin, bool, "" if there are no margins.
    """

    source: str
    shown: str
    weights: str
    visible: str


def is_tall(graph: Graph, rows: Resampled, columns: Resampled) -> str:
    """Adds whether the passes begin with the rows: where the height shrinks by twice as many pixels as the width.

    Pillow has done that since its version 13.
    """
    if PILLOW < 13:
        return graph.constant(np.array(False))
    fewer_rows, fewer_columns = (graph.add("Sub", axis.source, axis.shown) for axis in (rows, columns))
    twice = graph.add("Mul", fewer_columns, graph.constant(2.0))
    shrinks = graph.add("Greater", fewer_rows, graph.constant(0.0))
    return graph.add("And", shrinks, graph.add("Greater", fewer_rows, twice))


def resampled(
    graph: Graph, source: str, scale: str, side: int, interpolation: str, padded: bool
) -> Resampled:
    """Adds the resampling of one axis of `source` pixels by a scale, on a canvas of `side` pixels.

    As in Pillow, the part of the source is float32, and everything else is double.
    """
    half, one, zero = graph.constant(0.5), graph.constant(1.0), graph.constant(0.0)
    beyond = graph.add("Sub", source, graph.add("Div", graph.constant(side), scale))
    start = graph.add("Max", zero, graph.add("Mul", beyond, half))
    start32 = graph.cast(start, np.float32)
    length = graph.add("Sub", graph.cast(graph.add("Sub", source, start), np.float32), start32)
    shown = graph.add("Round", graph.add("Mul", source, scale))
    shown = graph.add("Min", graph.constant(side), graph.add("Max", one, shown))
    step = graph.add("Div", graph.cast(length, np.float64), shown)
    place = graph.constant(np.arange(side, dtype=np.float64))
    visible = ""
    if padded:
        margin = graph.add("Floor", graph.add("Mul", graph.add("Sub", graph.constant(side), shown), half))
        place = graph.add("Sub", place, margin)
        after = graph.add("GreaterOrEqual", place, zero)
        visible = graph.add("And", after, graph.add("Less", place, shown))
    begin = graph.cast(start32, np.float64)
    pixels = graph.add("Range", zero, source, one)
    axis = graph.constant(np.array([1]))
    if interpolation == "nearest":
        centre = graph.add("Unsqueeze", nearest(graph, place, begin, step, side), axis)
        weights = graph.cast(graph.add("Equal", centre, pixels), np.float32)
    else:
        centre = graph.add("Add", graph.add("Mul", graph.add("Add", place, half), step), begin)
        distance = graph.add("Sub", graph.add("Add", pixels, half), graph.add("Unsqueeze", centre, axis))
        distance = graph.add("Div", distance, graph.add("Max", step, one))
        weights = kernel(graph, graph.add("Abs", graph.cast(distance, np.float32)), interpolation)
        weights = graph.add("Div", weights, graph.add("ReduceSum", weights, axis, keepdims=1))
    if padded:  # the weights of margins may be 0 / 0
        inside = graph.add("Unsqueeze", visible, axis)
        weights = graph.add("Where", inside, weights, graph.constant(np.array(0, np.float32)))
    return Resampled(source, shown, weights, visible)


def nearest(graph: Graph, place: str, begin: str, step: str, side: int) -> str:
    """Adds the source pixel of each place, double. Pillow adds the steps up, which decides where two are as near."""
    first = graph.add("Add", begin, graph.add("Mul", step, graph.constant(0.5)))
    steps = graph.add("Expand", step, graph.constant(np.array([side - 1])))
    ways = graph.add("Concat", graph.add("Reshape", first, graph.constant(np.array([1]))), steps, axis=0)
    centres = graph.add("CumSum", ways, graph.constant(np.array(0)))
    last = graph.constant(np.float64(side - 1))
    inside = graph.add("Max", graph.constant(0.0), graph.add("Min", place, last))
    return graph.add("Floor", graph.add("Gather", centres, graph.cast(inside, np.int64)))


def kernel(graph: Graph, distance: str, interpolation: str) -> str:
    """Adds a resampling kernel of the distance, float32; a cubic one has a = −0.5, as in Pillow (Keys 1981)."""

    def number(value: float) -> str:
        return graph.constant(np.array(value, np.float32))

    if interpolation == "bilinear":
        return graph.add("Max", number(0), graph.add("Sub", number(1), distance))
    within = graph.add("Less", distance, number(SUPPORT[interpolation]))
    if interpolation == "bicubic":
        near = polynomial(graph, distance, [number(value) for value in (1.5, -2.5, 0, 1)])
        far = polynomial(graph, distance, [number(value) for value in (-0.5, 2.5, -4, 2)])
        weights = graph.add("Where", graph.add("Less", distance, number(1)), near, far)
    else:
        weights = graph.add(
            "Mul", sinc(graph, distance), sinc(graph, graph.add("Div", distance, number(SUPPORT["lanczos"])))
        )
    return graph.add("Where", within, weights, number(0))


def polynomial(graph: Graph, value: str, coefficients: list[str]) -> str:
    """Adds a polynomial by Horner's rule, from the highest power to the constant."""
    total = coefficients[0]
    for coefficient in coefficients[1:]:
        total = graph.add("Add", graph.add("Mul", total, value), coefficient)
    return total


def sinc(graph: Graph, value: str) -> str:
    """Adds sin(πx) / (πx), which is 1 at 0."""
    angle = graph.add("Mul", value, graph.constant(np.array(np.pi, np.float32)))
    ratio = graph.add("Div", graph.add("Sin", angle), angle)
    at_zero = graph.add("Equal", value, graph.constant(np.array(0, np.float32)))
    return graph.add("Where", at_zero, graph.constant(np.array(1, np.float32)), ratio)


def whole(graph: Graph, value: str) -> str:
    """Rounds to whole levels in [0, 255], a half upwards, as Pillow does after each pass."""
    half, zero, white = (graph.constant(np.array(number, np.float32)) for number in (0.5, 0, 255))
    return graph.add("Clip", graph.add("Floor", graph.add("Add", value, half)), zero, white)
