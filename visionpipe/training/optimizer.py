"""Optimizers with the schedule of the recipe, and a learning rate of its own for each variable."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from visionpipe.errors import TrainingError
from visionpipe.models.names import LOGITS, TOKEN_OR_POSITION
from visionpipe.training.adamw import AdamW
from visionpipe.training.plan import factors, no_layer
from visionpipe.training.recipe import TrainConfig, begins_with
from visionpipe.training.schedule import Schedule
from visionpipe.training.schedule import make_schedule as make_schedule


def rate_factors(model: keras.Model, recipe: TrainConfig) -> dict[str, float]:
    """Variable path → factor of the learning rate."""
    check_layers(model, "train.rates", recipe.rates)
    by_layer = factors(recipe, [layer.name for layer in model.layers])
    return {
        variable.path: by_layer[layer.name]
        for layer in model.layers
        for variable in layer.trainable_variables
    }


def check_layers(model: keras.Model, key: str, words: Iterable[str]) -> None:
    """Raises TrainingError for what names no layer that has weights."""
    weighty = [layer.name for layer in model.layers if layer.weights]
    for word in words:
        if not any(begins_with(name, word) for name in weighty):
            raise TrainingError(f"{key}: {no_layer(word, weighty)}")


def make_optimizer(
    recipe: TrainConfig,
    schedule: Schedule,
    factors: Mapping[str, float],
    variables: Sequence[Any],
    total: int,
    phase_steps: int | None = None,
) -> keras.optimizers.Optimizer:
    """The optimizer of the recipe, built for `variables`. `total`: all steps of the training; `phase_steps`: those of
    the phase that it is for, where they are known.

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
        options |= {"momentum": recipe.momentum, "exclude_layers": [f"^{LOGITS}"]}
        options["adam_weight_decay"] = options["weight_decay"]
    else:
        options["beta_1"] = recipe.momentum
    optimizer = scheduled(kind)(schedule, factors, total, phase_steps, **options)
    if recipe.weight_decay:
        # Shrinking biases, scales, tokens and positions does not regularise (He et al. 2019, arXiv:1812.01187,
        # section 3.1).
        optimizer.exclude_from_weight_decay(
            var_list=[v for v in variables if v.ndim <= 1 or TOKEN_OR_POSITION.search(v.name)]
        )
    optimizer.build(variables)
    return optimizer


def scheduled(kind: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """A class of optimizers like `kind`, with one visible learning rate and a factor of it per variable."""
    on_this_backend = type(kind())  # torch has subclasses of its own, which update all variables at once

    class Scheduled(on_this_backend):  # type: ignore[misc, valid-type]
        def __init__(
            self,
            schedule: Schedule,
            factors: Mapping[str, float],
            total: int,
            phase_steps: int | None,
            **options: Any,
        ):
            super().__init__(learning_rate=0.0, name=kind.__name__.lower(), **options)
            self.schedule, self.factors, self.total, self.factor = schedule, dict(factors), total, 1.0
            self.counter, self.phase_steps, self.share = self._iterations, phase_steps, 1.0

        @property
        def rest(self) -> int:
            """The steps that are left for the last update of the phase, where they are fewer than for the others."""
            return (self.phase_steps or 0) % (self.gradient_accumulation_steps or 1)

        def build(self, variables: Sequence[Any]) -> None:
            super().build(variables)
            # A variable, because a budget in minutes finds its number of steps while it runs.
            self.total_steps = self.add_variable(
                (), keras.initializers.Constant(self.total), dtype="int32", name="total_steps"
            )

        @property
        def steps(self) -> keras.Variable:
            """Of the phase; `iterations` counts updates, of which there are fewer when gradients accumulate."""
            return self.counter

        def updates(self, steps: Any) -> tuple[Any, Any]:
            """How many updates so many steps make, the last one included, and whether that one makes one."""
            group = self.gradient_accumulation_steps or 1
            made = (steps + group - 1) // group
            return made, (steps % group == 0) | (steps == (self.phase_steps if self.rest else 0))

        def _backend_apply_gradients(self, gradients: Any, variables: Sequence[Any]) -> None:
            if not self.rest:
                return super()._backend_apply_gradients(gradients, variables)
            # Keras makes an update of whole groups of steps alone, and would drop what is left of the phase. So the
            # last step counts as the last one of a group, of whose mean it is given the share that there is.
            group, last = self.gradient_accumulation_steps, self.steps + 1 == self.phase_steps
            self.share = ops.where(last, group / self.rest, 1.0)
            object.__setattr__(self, "_iterations", self.steps + ops.where(last, group - self.rest, 0))
            try:
                super()._backend_apply_gradients(gradients, variables)
            finally:
                object.__setattr__(self, "_iterations", self.counter)
                self.share = 1.0

        def _clip_gradients(self, gradients: Any) -> Any:
            if self.rest:
                gradients = [gradient * ops.cast(self.share, gradient.dtype) for gradient in gradients]
            return super()._clip_gradients(gradients)

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
