"""Runs an exported model. Evaluation, the MLflow model and the server all predict with this class."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from visionpipe.data.deep import decode_pixels
from visionpipe.data.form import PixelFormat, model_input
from visionpipe.data.frame import RESAMPLING, frame
from visionpipe.data.headers import MAX_PIXELS, PADDING
from visionpipe.errors import ArtifactError
from visionpipe.tasks import TASKS, Task

LOGITS, PROBABILITIES = "logits", "probabilities"  # the outputs of model.onnx; older files lack the second
DEFAULTS: dict[str, Any] = {
    "interpolation": "bicubic",
    "crop_ratio": 1.0,
    "framing": "crop",
    "pad_color": PADDING,
    "levels": None,
    "channels": 3,
    "depth": 8,
    "reduced_to": None,
}
ALWAYS = ("size", "interpolation", "crop_ratio")  # the keys of preprocessing.json that older versions know
LABELS_VERSION = (
    2  # of labels.json; version 1 was a list of class names, and its models were served through softmax
)
BATCH = 32  # images per run: larger batches need more memory and are no faster on a CPU


class Classifier:
    """An exported model, loaded from its artifact folder and run by ONNX Runtime on the CPU.

    A classifier does not change after construction, so several threads may share it.

    Args:
        folder: holds `model.onnx`, `labels.json` and `preprocessing.json`.
        threads: number of threads of one prediction; None means the number of physical cores.
        spinning: whether threads without work spin, which is the fastest but occupies the cores: "always", "within" a
            prediction only, or "never".

    Attributes:
        task: what the model is asked, and the form of its answers.
        labels: class names in the order of the logits.
        size: (height, width) in pixels of the model's input.
        framing: the keyword arguments of `frame`, `size` among them.
        decoding: `levels`, `channels`, `depth` and `reduced_to`, the arguments of the PixelFormat `form`.

    Raises:
        ArtifactError: a file is missing or damaged, or the files contradict each other.
    """

    def __init__(self, folder: Path, threads: int | None = None, spinning: str = "always"):
        self._arguments = (folder, threads, spinning)
        self.task, self.labels = read_labels(folder)
        self.framing, self.decoding = read_preprocessing(folder)
        self.form = PixelFormat(**self.decoding)
        self.size: tuple[int, int] = self.framing["size"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning != "never")))
        options.add_session_config_entry("session.force_spinning_stop", str(int(spinning == "within")))
        model = read_bytes(folder / "model.onnx")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            self._has_probabilities = PROBABILITIES in {output.name for output in self._session.get_outputs()}
            outputs = self.logits(self.noise(1)).shape[1]
        except Exception as error:  # ONNX Runtime's exceptions have no base class of their own
            raise ArtifactError(
                f"{folder / 'model.onnx'} does not run: {' '.join(str(error).split())}"
            ) from error
        if outputs != len(self.labels):
            raise ArtifactError(f"{folder}: model.onnx has {outputs} classes, labels.json {len(self.labels)}")

    def __reduce__(self) -> tuple[type["Classifier"], tuple[Any, ...]]:
        """Pickles only the arguments, so that another process loads the model from its folder."""
        return Classifier, self._arguments

    def preprocess(self, data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
        """Decodes and resizes an image file to the model's input; raises ImageError.

        Returns uint8 or uint16 (height, width, channels), as `form` says.
        """
        return frame(decode_pixels(data, self.form, max_pixels), **self.framing)

    def noise(self, count: int) -> np.ndarray:
        """Returns `count` images of noise, of the model's size and `form`, which are the same in every process."""
        shape = (count, *self.size, self.form.channels)
        return np.random.default_rng(0).integers(0, self.form.most + 1, shape, self.form.dtype)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Computes float32 logits (n, classes) of `images` (n, height, width, channels), n ≥ 1.

        Images are uint16 in [0, 65535], or of any other real dtype in [0, 255].
        """
        return self._run(LOGITS, images)

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """Computes the probabilities of the classes, float64 (n, classes), of `images` as `logits` takes them.

        The model says how: by softmax, so that they sum to one, or each class by itself.
        """
        if self._has_probabilities:
            return self._run(PROBABILITIES, images).astype(np.float64)
        logits = self.logits(images).astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    def parts(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields probabilities and labels batch by batch, because those of all images may not fit into memory."""
        for start in range(0, len(images), BATCH):
            yield self.probabilities(images[start : start + BATCH]), labels[start : start + BATCH]

    def answer(self, probabilities: np.ndarray) -> dict[str, Any]:
        """Returns the answer about one image, as values for JSON: that of the task, and class → probability."""
        table = dict(zip(self.labels, probabilities.tolist(), strict=True))
        return self.task.answer(probabilities, self.labels) | {"probabilities": table}

    def _run(self, output: str, images: np.ndarray) -> np.ndarray:
        starts = range(0, len(images), BATCH)
        batches = (model_input(images[start : start + BATCH]) for start in starts)
        return np.concatenate([self._session.run([output], {"images": batch})[0] for batch in batches])


