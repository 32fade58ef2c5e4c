"""The task `multi`: every image has any number of the labels, or none."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from visionpipe.tasks.task import Task


@dataclass(frozen=True)
class Multi(Task):
    """Names each class whose probability reaches its threshold.

    Attributes:
        thresholds: one of each class, in [0, 1].
    """

    thresholds: tuple[float, ...]

    name: ClassVar[str] = "multi"
    outputs: ClassVar[dict[str, str]] = {
        "sigmoid": "sigmoid",
        "focal": "sigmoid",
        "asymmetric": "sigmoid",
    }
    fields: ClassVar[dict[str, type]] = {"labels": list}

    @classmethod
    def read(cls, content: dict[str, Any]) -> Self:
        thresholds = tuple(float(number) for number in content["thresholds"])
        if len(thresholds) != len(content["classes"]) or not all(0 <= number <= 1 for number in thresholds):
            raise ValueError("expected one threshold in [0, 1] for each class")
        return cls(thresholds)

    def content(self) -> dict[str, Any]:
        return {"thresholds": list(self.thresholds)}

    def named(self, probabilities: np.ndarray) -> list[int]:
        reached = np.flatnonzero(probabilities >= self.thresholds)
        return reached[np.argsort(-probabilities[reached], kind="stable")].tolist()

    def answer(self, probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
        return {"labels": [labels[place] for place in self.named(probabilities)]}

    def text(self, probabilities: np.ndarray, labels: Sequence[str]) -> str:
        """Returns the labels as a JSON list, because a label may hold any character."""
        return json.dumps(self.answer(probabilities, labels)["labels"], ensure_ascii=False)

    def columns(self, labels: Sequence[str]) -> dict[str, type]:
        return {f"label({name})": int for name in labels}

    def cells(self, probabilities: np.ndarray, labels: Sequence[str]) -> list[Any]:
        return (probabilities >= self.thresholds).astype(int).tolist()
