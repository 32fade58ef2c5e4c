"""Writes the model card of a registered version (Mitchell et al. 2019, arXiv:1810.03993)."""

import json
from collections.abc import Iterable
from typing import Any

from visionpipe.data.prepared import PREPARED, open_prepared, split_sizes
from visionpipe.escape import markdown
from visionpipe.project.params import Params
from visionpipe.project.paths import model_folder, report_folder
from visionpipe.tasks import TASKS, Task

MOST_SHOWN = 100  # classes; with more, the card lists the first by name and the metrics of the worst

SLICES_SHOWN = 20


def model_card(name: str, params: Params, precision: dict[str, Any]) -> str:
    """Writes the card as Markdown: what the model is, how good it is, how to call it and how it was made."""
    lineage = json.loads((model_folder(name) / "lineage.json").read_text(encoding="utf-8"))
    metrics = json.loads((report_folder(name) / "metrics.json").read_text(encoding="utf-8"))
    table = json.loads((report_folder(name) / "per_class.json").read_text(encoding="utf-8"))
    data = open_prepared(PREPARED, verify=False)
    task = TASKS[data.task]
    height, width = params.prepare.size
    counts = split_sizes(data.manifest)
    test, validation = metrics["test"], metrics["validation"]
    settings = "\n".join(
        f"| {section} | {listed(lineage['params'][section])} |" for section in ("model", "train", "prepare")
    )
    worst = sorted(table, key=lambda label: (table[label]["f1"] is None, table[label]["f1"] or 0))
    few = len(table) <= MOST_SHOWN
    per_class = "\n".join(
        f"| {markdown(label)} | {' | '.join(number(row[key]) for key in task.by_class.values())} "
        f"| {row['support']} |"
        for label, row in ((label, table[label]) for label in (table if few else worst[:MOST_SHOWN]))
    )
    names = ", ".join(map(markdown, data.classes[:MOST_SHOWN]))
    if not few:
        names += f" and {len(table) - MOST_SHOWN:,} more"
        per_class += f"\n\nThe table shows the {MOST_SHOWN} of {len(table):,} classes with the lowest F1."
    slices = report_folder(name) / "slices.json"
    per_slice = slice_table(json.loads(slices.read_text(encoding="utf-8")) if slices.exists() else [])
    init = lineage["params"]["model"].get("init")
    started = f"| started from | {markdown(init)}, sha256 `{lineage['init_sha256']}` |\n" if init else ""
    versions = ", ".join(f"{package} {version}" for package, version in lineage["versions"].items())
    return f"""# {markdown(name)}

An image classifier of the {markdown(lineage["params"]["model"]["family"])} family with
{lineage["parameters_count"]:,} parameters, for images of {height}×{width} pixels and
{len(data.classes):,} classes: {names}.

## How good it is

{header("", task.quality)}
| validation ({counts["validation"]:,} images; used to choose the model) | {quality(validation, task)} |
| test ({counts["test"]:,} images; used neither to train nor to choose the model) | {quality(test, task)} |

The 95 % interval of the test {task.score.replace("_", " ")} is {test[f"{task.score}_low"]:.4f} to
{test[f"{task.score}_high"]:.4f}.

{precision_sentence(precision)}

{header("class", [*task.by_class, "test images"])}
{per_class}
{per_slice}
## How to call it

Input: one column `image`, in which each value is an image file as base64. Output: {task.card[0]}.
The model decodes, resizes and normalises the images itself.

## How it was made

| input | value |
| --- | --- |
{settings}
| backend | {lineage["params"]["backend"]}, {versions} |
| data sha256 | `{lineage["data_sha256"]}` ({counts["train"]:,} training images) |
{started}| model sha256 | `{lineage["model_sha256"]}` |
| lineage id | `{lineage["lineage_id"]}` |

## Limits

{task.card[1].format(classes=f"{len(data.classes):,}")} It was evaluated on
images from the source of its training images; expect a lower accuracy on other images.
"""


def slice_table(slices: list[dict[str, Any]]) -> str:
    """Formats the slices with the lowest accuracy as Markdown; "" where there are no metadata."""
    if not slices:
        return ""
    worst = sorted(slices, key=lambda row: row["accuracy"])[:SLICES_SHOWN]
    rows = "\n".join(
        f"| {markdown(row['column'])} | {markdown(row['value']) or '–'} | {row['accuracy']:.4f} "
        f"({row['accuracy_low']:.4f} to {row['accuracy_high']:.4f}) | {row['images']} |"
        for row in worst
    )
    some = (
        f"The {len(worst)} of {len(slices):,} slices with the lowest accuracy. "
        if len(slices) > len(worst)
        else ""
    )
    return f"""
## On which images

{some}The interval is that of 95 %.

| column | value | accuracy | test images |
| --- | --- | ---: | ---: |
{rows}
"""


def listed(settings: dict[str, Any]) -> str:
    """Formats settings as one line of Markdown."""
    return ", ".join(f"{key} {markdown(str(value))}" for key, value in settings.items())


def precision_sentence(precision: dict[str, Any]) -> str:
    """Says which precision the model computes in, and what was measured in both if int8 was requested."""
    sentence = f"The model computes in {precision['precision']}."
    if "accuracy_int8" in precision:
        sentence += (
            f" Its validation accuracy is {precision['accuracy_int8']:.4f} in int8 and "
            f"{precision['accuracy_fp32']:.4f} in fp32"
        )
        sentence += f"; int8 is {precision['speedup']:.2f} times as fast" if "speedup" in precision else ""
        sentence += "."
    return sentence


def header(first: str, titles: Iterable[str]) -> str:
    """Returns the two lines of Markdown above the rows of a table of numbers."""
    columns = list(titles)
    return f"| {first} | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}"


def quality(metrics: dict[str, float], task: type[Task]) -> str:
    """Formats the metrics of one split as the cells of a table row."""
    return " | ".join("–" if metrics[key] is None else f"{metrics[key]:.4f}" for key in task.quality.values())


def number(value: float | None) -> str:
    """Formats a metric; a class without images has none."""
    return "–" if value is None else f"{value:.3f}"
