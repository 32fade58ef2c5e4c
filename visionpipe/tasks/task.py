"""What a task says about itself: how probabilities follow from logits, and the form of an answer."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from visionpipe.errors import ConfigError

if TYPE_CHECKING:
    import keras

    from visionpipe.project.sections import ExportConfig
    from visionpipe.training.recipe import DistillConfig, TrainConfig


VISIBLE = 0.005  # the share of a class in a mixed image from which on a caption names it
Parts = Iterable[tuple[np.ndarray, np.ndarray]]


class Task(ABC):
    """A kind of question about an image, and the form of its answer.

    An object belongs to one model, and holds what its answers need beside the probabilities. In all methods
    `probabilities` are those of one image, float (classes,), and `labels` the names of the classes in the same order.

    Attributes:
        name: as in params.yaml and labels.json.
        several: whether an image may have several labels, or none.
        outputs: `train.loss` → the function that turns the logits of a model with this loss into probabilities:
            "softmax" or "sigmoid".
        score: the metric by which models are compared, in [0, 1], larger is better.
        recipe: keys of `train:` whose defaults are others for this task.
        limits: the keys of `register.gate` that are the least values of metrics.
        over: the key of `register.gate` that is the least distance of the score from that of a model that sees
            nothing, and what that score is, in words.
        quality: titles → keys of the metrics that the model card shows of a split.
        by_class: titles → keys of those that it shows of a class.
        card: what the model card says about output and limits; `{classes}` is the number of classes.
        fields: the keys of `answer` → str, float or list, which is one of texts.
    """

    name: ClassVar[str]
    several: ClassVar[bool] = False
    outputs: ClassVar[dict[str, str]]
    score: ClassVar[str]
    recipe: ClassVar[dict[str, Any]] = {}
    limits: ClassVar[tuple[str, ...]]
    over: ClassVar[tuple[str, str]]
    quality: ClassVar[dict[str, str]]
    by_class: ClassVar[dict[str, str]]
    card: ClassVar[tuple[str, str]]
    fields: ClassVar[dict[str, type]]

    @classmethod
    def gate(cls) -> tuple[str, ...]:
        """Returns the keys of `register.gate` that are for this task."""
        return (*cls.limits, cls.over[0])

    # Training. `labels` are those of Prepared.labels; targets, logits and weights are tensors of any backend.

    @classmethod
    def check_recipe(cls, recipe: "TrainConfig") -> None:
        """Raises ConfigError, beginning with the key, if the recipe does not fit the task."""
        if recipe.loss not in cls.outputs:
            raise ConfigError(
                f"loss: {recipe.loss} is not for task: {cls.name}; expected {' or '.join(sorted(cls.outputs))}"
            )

    @classmethod
    @abstractmethod
    def sampled_classes(cls, labels: np.ndarray) -> np.ndarray:
        """Returns the class as whose example `train.sampler` draws each image, int (n,)."""

    @classmethod
    @abstractmethod
    def targets(cls, labels: np.ndarray, classes: int) -> np.ndarray:
        """Converts labels to what a loss learns, float32 (n, blocks · classes). Mixed images have mixed targets."""

    @classmethod
    @abstractmethod
    def image_losses(
        cls,
        targets: Any,
        logits: Any,
        recipe: "TrainConfig",
        weights: np.ndarray | None,
        adjustment: np.ndarray | None,
    ) -> Any:
        """Computes the recipe's loss of each image, (batch,), from its targets and logits (batch, classes).

        Args:
            weights: those of `class_weights`.
            adjustment: what the recipe adds to the logits, float32 (classes,).
        """

    @classmethod
    @abstractmethod
    def distillation(cls, student: Any, teacher: Any, config: "DistillConfig") -> Any:
        """Computes the distillation loss of each image, (batch,), from logits (batch, classes).

        `hard`: the loss with the teacher's answer as the label. Otherwise: the Kullback-Leibler divergence
        KL(teacher ‖ student) at temperature T, times T², so that T does not scale the gradient.
        """

    @classmethod
    @abstractmethod
    def balanced_weights(cls, labels: np.ndarray, classes: int) -> np.ndarray:
        """Returns the weights of `class_weights: balanced`, float32 (classes,)."""

    @classmethod
    @abstractmethod
    def prior_logits(cls, labels: np.ndarray) -> np.ndarray | None:
        """Returns where the biases of a new head begin, float32 (classes,); None: at zero."""

    @classmethod
    @abstractmethod
    def training_metrics(cls, classes: int) -> list[Any]:
        """Makes the Keras metrics of training batches."""

    @classmethod
    @abstractmethod
    def validate(cls, model: "keras.Model", batches: Any, labels: np.ndarray) -> dict[str, float]:
        """Returns `loss` and the task's `score` of a compiled model on a split, whose images are in `batches`."""

    # Probes of frozen features. `labels` are those of all training images.

    @classmethod
    @abstractmethod
    def votes(cls, labels: np.ndarray, nearest: np.ndarray, weights: np.ndarray, classes: int) -> np.ndarray:
        """Computes the weighted share of each class among the nearest training images, (n, classes).

        Args:
            nearest: their rows in `labels`, (n, k).
            weights: those of their votes, (n, k).
        """

    @classmethod
    @abstractmethod
    def known_together(cls, labels: np.ndarray, classes: int) -> Iterator[tuple[Any, Any]]:
        """Yields indices of classes, and of the images of which the labels of these classes are known."""

    @classmethod
    @abstractmethod
    def class_sums(cls, features: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
        """Computes the sum of the features, (n, values), of the images with each label, (classes, values)."""

    @classmethod
    @abstractmethod
    def described(cls, target: np.ndarray, names: Sequence[str]) -> list[str]:
        """Describes what an image teaches, a row of `targets`, with a line for each class that it names."""

    # After the training. `parts` are the probabilities and the labels of batches of images.

    @classmethod
    @abstractmethod
    def score_of(cls, parts: Parts) -> float:
        """Computes the task's `score`."""

    @classmethod
    @abstractmethod
    def unfitted(cls, classes: int) -> Self:
        """Returns the answers of a model that is not fitted yet."""

    @classmethod
    @abstractmethod
    def blind_score(cls, labels: np.ndarray) -> float:
        """Computes the score of a model that sees nothing."""

    @classmethod
    @abstractmethod
    def blind_share(cls, counts: Sequence[int], images: int) -> float:
        """Estimates `blind_score` from the number of images of each class, and of all images."""

    @classmethod
    @abstractmethod
    def fitted(cls, parts: Parts, config: "ExportConfig") -> Self:
        """Fits what the answers of a model need to its probabilities for validation images."""

    # Answers

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
    def evaluated(self, parts: Parts) -> Any:
        """Collects what the report needs of the answers for a split: an `Evaluated` of `report`."""

    @staticmethod
    @abstractmethod
    def report() -> Any:
        """Returns the module that writes the report: `write_predictions`, `write_test_report` and `summary`."""

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
