"""Optimizers with the schedule of the recipe, and a learning rate of its own for each variable."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from visionpipe.errors import TrainingError
from visionpipe.training.adamw import AdamW
from visionpipe.training.recipe import TrainConfig, duration_steps

Schedule = Callable[[Any, Any], Any]
BLOCK = re.compile(r"(encoder_block_\d+|stage\d+_block\d+)")
# Shrinking these towards zero does not regularise (He et al. 2019, arXiv:1812.01187, section 3.1).
UNDECAYED = re.compile(r"token|embedding|relative")


def make_schedule(recipe: TrainConfig, steps_per_epoch: int, phase_start: int) -> Schedule:
    """A function of the phase's step and of all steps of the training to the learning rate.

    Linear warm-up from the phase's beginning, times the recipe's curve over the whole training.
    """

    def steps(duration: float | str, total: Any) -> Any:
        fixed = duration_steps(duration, steps_per_epoch)
        return ops.round(total * float(duration)) if fixed is None else fixed

    def schedule(phase_step: Any, total: Any) -> Any:
        phase_step, total = ops.cast(phase_step, "float32"), ops.cast(total, "float32")
        step, warmup = phase_step + phase_start, steps(recipe.warmup, total)
        progress = ops.clip((step - warmup) / ops.maximum(total - warmup, 1.0), 0.0, 1.0)
        match recipe.schedule:
            case "cosine":
                curve = 0.5 * (1 + ops.cos(progress * 3.141592653589793))
            case "polynomial":
                curve = (1 - progress) ** recipe.power
            case "step":
                passed = sum(ops.cast(step >= steps(at, total), "float32") for at in recipe.decay_at)
                curve = ops.power(recipe.decay_factor, passed)
            case _:
                curve = ops.ones_like(progress)
        if recipe.schedule in ("cosine", "polynomial"):
            curve = recipe.final_rate + (1 - recipe.final_rate) * curve
        rise = ops.minimum((phase_step + 1) / ops.maximum(warmup, 1.0), 1.0)
        return recipe.learning_rate * rise * curve

    return schedule


def rate_factors(model: keras.Model, recipe: TrainConfig) -> dict[str, float]:
    """Variable path → factor of the learning rate.

    Blocks are counted in the model's order; what lies before the first one is one more below, what lies behind
    the last one has the full rate.
    """
    blocks: list[str] = []
    depths: dict[str, int] = {}
    for layer in model.layers:
        match = BLOCK.match(layer.name)
        if match and match[1] not in blocks:
            blocks.append(match[1])
        # A layer between two blocks belongs to the one before it, unless it comes after all of them. Parallel
        # branches are not in the order of their blocks.
        depths[layer.name] = blocks.index(match[1]) + 1 if match else len(blocks)
    last = max((place for place, layer in enumerate(model.layers) if BLOCK.match(layer.name)), default=-1)
    for layer in model.layers[last + 1 :]:
        depths[layer.name] = len(blocks) + 1
    check_layers(model, "train.rates", recipe.rates)
    factors: dict[str, float] = {}
    for layer in model.layers:
        factor = recipe.layer_decay ** (len(blocks) + 1 - depths[layer.name])
        for prefix, own in recipe.rates.items():
            factor *= own if layer.name.startswith(prefix) else 1.0
        factors |= {variable.path: factor for variable in layer.trainable_variables}
    return factors


def check_layers(model: keras.Model, key: str, prefixes: Iterable[str]) -> None:
    """Raises TrainingError for a prefix with which no layer begins that has weights."""
    weighty = [layer.name for layer in model.layers if layer.weights]
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name in weighty):
            names = ", ".join(sorted({name.split("_")[0] for name in weighty}))
            raise TrainingError(f"{key}: no layer begins with {prefix}; there are {names}")


def make_optimizer(
    recipe: TrainConfig,
    schedule: Schedule,
    factors: Mapping[str, float],
    variables: Sequence[Any],
    total: int,
) -> keras.optimizers.Optimizer:
    """The optimizer of the recipe, built for `variables`. `total`: all steps of the training.

    Weight decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101).
    """
    options: dict[str, Any] = {
        "weight_decay": recipe.weight_decay,
        "global_clipnorm": recipe.clip_norm,
        "gradient_accumulation_steps": recipe.accumulate if recipe.accumulate > 1 else None,
    }
    kind: type[keras.optimizers.Optimizer] = {
        "sgd": keras.optimizers.SGD,
        "adamw": AdamW,
        "lamb": keras.optimizers.Lamb,
        "lion": keras.optimizers.Lion,
        "muon": keras.optimizers.Muon,
    }[recipe.optimizer]
    if recipe.optimizer == "sgd":
        options |= {"momentum": recipe.momentum, "nesterov": recipe.momentum > 0}
    elif recipe.optimizer == "muon":
        # Its authors keep the head with AdamW; so does Keras with all that is not a matrix, convolutions too.
        options |= {"momentum": recipe.momentum, "exclude_layers": ["logits"]}
        options["adam_weight_decay"] = options["weight_decay"]
    else:
        options["beta_1"] = recipe.momentum
    optimizer = scheduled(kind)(schedule, factors, total, **options)
    if recipe.weight_decay:
        optimizer.exclude_from_weight_decay(
            var_list=[v for v in variables if v.ndim <= 1 or UNDECAYED.search(v.name)]
        )
    optimizer.build(variables)
    return optimizer


def scheduled(kind: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """A class of optimizers like `kind`, with one visible learning rate and a factor of it per variable."""
    on_this_backend = type(kind())  # torch has subclasses of its own, which update all variables at once

    class Scheduled(on_this_backend):  # type: ignore[misc, valid-type]
        def __init__(self, schedule: Schedule, factors: Mapping[str, float], total: int, **options: Any):
            super().__init__(learning_rate=0.0, name=kind.__name__.lower(), **options)
            self.schedule, self.factors, self.total, self.factor = schedule, dict(factors), total, 1.0

        def build(self, variables: Sequence[Any]) -> None:
            super().build(variables)
            # A variable, because a budget in minutes finds its number of steps while it runs.
            self.total_steps = self.add_variable(
                (), keras.initializers.Constant(self.total), dtype="int32", name="total_steps"
            )

        @property
        def steps(self) -> keras.Variable:
            """Of the phase; `iterations` counts updates, of which there are fewer when gradients accumulate."""
            return self._iterations

        def _get_current_learning_rate(self) -> Any:
            return self.schedule(self.steps, self.total_steps) * self.factor

        @contextmanager
        def at(self, factor: float) -> Iterator[None]:
            self.factor = factor
            try:
                yield
            finally:
                self.factor = 1.0

        def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
            decayed = [v for v in variables if self._use_weight_decay(v)]
            for factor, places in self.by_factor(decayed):
                with self.at(factor):
                    super()._apply_weight_decay([decayed[place] for place in places])

        def _backend_update_step(self, gradients: Any, variables: Sequence[Any], learning_rate: Any) -> None:
            for factor, places in self.by_factor(variables):
                chosen = [[values[place] for place in places] for values in (gradients, variables)]
                super()._backend_update_step(*chosen, learning_rate * factor)

        def by_factor(self, variables: Sequence[Any]) -> list[tuple[float, list[int]]]:
            groups: dict[float, list[int]] = {}
            for place, variable in enumerate(variables):
                groups.setdefault(self.factors.get(variable.path, 1.0), []).append(place)
            return list(groups.items())

    return Scheduled
