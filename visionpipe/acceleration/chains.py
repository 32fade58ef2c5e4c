"""A convolution with what follows upon it alone, for a backend that computes all of it at once.

oneDNN's convolutions with a ReLU, as TensorFlow and torch have them for inference, make 0 of a NaN: what diverged shows
in training's loss and in the head, which has no ReLU.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import keras

from visionpipe.kernels import kernel
from visionpipe.models.layers import Add, BatchNorm, Conv2D


class Chain:
    """A convolution and, where they follow, a batch norm, a sum with another tensor and a ReLU.

    It has a graph node's `operation` (itself), `arguments`, `input_tensors` and `outputs`.
    """

    quantization_mode = None  # as a layer has it: Keras quantizes no convolution

    def __init__(self, links: Sequence[Any]):
        """`links`: the nodes of these layers, in their order."""
        layers = [node.operation for node in links]
        inner = {id(symbol) for node in links for symbol in node.outputs}
        self.conv = layers[0]
        self.norm = next((layer for layer in layers if isinstance(layer, BatchNorm)), None)
        self.relu = isinstance(layers[-1], keras.layers.ReLU)
        self.operation, self.outputs = self, links[-1].outputs
        self.input_tensors = [s for node in links for s in node.input_tensors if id(s) not in inner]
        self.arguments = SimpleNamespace(args=self.input_tensors, kwargs={})
        self.between: set[int] = set()  # ids of the symbols that only chains give and read

    def call(self, *inputs: Any, training: bool | None = None) -> Any:
        """`inputs`: what the convolution reads and what is added, (batch, height, width, channels); between chains
        the channels come first where the backend wants them so.
        """
        compute, enter, leave = kernel("chain"), kernel("channels_first"), kernel("channels_last")
        assert compute is not None
        if enter:
            symbols = zip(inputs, self.input_tensors, strict=True)
            inputs = tuple(x if id(symbol) in self.between else enter(x) for x, symbol in symbols)
        y = compute(self.conv, self.norm, self.relu, *inputs, training=training)
        return leave(y) if leave and id(self.outputs[0]) not in self.between else y


def chained(nodes: Sequence[Any], outputs: Sequence[Any], plain: Callable[[Any], bool]) -> list[Any]:
    """`nodes`, in their order, with each Chain where the last of its own stood.

    `outputs` are the symbolic tensors that the graph gives; only `plain` nodes are taken together.
    """
    read = [symbol for node in nodes for symbol in node.input_tensors]
    uses = Counter(map(id, [*read, *outputs]))
    reader = {id(symbol): node for node in nodes for symbol in node.input_tensors}
    calls = Counter(id(node.operation) for node in nodes)
    chains: dict[int, Chain] = {}  # by their last node
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
            # A sum goes with the last of its convolutions, whatever the nodes' order, which a file does not keep.
            alone = symbol is follower.input_tensors[-1] and calls[id(follower.operation)] == 1
            if alone and is_next(follower) and plain(follower):
                links.append(follower)
        if len(links) > 1:
            chains[id(links[-1])] = Chain(links)
            linked.update(map(id, links))
    result = [chains.get(id(node), node) for node in nodes if id(node) in chains or id(node) not in linked]
    seen = {id(s) for node in result if not isinstance(node, Chain) for s in node.input_tensors}
    seen.update(map(id, outputs))
    between = {id(s) for chain in chains.values() for s in chain.outputs} - seen
    for chain in chains.values():
        chain.between = between
    return result


def is_convolution(node: Any) -> bool:
    """Not one that a bias or an activation of its own follows."""
    layer = node.operation
    return type(layer) is Conv2D and not layer.use_bias and layer.activation is keras.activations.linear


def is_norm(node: Any) -> bool:
    return type(node.operation) is BatchNorm and node.arguments.kwargs.get("training") is None


def is_sum(node: Any) -> bool:
    """Of two tensors of one shape."""
    shapes = [symbol.shape for symbol in node.input_tensors]
    known = len(shapes) == 2 and shapes[0] == shapes[1] and None not in shapes[0][1:]
    return known and type(node.operation) in (Add, keras.layers.Add)


def is_relu(node: Any) -> bool:
    layer = node.operation
    if type(layer) is not keras.layers.ReLU:
        return False
    return (layer.max_value, layer.negative_slope, layer.threshold) == (None, 0, 0)
