"""The moving average of a model's weights (Polyak & Juditsky 1992; Izmailov et al. 2018, arXiv:1803.05407)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from visionpipe.acceleration.network import Network
from visionpipe.training.checkpoint import as_array


class AveragedModel(Network):
    """Trains `model`, and maintains a moving average of its weights and of its batch norms' statistics.

    Update t decays the average by min(decay, (1 + t) / (10 + t)), so that the initial weights are soon forgotten.
    Steps that only accumulate gradients do not change the average.
    """

    def __init__(self, model: keras.Model, outputs: Any, decay: float):
        super().__init__(model.input, outputs)
        self.decay = decay
        self.sources = list(model.weights)
        self.averages = [
            self.add_weight(shape=source.shape, dtype=source.dtype, trainable=False, name=f"average_{number}")
            for number, source in enumerate(self.sources)
        ]
        for average, source in zip(self.averages, self.sources, strict=True):
            average.assign(as_array(source))

    def train_step(self, *arguments: Any) -> Any:
        if keras.backend.backend() != "jax":
            logs = super().train_step(*arguments)
            decay = self.decay_in(self.optimizer.steps)
            for average, source in zip(self.averages, self.sources, strict=True):
                average.assign(blend(average, source, decay))
            return logs
        # On JAX a step is a pure function: it returns the new values of all variables in the order of the lists.
        logs, (trainable, others, optimizer, metrics) = super().train_step(*arguments)
        names = [id(v) for v in (*self.trainable_variables, *self.non_trainable_variables)]
        values = dict(zip(names, (*trainable, *others), strict=True))
        place = [id(v) for v in self.optimizer.variables].index(id(self.optimizer.steps))
        decay = self.decay_in(optimizer[place])
        for average, source in zip(self.averages, self.sources, strict=True):
            values[id(average)] = blend(values[id(average)], values[id(source)], decay)
        return logs, (trainable, [values[id(v)] for v in self.non_trainable_variables], optimizer, metrics)

    def decay_in(self, steps: Any) -> Any:
        """Returns the decay of the average in step `steps` of the phase, whose first step is 1."""
        updates, is_update = self.optimizer.updates(steps)
        updates = ops.cast(updates, "float32")
        decay = ops.minimum(self.decay, (1 + updates) / (10 + updates))
        return ops.where(is_update, decay, 1.0) if self.optimizer.gradient_accumulation_steps else decay

    @contextmanager
    def averages_in_place(self) -> Iterator[None]:
        """Puts the averages into the layers for the `with` block, and the trained weights back afterwards."""
        trained = [as_array(source) for source in self.sources]
        self.take_averages()
        try:
            yield
        finally:
            for source, value in zip(self.sources, trained, strict=True):
                source.assign(value)

    def take_averages(self) -> None:
        """Replaces the trained weights by the averages."""
        for average, source in zip(self.averages, self.sources, strict=True):
            source.assign(as_array(average))


def blend(average: Any, value: Any, decay: Any) -> Any:
    return average + (1 - decay) * (value - average)
