"""The task `single`: every image has one label out of several."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from visionpipe.tasks import losses
from visionpipe.tasks.task import VISIBLE, Parts, Task

if TYPE_CHECKING:
    import keras

    from visionpipe.project.sections import ExportConfig
    from visionpipe.training.recipe import DistillConfig, TrainConfig


class Single(Task):
    """Names the most probable class of an image. Of equally probable classes it names the first."""

    name: ClassVar[str] = "single"
    outputs: ClassVar[dict[str, str]] = {"softmax": "softmax", "focal": "softmax", "sigmoid": "sigmoid"}
    fields: ClassVar[dict[str, type]] = {"label": str, "probability": float}

    score: ClassVar[str] = "accuracy"
    limits: ClassVar[tuple[str, ...]] = ("accuracy", "worst_recall")
    quality: ClassVar[dict[str, str]] = {
        "accuracy": "accuracy",
        "macro F1": "macro_f1",
        "worst recall": "worst_recall",
        "calibration error": "calibration_error",
    }
    by_class: ClassVar[dict[str, str]] = {"precision": "precision", "recall": "recall", "F1": "f1"}
    card: ClassVar[tuple[str, str]] = (
        "`label` and `probabilities`",
        "The model answers with one of its {classes} classes for every image, even if the image shows none of\nthem.",
    )
    over: ClassVar[tuple[str, str]] = ("over_majority", "share of the most frequent class")

    @classmethod
    def sampled_classes(cls, labels: np.ndarray) -> np.ndarray:
        return labels

    @classmethod
    def targets(cls, labels: np.ndarray, classes: int) -> np.ndarray:
        result = np.zeros((len(labels), classes), np.float32)
        result[np.arange(len(labels)), labels] = 1
        return result

    @classmethod
    def image_losses(
        cls,
        targets: Any,
        logits: Any,
        recipe: "TrainConfig",
        weights: np.ndarray | None,
        adjustment: np.ndarray | None,
    ) -> Any:
        from keras import ops

        smoothing = recipe.label_smoothing
        labels = targets * (1 - smoothing) + smoothing / targets.shape[-1] if smoothing else targets
        if adjustment is not None:
            logits = logits + ops.convert_to_tensor(adjustment, logits.dtype)
        match recipe.loss:
            case "softmax":
                result = losses.softmax(labels, logits)
            case "focal":
                result = losses.focal(labels, logits, recipe.focal_gamma)
            case _:
                result = losses.sigmoid(labels, logits)
        if weights is None:
            return result
        return result * ops.matmul(targets, ops.convert_to_tensor(weights, targets.dtype))

    @classmethod
    def distillation(cls, student: Any, teacher: Any, config: "DistillConfig") -> Any:
        from keras import ops

        if not config.hard:
            return losses.divergence(student, teacher, config.temperature)
        choice = ops.one_hot(ops.argmax(teacher, axis=-1), teacher.shape[-1], dtype=student.dtype)
        return losses.softmax(choice, student)

    @classmethod
    def balanced_weights(cls, labels: np.ndarray, classes: int) -> np.ndarray:
        """Returns weights that are inversely proportional to the number of images of the class."""
        counts = np.maximum(np.bincount(labels, minlength=classes), 1)
        return (len(labels) / (classes * counts)).astype(np.float32)

    @classmethod
    def prior_logits(cls, labels: np.ndarray) -> np.ndarray | None:
        return None

    @classmethod
    def training_metrics(cls, classes: int) -> list[Any]:
        import keras
        from keras import ops

        def right(targets: Any, outputs: Any) -> Any:
            """Whether the highest logit is that of the label, or of a mixed label's larger part."""
            label, answer = (ops.argmax(x[:, :classes], axis=-1) for x in (targets, outputs))
            return ops.cast(ops.equal(label, answer), "float32")

        return [keras.metrics.MeanMetricWrapper(right, name=cls.score)]

    @classmethod
    def validate(cls, model: "keras.Model", batches: Any, labels: np.ndarray) -> dict[str, float]:
        scores = model.evaluate(batches, verbose=0, return_dict=True)
        return {name: float(value) for name, value in scores.items()}

    @classmethod
    def votes(cls, labels: np.ndarray, nearest: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
        table = np.zeros((len(nearest), classes))
        np.add.at(table, (np.arange(len(nearest))[:, None], labels[nearest]), weights)
        return table / weights.sum(axis=1, keepdims=True)

    @classmethod
    def known_together(cls, labels: np.ndarray, classes: int) -> Iterator[tuple[Any, Any]]:
        yield slice(None), slice(None)

    @classmethod
    def class_sums(cls, features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
        sums = np.zeros((classes, features.shape[1]))
        np.add.at(sums, labels, features)
        return sums

    @classmethod
    def described(cls, target: np.ndarray, names: Sequence[str]) -> list[str]:
        """Names the class, or the two of a mixed image with their shares."""
        most = [index for index in np.argsort(-target, kind="stable")[:2] if target[index] >= VISIBLE]
        if len(most) == 1:
            return [names[most[0]]]
        return [f"{names[index]} {target[index]:.0%}" for index in most]

    @classmethod
    def score_of(cls, parts: Parts) -> float:
        right = [probabilities.argmax(axis=1) == labels for probabilities, labels in parts]
        return float(np.concatenate(right).mean())

    @classmethod
    def unfitted(cls, classes: int) -> Self:
        return cls()

    @classmethod
    def blind_score(cls, labels: np.ndarray) -> float:
        return float(np.bincount(labels).max() / len(labels))

    @classmethod
    def blind_share(cls, counts: Sequence[int], images: int) -> float:
        return max(counts) / images

    @classmethod
    def fitted(cls, parts: Parts, config: "ExportConfig") -> Self:
        return cls()

    @classmethod
    def read(cls, content: dict[str, Any]) -> Self:
        return cls()

    def content(self) -> dict[str, Any]:
        return {}

    def named(self, probabilities: np.ndarray) -> list[int]:
        return [int(probabilities.argmax())]

    def evaluated(self, parts: Parts) -> Any:
        return self.report().evaluated(parts)

    @staticmethod
    def report() -> Any:
        from visionpipe.evaluation import single_report

        return single_report

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
