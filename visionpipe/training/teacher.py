"""The teacher of a distillation, and its logits for the training images."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from visionpipe.data.form import model_input
from visionpipe.data.prepared import Prepared
from visionpipe.errors import TrainingError
from visionpipe.files import replacing_file

BATCH = 250


@dataclass(frozen=True)
class Teacher:
    """Holds a model that answers in each step, or `logits` float32 (n, classes) computed beforehand, or neither."""

    model: keras.Model | None = None
    logits: np.ndarray | None = None


def load_teacher(file: Path, data: Prepared) -> keras.Model:
    """Loads the model in `file`, frozen. The lineage.json beside the file names its classes.

    Raises:
        TrainingError: the model has other classes or another image size than `data`.
    """
    from visionpipe.acceleration.network import accelerate
    from visionpipe.models.saved import load_trained

    # Keras's torch models know their parameters by path. If a student's parameter had the path of one of the teacher's,
    # its gradient would not be set to zero.
    with keras.name_scope("teacher"):
        teacher = accelerate(load_trained(file))
    images = data.images("validation")
    if teacher.input_shape[1:] != images.shape[1:] or teacher.output_shape[1:] != (len(data.classes),):
        raise TrainingError(
            f"train.distill.teacher: {file} has {teacher.output_shape[-1]} classes and images of "
            f"{teacher.input_shape[1:]}; the student has {len(data.classes)} classes and images of {images.shape[1:]}: "
            f"choose a teacher of the same data"
        )
    lineage = file.with_name("lineage.json")
    classes = json.loads(lineage.read_text()).get("classes") if lineage.exists() else None
    if classes and classes != list(data.classes):
        raise TrainingError(
            f"train.distill.teacher: {file} has other classes: {', '.join(classes)}; the student has "
            f"{', '.join(data.classes)}: choose a teacher of the same data"
        )
    teacher.trainable = False
    return teacher


def teacher_logits(teacher: keras.Model, images: np.ndarray, cache: Path) -> np.ndarray:
    """Returns the teacher's logits, float32 (n, classes), for the training images without augmentation.

    They are computed once and stored in the file `cache`.
    """
    if not cache.exists():
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), teacher.output_shape[-1])}
        with replacing_file(cache) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(images), BATCH):
                part = model_input(images[start : start + BATCH])
                file.write(keras.ops.convert_to_numpy(teacher(part, training=False)).tobytes())
    return np.load(cache, mmap_mode="r", allow_pickle=False)


class Answering(keras.layers.Layer):
    """Computes the teacher's logits of images float32 (batch, height, width, channels), always in inference mode.

    It is a layer, because Keras overrides `training=False` of models that a trained model calls directly.
    """

    def __init__(self, teacher: keras.Model):
        super().__init__(dtype="float32", trainable=False, name="teacher")
        self.teacher = teacher

    def call(self, images: Any) -> Any:
        return self.teacher(images, training=False)


def with_teacher(model: keras.Model, heads: list[Any], teacher: keras.Model | None) -> Any:
    """Returns the outputs that the objective reads: those of the heads, and of a teacher that answers in each step."""
    outputs = [*heads, Answering(teacher)(model.input)] if teacher else heads
    if len(outputs) == 1:
        return outputs[0]
    return keras.layers.Concatenate(dtype="float32", name="training_outputs")(outputs)
