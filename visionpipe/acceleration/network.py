"""A Keras model that calls its layers directly on torch and TensorFlow."""

import inspect
from functools import cached_property
from typing import Any, NamedTuple

import keras
from keras.src.backend.common.stateless_scope import in_stateless_scope

from visionpipe.acceleration.chains import Chain, chained
from visionpipe.kernels import kernel


class Step(NamedTuple):
    """One call of a layer.

    `arguments` hold symbolic tensors in place of values. `results` are the ids of the symbolic tensors that the call
    returns, and `last_used` of those that no later step reads.
    """

    operation: Any
    arguments: Any
    direct: bool
    takes_training: bool
    results: list[int]
    last_used: list[int]


@keras.saving.register_keras_serializable("visionpipe")
class Network(keras.Model):
    """Computes what `keras.Model(inputs, outputs)` computes, faster on torch and TensorFlow.

    Results agree up to rounding, except that in inference a fused ReLU turns a NaN into 0 (see chains.py). Masks are
    not passed on.

    torch computes each layer as soon as it is called. Around each call Keras spends 0.2 ms on binding arguments, on
    scopes, and on shape checks that were already made when the model was built; meanwhile torch's other threads fall
    asleep. Here the `call` methods of the layers follow each other directly, and each tensor is freed after its last
    use. On both backends a convolution is fused with the layers that follow it (chains.py).
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.steps  # noqa: B018  (computed here, so that torch.compile does not trace how)

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        if kernel("chain") is None or in_stateless_scope():  # in such a scope kernels would change variables
            return super().call(inputs, training=training, mask=mask)
        inputs = self._standardize_inputs(inputs)
        values = {id(symbol): value for symbol, value in zip(self.inputs, inputs, strict=True)}
        del inputs
        for operation, arguments, direct, takes_training, results, last_used in self.steps:
            positional = [filled(argument, values) for argument in arguments.args]
            named = {name: filled(argument, values) for name, argument in arguments.kwargs.items()}
            if takes_training and (training is not None or "training" not in named):
                named["training"] = training
            # Keras computes a quantized layer with another method than `call`.
            direct = direct and operation.quantization_mode is None
            outcome = (operation.call if direct else operation)(*positional, **named)
            several = isinstance(outcome, list | tuple | dict)
            values.update(zip(results, keras.tree.flatten(outcome) if several else [outcome], strict=True))
            del positional, named, outcome
            for symbol in last_used:
                del values[symbol]
        outputs = [values[id(symbol)] for symbol in self.outputs]
        packed = keras.tree.pack_sequence_as(self.output, outputs)
        return packed[0] if isinstance(packed, list | tuple) and len(packed) == 1 else packed

    @cached_property
    def steps(self) -> list[Step]:
        """The calls that compute the graph, in order."""
        nodes = [
            node
            for depth in sorted(self._nodes_by_depth, reverse=True)
            for node in self._nodes_by_depth[depth]
            if not node.is_input
        ]
        nodes = chained(nodes, self.outputs, self.is_direct)
        last_use = {id(symbol): number for number, node in enumerate(nodes) for symbol in node.input_tensors}
        outputs = {id(symbol) for symbol in self.outputs}
        last_used: list[list[int]] = [[] for _ in nodes]
        for symbol, number in last_use.items():
            last_used[number] += [] if symbol in outputs else [symbol]
        return [
            Step(
                node.operation,
                node.arguments,
                self.is_direct(node),
                "training" in inspect.signature(node.operation.call).parameters,
                [id(symbol) for symbol in node.outputs],
                last_used[number],
            )
            for number, node in enumerate(nodes)
        ]

    def is_direct(self, node: Any) -> bool:
        """Whether a node's layer can be called directly, because Keras's `__call__` would change nothing.

        `__call__` casts the inputs of a layer of another precision, and collects penalties on outputs.
        """
        layer = node.operation
        if isinstance(layer, Chain):
            return True
        return (
            isinstance(layer, keras.layers.Layer)
            and layer.activity_regularizer is None
            and {layer.compute_dtype, *(symbol.dtype for symbol in node.input_tensors)}
            == {self.compute_dtype}
        )


def filled(argument: Any, values: dict[int, Any]) -> Any:
    """Returns `argument` with values in place of its symbolic tensors; `values` maps their ids to values."""
    if isinstance(argument, keras.KerasTensor):
        return values[id(argument)]
    if isinstance(argument, list | tuple):
        return type(argument)([filled(item, values) for item in argument])
    if isinstance(argument, dict):
        return {key: filled(item, values) for key, item in argument.items()}
    return argument


def accelerate(model: keras.Model) -> Network:
    """Returns a model with the same layers and variables that calls its layers directly."""
    return Network(model.input, model.output, name=model.name)
