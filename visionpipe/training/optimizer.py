"""Optimizers with the recipe's schedule, and a factor of the learning rate for each variable."""

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
    """Returns variable path → factor of the learning rate.

    Raises:
        TrainingError: `train.rates` names no layer with weights.
    """
    check_layers(model, "train.rates", recipe.rates)
    by_layer = factors(recipe, [layer.name for layer in model.layers])
    return {
        variable.path: by_layer[layer.name]
        for layer in model.layers
        for variable in layer.trainable_variables
    }


def check_layers(model: keras.Model, key: str, words: Iterable[str]) -> None:
    """Raises TrainingError if one of `words` names no layer that has weights."""
    with_weights = [layer.name for layer in model.layers if layer.weights]
    for word in words:
        if not any(begins_with(name, word) for name in with_weights):
            raise TrainingError(f"{key}: {no_layer(word, with_weights)}")


def make_optimizer(
    recipe: TrainConfig,
    schedule: Schedule,
    factors: Mapping[str, float],
    variables: Sequence[Any],
    total: int,
    phase_steps: int | None = None,
) -> keras.optimizers.Optimizer:
    """Builds the recipe's optimizer for `variables`.

    Weight decay is decoupled (Loshchilov & Hutter 2019, arXiv:1711.05101).

    Args:
        factors: variable path → factor of the learning rate; 1 for other variables.
        total: the number of steps of the training.
        phase_steps: the number of steps of the optimizer's phase, if it is known.
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
        # Muon's authors train the head with AdamW. Keras also uses AdamW for all weights that are no matrices, such as
        # convolutions.
        options |= {"momentum": recipe.momentum, "exclude_layers": [f"^{LOGITS}"]}
        options["adam_weight_decay"] = options["weight_decay"]
    else:
        options["beta_1"] = recipe.momentum
    optimizer = scheduled(kind)(schedule, factors, total, phase_steps, **options)
    if recipe.weight_decay:
        # Decay of biases, scales, tokens and positions does not regularise (He et al. 2019, arXiv:1812.01187, section
        # 3.1).
        optimizer.exclude_from_weight_decay(
            var_list=[v for v in variables if v.ndim <= 1 or TOKEN_OR_POSITION.search(v.name)]
        )
    optimizer.build(variables)
    return optimizer


def scheduled(kind: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """Returns a subclass of `kind` with the recipe's schedule and a factor of the learning rate for each variable."""
    on_this_backend = type(kind())  # a subclass on torch, which updates all variables at once

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
            """The number of steps of the phase's last update, if they are fewer than for the others; else 0."""
            return (self.phase_steps or 0) % (self.gradient_accumulation_steps or 1)

        def build(self, variables: Sequence[Any]) -> None:
            super().build(variables)
            # A variable, because a budget in minutes is converted into steps during the training.
            self.total_steps = self.add_variable(
                (), keras.initializers.Constant(self.total), dtype="int32", name="total_steps"
            )

        @property
        def steps(self) -> keras.Variable:
            """The steps done in this phase. `iterations` counts updates, which are fewer if gradients accumulate."""
            return self.counter

        def updates(self, steps: Any) -> tuple[Any, Any]:
            """Returns how many updates `steps` steps make or begin, and whether the last of these steps makes one."""
            group = self.gradient_accumulation_steps or 1
            made = (steps + group - 1) // group
            return made, (steps % group == 0) | (steps == (self.phase_steps if self.rest else 0))

        def _backend_apply_gradients(self, gradients: Any, variables: Sequence[Any]) -> None:
            if not self.rest:
                return super()._backend_apply_gradients(gradients, variables)
            # Keras updates only after a whole group of steps, and would drop an incomplete group at the phase's end. So
            # the phase's last step counts as the last of a group, and `share` corrects the mean over the group.
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
