"""A pretrained checkpoint on disk: its hash, its tensors, and their format."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from visionpipe.errors import WeightsError
from visionpipe.files import sha256_file, sha256_json
from visionpipe.models.names import IMAGES, NORMALISATION
from visionpipe.weights import big_vision, google_npz, huggingface, keras_applications, kerashub, timm
from visionpipe.weights.layout import Assumed, Companions, Format, Size, Tensors
from visionpipe.weights.read import is_keras_archive, read_tensors
from visionpipe.weights.report import Preprocessing

FORMATS: tuple[Format, ...] = (
    google_npz.FORMAT,
    big_vision.FORMAT,
    *timm.FORMATS,
    *huggingface.FORMATS,
    keras_applications.FORMAT,
    *kerashub.FORMATS,
)
T = TypeVar("T")
OWN = "visionpipe .keras"
COMPANIONS = (
    "config.json", "preprocessor_config.json", "task.json", "preprocessor.json", "image_converter.json",
    "lineage.json",
)  # fmt: skip


@dataclass(frozen=True)
class PretrainedCheckpoint:
    """A file of pretrained weights, or the folder of a KerasHub preset, at `path`. `source` is what the user asked for.

    Properties raise WeightsError where the file or its companions cannot be understood.
    """

    source: str
    path: Path

    @cached_property
    def sha256(self) -> str:
        """The hash of the file; of a folder, a hash of the names and hashes of its weight files."""
        if self.path.is_dir():
            return sha256_json({file.name: sha256_file(file) for file in sorted(self.path.glob("*.h5"))})
        return sha256_file(self.path)

    @cached_property
    def companions(self) -> Companions:
        """The JSON files beside the weights that say how these were trained, by name."""
        folder = self.path if self.path.is_dir() else self.path.parent
        contents = {}
        for name in COMPANIONS:
            if (folder / name).is_file():
                try:
                    content = json.loads((folder / name).read_text(encoding="utf-8"))
                except ValueError as error:
                    raise WeightsError(f"{folder / name} is not valid JSON: {error}") from None
                if isinstance(content, dict):
                    contents[name] = content
        return contents

    @cached_property
    def _contents(self) -> tuple[Format, Tensors]:
        tensors = read_tensors(self.path)
        if self.path.is_dir():
            tensors = kerashub.with_layer_names(tensors, self.companions)
        for form in FORMATS:
            prefix = form.prefix(tensors)
            if prefix is not None:
                unpacked = form.unpack(tensors)
                return form, {name.removeprefix(prefix): array for name, array in unpacked.items()}
        sample = ", ".join(list(tensors)[:4])
        expected = "; ".join(f"{form.name} ({form.signature[-1]})" for form in FORMATS)
        raise WeightsError(
            f"{self.source}: a checkpoint of no known format: it has {len(tensors)} tensors ({sample} …), expected "
            f"the names of one of: {expected}"
        )

    @property
    def is_own(self) -> bool:
        """Whether the file is a model that this package saved."""
        return self.path.is_file() and is_keras_archive(self.path)

    @property
    def format(self) -> Format:
        """The format whose names the tensors have."""
        return self._contents[0]

    @property
    def tensors(self) -> Tensors:
        """The tensors by the names in the format's table."""
        return self._contents[1]

    @property
    def options(self) -> dict[str, Any]:
        """The options that a model needs for these weights, as the checkpoint states or its format's code assumes."""
        return {
            name: value.value if isinstance(value, Assumed) else value
            for name, value in self._options.items()
        }

    @property
    def assumed(self) -> frozenset[str]:
        """The names of the options that the checkpoint does not state."""
        return frozenset(name for name, value in self._options.items() if isinstance(value, Assumed))

    @cached_property
    def _options(self) -> dict[str, Any]:
        return self._understood(lambda: self.format.options(self.tensors, self.companions))

    @property
    def image_size(self) -> Size | None:
        """(height, width) of the images that the positions are for; None if the checkpoint does not say."""
        return self._understood(lambda: self.format.image_size(self.companions))

    @property
    def class_position(self) -> bool | None:
        """Whether the tokens before the image tokens have positions; None if the checkpoint does not say."""
        return self._understood(lambda: self.format.class_position(self.companions))

    @cached_property
    def preprocessing(self) -> Preprocessing | None:
        """How the images of the checkpoint were prepared; None if the checkpoint does not say."""
        if not self.is_own:
            return self._understood(lambda: self.format.preprocessing(self.companions))
        lineage = self.companions.get("lineage.json", {})
        prepared = lineage["params"]["prepare"] if lineage.get("model_sha256") == self.sha256 else {}
        return own_preprocessing(self.path, prepared)

    def _understood(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            names = ", ".join(self.companions) or "its tensors"
            raise WeightsError(
                f"{self.source}: {names} cannot be understood ({type(error).__name__}: {error})"
            ) from error


def own_preprocessing(path: Path, prepared: dict[str, Any]) -> Preprocessing | None:
    """Returns how images are prepared for a model that this package saved; None if the file is damaged.

    The normalisation and the size are read from the `.keras` file without Keras. `prepared` is the section `prepare:`
    of the model's lineage, which says how its images were resized; it may be empty.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
        layers = config["config"]["layers"]
        rescaling = next(layer["config"] for layer in layers if layer["name"] == NORMALISATION)
        size = next(tuple(layer["config"]["batch_shape"][1:3]) for layer in layers if layer["name"] == IMAGES)
    except (zipfile.BadZipFile, ValueError, LookupError, TypeError, StopIteration):
        return None
    scale, offset = np.asarray(rescaling["scale"]), np.asarray(rescaling["offset"])
    return Preprocessing(
        mean=tuple(float(value) for value in -offset / scale),
        std=tuple(float(value) for value in 1 / scale),
        interpolation=prepared.get("interpolation"),
        crop_ratio=prepared.get("crop_ratio"),
        size=size,
    )
