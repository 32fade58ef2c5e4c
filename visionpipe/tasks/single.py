"""The task `single`: every image has one label out of several."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from visionpipe.tasks.task import Task


class Single(Task):
    """Names the most probable class of an image. Of equally probable classes it names the first."""

    name: ClassVar[str] = "single"
    outputs: ClassVar[dict[str, str]] = {"softmax": "softmax", "focal": "softmax", "sigmoid": "sigmoid"}

    def answer(self, probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
        return {"label": labels[int(probabilities.argmax())]}
