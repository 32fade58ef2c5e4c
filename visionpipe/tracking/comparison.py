"""Compares the models of params.yaml in a Markdown table."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.speed import measurement_path
from visionpipe.errors import RegistryError
from visionpipe.escape import markdown
from visionpipe.files import write_bytes
from visionpipe.project.backend import thread_count
from visionpipe.project.params import Params
from visionpipe.project.paths import artifact_folder, model_folder, report_folder, state_folder
from visionpipe.tasks import TASKS
from visionpipe.tracking.receipt import read_receipt

Result = dict[str, Any]  # the model's name and the value of each column; None for values that are not known
COMPARISON = Path("comparison.md")


@dataclass(frozen=True)
class Column:
    """A column of the table. `form` formats its values, and `best` selects the one to print in bold.

    interval: the keys of the lower and upper limit of a 95 % interval.
    """

    title: str
    key: str
    form: str
    best: Callable[[Iterable[float]], float]
    interval: tuple[str, str] | None = None

    def cell(self, result: Result, best: float | None) -> str:
        value = result[self.key]
        if value is None:
            return "–"
        text = format(value, self.form)
        if self.interval:
            text += " ({:{form}}–{:{form}})".format(*(result[key] for key in self.interval), form=self.form)
        return f"**{text}**" if value == best else text


MEASURED = (
    Column("served images/s", "images_per_second", ",.0f", max),
    Column("latency ms", "latency_p50_ms", ".2f", min),
    Column("serving MiB", "peak_memory_mib", ",.0f", min),
    Column("parameters", "parameters_count", ",d", min),
    Column("training minutes", "training_minutes", ".1f", min),
)


def columns(score: str) -> tuple[Column, ...]:
    """Returns the columns of the table. `score`: the metric by which the models are compared."""
    words, test = score.replace("_", " "), f"test_{score}"
    return (
        Column(f"validation {words}", f"validation_{score}", ".4f", max),
        Column(f"test {words} (95 %)", test, ".4f", max, (f"{test}_low", f"{test}_high")),
        *MEASURED,
    )


def compare(params: Params) -> None:
    """Prints the table of all models, and writes it to comparison.md. Raises RegistryError if none was evaluated."""
    if not any((report_folder(name) / "metrics.json").exists() for name in params.models):
        raise RegistryError("no model of this project has been evaluated yet: run dvc repro, or dvc pull")
    receipt = read_receipt()
    chosen = receipt["chosen"] if receipt else None
    score = TASKS[params.task].score
    table = comparison(
        read_results(params.models, thread_count(params), state_folder(), score), score, chosen
    )
    write_bytes(COMPARISON, table.encode())
    print(f"\n{table}")


def comparison(results: list[Result], score: str, chosen: str | None = None) -> str:
    """Formats the table. The best value of each column is bold, and `chosen` is marked with a star."""
    shown = columns(score)
    head = ["model", *(column.title for column in shown)]
    lines = [head, ["---", *("---:" for _ in shown)]]
    best = {column.key: best_value(column, results) for column in shown}
    for result in results:
        name = markdown(result["model"])
        lines.append(
            [
                f"{name} ★" if result["model"] == chosen else name,
                *(column.cell(result, best[column.key]) for column in shown),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def best_value(column: Column, results: list[Result]) -> float | None:
    """Returns the best value of a column; None if there are fewer than two values to compare."""
    values = [result[column.key] for result in results if result[column.key] is not None]
    return column.best(values) if len(values) > 1 else None


def read_results(names: Iterable[str], threads: int, state: Path, score: str) -> list[Result]:
    """Reads the results of each model. Values that were not evaluated or measured on this machine are None."""
    return [read_result(name, threads, state, score) for name in names]


def read_result(name: str, threads: int, state: Path, score: str) -> Result:
    """Reads the results of one model."""
    metrics = read_if_exists(report_folder(name) / "metrics.json")
    validation, test = metrics.get("validation", {}), metrics.get("test", {})
    lineage = read_if_exists(model_folder(name) / "lineage.json")
    training = read_if_exists(state / "measurements" / f"train-{lineage.get('model_sha256')}.json")
    artifact = artifact_folder(name)
    speed = (
        read_if_exists(measurement_path(artifact_sha256(artifact), threads, state))
        if artifact.exists()
        else {}
    )
    return {
        "model": name,
        f"validation_{score}": validation.get(score),
        f"test_{score}": test.get(score),
        f"test_{score}_low": test.get(f"{score}_low"),
        f"test_{score}_high": test.get(f"{score}_high"),
        "images_per_second": speed.get("images_per_second"),
        "latency_p50_ms": speed.get("latency_p50_ms"),
        "peak_memory_mib": speed.get("peak_memory_mib"),
        "parameters_count": lineage.get("parameters_count"),
        "training_minutes": training.get("minutes"),
    }


def read_if_exists(path: Path) -> dict[str, Any]:
    """Reads a JSON file; returns an empty dictionary if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
