"""The task `multi`: every image has any number of the labels, or none."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from visionpipe.errors import ConfigError
from visionpipe.tasks import losses
from visionpipe.tasks.task import VISIBLE, Parts, Task

if TYPE_CHECKING:
    import keras

    from visionpipe.project.sections import ExportConfig
    from visionpipe.training.recipe import DistillConfig, TrainConfig

GAMMA_PRESENT, GAMMA_ABSENT, MARGIN = 0.0, 4.0, 0.05  # of the asymmetric loss, as in the paper


@dataclass(frozen=True)
class Multi(Task):
    """Names each class whose probability reaches its threshold.

    Attributes:
        thresholds: one of each class, in [0, 1].
    """

    thresholds: tuple[float, ...]

    name: ClassVar[str] = "multi"
    several: ClassVar[bool] = True
    outputs: ClassVar[dict[str, str]] = {
        "sigmoid": "sigmoid",
        "focal": "sigmoid",
        "asymmetric": "sigmoid",
    }
    fields: ClassVar[dict[str, type]] = {"labels": list}

    score: ClassVar[str] = "mean_average_precision"
    limits: ClassVar[tuple[str, ...]] = ("mean_average_precision", "worst_average_precision")
    quality: ClassVar[dict[str, str]] = {
        "mean average precision": "mean_average_precision",
        "macro F1": "f1_macro",
        "worst average precision": "worst_average_precision",
        "all labels right": "subset_accuracy",
        "calibration error": "calibration_error",
    }
    by_class: ClassVar[dict[str, str]] = {
        "average precision": "average_precision",
        "precision": "precision",
        "recall": "recall",
        "F1": "f1",
        "threshold": "threshold",
    }
    card: ClassVar[tuple[str, str]] = (
        "`labels`, those whose probability reaches their threshold, and `probabilities`",
        "The model knows {classes} labels. It says nothing about what else an image shows.",
    )
    over: ClassVar[tuple[str, str]] = ("over_prevalence", "mean share of the images with a label")

    recipe: ClassVar[dict[str, Any]] = {"loss": "sigmoid"}

    @classmethod
    def check_recipe(cls, recipe: "TrainConfig") -> None:
        super().check_recipe(recipe)
        if recipe.logit_adjustment is not None:
            raise ConfigError(
                "logit_adjustment: is for task: single, where classes exclude each other: use class_weights: balanced"
            )

    @classmethod
    def sampled_classes(cls, labels: np.ndarray) -> np.ndarray:
        """Returns the rarest label of each image; images without any label are one more class."""
        present = labels == 1
        counts = present.sum(axis=0)
        rarest = np.where(present, counts, len(labels) + 1).argmin(axis=1)
        return np.where(present.any(axis=1), rarest, labels.shape[1])

    @classmethod
    def targets(cls, labels: np.ndarray, classes: int) -> np.ndarray:
        """Puts the present labels beside those that are known to be absent; an unknown label is in neither."""
        return np.concatenate([labels == 1, labels == 0], axis=1).astype(np.float32)

    @classmethod
    def image_losses(
        cls,
        targets: Any,
        logits: Any,
        recipe: "TrainConfig",
        weights: np.ndarray | None,
        adjustment: np.ndarray | None,
    ) -> Any:
        """Weighs the present labels with `weights`, of each class; the absent ones count once."""
        from keras import ops

        positives, negatives = ops.split(targets, 2, axis=1)
        if recipe.label_smoothing:
            positives, negatives = losses.smoothed(positives, negatives, recipe.label_smoothing)
        known = positives + negatives
        if weights is not None:
            positives = positives * ops.convert_to_tensor(weights, positives.dtype)
        if recipe.loss == "asymmetric":
            return losses.asymmetric(positives, negatives, known, logits, GAMMA_PRESENT, GAMMA_ABSENT, MARGIN)
        gamma = recipe.focal_gamma if recipe.loss == "focal" else 0.0
        return losses.binary(positives, negatives, known, logits, gamma)

    @classmethod
    def distillation(cls, student: Any, teacher: Any, config: "DistillConfig") -> Any:
        """With `hard` the teacher's labels are those of a probability of at least one half."""
        from keras import ops

        if not config.hard:
            return losses.binary_divergence(student, teacher, config.temperature)
        present = ops.cast(teacher >= 0, student.dtype)
        return losses.binary(present, 1 - present, ops.ones_like(present), student)

    @classmethod
    def balanced_weights(cls, labels: np.ndarray, classes: int) -> np.ndarray:
        """Returns absent images for each present one, so that both sides of a class weigh the same."""
        present, absent = ((labels == value).sum(axis=0) for value in (1, 0))
        return (np.maximum(absent, 1) / np.maximum(present, 1)).astype(np.float32)

    @classmethod
    def prior_logits(cls, labels: np.ndarray) -> np.ndarray | None:
        """Returns the log-odds of each label among the images where it is known (Lin et al. 2017, section 4.1)."""
        present, absent = ((labels == value).sum(axis=0) + 1.0 for value in (1, 0))
        return np.log(present / absent).astype(np.float32)

    @classmethod
    def training_metrics(cls, classes: int) -> list[Any]:
        return []  # an average precision of single batches says little

    @classmethod
    def validate(cls, model: "keras.Model", batches: Any, labels: np.ndarray) -> dict[str, float]:
        from visionpipe.evaluation.multilabel import mean_average_precision, negative_log_likelihood

        logits = np.asarray(model.predict(batches, verbose=0), np.float64)
        probabilities = 1 / (1 + np.exp(-logits))
        return {
            "loss": negative_log_likelihood(probabilities, labels) or 0.0,
            cls.score: mean_average_precision(probabilities, labels) or 0.0,
        }

    @classmethod
    def votes(cls, labels: np.ndarray, nearest: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
        """Leaves out neighbours whose label is unknown; where that is all of them, the share in training counts."""
        voted = labels[nearest]
        known, present = (np.einsum("nk,nkc->nc", weights, which(voted)) for which in (is_known, is_present))
        priors = is_present(labels).sum(axis=0) / np.maximum(is_known(labels).sum(axis=0), 1)
        return np.where(known > 0, present / np.where(known > 0, known, 1), priors)

    @classmethod
    def known_together(cls, labels: np.ndarray, classes: int) -> Iterator[tuple[Any, Any]]:
        """Puts classes together that are unknown of the same images, such as all that are always known."""
        same: dict[bytes, list[int]] = defaultdict(list)
        for column, known in enumerate(is_known(labels).T):
            same[np.packbits(known).tobytes()].append(column)
        for columns in same.values():
            yield columns, is_known(labels[:, columns[0]])

    @classmethod
    def class_sums(cls, features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
        return is_present(labels).T.astype(features.dtype) @ features

    @classmethod
    def described(cls, target: np.ndarray, names: Sequence[str]) -> list[str]:
        """Names the labels, the largest share first, with shares that are not one, and says which are unknown."""
        present, absent = np.split(target, 2)
        lines = [
            f"{names[index]}{'' if present[index] > 1 - VISIBLE else f' {present[index]:.0%}'}"
            for index in np.argsort(-present, kind="stable")
            if present[index] >= VISIBLE
        ]
        unknown = np.flatnonzero(present + absent < VISIBLE)
        if len(unknown):
            which = names[unknown[0]] if len(unknown) == 1 else f"{len(unknown)} labels"
            return [*lines, f"{which} unknown"]
        return lines or ["no label"]

    @classmethod
    def score_of(cls, parts: Parts) -> float:
        from visionpipe.evaluation.multilabel import mean_average_precision

        return mean_average_precision(*joined(parts)) or 0.0

    @classmethod
    def unfitted(cls, classes: int) -> Self:
        return cls((0.5,) * classes)

    @classmethod
    def blind_score(cls, labels: np.ndarray) -> float:
        present, known = (labels == 1).sum(axis=0), (labels >= 0).sum(axis=0)
        return float((present[present > 0] / known[present > 0]).mean()) if present.any() else 0.0

    @classmethod
    def blind_share(cls, counts: Sequence[int], images: int) -> float:
        return sum(counts) / (len(counts) * images)

    @classmethod
    def fitted(cls, parts: Parts, config: "ExportConfig") -> Self:
        """Fits the threshold of each class: that of the highest F1, or the smallest with `target_precision`."""
        from visionpipe.evaluation.multilabel import fit_thresholds

        thresholds, fits = fit_thresholds(*joined(parts), config.target_precision)
        if not fits.all():
            wanted = f" of precision {config.target_precision:g}" if config.target_precision else ""
            print(
                f"{(~fits).sum():,} of {len(fits):,} labels: no threshold{wanted} follows from the validation images, "
                f"so it is 0.5"
            )
        return cls(tuple(thresholds.tolist()))

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

    def evaluated(self, parts: Parts) -> Any:
        return self.report().evaluated(parts, np.array(self.thresholds))

    @staticmethod
    def report() -> Any:
        from visionpipe.evaluation import multi_report

        return multi_report

    def answer(self, probabilities: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
        return {"labels": [labels[place] for place in self.named(probabilities)]}

    def text(self, probabilities: np.ndarray, labels: Sequence[str]) -> str:
        """Returns the labels as a JSON list, because a label may hold any character."""
        return json.dumps(self.answer(probabilities, labels)["labels"], ensure_ascii=False)

    def columns(self, labels: Sequence[str]) -> dict[str, type]:
        return {f"label({name})": int for name in labels}

    def cells(self, probabilities: np.ndarray, labels: Sequence[str]) -> list[Any]:
        return (probabilities >= self.thresholds).astype(int).tolist()


def is_known(labels: np.ndarray) -> np.ndarray:
    return labels >= 0


def is_present(labels: np.ndarray) -> np.ndarray:
    return labels == 1


def joined(parts: Parts) -> tuple[np.ndarray, np.ndarray]:
    """Joins the probabilities, float32, and the labels of all batches."""
    probabilities, labels = zip(
        *((table.astype(np.float32), of_batch) for table, of_batch in parts), strict=True
    )
    return np.concatenate(probabilities), np.concatenate(labels)
