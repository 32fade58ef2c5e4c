"""The loss that a training minimises.

Targets and outputs hold blocks of `classes` numbers side by side:
- targets (batch, up to 3·classes): those of the task, then the teacher's logits if they were computed beforehand.
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
from visionpipe.tasks import Task
from visionpipe.training.recipe import TrainConfig


class Objective(keras.losses.Loss):
    """Computes the recipe's loss, with class weights, a logit adjustment and a teacher if the recipe has them.

    `adjustment`, float32 (classes,), is added to the logits where the labels are learned, and nowhere else.

    Keras multiplies each image's loss by its weight, where the source has weights, and takes the mean over the batch.
    The weights are not normalised: an image of weight 2 counts like two of weight 1.
    """

    def __init__(
        self,
        task: type[Task],
        recipe: TrainConfig,
        class_weights: np.ndarray | None,
        classes: int,
        heads: int,
        adjustment: np.ndarray | None = None,
    ):
        super().__init__(name="objective")
        self.task, self.recipe, self.distill = task, recipe, recipe.distill
        self.class_weights, self.classes, self.heads = class_weights, classes, heads
        self.adjustment = adjustment

    def call(self, targets: Any, outputs: Any) -> Any:
        beforehand = self.distill and outputs.shape[-1] == self.heads * self.classes
        labels = targets[:, : -self.classes] if beforehand else targets
        logits = outputs[:, : self.classes]
        losses = self.supervised(labels, logits)
        student = outputs[:, self.classes : 2 * self.classes] if self.heads == 2 else logits
        if self.heads == 2 and not self.distill:  # without a teacher both heads learn the labels
            losses = 0.5 * (losses + self.supervised(labels, student))
        if self.distill:
            teacher = ops.stop_gradient((targets if beforehand else outputs)[:, -self.classes :])
            share = self.distill.weight
            losses = (1 - share) * losses + share * self.task.distillation(student, teacher, self.distill)
        return losses

    def supervised(self, targets: Any, logits: Any) -> Any:
        """Returns the loss of each image, (batch,)."""
        return self.task.image_losses(targets, logits, self.recipe, self.class_weights, self.adjustment)


def class_weights(
    task: type[Task], wanted: Any, classes: Sequence[str], labels: np.ndarray
) -> np.ndarray | None:
    """Returns one weight per class, float32 (classes,); None if the recipe has none.

    Raises:
        ConfigError: a weight is missing, or is for an unknown class.
    """
    if wanted is None:
        return None
    if wanted == "balanced":
        return task.balanced_weights(labels, len(classes))
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
