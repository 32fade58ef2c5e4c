"""The task `single`: every image has one label out of several."""

from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np

from visionpipe.tasks.task import Task


class Single(Task):
    """Names the most probable class of an image. Of equally probable classes it names the first."""

    name: ClassVar[str] = "single"
    outputs: ClassVar[dict[str, str]] = {"softmax": "softmax", "focal": "softmax", "sigmoid": "sigmoid"}
    fields: ClassVar[dict[str, type]] = {"label": str, "probability": float}

    @classmethod
    def read(cls, content: dict[str, Any]) -> Self:
        return cls()

    def content(self) -> dict[str, Any]:
        return {}

    def named(self, probabilities: np.ndarray) -> list[int]:
        return [int(probabilities.argmax())]

    def answer(self, probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
        label, probability = self.cells(probabilities, labels)
        return {"label": label, "probability": probability}

    def text(self, probabilities: np.ndarray, labels: Sequence[str]) -> str:
        return labels[int(probabilities.argmax())]

    def columns(self, labels: Sequence[str]) -> dict[str, type]:
        return {"label": str, "probability": float}

    def cells(self, probabilities: np.ndarray, labels: Sequence[str]) -> list[Any]:
        best = int(probabilities.argmax())
        return [labels[best], float(probabilities[best])]
