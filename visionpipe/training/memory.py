"""Running out of memory, which each framework has its own words for."""

from collections.abc import Iterator
from contextlib import contextmanager

from visionpipe.errors import TrainingError
from visionpipe.training.recipe import TrainConfig

OUT_OF_MEMORY = (
    "out of memory",
    "oom when",
    "can't allocate memory",
    "not enough memory",
    "resource_exhausted",
)


@contextmanager
def memory_errors_named(recipe: TrainConfig) -> Iterator[None]:
    """What each framework says when memory runs out, as a TrainingError that says what to change."""
    try:
        yield
    except Exception as error:
        if not ran_out_of_memory(error):
            raise
        repeats = recipe.repeated_augmentation
        half = recipe.batch_size // 2 // repeats * repeats
        raise TrainingError(
            f"out of memory at train.batch_size {recipe.batch_size}: "
            + (
                f"try {half}, with train.accumulate: {2 * recipe.accumulate} for the same update"
                if half
                else "there is no smaller one; try a smaller variant, or smaller images (prepare.size)"
            )
        ) from error


def ran_out_of_memory(error: Exception) -> bool:
    """Each framework has its own class for it; their messages agree better."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)
