"""The loss that a training minimises, and its accuracy.

Targets and outputs hold blocks of `classes` numbers side by side:
- targets (batch, classes or 2·classes): soft labels, then the teacher's logits if they were computed beforehand.
- outputs (batch, up to 3·classes): the model's logits, the logits of its distillation head if it has one, then the
  teacher's logits if the teacher answers in each step.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from visionpipe.errors import ConfigError
from visionpipe.training.recipe import DistillConfig, TrainConfig


class Objective(keras.losses.Loss):
    """Computes the recipe's cross-entropy, with class weights and a teacher if the recipe has them.

    Keras multiplies each image's loss by its weight, where the source has weights, and takes the mean over the batch.
    The weights are not normalised: an image of weight 2 counts like two of weight 1.
    """

    def __init__(self, recipe: TrainConfig, class_weights: np.ndarray | None, classes: int, heads: int):
        super().__init__(name="objective")
        self.kind, self.smoothing, self.distill = recipe.loss, recipe.label_smoothing, recipe.distill
        self.class_weights, self.classes, self.heads = class_weights, classes, heads

    def call(self, targets: Any, outputs: Any) -> Any:
        labels, logits = targets[:, : self.classes], outputs[:, : self.classes]
        losses = self.supervised(labels, logits)
        student = outputs[:, self.classes : 2 * self.classes] if self.heads == 2 else logits
        if self.heads == 2 and not self.distill:  # without a teacher both heads learn the labels
            losses = 0.5 * (losses + self.supervised(labels, student))
        if self.distill:
            beforehand = outputs.shape[-1] == self.heads * self.classes
            teacher = ops.stop_gradient((targets if beforehand else outputs)[:, -self.classes :])
            share = self.distill.weight
            losses = (1 - share) * losses + share * distillation(student, teacher, self.distill)
        return losses

    def supervised(self, labels: Any, logits: Any) -> Any:
        """Returns the loss of each image, (batch,). The sigmoid loss is the mean over the classes."""
        smooth = labels * (1 - self.smoothing) + self.smoothing / self.classes if self.smoothing else labels
        if self.kind == "softmax":
            losses = ops.categorical_crossentropy(smooth, logits, from_logits=True)
        else:
            losses = ops.mean(ops.binary_crossentropy(smooth, logits, from_logits=True), axis=-1)
        if self.class_weights is None:
            return losses
        return losses * ops.matmul(labels, ops.convert_to_tensor(self.class_weights, labels.dtype))


def distillation(student: Any, teacher: Any, config: DistillConfig) -> Any:
    """Returns the distillation loss of each image, (batch,), from logits (batch, classes).

    `hard`: the cross-entropy with the teacher's most probable class. Otherwise: the Kullback-Leibler divergence
    KL(teacher ‖ student) at temperature T, times T², so that T does not scale the gradient.
    """
    if config.hard:
        choice = ops.one_hot(ops.argmax(teacher, axis=-1), teacher.shape[-1], dtype=student.dtype)
        return ops.categorical_crossentropy(choice, student, from_logits=True)
    expected = ops.log_softmax(teacher / config.temperature)
    answered = ops.log_softmax(student / config.temperature)
    return config.temperature**2 * ops.sum(ops.exp(expected) * (expected - answered), axis=-1)


class Accuracy(keras.metrics.MeanMetricWrapper):
    """Computes the share of images whose highest logit is that of the label, or of a mixed label's larger part."""

    def __init__(self, classes: int):
        def right(targets: Any, outputs: Any) -> Any:
            label, answer = (ops.argmax(x[:, :classes], axis=-1) for x in (targets, outputs))
            return ops.cast(ops.equal(label, answer), "float32")

        super().__init__(right, name="accuracy")


def class_weights(wanted: Any, classes: Sequence[str], labels: np.ndarray) -> np.ndarray | None:
    """Returns one weight per class, float32 (classes,); None if the recipe has none.

    `balanced` weights are inversely proportional to the number of images of the class.

    Raises:
        ConfigError: a weight is missing, or is for an unknown class.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        counts = np.maximum(np.bincount(labels, minlength=len(classes)), 1)
        return (len(labels) / (len(classes) * counts)).astype(np.float32)
    if set(wanted) != set(classes):
        raise ConfigError(
            f"params.yaml: train.class_weights: expected one weight for each of {', '.join(classes)}; "
            f"received {', '.join(wanted)}"
        )
    return np.array([wanted[name] for name in classes], np.float32)
