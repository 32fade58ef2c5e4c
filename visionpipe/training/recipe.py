"""The recipe: the keys of `train:` in params.yaml. Imports no framework, so that mistakes are reported at once."""

import math
import re
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from visionpipe.errors import ConfigError

MOST = 10**9  # epochs, steps, images of a batch: more is a typing mistake
BUDGETS = ("epochs", "steps", "minutes")
# The keys that each schedule reads, besides the learning rate and the warm-up.
CURVES = {
    "constant": (),
    "cosine": ("final_rate",),
    "polynomial": ("final_rate", "power"),
    "step": ("decay_at", "decay_factor"),
}
DURATION = re.compile(r"(\d+(?:\.\d+)?) (epoch|step)s?")


@dataclass(frozen=True)
class DistillConfig:
    """Distillation: the model also learns from a teacher's answers (Hinton et al. 2015, arXiv:1503.02531).

    A ViT with a distillation token learns from the teacher with that token's head.

    Args:
        teacher: an entry of `models:`, or a registered model as `models:/NAME@ALIAS`.
        temperature: divides the logits of both models before they are compared; higher values tell more about the
            less likely classes.
        weight: the share of the teacher in the loss.
        hard: whether to learn the teacher's most probable class (Touvron et al. 2021, arXiv:2012.12877, equation 3)
            instead of its probabilities.
    """

    teacher: str
    _: KW_ONLY
    temperature: float = 2.0
    weight: float = 0.5
    hard: bool = False


@dataclass(frozen=True)
class FreezeConfig:
    """A phase at the beginning of a training, in which only some layers are trained.

    After the last phase all layers are trained. A frozen batch norm does not update its moving averages.

    Args:
        epochs: the length of the phase.
        train: the layers that are trained: the whole name of each, or its first words. `encoder_block_1` does not stand
            for `encoder_block_10`.
    """

    epochs: int
    train: tuple[str, ...]


