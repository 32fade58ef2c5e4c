"""The teacher of a distillation: its logits for the training images, beforehand where the augmentation allows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from visionpipe.data.prepared import Prepared
from visionpipe.errors import TrainingError
from visionpipe.files import replacing

BATCH = 250


@dataclass(frozen=True)
class Teacher:
    """`model` answers in every step; or `logits` float32 (n, classes) are what it said to all training images."""

    model: keras.Model | None = None
    logits: np.ndarray | None = None


def load_teacher(file: Path, data: Prepared) -> keras.Model:
    """The model in `file`, never trained itself; TrainingError where it knows other classes or another size."""
    import visionpipe.models.attention
    import visionpipe.models.layers  # noqa: F401  (both register the layers that the file names)

    teacher = keras.models.load_model(file)
    images = data.images("validation")
    if teacher.input_shape[1:] != images.shape[1:] or teacher.output_shape[1:] != (len(data.classes),):
        raise TrainingError(
            f"train.distill.teacher: {file} answers {teacher.output_shape[1:]} for images {teacher.input_shape[1:]}; "
            f"the student has {(len(data.classes),)} for {images.shape[1:]}"
        )
    teacher.trainable = False
    return teacher


def teacher_logits(teacher: keras.Model, images: np.ndarray, cache: Path) -> np.ndarray:
    """float32 (n, classes) for all training images as they are, computed once and kept in `cache`."""
    if not cache.exists():
        parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
        logits = [
            keras.ops.convert_to_numpy(teacher(part.astype(np.float32), training=False)) for part in parts
        ]
        with replacing(cache) as file:
            np.save(file, np.concatenate(logits), allow_pickle=False)
    return np.load(cache, allow_pickle=False)


def with_teacher(model: keras.Model, heads: list[Any], teacher: keras.Model | None) -> Any:
    """The outputs that the objective reads: the model's heads and, where it answers on the way, the teacher's."""
    outputs = [*heads, teacher(model.input, training=False)] if teacher else heads
    if len(outputs) == 1:
        return outputs[0]
    return keras.layers.Concatenate(dtype="float32", name="training_outputs")(outputs)
