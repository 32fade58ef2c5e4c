"""The pictures of a report. Every function returns a matplotlib Figure; pyplot's global state is not used.

`classes` are names, in the order of the rows of `confusion` and of the columns of `probabilities`.
"""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from visionpipe.evaluation.metrics import Calibration
from visionpipe.files import replacing

INK, ACCENT, PALE = "#2f5d8a", "#d9713c", "#c9d6e3"
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 120,
}
MOST_ANNOTATED = 30  # classes; beyond that numbers would be too small to read
MOST_LETTERS = 22  # of a class name


@matplotlib.rc_context(STYLE)
def confusion(matrix: np.ndarray, classes: list[str]) -> Figure:
    """`matrix` int (classes, classes): numbers are counts, the colour is the share of the row."""
    count = len(classes)
    cell = max(0.17, min(0.55, 12 / count))
    figure = Figure(figsize=(count * cell + 2.8, count * cell + 2.2), layout="compressed")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    size = max(5.5, min(10.0, cell * 26))
    axes.set_xticks(range(count), [short(name) for name in classes], rotation=90, fontsize=size)
    axes.set_yticks(range(count), [short(name) for name in classes], fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("actual")
    axes.set_title(f"Confusion matrix of {matrix.sum():,} images")
    if count <= MOST_ANNOTATED:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(
                column,
                row,
                str(matrix[row, column]),
                ha="center",
                va="center",
                color=colour,
                fontsize=size * 0.9,
            )
    bar = figure.colorbar(picture, ax=axes, shrink=0.6, format="{x:.0%}", label="share of the actual class")
    bar.outline.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def per_class(table: dict[str, dict[str, Any]]) -> Figure:
    """`table` as metrics.per_class gives it. Dashed: the mean. The worst class stands out."""
    count = len(table)
    height = max(0.16, min(0.34, 14 / count))
    figure = Figure(figsize=(11, count * height + 1.3))
    panels = figure.subplots(1, 3, sharey=True)
    places = np.arange(count)
    for axes, key in zip(panels, ["precision", "recall", "f1"], strict=True):
        values = np.array([np.nan if row[key] is None else row[key] for row in table.values()])
        axes.barh(places, values, height=0.72, color=np.where(values == np.nanmin(values), ACCENT, INK))
        axes.axvline(np.nanmean(values), color="black", linewidth=0.8, linestyle="--")
        axes.set_title(f"{key.replace('f1', 'F1')}, mean {np.nanmean(values):.3f}")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter("{x:.1f}")
        axes.tick_params(axis="y", length=0)
        if count <= MOST_ANNOTATED:
            for place, value in zip(places, values, strict=True):
                text = "no examples" if np.isnan(value) else f"{value:.2f}"
                axes.text(
                    0.015, place, text, va="center", fontsize=8, color="grey" if not value > 0.1 else "white"
                )
    panels[0].set_yticks(places, [short(name) for name in table], fontsize=min(9.0, height * 34))
    panels[0].set_ylim(count - 0.4, -0.6)
    return figure


@matplotlib.rc_context(STYLE)
def calibration(bins: Calibration) -> Figure:
    """A reliability diagram (Guo et al. 2017, figure 1) above the number of images per bin."""
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
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: list[str], most: int
) -> Figure:
    """The wrong predictions with the highest confidence, at most `most` of them, worst first.

    `images` uint8 (n, height, width, 3), `labels` int (n,), `probabilities` float (n, classes).
    """
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    columns = max(3, int(np.ceil(np.sqrt(len(worst)))))
    rows = max(1, -(-len(worst) // columns))
    figure = Figure(figsize=(columns * 1.9, rows * 2.25 + 0.5))
    figure.suptitle(
        f"{len(wrong):,} of {len(labels):,} images are wrong, the most confident first"
        if len(wrong)
        else f"All {len(labels):,} images are right",
        x=0.005,
        ha="left",
        fontsize=11,
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, worst, strict=False):
        axes.imshow(images[index], interpolation="nearest" if max(images.shape[1:3]) < 100 else "antialiased")
        axes.set_title(
            f"is {short(classes[labels[index]])}\n"
            f"said {short(classes[predicted[index]])}, {confidence[index]:.0%}",
            fontsize=7.5,
            pad=4,
        )
    return figure


def short(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1] + "…"


def save(figure: Figure, path: Path) -> None:
    """A PNG file without the software's version in it: equal figures give equal bytes."""
    with replacing(path) as file:  # what lies there may be a link into DVC's cache
        figure.savefig(file, format="png", metadata={"Software": None})
