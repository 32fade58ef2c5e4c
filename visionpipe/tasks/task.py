"""What every task says about itself. The rest of visionpipe asks a `Task`, and never which one it is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np


class Task(ABC):
    """A kind of question about an image, and the form of its answer.

    An object belongs to one model, and holds what its answers need beside the probabilities. In all methods
    `probabilities` are those of one image, float (classes,), and `labels` the names of the classes in the same order.

    Attributes:
        name: as in params.yaml and labels.json.
        outputs: `train.loss` → the function that turns the logits of a model with this loss into probabilities:
            "softmax" or "sigmoid".
        fields: the keys of `answer` → str, float or list, which is one of texts.
    """

    name: ClassVar[str]
    outputs: ClassVar[dict[str, str]]
    fields: ClassVar[dict[str, type]]

    @classmethod
    @abstractmethod
    def read(cls, content: dict[str, Any]) -> Self:
        """Reads `content`, that of a labels.json; raises LookupError, TypeError or ValueError where it is damaged."""

    @abstractmethod
    def content(self) -> dict[str, Any]:
        """Returns what labels.json holds for this task only."""

    @abstractmethod
    def named(self, probabilities: np.ndarray) -> list[int]:
        """Returns the positions of the classes that the answer names, the most probable first."""

    @abstractmethod
    def answer(self, probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
        """Returns the answer as values for JSON, without the probabilities of all classes."""

    @abstractmethod
    def text(self, probabilities: np.ndarray, labels: Sequence[str]) -> str:
        """Returns the answer as one text."""

    @abstractmethod
    def columns(self, labels: Sequence[str]) -> dict[str, type]:
        """Returns the columns of the answer in a table of predictions: name → str, int or float."""

    @abstractmethod
    def cells(self, probabilities: np.ndarray, labels: Sequence[str]) -> list[Any]:
        """Returns the values of `columns`."""
