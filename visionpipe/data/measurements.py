"""Tells labels that are measured numbers, such as 0.37 and 12.5, from classes."""

import re
from collections import Counter
from collections.abc import Iterable

from visionpipe.data.spreadsheet import number_of
from visionpipe.data.wording import shown
from visionpipe.errors import DataError

POSSIBLE = (
    "a model names one class of each image (task: single) or any number of labels (task: multi); predict a number by "
    "cutting it into classes, such as low, middle and high, and ordered classes, such as grades, with task: single"
)
WHOLE = re.compile(r"([+-]?\d+)(\.0*)?")
NO_NUMBER = ("", "nan", "na", "n/a", "null", "none", "<na>")  # in a column of numbers
MOST_LEVELS = 20  # different numbers that may still be classes, such as doses
FEWEST = 3


def measured(cells: Iterable[str]) -> str | None:
    """Returns a cell as an example if the cells are measured numbers; None where they may be classes.

    All of them are numbers, and they are too many different ones: more than MOST_LEVELS, or one for less than two
    cells. Whole numbers must be both, because classes are often numbered.
    """
    counts = Counter(cell.strip() for cell in cells)
    counts = Counter({cell: count for cell, count in counts.items() if cell.casefold() not in NO_NUMBER})
    if len(counts) < FEWEST or any(number_of(cell) is None for cell in counts):
        return None
    example = next((cell for cell in counts if not WHOLE.fullmatch(cell)), None)
    many, single = len(counts) > MOST_LEVELS, 2 * len(counts) > counts.total()
    if example is not None:
        return example if many or single else None
    return next(iter(counts)) if many and single else None


def refuse_measured(cells: Iterable[str], where: str) -> None:
    """Raises DataError if the cells are measured numbers. `where`: the beginning of the sentence, such as a key."""
    if (example := measured(cells)) is not None:
        raise DataError(f"{where} holds numbers, such as {shown(example)}, and no classes: {POSSIBLE}")
