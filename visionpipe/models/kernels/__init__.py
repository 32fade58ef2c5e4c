"""Kernels of one backend each, where measurement asks for them (docs/performance.md).

Each computes what the layer that calls it would compute with Keras's own operations, on the same memory
layout (batch, height, width, channels). A module holds those of its backend; where it has none, Keras's
operations run.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras

in_use = ContextVar("in_use", default=True)


def kernel(name: str) -> Callable[..., Any] | None:
    """The running backend's kernel of this name, or None where Keras's operations do."""
    if not in_use.get():
        return None
    module = importlib.import_module(f"visionpipe.models.kernels.{keras.backend.backend()}")
    return getattr(module, name, None)


@contextmanager
def keras_operations_only() -> Iterator[None]:
    """For what is built inside: an exporter knows the operations of Keras, not ours."""
    token = in_use.set(False)
    try:
        yield
    finally:
        in_use.reset(token)