@dataclass(frozen=True)
class TrainConfig:
    """The recipe of a training. Exactly one of `epochs`, `steps` and `minutes` is its budget.

    A duration is a fraction of the training (0.1), or a text: "5 epochs", "500 steps". A recipe with a part that begins
    after the end of the training is refused. `visionpipe params` prints the plan (plan.py).

    Args:
        epochs: the budget as passes over the training images.
        steps: the budget as steps.
        minutes: the budget as time on this machine. With this budget two runs do not give the same weights.
        batch_size: images in a step; all images, if the set has fewer.
        accumulate: steps whose gradients make one update; the steps that are left at the end of a phase make a smaller
            one.
        optimizer: how gradients change the weights. `sgd` has Nesterov's momentum; `muon` is for matrices, with AdamW
            for all other weights.
        learning_rate: the highest learning rate.
        schedule: the curve of the learning rate after the warm-up.
        warmup: the duration of the linear rise, at the beginning and after each phase of `freeze`; never longer than
            its phase.
        final_rate: where `cosine` and `polynomial` end, as a fraction of the learning rate.
        decay_at: the moments at which `schedule: step` multiplies the rate.
        decay_factor: the factor by which `schedule: step` multiplies the rate.
        power: the exponent of `schedule: polynomial`; 1 is a straight line.
        momentum: the momentum of SGD and Muon, and the decay of the first moment of the other optimizers.
        weight_decay: the decay of the weights, multiplied by the learning rate; norms, biases, tokens and positions
            have none.
        clip_norm: the largest norm of all gradients together; null: no limit.
        layer_decay: the factor of the rate from each block to the block before it (Bao et al. 2022, arXiv:2106.08254).
        rates: factors of the rate for layers, named as in `freeze`, on top of `layer_decay`.
        freeze: phases at the beginning in which only some layers are trained. The warm-up and the moving average begin
            again in each phase.
        loss: cross-entropy over the classes (`softmax`), or of each class against all others (`sigmoid`, Beyer et al.
            2020), or with less weight for images that are recognised already (`focal`, Lin et al. 2017,
            arXiv:1708.02002), or for absent labels that are (`asymmetric`, for several labels, Ridnik et al. 2021,
            arXiv:2009.14119). With `task: multi` the default is `sigmoid`.
        label_smoothing: the share of each target that is spread over all classes; with `task: multi`
            each target moves by half of it towards the other value.
        class_weights: a factor for each class; `balanced` gives rare classes larger factors, with a mean of 1; with
            `task: multi` they weigh present labels, by the number of images without the label for each image with it.
        distill: a teacher whose answers are a second target.
        ema_decay: the decay of a moving average of the weights and of the norms' statistics, which is then evaluated
            and saved instead of them; it follows each update of the weights, and faster at first. null: no average.
        keep: which weights are saved: those of the last epoch, or of the best one on the validation images.
        patience: the number of epochs without a better validation accuracy after which the training ends; epochs of the
            phases of `freeze` do not count. null: it never ends early.
        precision: the precision of the computation; weights, heads, softmax and loss are always float32.
        augmentation: what happens to the training images, in this order (visionpipe/data/augmentation.py).
        repeated_augmentation: how often each image is in its batch, each time with other random draws.
        checkpoint_minutes: the time between two checkpoints within an epoch; one is written at each epoch's end too.
        checkpoint_steps: the number of steps between two checkpoints, in addition to `checkpoint_minutes`.
        sampler: how often the images of a class are drawn: as often as there are (`shuffle`), as often as those of any
            other class (`balanced`), or by the square root of their number (`sqrt`). An epoch has the same steps.
        focal_gamma: the exponent of `loss: focal`; 0 is cross-entropy.
        logit_adjustment: tau, the factor of the logarithm of each class's share, which is added to the logits in the
            loss alone (Menon et al. 2021, arXiv:2007.07314, equation 10); 1 aims at the balanced accuracy. null: none.
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float | None = None
    batch_size: int = 64
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw", "lamb", "lion", "muon"] = "adamw"
    learning_rate: float = 0.001
    schedule: Literal["constant", "cosine", "step", "polynomial"] = "cosine"
    warmup: float | str = 0.1
    final_rate: float = 0.0
    decay_at: tuple[float | str, ...] = (0.5, 0.75)
    decay_factor: float = 0.1
    power: float = 1.0
    momentum: float = 0.9
    weight_decay: float = 0.0001
    clip_norm: float | None = None
    layer_decay: float = 1.0
    rates: dict[str, float] = field(default_factory=dict)
    freeze: tuple[FreezeConfig, ...] = ()
    loss: Literal["softmax", "sigmoid", "focal", "asymmetric"] = "softmax"
    label_smoothing: float = 0.0
    class_weights: dict[str, float] | Literal["balanced"] | None = None
    distill: DistillConfig | None = None
    ema_decay: float | None = None
    keep: Literal["last", "best"] = "last"
    patience: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    augmentation: tuple[dict[str, Any], ...] = ()
    repeated_augmentation: int = 1
    checkpoint_minutes: float = 5.0
    checkpoint_steps: int | None = None
    sampler: Literal["shuffle", "balanced", "sqrt"] = field(default="shuffle", kw_only=True)
    focal_gamma: float = field(default=2.0, kw_only=True)
    logit_adjustment: float | None = field(default=None, kw_only=True)

    @property
    def budget(self) -> str:
        """The budget in words, such as "11 epochs"."""
        return next(f"{value:,} {name}" for name in BUDGETS if (value := getattr(self, name)) is not None)

    def named_layers(self) -> dict[str, tuple[str, ...]]:
        """Returns key of the recipe → the layers that it names."""
        phases = {f"freeze[{place}].train": phase.train for place, phase in enumerate(self.freeze)}
        return phases | {"rates": tuple(self.rates)}

    def check(self) -> None:
        """Raises ConfigError, beginning with the key, if a value or a combination of values is invalid."""
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"epochs: give one of {', '.join(BUDGETS)}; received {', '.join(given) or 'none'}"
            )
        for name, least in (
            ("epochs", 1), ("steps", 1), ("batch_size", 1), ("accumulate", 1), ("patience", 1),
            ("repeated_augmentation", 1), ("checkpoint_steps", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            check_value(value is None or value >= least, name, f"must be at least {least}")
            check_value(value is None or value <= MOST, name, f"must be at most {MOST:,}")
        for name in (
            "minutes", "learning_rate", "power", "clip_norm", "layer_decay", "checkpoint_minutes",
            "logit_adjustment",
        ):  # fmt: skip
            value = getattr(self, name)
            check_value(value is None or 0 < value < math.inf, name, "must be positive and finite")
        for name in ("weight_decay", "focal_gamma"):
            check_value(0 <= getattr(self, name) < math.inf, name, "must be finite and not negative")
        for name in ("momentum", "label_smoothing", "ema_decay"):
            value = getattr(self, name)
            check_value(value is None or 0 <= value < 1, name, "must lie in [0, 1)")
        for name in sorted({name for names in CURVES.values() for name in names}):
            check_value(
                name in CURVES[self.schedule] or getattr(self, name) == getattr(TrainConfig, name),
                name, f"has no effect with schedule: {self.schedule}: leave it out",
            )  # fmt: skip
        for name in ("final_rate", "decay_factor", "layer_decay"):
            check_value(0 <= getattr(self, name) <= 1, name, "must lie between 0 and 1")
        for name, durations in (("warmup", (self.warmup,)), ("decay_at", self.decay_at)):
            for duration in durations:
                check_duration(duration, name)
        for name, factor in self.rates.items():
            check_value(0 <= factor < math.inf, f"rates.{name}", "must be finite and not negative")
        for position, phase in enumerate(self.freeze):
            check_value(
                1 <= phase.epochs <= MOST, f"freeze[{position}].epochs", f"must lie between 1 and {MOST:,}"
            )
            check_value(
                phase.train,
                f"freeze[{position}].train",
                "is empty: name at least one layer that is trained",
            )
        check_value(
            self.batch_size % self.repeated_augmentation == 0,
            "repeated_augmentation", f"must divide batch_size {self.batch_size}",
        )  # fmt: skip
        if isinstance(self.class_weights, dict):
            for name, weight in self.class_weights.items():
                check_value(
                    0 <= weight < math.inf, f"class_weights.{name}", "must be finite and not negative"
                )
        check_imbalance(self)
        if self.distill:
            check_value(
                0 < self.distill.temperature < math.inf, "distill.temperature", "must be positive and finite"
            )
            check_value(0 < self.distill.weight <= 1, "distill.weight", "must lie in (0, 1]")
            check_value(
                not self.distill.hard or self.distill.temperature == DistillConfig.temperature,
                "distill.temperature", "has no effect with hard: true: leave it out",
            )  # fmt: skip


def check_imbalance(recipe: TrainConfig) -> None:
    """Raises ConfigError if two keys would correct the same imbalance, or if one of them would have no effect."""
    sampler, balanced = f"sampler: {recipe.sampler}", recipe.class_weights == "balanced"
    check_value(
        recipe.loss == "focal" or recipe.focal_gamma == TrainConfig.focal_gamma,
        "focal_gamma", f"has no effect with loss: {recipe.loss}: leave it out",
    )  # fmt: skip
    check_value(
        recipe.sampler == "shuffle" or not balanced,
        "class_weights", f"balanced would correct the classes a second time beside {sampler}: leave one of them out",
    )  # fmt: skip
    if recipe.logit_adjustment is not None:
        key = "logit_adjustment"
        check_value(
            recipe.loss == "softmax", key, f"is for loss: softmax, not {recipe.loss}: leave one of them out"
        )
        check_value(
            recipe.class_weights is None,
            key, "would correct the classes a second time beside class_weights: leave one of them out",
        )  # fmt: skip
        check_value(
            recipe.sampler != "balanced",
            key,
            f"has no effect with {sampler}, where all shares are equal: leave it out",
        )


def check_value(condition: object, key: str, message: str) -> None:
    """Raises ConfigError, beginning with the key, unless the condition holds."""
    if not condition:
        raise ConfigError(f"{key}: {message}")


def check_duration(duration: float | str, key: str) -> None:
    if isinstance(duration, str):
        check_value(
            DURATION.fullmatch(duration),
            key,
            f'expected a fraction, "5 epochs" or "500 steps"; received {duration!r}',
        )
    else:
        check_value(0 <= duration < 1, key, "a fraction must lie in [0, 1)")


def duration_steps(duration: float | str, steps_per_epoch: int) -> float | None:
    """Returns the steps of a duration in epochs or steps; None if it is a fraction of the training."""
    if not isinstance(duration, str):
        return None
    match = DURATION.fullmatch(duration)
    assert match is not None, "check_duration refuses all else"
    return float(match[1]) * (steps_per_epoch if match[2] == "epoch" else 1)


def begins_with(name: str, words: str) -> bool:
    """Whether a layer's name is `words` or begins with these whole words."""
    return f"{name}_".startswith(words.rstrip("_") + "_")


def layered(*layers: dict[str, Any]) -> dict[str, Any]:
    """Merges the layers of a recipe; a later layer overrides an earlier one.

    A budget removes those of other kinds in earlier layers. A schedule or loss removes the keys that it does not read.
    """
    merged: dict[str, Any] = {}
    for layer in layers:
        replaced: set[str] = set()
        if any(layer.get(name) is not None for name in BUDGETS):
            replaced |= set(BUDGETS)
        if layer.get("schedule", merged.get("schedule")) != merged.get("schedule"):
            replaced |= {name for names in CURVES.values() for name in names} - set(CURVES[layer["schedule"]])
        if layer.get("loss", "focal") != "focal":
            replaced.add("focal_gamma")
        merged = {name: value for name, value in merged.items() if name not in replaced} | layer
    return merged
