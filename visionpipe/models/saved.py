"""Loads models from `.keras` files."""

from pathlib import Path

import keras

import visionpipe.models.attention  # noqa: F401  (with layers.py, registers the layers that a file names)
from visionpipe.errors import ArtifactError


def load_model(file: Path) -> keras.Model:
    """Loads the model in a `.keras` file, without compiling it."""
    return keras.models.load_model(file, compile=False)


def load_trained(file: Path) -> keras.Model:
    """Loads the model that a training wrote to models/NAME/model.keras.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    advice = f"run dvc repro, or visionpipe train {file.parent.name} first"
    if not file.is_file():
        raise ArtifactError(f"{file} is missing: {advice}")
    try:
        return load_model(file)
    except Exception as error:  # Keras and h5py raise errors of any class for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise ArtifactError(f"{file} cannot be loaded as a model ({reason}): {advice}") from error
