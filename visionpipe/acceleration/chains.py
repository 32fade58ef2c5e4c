"""Fuses a convolution with the norm, sum and ReLU that follow it, if no other layer reads the tensors in between.

In inference TensorFlow and torch use oneDNN's convolutions with a fused ReLU, which turn a NaN into 0. A model that
diverged still shows: in the training loss, and in the logits, because the head has no ReLU.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import keras

from visionpipe.kernels import kernel
from visionpipe.models.layers import Add, BatchNorm, Conv2D


class Chain:
    """Computes a convolution and the batch norm, the sum with another tensor and the ReLU that follow it, if any.

    A chain takes the place of nodes of a Keras graph. Like a node it has an `operation` (itself), `arguments`,
    `input_tensors` and `outputs`.
    """

    quantization_mode = None  # an attribute of every layer; Keras quantizes no convolution

    def __init__(self, links: Sequence[Any]):
        """Fuses `links`, the graph nodes of the layers, in the order of computation."""
        layers = [node.operation for node in links]
        inner = {id(symbol) for node in links for symbol in node.outputs}
        self.conv = layers[0]
        self.norm = next((layer for layer in layers if isinstance(layer, BatchNorm)), None)
        self.relu = isinstance(layers[-1], keras.layers.ReLU)
        self.operation, self.outputs = self, links[-1].outputs
        self.input_tensors = [s for node in links for s in node.input_tensors if id(s) not in inner]
        self.arguments = SimpleNamespace(args=self.input_tensors, kwargs={})
        self.between: set[int] = set()  # ids of the symbolic tensors that only chains write and read

    def call(self, *inputs: Any, training: bool | None = None) -> Any:
        """Computes the chain from the convolution's input and, if the chain has a sum, the tensor to add.

        Tensors are (batch, height, width, channels). Between two chains they are (batch, channels, height, width) on
        a backend that prefers it.
        """
        compute, enter, leave = kernel("chain"), kernel("channels_first"), kernel("channels_last")
        assert compute is not None
        if enter:
            symbols = zip(inputs, self.input_tensors, strict=True)
            inputs = tuple(x if id(symbol) in self.between else enter(x) for x, symbol in symbols)
        y = compute(self.conv, self.norm, self.relu, *inputs, training=training)
        return leave(y) if leave and id(self.outputs[0]) not in self.between else y


def chained(nodes: Sequence[Any], outputs: Sequence[Any], plain: Callable[[Any], bool]) -> list[Any]:
    """Returns `nodes` in their order, with each chain in place of the last node that it fuses.

    Args:
        nodes: the nodes of a Keras graph, in the order of computation.
        outputs: the symbolic tensors that the graph returns.
        plain: whether a node may be fused.
    """
    read = [symbol for node in nodes for symbol in node.input_tensors]
    uses = Counter(map(id, [*read, *outputs]))
    reader = {id(symbol): node for node in nodes for symbol in node.input_tensors}
    calls = Counter(id(node.operation) for node in nodes)
    chains: dict[int, Chain] = {}  # id of the last node → chain
    linked: set[int] = set()
    for node in nodes:
        if not (is_convolution(node) and plain(node)):
            continue
        links = [node]
        for is_next in (is_norm, is_sum, is_relu):
            (symbol,) = links[-1].outputs
            if uses[id(symbol)] != 1 or id(symbol) not in reader:
                continue
            follower = reader[id(symbol)]
            # A sum joins the chain of its last input. The order of the nodes must not decide, because a file does
            # not preserve it.
            last_input = symbol is follower.input_tensors[-1] and calls[id(follower.operation)] == 1
            if last_input and is_next(follower) and plain(follower):
                links.append(follower)
        if len(links) > 1:
            chains[id(links[-1])] = Chain(links)
            linked.update(map(id, links))
    result = [chains.get(id(node), node) for node in nodes if id(node) in chains or id(node) not in linked]
    read_elsewhere = {id(s) for node in result if not isinstance(node, Chain) for s in node.input_tensors}
    read_elsewhere.update(map(id, outputs))
    between = {id(s) for chain in chains.values() for s in chain.outputs} - read_elsewhere
    for chain in chains.values():
        chain.between = between
    return result


def is_convolution(node: Any) -> bool:
    """Whether a node is a convolution without a bias or an activation."""
    layer = node.operation
    return type(layer) is Conv2D and not layer.use_bias and layer.activation is keras.activations.linear


def is_norm(node: Any) -> bool:
    """Whether a node is a batch norm that follows the model's training mode."""
    return type(node.operation) is BatchNorm and node.arguments.kwargs.get("training") is None


def is_sum(node: Any) -> bool:
    """Whether a node adds two tensors of the same known shape."""
    shapes = [symbol.shape for symbol in node.input_tensors]
    known = len(shapes) == 2 and shapes[0] == shapes[1] and None not in shapes[0][1:]
    return known and type(node.operation) in (Add, keras.layers.Add)


def is_relu(node: Any) -> bool:
    """Whether a node is a plain ReLU, without a maximum, a slope or a threshold."""
    layer = node.operation
    if type(layer) is not keras.layers.ReLU:
        return False
    return (layer.max_value, layer.negative_slope, layer.threshold) == (None, 0, 0)
