"""What a task says about itself: how probabilities follow from logits, and the form of an answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np


class Task(ABC):
    """A kind of question about an image, and the form of its answer.

    Attributes:
        name: as in params.yaml and labels.json.
        outputs: `train.loss` → the function that turns the logits of a model with this loss into probabilities:
            "softmax" or "sigmoid".
    """

    name: ClassVar[str]
    outputs: ClassVar[dict[str, str]]

    @abstractmethod
    def answer(self, probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
        """Returns the answer about one image, as values for JSON, from its probabilities, float (classes,)."""
