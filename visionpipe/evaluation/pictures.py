"""Draws the pictures of a report. The functions return a matplotlib Figure, and do not use pyplot's global state.

`classes` are the names, in the order of the rows of `confusion` and of the columns of `probabilities`. With more than
MOST_SHOWN classes a picture shows the worst of them, and says so in its title.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visionpipe.data.form import as_rgb
from visionpipe.evaluation.labels import drawable
from visionpipe.evaluation.metrics import Answers, Calibration, Pairs, answers, most_confused, nonzero
from visionpipe.files import replacing_file

INK, ACCENT, PALE = "#2f5d8a", "#d9713c", "#c9d6e3"
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 120,
    "text.parse_math": False,  # a class name with two dollar signs is not a formula
}
MOST_SHOWN = 100  # classes; drawing a matrix of 1,000 classes takes 11 GiB, and nobody could read it
MOST_SLICES = 50
OTHERS = "(other classes)"
MOST_ANNOTATED = 30  # classes; with more, the numbers would be too small to read


@matplotlib.rc_context(STYLE)
def confusion(matrix: np.ndarray | Pairs, classes: list[str]) -> Figure:
    """Draws a confusion matrix, int (classes, classes) or Pairs. Numbers are counts, colours are shares of the row."""
    entries = nonzero(matrix)
    shown = most_confused(entries, len(classes), MOST_SHOWN)
    title = f"Confusion matrix of {entries.counts.sum():,} images"
    texts, font = drawable([*classes, OTHERS])
    cells, names = gathered(entries, shown, len(classes)), [*(texts[index] for index in shown), texts[-1]]
    if len(shown) == len(classes):
        cells, names = cells[:, :-1], texts[:-1]
    else:
        title += f": the {len(shown)} of {len(classes):,} classes with the most frequent mistakes"
    count = len(names)
    cell = max(0.17, min(0.55, 12 / count))
    figure = Figure(figsize=(count * cell + 2.8, count * cell + 2.2), layout="compressed")
    axes = figure.add_subplot()
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = max(5.5, min(10.0, cell * 26))
    axes.set_xticks(range(count), names, rotation=90, fontsize=size, fontfamily=font)
    axes.set_yticks(range(len(cells)), names[: len(cells)], fontsize=size, fontfamily=font)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.set_title(title)
    if count <= MOST_ANNOTATED:
        for row, column in zip(*np.nonzero(cells), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column,
                row,
                str(cells[row, column]),
                ha="center",
                va="center",
                color=colour,
                fontsize=size * 0.9,
            )
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, format="{x:.0%}", label="share of the actual class")
    bar.outline.set_visible(False)
    return figure


def gathered(entries: Pairs, shown: np.ndarray, classes: int) -> np.ndarray:
    """Builds the matrix of the classes `shown`, int64 (shown, shown + 1); the last column sums all other classes."""
    most = len(shown)
    place = np.full(classes, most)
    place[shown] = np.arange(most)
    cells = np.zeros((most + 1, most + 1), np.int64)
    np.add.at(cells, (place[entries.actual], place[entries.predicted]), entries.counts)
    return cells[:most]


@matplotlib.rc_context(STYLE)
def per_class(table: dict[str, dict[str, Any]]) -> Figure:
    """Draws precision, recall and F1 from the result of `metrics.per_class`.

    The worst class has another colour; the dashed line is the mean of all classes.
    """
    tested = [name for name, row in table.items() if row["f1"] is not None]
    worst = sorted(tested, key=lambda name: table[name]["f1"])[:MOST_SHOWN]
    shown = list(table) if len(table) <= MOST_SHOWN else worst
    texts, font = drawable(list(table))
    text_of = dict(zip(table, texts, strict=True))
    count = len(shown)
    height = max(0.16, min(0.34, 14 / count))
    figure = Figure(figsize=(11, count * height + 1.3))
    if count < len(table):
        title = f"The {count} of {len(table):,} classes with the lowest F1; the means are of all classes"
        figure.suptitle(title, x=0.005, ha="left", fontsize=11)
    panels = figure.subplots(1, 3, sharey=True)
    places = np.arange(count)
    for axes, key in zip(panels, ["precision", "recall", "f1"], strict=True):
        everything = np.array([table[name][key] for name in tested])
        values = np.array([np.nan if table[name][key] is None else table[name][key] for name in shown])
        axes.barh(places, values, height=0.72, color=np.where(values == everything.min(), ACCENT, INK))
        axes.axvline(everything.mean(), color="black", linewidth=0.8, linestyle="--")
        axes.set_title(f"{key.replace('f1', 'F1')}, mean {everything.mean():.3f}")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter("{x:.1f}")
        axes.tick_params(axis="y", length=0)
        if count <= MOST_ANNOTATED:
            for place, value in zip(places, values, strict=True):
                text = "no images" if np.isnan(value) else f"{value:.2f}"
                axes.text(
                    0.015, place, text, va="center", fontsize=8, color="grey" if not value > 0.1 else "white"
                )
    size = min(9.0, height * 34)
    panels[0].set_yticks(places, [text_of[name] for name in shown], fontsize=size, fontfamily=font)
    panels[0].set_ylim(count - 0.4, -0.6)
    return figure


@matplotlib.rc_context(STYLE)
def calibration(bins: Calibration) -> Figure:
    """Draws a reliability diagram (Guo et al. 2017, figure 1), and below it the number of images per bin."""
    figure = Figure(figsize=(5.6, 6.8))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
    edges = np.linspace(0, 1, len(bins.counts) + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    width = 0.94 / len(bins.counts)
    top.bar(centres, bins.accuracies, width, color=INK, label="accuracy")
    top.vlines(centres, bins.accuracies, bins.confidences, color=ACCENT, linewidth=2)
    top.plot(centres, bins.confidences, "o", color=ACCENT, markersize=5, label="mean confidence")
    top.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="perfectly calibrated")
    top.set_title(f"Reliability, expected calibration error {bins.error:.3f}")
    top.set_ylabel("accuracy")
    top.set_ylim(0, 1.02)
    top.legend(loc="upper left", frameon=False)
    bottom.bar(centres, bins.counts, width, color=PALE)
    bottom.set_ylabel("images")
    bottom.set_xlabel("confidence")
    bottom.set_xlim(0, 1)
    bottom.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


@matplotlib.rc_context(STYLE)
def mistakes(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray | Answers, classes: list[str], most: int
) -> Figure:
    """Draws the wrong predictions with the highest confidence, at most `most` of them, the most confident first.

    images: uint8 or uint16 (n, height, width, channels).
    labels: int (n,).
    probabilities: float (n, classes), or Answers.
    """
    predictions = answers(probabilities, labels)
    predicted, confidence = predictions.predicted, predictions.confidence
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    texts, font = drawable(classes)
    columns = max(3, int(np.ceil(np.sqrt(len(worst)))))
    rows = max(1, -(-len(worst) // columns))
    figure = Figure(figsize=(columns * 1.9, rows * 2.25 + 0.5))
    figure.suptitle(
        f"{len(wrong):,} of {len(labels):,} predictions are wrong; the most confident come first"
        if len(wrong)
        else f"All {len(labels):,} predictions are right",
        x=0.005,
        ha="left",
        fontsize=11,
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, worst, strict=False):
        axes.imshow(
            as_rgb(images[index]), interpolation="nearest" if max(images.shape[1:3]) < 100 else "antialiased"
        )
        axes.set_title(
            f"is {texts[labels[index]]}\npredicted {texts[predicted[index]]}, {confidence[index]:.0%}",
            fontsize=7.5,
            fontfamily=font,
            pad=4,
        )
    return figure


@matplotlib.rc_context(STYLE)
def slices(rows: list[dict[str, Any]], accuracy: float) -> Figure:
    """Draws the accuracy of each slice with its 95 % interval, from the result of `slices.slices`.

    Slices whose interval lies below `accuracy`, that of all images, the dashed line, have another colour.
    """
    shown = rows
    if len(rows) > MOST_SLICES:
        least = sorted(range(len(rows)), key=lambda place: rows[place]["accuracy"])[:MOST_SLICES]
        shown = [rows[place] for place in sorted(least)]
    figure = Figure(figsize=(8, max(1.2, 0.3 * len(shown) + 1.3)))
    title = "Accuracy of the images with each value of the metadata"
    if len(shown) < len(rows):
        title = f"The {len(shown)} of {len(rows):,} values of the metadata with the lowest accuracy"
    figure.suptitle(title if rows else "No metadata with values to compare", x=0.005, ha="left", fontsize=11)
    if not rows:
        return figure
    axes = figure.add_subplot()
    texts, font = drawable([f"{row['column']}: {row['value'] or '(missing)'}" for row in shown])
    for place, row in enumerate(shown):
        colour = ACCENT if row["accuracy_high"] < accuracy else INK
        axes.plot([row["accuracy_low"], row["accuracy_high"]], [place, place], color=colour, linewidth=2)
        axes.plot([row["accuracy"]], [place], "o", color=colour, markersize=5)
        axes.text(1.02, place, f"{row['images']:,}", va="center", fontsize=8, color="grey", clip_on=False)
    axes.axvline(accuracy, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(shown)), texts, fontsize=9, fontfamily=font)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.set_xlabel(
        f"accuracy and its 95 % interval; dashed: all images, {accuracy:.3f}; right: number of images"
    )
    axes.tick_params(axis="y", length=0)
    return figure


@matplotlib.rc_context({"text.parse_math": False})  # matplotlib makes some labels only when it draws them
def save(figure: Figure, path: Path) -> None:
    """Writes a figure as a PNG file without matplotlib's version, so that equal figures give equal bytes."""
    with replacing_file(path) as file:  # never written in place: `path` may be a link into DVC's cache
        figure.savefig(file, format="png", metadata={"Software": None})
