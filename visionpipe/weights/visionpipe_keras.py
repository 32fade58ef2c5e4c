"""`model.keras` files that this package trained, loaded at any image size."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionpipe.errors import ConfigError, WeightsError
from visionpipe.models.names import NORMALISATION, TOKENS
from visionpipe.models.variants import shown
from visionpipe.weights.layout import FormatRow, Tensors, same
from visionpipe.weights.read import first_line

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class OwnModel:
    """A model that this package trained, resized to the requested image size.

    `tensors` are its variables by path. `resized` maps the variables whose shape changed to a description.
    """

    model: "keras.Model"
    tensors: Tensors
    resized: dict[str, str]

    @property
    def rows(self) -> Iterator[FormatRow]:
        """The table of the format: every variable is made of the tensor with the same name."""
        return (FormatRow(path, (path,), same) for path in self.tensors)


def open_own(path: Path, image_size: tuple[int, int]) -> OwnModel:
    """Loads a model that this package trained, and resizes it to `image_size`, (height, width).

    Raises:
        WeightsError: the file is damaged or no model of this package, or the model cannot have this image size.
    """
    from visionpipe.models.saved import load_model
    from visionpipe.models.surgery import with_image_size

    try:
        model = load_model(path)
    except Exception as error:  # Keras raises errors of any class
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
    return OwnModel(resized, tensors, changes)


# Settings of layers that change no prediction, or that follow from the shapes of the weights.
SILENT = re.compile(
    r"name|dtype|trainable|seed|stddev|initial|momentum|sincos_grid|batch_shape|units|.*_(initializer|regularizer|"
    r"constraint)"
)


def layer_differences(stored: "keras.Model", model: "keras.Model") -> dict[str, str]:
    """Compares the settings of the layers of two models with the same weights.

    Returns a description of the difference, by layer, for layers with different settings and for layers that only one
    of the models has.
    """
    import keras

    from visionpipe.models.layers import StochasticDepth

    channels_agree = stored.input.shape[-1] == model.input.shape[-1]

    def settings(of: "keras.Model") -> dict[str, dict[str, Any]]:
        predicting = (x for x in of.layers if not isinstance(x, keras.layers.Dropout | StochasticDepth))
        # The normalisation of other channels is compared as an option.
        return {
            layer.name: {key: value for key, value in layer.get_config().items() if not SILENT.fullmatch(key)}
            for layer in predicting
            if channels_agree or layer.name != NORMALISATION
        }

    theirs, ours = settings(stored), settings(model)
    differing = {}
    for name in sorted(theirs.keys() ^ ours.keys()):
        differing[name] = f"{'a' if name in theirs else 'no'} layer {name}, unlike the model"
    for name in sorted(theirs.keys() & ours.keys()):
        for key in sorted(theirs[name].keys() | ours[name].keys()):
            wanted, built = theirs[name].get(key), ours[name].get(key)
            if json.dumps(wanted, default=str) != json.dumps(built, default=str):
                differing[name] = f"{key} {shown(wanted)} in {name}, the model has {shown(built)}"
    return differing


def copy_fixed_positions(own: OwnModel, model: "keras.Model") -> None:
    """Gives `model` the fixed positions of a resized model, which lie between those of the stored model."""
    layers = {layer.name: layer for layer in own.model.layers}
    if TOKENS in layers and layers[TOKENS].sincos_grid:
        tokens = model.get_layer(TOKENS)
        tokens.span(tokens.output.shape[-1], layers[TOKENS].sincos_grid)


def arrays(model: "keras.Model") -> dict[str, np.ndarray]:
    """Returns the variables of a model by path, without the states of random generators."""
    import keras

    return {
        variable.path: keras.ops.convert_to_numpy(variable)
        for variable in model.variables
        if "seed_generator" not in variable.path
    }
