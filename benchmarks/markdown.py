"""Numbers and tables as the pages in docs/results/ show them."""

import statistics
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """One line of the summary at the top of a page, and of docs/results/index.md unless it is a detail.

    An answer without text, whose measurements are missing, is left out.
    """

    page: str
    question: str
    text: str
    detail: bool = False


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """Returns the lines of a table; all columns but those of these numbers are aligned to the right."""
    lines = [list(header), ["---" if column in left else "---:" for column in range(len(header))]]
    return [f"| {' | '.join(cells)} |" for cells in [*lines, *rows]]


def median(samples: Iterable[dict[str, Any]], key: str) -> float:
    """Returns the median of one field; samples in which it is null do not count."""
    return statistics.median(sample[key] for sample in samples if sample[key] is not None)


def number(value: float) -> str:
    """Returns three significant digits or so: 1,275, 24.3, 1.84."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:,.2f}"


def span(values: Collection[float]) -> str:
    """Returns the smallest and the largest ratio: "0.82 to 1.08"."""
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


def machine(result: dict[str, Any]) -> str:
    """Returns the hardware of a result without trademark signs."""
    return str(result["hardware"]).replace("(R)", "").replace(" Processor", "")


def rounds_of(samples: Iterable[dict[str, Any]]) -> str:
    count = len({sample["round"] for sample in samples})
    return "1 round" if count == 1 else f"{count} rounds"
