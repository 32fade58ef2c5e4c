"""One error for running out of memory, which each framework reports in different words."""

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
    """Turns a framework's error about memory into a TrainingError that says what to change."""
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
                else "no batch can be smaller; try a smaller variant, or smaller images (prepare.size)"
            )
        ) from error


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, by its message: each framework raises another class."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)
