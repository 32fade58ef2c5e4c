"""Models that this package trained: `model.keras` files of its own layers, at any image size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from visionpipe.errors import ConfigError, WeightsError
from visionpipe.weights.layout import Row, Tensors, same
from visionpipe.weights.read import first_line

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Own:
    """`model`: at the size asked for; `resized`: variables whose shape that changed, with how."""

    model: "keras.Model"
    tensors: Tensors
    resized: dict[str, str]

    @property
    def rows(self) -> Iterator[Row]:
        """Every variable is its own tensor."""
        return (Row(path, (path,), same) for path in self.tensors)


def open_own(path: Path, image_size: tuple[int, int]) -> Own:
    """Raises WeightsError where the file is damaged, or no model of this package."""
    from visionpipe.models.network import load_network
    from visionpipe.models.surgery import with_image_size

    try:
        model = load_network(path)
    except Exception as error:  # Keras has one kind for every fault
        raise WeightsError(f"{path} cannot be loaded as a model: {first_line(error)}") from error
    stored = arrays(model)
    try:
        same_size = model.input.shape[1:3] == image_size
        resized = model if same_size else with_image_size(model, image_size)
    except (ConfigError, ValueError) as error:
        raise WeightsError(f"{path}: {first_line(error)}") from error
    tensors = arrays(resized)
    changes = {
        name: f"{stored[name].shape} → {array.shape}, linear"
        for name, array in tensors.items()
        if name in stored and stored[name].shape != array.shape
    }
    return Own(resized, tensors, changes)


def arrays(model: "keras.Model") -> dict[str, np.ndarray]:
    import keras

    return {
        variable.path: keras.ops.convert_to_numpy(variable)
        for variable in model.variables
        if "seed_generator" not in variable.path
    }
