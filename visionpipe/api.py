"""visionpipe from Python: a project, and a model that answers.

`visionpipe.open_project` and `visionpipe.load` import this module when they are first used, so that importing
visionpipe costs nothing.
"""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from visionpipe.artifact import versions
from visionpipe.artifact.classifier import Classifier
from visionpipe.data.form import PixelFormat
from visionpipe.errors import ConfigError, ImageError, VisionpipeError
from visionpipe.project.params import Params, load_params
from visionpipe.project.paths import champion, model_folder, project_root, state_folder

if TYPE_CHECKING:
    import keras
    import pandas


def open_project(path: str | os.PathLike[str] = ".") -> "Project":
    """Opens the project in `path`, or in the nearest folder above it.

    Raises:
        ConfigError: there is no project, or its params.yaml has a mistake.
    """
    root = project_root(Path(path))
    if root is None:
        raise ConfigError(f"{path} is in no visionpipe project: make one with visionpipe init")
    project = Project(root)
    _ = project.params  # refuses a mistake now
    return project


@dataclass(frozen=True)
class Project:
    """A folder with params.yaml and dvc.yaml.

    Attributes:
        path: the folder, absolute.
    """

    path: Path

    @property
    def params(self) -> Params:
        """params.yaml as it is now."""
        with contextlib.chdir(self.path):
            return load_params()

    def run(self, stage: str | None = None) -> None:
        """Runs `dvc repro`, of the whole pipeline or as far as one stage, such as "train@vit".

        Only what changed runs. Its output goes to this process's standard output.

        Raises:
            VisionpipeError: DVC failed; its output says why.
        """
        command = [sys.executable, "-m", "dvc", "repro", *([stage] if stage else [])]
        search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # dvc.yaml calls `python`
        environment = os.environ | {"PATH": search}
        with subprocess.Popen(
            command,
            cwd=self.path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            # Printed here, because a notebook does not show what a child process prints.
            for line in process.stdout:
                print(line, end="", flush=True)
        if process.returncode != 0:
            raise VisionpipeError(f"dvc repro {stage or ''} has failed in {self.path}: see its output above")

    def results(self) -> "pandas.DataFrame":
        """Returns one row per trained model of params.yaml, as `visionpipe compare` prints it.

        The index is the model's name. Scores (accuracies, or with several labels mean average precisions) lie in
        [0, 1], with the 95 % interval of the test score; latencies are in ms, memory in MiB, training in
        minutes. NaN stands for what was not measured on this machine.
        """
        import pandas

        from visionpipe.project.backend import thread_count
        from visionpipe.tasks import TASKS
        from visionpipe.tracking.comparison import read_results

        with contextlib.chdir(self.path):
            params = load_params()
            trained = [name for name in params.models if (model_folder(name) / "lineage.json").exists()]
            rows = read_results(trained, thread_count(params), state_folder(), TASKS[params.task].score)
        return pandas.DataFrame(rows, columns=None if rows else ["model"]).set_index("model")

    def model(self, name: str) -> "keras.Model":
        """Loads the trained Keras model of an entry of `models:`, on the backend of params.yaml.

        Returns:
            A model from images (batch, height, width, channels), in [0, 255], to float32 logits (batch, classes).

        Raises:
            ArtifactError: it is not trained yet.
            BackendError: Keras runs on another backend in this process.
        """
        from visionpipe.project.backend import check_backend, choose_backend, quiet_native_logs

        with contextlib.chdir(self.path):
            params = load_params()
            params.model(name)
            check_backend(params)
            choose_backend(params.backend)
            with quiet_native_logs():
                from visionpipe.models.saved import load_trained
            return load_trained(model_folder(name) / "model.keras")

    def load(self, what: str | None = None) -> "Predictor":
        """Loads a model of this project, as `visionpipe.load` does; by default the champion."""
        with contextlib.chdir(self.path):
            return load(what)


def load(what: str | os.PathLike[str] | None = None) -> "Predictor":
    """Loads a registered model, `models:/NAME@ALIAS` or `models:/NAME/VERSION`, or an exported one from its folder.

    By default that is the champion of the project in the current folder.

    The tracking store is that of the project in the current folder, or of MLFLOW_TRACKING_URI.

    Raises:
        RegistryError, ArtifactError: there is no such model, or its files are not those that were registered.
    """
    from visionpipe.tracking.lookup import looked_up

    with looked_up(champion() if what is None else os.fspath(what)) as version:
        return Predictor(versions.load(version), version.name, version.number)


@dataclass(frozen=True)
class Prediction:
    """The answer to one image.

    Attributes:
        label: the most probable class.
        probability: its probability, in [0, 1].
        top: the `top_k` most probable classes with their probabilities, the best first.
        labels: the classes that the answer names: with `task: single` the label alone, with `task: multi` all that
            reach their thresholds, the most probable first.
    """

    label: str
    probability: float
    top: list[tuple[str, float]]
    labels: list[str]


@dataclass(frozen=True)
class Predictor:
    """A model that was verified and answers with ONNX Runtime on the CPU. Several threads may share it.

    Attributes:
        name, version: of the registered model; of a folder, its name and the start of its sha256.
    """

    classifier: Classifier
    name: str
    version: str

    @property
    def labels(self) -> list[str]:
        """The classes, in the order of the model's outputs."""
        return self.classifier.labels

    def predict(self, images: Any, top_k: int = 1) -> Any:
        """Classifies one image or several.

        Images are decoded, resized and cropped exactly as `visionpipe prepare` and `visionpipe serve` do.

        Args:
            images: a path, a PIL image, a uint8 array (height, width), (height, width, 3 or 4); or a list of such, or
                an array (n, height, width, channels). Channels are RGB, in [0, 255]. For a model of other images than
                8-bit RGB, an array is read as a .npy file is.
            top_k: how many classes each answer lists.

        Returns:
            A Prediction for one image, a list of them for several.

        Raises:
            ImageError: a file is no image, or is damaged; the message names it.
        """
        if top_k < 1:
            raise ConfigError(f"top_k: expected at least 1, received {top_k}")
        several = isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)
        answers: list[Prediction] = []
        for batch in batches(list(images) if several else [images]):
            files = [encoded(image, self.classifier.form) for image in batch]
            pixels = np.stack([self.classifier.preprocess(file) for file in files])
            for row in self.classifier.probabilities(pixels):
                best = [
                    (self.labels[place], float(row[place])) for place in (-row).argsort(kind="stable")[:top_k]
                ]
                named = [self.labels[place] for place in self.classifier.task.named(row)]
                answers.append(Prediction(*best[0], best, named))
        return answers if several else answers[0]


