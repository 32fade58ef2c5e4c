"""Gives the layers faster operations than Keras's, where the running backend has one.

One interface: `kernel(name)` returns the running backend's implementation of an operation, or None. The fallback is
automatic: a caller that gets None computes the operation with Keras. Both results agree up to rounding, and both lie in
memory as (batch, height, width, channels).

    fused = kernel("layer_norm")
    y = fused(x, gamma, beta, epsilon) if fused else super().call(x)

OPERATIONS declares which backends implement which operation. An operation that is not declared is a KeyError, so that
a misspelt name cannot silently mean "slow".

docs/inside/acceleration.md has the checklist for adding a kernel.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import keras

# Operation → the backends that implement it.
OPERATIONS: Mapping[str, tuple[str, ...]] = {
    "adam": ("tensorflow", "torch"),
    "add": ("jax",),
    "arrange_filters": ("torch",),
    "batch_norm_inference": ("tensorflow", "torch"),
    "batch_norm_training": ("tensorflow", "torch"),
    "chain": ("tensorflow", "torch"),
    "channels_first": ("torch",),
    "channels_last": ("torch",),
    "constant": ("torch",),
    "conv2d": ("tensorflow", "torch", "jax"),
    "dense": ("torch",),
    "dense_in_parts": ("torch", "jax"),
    "gelu": ("tensorflow", "torch"),
    "gelu_tanh": ("tensorflow", "torch"),
    "layer_norm": ("tensorflow", "jax"),
    "max_pool": ("torch",),
    "softmax_product": ("jax",),
    "uniform": ("torch",),
}
BACKEND = keras.backend.backend()
MODULE = importlib.import_module(f"visionpipe.kernels.{BACKEND}")
KERNELS: Mapping[str, Callable[..., Any] | None] = {
    name: getattr(MODULE, name) if BACKEND in backends else None for name, backends in OPERATIONS.items()
}
in_use = True


def kernel(name: str) -> Callable[..., Any] | None:
    """Returns the running backend's kernel for an operation, or None where Keras's operations compute it.

    Raises:
        KeyError: OPERATIONS does not declare the operation.
    """
    implementation = KERNELS[name]
    return implementation if in_use else None


@contextmanager
def keras_operations_only() -> Iterator[None]:
    """Turns all kernels off within the block, for exporters, which know Keras's operations only."""
    global in_use
    in_use = False
    try:
        yield
    finally:
        in_use = True
