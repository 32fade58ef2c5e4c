"""The learning rate of each step, computed with Keras in a training and with NumPy for a plan."""

from collections.abc import Callable
from typing import Any

from visionpipe.training.recipe import TrainConfig, duration_steps

Schedule = Callable[[Any, Any], Any]


def make_schedule(
    recipe: TrainConfig,
    steps_per_epoch: int,
    phase_start: int,
    phase_end: int | None = None,
    numbers: Any = None,
) -> Schedule:
    """Returns a function of (step of the phase, total steps of the training) that computes the learning rate.

    The rate is a linear warm-up from the beginning of the phase, times the recipe's curve over the whole training.

    Args:
        phase_start: the first step of the phase.
        phase_end: the first step of the next phase; None for the last phase.
        numbers: the module that computes; by default `keras.ops`.
    """
    if numbers is None:
        import keras

        numbers = keras.ops
    ops = numbers

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
        if recipe.freeze:  # so that a phase shorter than the warm-up reaches its highest rate
            warmup = ops.minimum(warmup, (total if phase_end is None else phase_end) - phase_start)
        rise = ops.minimum((phase_step + 1) / ops.maximum(warmup, 1.0), 1.0)
        return recipe.learning_rate * rise * curve

    return schedule
