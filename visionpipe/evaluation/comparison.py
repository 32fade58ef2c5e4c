"""The models of params.yaml side by side, as a Markdown table."""

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

Row = dict[str, Any]
COMPARISON = Path("comparison.md")


@dataclass(frozen=True)
class Column:
    """`best` picks the value to print bold; `interval` names the keys of a 95 % interval, if it has one."""

    title: str
    key: str
    form: str
    best: Callable[[Iterable[float]], float]
    interval: tuple[str, str] | None = None

    def cell(self, row: Row, best: float | None) -> str:
        value = row[self.key]
        if value is None:
            return "–"
        text = format(value, self.form)
        if self.interval:
            text += " ({:{form}}–{:{form}})".format(*(row[key] for key in self.interval), form=self.form)
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
    """Prints the models side by side, and writes the same table to comparison.md."""
    if not any((report_folder(name) / "metrics.json").exists() for name in params.models):
        raise RegistryError("nothing has been evaluated here yet: run dvc repro, or dvc pull")
    receipt = read_receipt()
    chosen = receipt["chosen"] if receipt else None
    table = comparison(read_rows(params.models, thread_count(params), state_folder()), chosen)
    write_bytes(COMPARISON, table.encode())
    print(f"\n{table}")


def comparison(rows: list[Row], chosen: str | None = None) -> str:
    """One line per row of `read_rows`; the best value of a column is bold, `chosen` is marked with a star."""
    head = ["model", *(column.title for column in COLUMNS)]
    lines = [head, ["---", *("---:" for _ in COLUMNS)]]
    best = {column.key: best_value(column, rows) for column in COLUMNS}
    for row in rows:
        name = markdown(row["model"])
        lines.append(
            [
                f"{name} ★" if row["model"] == chosen else name,
                *(column.cell(row, best[column.key]) for column in COLUMNS),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def best_value(column: Column, rows: list[Row]) -> float | None:
    """None while there are fewer than two values to compare."""
    values = [row[column.key] for row in rows if row[column.key] is not None]
    return column.best(values) if len(values) > 1 else None


def read_rows(names: Iterable[str], threads: int, state: Path) -> list[Row]:
    """What is known of each model: None stands for what was not evaluated or measured here yet."""
    return [read_row(name, threads, state) for name in names]


def read_row(name: str, threads: int, state: Path) -> Row:
    metrics = read_if_there(report_folder(name) / "metrics.json")
    validation, test = metrics.get("validation", {}), metrics.get("test", {})
    lineage = read_if_there(model_folder(name) / "lineage.json")
    training = read_if_there(state / "measurements" / f"train-{lineage.get('model_sha256')}.json")
    artifact = artifact_folder(name)
    speed = (
        read_if_there(measurement_path(artifact_sha256(artifact), threads, state))
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


def read_if_there(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
