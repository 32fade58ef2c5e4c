"""Models that this package trained: `model.keras` files of its own layers, at any image size."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionpipe.errors import ConfigError, WeightsError
from visionpipe.models.variants import shown
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
    from visionpipe.models.saved import load_model
    from visionpipe.models.surgery import with_image_size

    try:
        model = load_model(path)
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


# Settings of layers that change no answer, or that their weights show.
SILENT = re.compile(
    r"name|dtype|trainable|seed|stddev|initial|momentum|sincos_grid|batch_shape|units|.*_(initializer|regularizer|"
    r"constraint)"
)


def layer_differences(stored: "keras.Model", model: "keras.Model") -> dict[str, str]:
    """Layers of two models with the same weights that have other settings, or that only one of them has, by name."""
    import keras

    from visionpipe.models.layers import StochasticDepth

    def settings(of: "keras.Model") -> dict[str, dict[str, Any]]:
        answering = (x for x in of.layers if not isinstance(x, keras.layers.Dropout | StochasticDepth))
        return {
            layer.name: {key: value for key, value in layer.get_config().items() if not SILENT.fullmatch(key)}
            for layer in answering
        }

    theirs, ours = settings(stored), settings(model)
    said = {}
    for name in sorted(theirs.keys() ^ ours.keys()):
        said[name] = f"{'a' if name in theirs else 'no'} layer {name}, unlike the model"
    for name in sorted(theirs.keys() & ours.keys()):
        for key in sorted(theirs[name].keys() | ours[name].keys()):
            wanted, built = theirs[name].get(key), ours[name].get(key)
            if json.dumps(wanted, default=str) != json.dumps(built, default=str):
                said[name] = f"{key} {shown(wanted)} in {name}, the model has {shown(built)}"
    return said


def place_sines(own: Own, model: "keras.Model") -> None:
    """Fixed positions lie between those that the stored model knew, as `with_image_size` has them."""
    layers = {layer.name: layer for layer in own.model.layers}
    if "tokens" in layers and layers["tokens"].sincos_grid:
        tokens = model.get_layer("tokens")
        tokens.span(tokens.output.shape[-1], layers["tokens"].sincos_grid)


def arrays(model: "keras.Model") -> dict[str, np.ndarray]:
    import keras

    return {
        variable.path: keras.ops.convert_to_numpy(variable)
        for variable in model.variables
        if "seed_generator" not in variable.path
    }
