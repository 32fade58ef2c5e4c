"""Writes the generated parts of docs/results/ from the raw results beside the scripts.

    python -m benchmarks.tables

Each part lies between two marks, which name the script that measured it:
<!-- begin: benchmarks/speed/input.py --> and <!-- end: benchmarks/speed/input.py -->. What stands outside them is
written by hand. Every script calls `write_pages` when it has measured; tests/test_benchmarks.py compares.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from benchmarks.accuracy import tables as accuracy
from benchmarks.facts import ROOT
from benchmarks.markdown import Answer, table
from benchmarks.robustness import tables as robustness
from benchmarks.serving import tables as serving
from benchmarks.speed import tables as speed

PAGES = ROOT / "docs" / "results"
SUMMARY = "summary"
SUBJECTS = ("training.md", "input.md", "serving.md", "accuracy.md", "robustness.md")


class Part(NamedTuple):
    """A generated part of a page: the name in its marks, and what makes its text."""

    page: str
    name: str
    text: Callable[[], str]

    def shown(self) -> str:
        """Returns the text that the page has now."""
        return self.split()[1]

    def write(self) -> None:
        before, _, after = self.split()
        (PAGES / self.page).write_text(f"{before}\n{self.text().strip()}\n\n{after}")

    def split(self) -> tuple[str, str, str]:
        """Returns the page up to the first mark and with it, what lies between the marks, and the rest."""
        begin, end = f"<!-- begin: {self.name} -->\n", f"<!-- end: {self.name} -->\n"
        before, rest = (PAGES / self.page).read_text().split(begin)
        between, after = rest.split(end)
        return before + begin, between, end + after


def answers() -> list[Answer]:
    every = [answer for subject in (speed, serving, accuracy, robustness) for answer in subject.answers()]
    return [answer for answer in every if answer.text]


def index() -> str:
    """Returns every subject's main answers, with links to their pages."""
    rows = [[f"[{answer.question}]({answer.page})", answer.text] for answer in answers() if not answer.detail]
    return "\n".join(table(["question", "answer"], rows, left=(0, 1)))


def summary(page: str) -> str:
    """Returns all answers that a page gives."""
    lines = [f"- **{answer.question}** {answer.text}" for answer in answers() if answer.page == page]
    return "\n".join(lines)


PARTS = [
    Part("index.md", SUMMARY, index),
    *(Part(page, SUMMARY, partial(summary, page)) for page in SUBJECTS),
    Part("training.md", "benchmarks/speed/models.py", speed.models),
    Part("training.md", "benchmarks/speed/gpu.py", speed.gpu),
    Part("training.md", "benchmarks/speed/trainer.py", speed.trainer),
    Part("training.md", "benchmarks/speed/modes.py", speed.modes),
    Part("input.md", "benchmarks/speed/input.py", speed.loader),
    Part("input.md", "benchmarks/speed/augmentation.py", speed.augmentation),
    Part("serving.md", "benchmarks/serving/compare.py", serving.comparison),
    Part("accuracy.md", "benchmarks/accuracy/pipeline.py", accuracy.default_models),
    Part("accuracy.md", "experiments", accuracy.experiments),
    Part("accuracy.md", "benchmarks/accuracy/transfer.py", accuracy.transfer),
    Part("accuracy.md", "benchmarks/accuracy/imbalance.py", accuracy.imbalance),
    Part("accuracy.md", "benchmarks/accuracy/doctor.py", accuracy.doctor_table),
    Part("robustness.md", "benchmarks/robustness/battery.py", robustness.battery),
    Part("robustness.md", "benchmarks/robustness/kills.py", robustness.kills),
]


def write_pages() -> None:
    for part in PARTS:
        part.write()


if __name__ == "__main__":
    write_pages()
