"""The moving average of a model's weights (Polyak & Juditsky 1992; Izmailov et al. 2018, arXiv:1803.05407)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from visionpipe.acceleration.network import Network
from visionpipe.training.checkpoint import as_array


class AveragedModel(Network):
    """What trains `model`, and keeps a moving average of its weights and of its batch norms' statistics.

    The average follows with min(decay, (1 + t) / (10 + t)) after t updates, so that the first ones do not linger; the
    steps between two updates, of which gradients accumulate, leave it alone.
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
            kept = self.kept(self.optimizer.steps)
            for average, source in zip(self.averages, self.sources, strict=True):
                average.assign(blend(average, source, kept))
            return logs
        # On JAX a step is a function of all variables' values, in the order of the model's lists.
        logs, (trainable, others, optimizer, metrics) = super().train_step(*arguments)
        names = [id(v) for v in (*self.trainable_variables, *self.non_trainable_variables)]
        values = dict(zip(names, (*trainable, *others), strict=True))
        place = [id(v) for v in self.optimizer.variables].index(id(self.optimizer.steps))
        kept = self.kept(optimizer[place])
        for average, source in zip(self.averages, self.sources, strict=True):
            values[id(average)] = blend(values[id(average)], values[id(source)], kept)
        return logs, (trainable, [values[id(v)] for v in self.non_trainable_variables], optimizer, metrics)

    def kept(self, steps: Any) -> Any:
        """How much of the average stays in this step of the phase, the first of which is 1."""
        updates, is_update = self.optimizer.updates(steps)
        updates = ops.cast(updates, "float32")
        kept = ops.minimum(self.decay, (1 + updates) / (10 + updates))
        return ops.where(is_update, kept, 1.0) if self.optimizer.gradient_accumulation_steps else kept

    @contextmanager
    def averages_in_place(self) -> Iterator[None]:
        """The layers compute with the averages inside, and with their own weights again afterwards."""
        own = [as_array(source) for source in self.sources]
        self.take_averages()
        try:
            yield
        finally:
            for source, value in zip(self.sources, own, strict=True):
                source.assign(value)

    def take_averages(self) -> None:
        for average, source in zip(self.averages, self.sources, strict=True):
            source.assign(as_array(average))


def blend(average: Any, value: Any, kept: Any) -> Any:
    return average + (1 - kept) * (value - average)
