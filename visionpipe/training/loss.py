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

from visionpipe.data.batches import class_shares
from visionpipe.errors import ConfigError
from visionpipe.training.recipe import DistillConfig, TrainConfig

SMALLEST = 1e-7  # of 1 − p: a power of 0 has no gradient below an exponent of 1


class Objective(keras.losses.Loss):
    """Computes the recipe's loss, with class weights, a logit adjustment and a teacher if the recipe has them.

    `adjustment`, float32 (classes,), is added to the logits where the labels are learned, and nowhere else.

    Keras multiplies each image's loss by its weight, where the source has weights, and takes the mean over the batch.
    The weights are not normalised: an image of weight 2 counts like two of weight 1.
    """

    def __init__(
        self,
        recipe: TrainConfig,
        class_weights: np.ndarray | None,
        classes: int,
        heads: int,
        adjustment: np.ndarray | None = None,
    ):
        super().__init__(name="objective")
        self.kind, self.smoothing, self.distill = recipe.loss, recipe.label_smoothing, recipe.distill
        self.class_weights, self.classes, self.heads = class_weights, classes, heads
        self.gamma, self.adjustment = recipe.focal_gamma, adjustment

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
        if self.adjustment is not None:
            logits = logits + ops.convert_to_tensor(self.adjustment, logits.dtype)
        if self.kind == "focal":
            losses = focal(smooth, logits, self.gamma)
        elif self.kind == "softmax":
            losses = ops.categorical_crossentropy(smooth, logits, from_logits=True)
        else:
            losses = ops.mean(ops.binary_crossentropy(smooth, logits, from_logits=True), axis=-1)
        if self.class_weights is None:
            return losses
        return losses * ops.matmul(labels, ops.convert_to_tensor(self.class_weights, labels.dtype))


def focal(labels: Any, logits: Any, gamma: float) -> Any:
    """Returns the focal loss of each image, (batch,), from soft labels and logits, both (batch, classes).

    Lin et al. 2017 (arXiv:1708.02002), over a softmax: the sum of −label · (1−p)^gamma · log p over the classes. It is
    linear in the labels, so that a mixed image has the mixed loss.
    """
    logarithms = ops.log_softmax(logits)
    others = ops.maximum(-ops.expm1(logarithms), SMALLEST)
    return -ops.sum(labels * others**gamma * logarithms, axis=-1)


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


def logit_adjustment(
    recipe: TrainConfig, labels: np.ndarray, classes: int, weights: np.ndarray | None
) -> np.ndarray | None:
    """Returns tau · log of each class's share, float32 (classes,); None if the recipe has no logit adjustment.

    Menon et al. 2021 (arXiv:2007.07314), equation 10. The shares are those of the targets in the loss: after the
    sampler, with the weights of the images, and after label smoothing. Without the last, a rare class would gain more
    than its smoothed targets lack. Mixing does not change them. A class without an image counts like the rarest one.

    Args:
        labels: int (n,), of the training images.
        weights: float32 (n,), of the training images; None: all 1.
    """
    if recipe.logit_adjustment is None:
        return None
    counts = np.bincount(labels, minlength=classes)
    drawn = class_shares(recipe.sampler, counts).astype(np.float64)
    shares = drawn * np.bincount(labels, weights, classes) / np.maximum(counts, 1)
    shares = np.maximum(shares, shares[shares > 0].min())
    smooth = (1 - recipe.label_smoothing) * shares / shares.sum() + recipe.label_smoothing / classes
    return (recipe.logit_adjustment * np.log(smooth)).astype(np.float32)
