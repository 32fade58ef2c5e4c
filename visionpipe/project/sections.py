"""The keys, types and defaults of most sections of params.yaml; `prepare` and `train` have modules of their own."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class ModelConfig:
    """One entry of `models:`: what is trained, from which weights, and how.

    Args:
        variant: The model, as `visionpipe models` lists it.
        needs: The file that DVC trains this entry after: the manifest of the prepared images, the model of another
            entry, or `data/NAME.needs`, where the section `needs:` names two models.
        init: The weights to start from: another entry, or any source of weights; null starts from random weights.
        init_sha256: The sha256 that the file in `init` must have; its first digits are enough.
        init_head: Whether the head starts at zero or is loaded from `init` too.
        init_grid: Rows and columns of the position embeddings in `init`, where they fit neither the model nor a square.
        pixel_mean: Mean of the normalisation for each channel (red, green and blue) of pixels in [0, 255]; null takes
            that of the weights in `init`, or else that of the training images.
        pixel_std: Standard deviation of the normalisation, with the same default as `pixel_mean`.
        overrides: Fields of the variant that are different here.
        train: Keys of the recipe that are different here.
    """

    variant: str
    needs: str
    init: str | None = None
    init_sha256: str | None = None
    init_head: Literal["zero", "load"] = field(default="zero", kw_only=True)
    init_grid: tuple[int, int] | None = field(default=None, kw_only=True)
    pixel_mean: tuple[float, ...] | None = None
    pixel_std: tuple[float, ...] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExportConfig:
    """How the trained model becomes the artifact that ships.

    Args:
        precision: The precision of the matrix products. `auto` takes int8 if it is at least 1.3 times as fast and loses
            at most 0.5 points of validation accuracy.
        opset: The version of ONNX's operations.
        max_logit_difference: How far ONNX may differ from Keras before any quantisation, relative to the largest logit.
        target_precision: With `task: multi`, the precision that each label must reach on the validation images, from
            which its threshold follows; null takes the thresholds with the highest F1.
        include_preprocessing: Whether the artifact has a second model, which resizes pictures of any size itself.
    """

    precision: Literal["fp32", "int8", "auto"] = "fp32"
    opset: int = 18
    max_logit_difference: float = 0.001
    target_precision: float | None = field(default=None, kw_only=True)
    include_preprocessing: bool = field(default=False, kw_only=True)


@dataclass(frozen=True)
class EvaluateConfig:
    """What a report shows.

    Args:
        calibration_bins: The number of confidence bins behind the calibration error.
        worst_mistakes: The number of mistakes in the picture of the worst ones.
    """

    calibration_bins: int = 15
    worst_mistakes: int = 25


@dataclass(frozen=True)
class GateConfig:
    """What a model must reach on the validation split, and its data must fulfil, to be registered; all in [0, 1].

    Args:
        accuracy: With `task: single`, the smallest share of correct answers.
        worst_recall: With `task: single`, the smallest recall of the class that is recognised worst.
        over_majority: With `task: single`, how far the accuracy must lie above the share of the most frequent class,
            which a model reaches by always naming that class; 0 asks for nothing.
        mean_average_precision: With `task: multi`, the smallest mean of the labels' average precisions.
        worst_average_precision: With `task: multi`, the smallest average precision of a label.
        over_prevalence: With `task: multi`, how far the mean average precision must lie above the mean share of the
            images that have a label, which a model reaches by guessing; 0 asks for nothing.
        max_leak: The largest share of the validation images, and of the test images, that may have a copy in an earlier
            split; null asks for nothing.
        max_shortcut: The largest score that the size, format or compression of the files alone may reach for a class,
            from 0 (chance) to 1 (always right); null asks for nothing.
    """

    accuracy: float = field(default=0.0, kw_only=True)
    worst_recall: float = field(default=0.0, kw_only=True)
    over_majority: float = field(default=0.0, kw_only=True)
    mean_average_precision: float = field(default=0.0, kw_only=True)
    worst_average_precision: float = field(default=0.0, kw_only=True)
    over_prevalence: float = field(default=0.0, kw_only=True)
    max_leak: float | None = field(default=None, kw_only=True)
    max_shortcut: float | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class RegisterConfig:
    """Which models may be registered.

    Args:
        gate: The least that a model must reach.
    """

    gate: GateConfig = GateConfig()


@dataclass(frozen=True)
class TrackingConfig:
    """Names in MLflow.

    Args:
        experiment: The experiment that the runs belong to.
        model: The registered model that the versions belong to.
    """

    experiment: str = "visionpipe"
    model: str = "visionpipe"
