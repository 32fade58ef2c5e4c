"""Words of the sentences about files and folders: names in quotes, numbers with their nouns."""

from collections.abc import Iterable

from visionpipe.escape import visible

SHOWN = 4  # names in a remark
LONGEST = 60  # characters of a name in a remark


def shown(name: str) -> str:
    """Returns a name for a sentence: without characters that do not print, and not longer than LONGEST."""
    text = visible(name)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…{text[-LONGEST // 2 :]}"


def quoted(name: str) -> str:
    """Returns a name in quotes, as `shown` shows it."""
    return f"'{shown(name)}'"


def listed(names: Iterable[str]) -> str:
    """Returns the first names in quotes, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - SHOWN
    return ", ".join(map(quoted, ordered[:SHOWN])) + (f" and {more:,} more" if more > 0 else "")


def is_are(count: int) -> str:
    """Returns the verb for so many things."""
    return "is" if count == 1 else "are"


def counted(count: int, one: str, several: str | None = None) -> str:
    """Returns a number with its noun: "1 file", "2 files", "3 classes"."""
    return f"{count:,} {one if count == 1 else several or one + 's'}"
