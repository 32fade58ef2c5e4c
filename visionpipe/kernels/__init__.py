"""Kernels of one backend each, where measurement asks for them (docs/results/training.md).

Each computes what the layer that calls it would compute with Keras's own operations, on the same memory
layout (batch, height, width, channels). A module holds those of its backend; where it has none, Keras's
operations run.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

BACKEND = importlib.import_module(f"visionpipe.kernels.{keras.backend.backend()}")
in_use = True


def kernel(name: str) -> Callable[..., Any] | None:
    """The running backend's kernel of this name, or None where Keras's operations do."""
    return getattr(BACKEND, name, None) if in_use else None


def uniform(shape: tuple[Any, ...], seed: keras.random.SeedGenerator) -> Any:
    """Numbers in [0, 1), as Keras draws them; torch.compile cannot follow the generator that Keras makes for each."""
    if keras.backend.backend() == "torch" and BACKEND.torch.compiler.is_compiling():
        return BACKEND.drawn_by_torch(shape)
    return keras.random.uniform(shape, seed=seed)


@contextmanager
def keras_operations_only() -> Iterator[None]:
    """For what is built inside: an exporter knows the operations of Keras, not ours."""
    global in_use
    in_use = False
    try:
        yield
    finally:
        in_use = True