def batches(images: list[Any], size: int = 32) -> Iterator[list[Any]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def encoded(image: Any, form: PixelFormat) -> bytes:
    """Returns the bytes of an image file for a model of `form`: all images pass through the one decoder."""
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise ImageError("broken", f"{image} cannot be read: {error.strerror}") from None
    picture = (
        isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[2:] in ((), (3,), (4,))
    )
    if isinstance(image, np.ndarray) and not (form.is_rgb or (picture and form.channels in (1, 3))):
        file = io.BytesIO()
        np.save(file, image, allow_pickle=False)
        return file.getvalue()
    if isinstance(image, np.ndarray):
        shape = image.shape
        if image.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
            raise ImageError(
                "unsupported",
                f"an array of {image.dtype} {shape}: expected uint8 (height, width) or (height, width, 3 or 4), in "
                f"[0, 255]",
            )
        image = Image.fromarray(np.ascontiguousarray(image))
    if not isinstance(image, Image.Image):
        raise ImageError(
            "unsupported", f"a {type(image).__name__}: expected a path, a PIL image or a uint8 array"
        )
    file = io.BytesIO()
    image = (
        image.convert("RGB")
        if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F", "RGBX", "RGBa", "La")
        else image
    )
    image.save(file, "PNG", compress_level=0, exif=image.getexif())
    return file.getvalue()