def labels_content(task: Task, classes: list[str]) -> dict[str, Any]:
    """Returns the content of labels.json. `classes` are in the order of the logits."""
    return {"version": LABELS_VERSION, "task": task.name, "classes": classes, **task.content()}


def read_labels(folder: Path) -> tuple[Task, list[str]]:
    """Reads the task and the class names, in the order of the logits; raises ArtifactError."""
    path, content = folder / "labels.json", read_json(folder / "labels.json")
    match content:
        case list():
            task, classes, content = "single", content, {}
        case {"version": version, "task": str(task), "classes": list(classes)} if (
            version == LABELS_VERSION and task in TASKS
        ):
            pass
        case {"version": int(), "task": _, "classes": _}:
            raise ArtifactError(f"{path} was exported by a newer visionpipe: install that version")
        case _:
            raise ArtifactError(f"{path} does not list class names")
    if not classes or not all(isinstance(name, str) for name in classes):
        raise ArtifactError(f"{path} does not list class names")
    try:
        return TASKS[task].read(content), classes
    except (LookupError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error


def read_preprocessing(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads the keyword arguments of `frame` and of PixelFormat, with defaults filled in; raises ArtifactError."""
    path, content = folder / "preprocessing.json", read_json(folder / "preprocessing.json")
    match content:
        case {"size": [int(height), int(width)]} if height > 0 and width > 0:
            filled = DEFAULTS | content | {"size": (height, width)}
        case _:
            raise ArtifactError(
                f"{path} has no size as [height, width]: run dvc repro to export the model again"
            )
    match filled:
        case {
            "interpolation": str(name),
            "crop_ratio": int() | float() as ratio,
            "framing": "crop" | "pad" | "stretch",
            "pad_color": [int(red), int(green), int(blue)],
            "levels": None | "file" | [int() | float(), int() | float()] as levels,
            "channels": int(channels),
            "depth": 8 | 16 as depth,
            "reduced_to": None | int() as reduced_to,
            **rest,
        } if name in RESAMPLING and 0 < ratio <= 1 and rest.keys() == {"size"}:
            filled["pad_color"] = (red, green, blue)
            span = tuple(levels) if isinstance(levels, list) else levels
            decoding = {"levels": span, "channels": channels, "depth": depth, "reduced_to": reduced_to}
            return {key: value for key, value in filled.items() if key not in decoding}, decoding
    raise ArtifactError(
        f"{path} has an unknown interpolation, crop_ratio or key: it was damaged, or exported by a newer visionpipe"
    )


def preprocessing(framing: dict[str, Any], decoding: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of preprocessing.json, without what `read_preprocessing` fills in and older versions lack."""
    content = framing | decoding
    return {key: value for key, value in content.items() if key in ALWAYS or value != DEFAULTS[key]}


def read_json(path: Path) -> Any:
    """Reads a JSON file of an artifact; raises ArtifactError."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:
        raise ArtifactError(f"{path} is not valid JSON: {error}") from error


def read_bytes(path: Path) -> bytes:
    """Reads a file of an artifact; raises ArtifactError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
