"""The teacher of a distillation: its logits for the training images, beforehand where the augmentation allows."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from visionpipe.data.prepared import Prepared
from visionpipe.errors import TrainingError
from visionpipe.files import replacing_file

BATCH = 250


@dataclass(frozen=True)
class Teacher:
    """`model` answers in every step; or `logits` float32 (n, classes) are what it said to all training images."""

    model: keras.Model | None = None
    logits: np.ndarray | None = None


def load_teacher(file: Path, data: Prepared) -> keras.Model:
    """The model in `file`, never trained itself; TrainingError where it knows other classes, by the lineage.json
    beside it, or another size.
    """
    from visionpipe.acceleration.network import accelerate
    from visionpipe.models.saved import load_trained

    # Paths of its own: Keras's torch models know their parameters by path, and would forget to zero the gradient of
    # a student's that is called like one of the teacher's.
    with keras.name_scope("teacher"):
        teacher = accelerate(load_trained(file))
    images = data.images("validation")
    if teacher.input_shape[1:] != images.shape[1:] or teacher.output_shape[1:] != (len(data.classes),):
        raise TrainingError(
            f"train.distill.teacher: {file} answers {teacher.output_shape[1:]} for images {teacher.input_shape[1:]}; "
            f"the student has {(len(data.classes),)} for {images.shape[1:]}"
        )
    lineage = file.with_name("lineage.json")
    classes = json.loads(lineage.read_text()).get("classes") if lineage.exists() else None
    if classes and classes != list(data.classes):
        raise TrainingError(
            f"train.distill.teacher: {file} knows other classes: {', '.join(classes)}; the student has "
            f"{', '.join(data.classes)}"
        )
    teacher.trainable = False
    return teacher


def teacher_logits(teacher: keras.Model, images: np.ndarray, cache: Path) -> np.ndarray:
    """float32 (n, classes) for all training images as they are, computed once and kept in `cache`."""
    if not cache.exists():
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(images), teacher.output_shape[-1])}
        with replacing_file(cache) as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(images), BATCH):
                part = images[start : start + BATCH].astype(np.float32)
                file.write(keras.ops.convert_to_numpy(teacher(part, training=False)).tobytes())
    return np.load(cache, mmap_mode="r", allow_pickle=False)


class Answering(keras.layers.Layer):
    """Images float32 (batch, height, width, 3) to the teacher's logits, as in inference: within a model that is
    trained, Keras overrules `training=False` of all that is called directly.
    """

    def __init__(self, teacher: keras.Model):
        super().__init__(dtype="float32", trainable=False, name="teacher")
        self.teacher = teacher

    def call(self, images: Any) -> Any:
        return self.teacher(images, training=False)


def with_teacher(model: keras.Model, heads: list[Any], teacher: keras.Model | None) -> Any:
    """The outputs that the objective reads: the model's heads and, where it answers on the way, the teacher's."""
    outputs = [*heads, Answering(teacher)(model.input)] if teacher else heads
    if len(outputs) == 1:
        return outputs[0]
    return keras.layers.Concatenate(dtype="float32", name="training_outputs")(outputs)
