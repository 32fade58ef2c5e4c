"""AdamW that updates the weights in one pass over memory, where the backend has a kernel for it."""

from collections.abc import Sequence
from typing import Any

import keras

from visionpipe.kernels import kernel

ON_THIS_BACKEND = type(keras.optimizers.AdamW())  # a subclass on torch, which updates all variables at once


class AdamW(ON_THIS_BACKEND):  # type: ignore[misc, valid-type]
    """Updates weights as Keras's AdamW does (Loshchilov & Hutter 2019, arXiv:1711.05101), up to rounding.

    Keras's chain of elementwise operations reads and writes each weight a dozen times. With ResNet-50 that is a sixth
    of a training step.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if not self.in_one_pass([gradient], [variable], learning_rate):
            super().update_step(gradient, variable, learning_rate)

    def _parallel_update_step(self, gradients: Any, variables: Sequence[Any], learning_rate: Any) -> None:
        if not self.in_one_pass(gradients, variables, learning_rate):
            super()._parallel_update_step(gradients, variables, learning_rate)

    def in_one_pass(self, gradients: Sequence[Any], variables: Sequence[Any], learning_rate: Any) -> bool:
        """Updates the variables and returns True; does nothing and returns False where no kernel can."""
        fused = kernel("adam")
        if fused is None or self.amsgrad:
            return False
        places = [self._get_variable_index(variable) for variable in variables]
        moments = [[kind[place] for place in places] for kind in (self._momentums, self._velocities)]
        numbers = (self.iterations + 1, learning_rate, self.beta_1, self.beta_2, self.epsilon)
        return bool(fused(variables, gradients, *moments, *numbers))
