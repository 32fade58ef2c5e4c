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


COLUMNS = (
    Column("validation accuracy", "validation_accuracy", ".4f", max),
    Column("test accuracy (95 %)", "test_accuracy", ".4f", max, ("test_accuracy_low", "test_accuracy_high")),
    Column("served images/s", "images_per_second", ",.0f", max),
    Column("latency ms", "latency_p50_ms", ".2f", min),
    Column("serving MiB", "peak_memory_mib", ",.0f", min),
    Column("parameters", "parameters_count", ",d", min),
    Column("training minutes", "training_minutes", ".1f", min),
)


def compare(params: Params) -> None:
    """Prints the table of all models, and writes it to comparison.md. Raises RegistryError if none was evaluated."""
    if not any((report_folder(name) / "metrics.json").exists() for name in params.models):
        raise RegistryError("no model of this project has been evaluated yet: run dvc repro, or dvc pull")
    receipt = read_receipt()
    chosen = receipt["chosen"] if receipt else None
    table = comparison(read_results(params.models, thread_count(params), state_folder()), chosen)
    write_bytes(COMPARISON, table.encode())
    print(f"\n{table}")


def comparison(results: list[Result], chosen: str | None = None) -> str:
    """Formats the table. The best value of each column is bold, and `chosen` is marked with a star."""
    head = ["model", *(column.title for column in COLUMNS)]
    lines = [head, ["---", *("---:" for _ in COLUMNS)]]
    best = {column.key: best_value(column, results) for column in COLUMNS}
    for result in results:
        name = markdown(result["model"])
        lines.append(
            [
                f"{name} ★" if result["model"] == chosen else name,
                *(column.cell(result, best[column.key]) for column in COLUMNS),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def best_value(column: Column, results: list[Result]) -> float | None:
    """Returns the best value of a column; None if there are fewer than two values to compare."""
    values = [result[column.key] for result in results if result[column.key] is not None]
    return column.best(values) if len(values) > 1 else None


def read_results(names: Iterable[str], threads: int, state: Path) -> list[Result]:
    """Reads the results of each model. Values that were not evaluated or measured on this machine are None."""
    return [read_result(name, threads, state) for name in names]


def read_result(name: str, threads: int, state: Path) -> Result:
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
        "validation_accuracy": validation.get("accuracy"),
        "test_accuracy": test.get("accuracy"),
        "test_accuracy_low": test.get("accuracy_low"),
        "test_accuracy_high": test.get("accuracy_high"),
        "images_per_second": speed.get("images_per_second"),
        "latency_p50_ms": speed.get("latency_p50_ms"),
        "peak_memory_mib": speed.get("peak_memory_mib"),
        "parameters_count": lineage.get("parameters_count"),
        "training_minutes": training.get("minutes"),
    }


def read_if_exists(path: Path) -> dict[str, Any]:
    """Reads a JSON file; returns an empty dictionary if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
