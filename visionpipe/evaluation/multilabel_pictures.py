"""Draws the pictures of a report on images that may have several labels.

The functions return a matplotlib Figure. `probabilities`, `labels`, `thresholds` and `classes` are those of
`multilabel`. A picture that cannot show every class shows the worst, and says so in its title.
"""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from visionpipe.data.form import as_rgb
from visionpipe.evaluation import multilabel
from visionpipe.evaluation.labels import drawable
from visionpipe.evaluation.pictures import ACCENT, INK, MOST_SHOWN, PALE, STYLE

MOST_PANELS = 12  # classes in a grid of small pictures
PANEL_COLUMNS = 4
MOST_PAIRED = 30  # classes; two matrices stand side by side
MOST_COUNTED = 12  # classes; with more, the numbers in a matrix would be too small to read
MOST_ROWS = 12  # classes in the gallery of errors
FEW_IMAGES = 10  # in a bin; its share says little
LIGHT_GREY = "#f0f0f0"


@matplotlib.rc_context(STYLE)
def per_label(table: dict[str, dict[str, Any]]) -> Figure:
    """Draws average precision, F1 and threshold of every class from the result of `multilabel.per_label`.

    The worst class has another colour; the dashed line is the mean of all classes. The number of images with the
    label stands at the right.
    """
    tested = [name for name, row in table.items() if row["support"]]
    shown = list(table)
    if len(table) > MOST_SHOWN:
        untested = [name for name in table if name not in set(tested)]
        shown = [*sorted(tested, key=lambda name: table[name]["average_precision"]), *untested][:MOST_SHOWN]
    texts, font = drawable(list(table))
    text_of = dict(zip(table, texts, strict=True))
    count = len(shown)
    height = max(0.16, min(0.34, 14 / max(count, 1)))
    figure = Figure(figsize=(11, count * height + 1.3))
    if count < len(table):
        title = f"The {count} of {len(table):,} labels with the lowest average precision; the means are of all labels"
        figure.suptitle(title, x=0.005, ha="left", fontsize=11)
    panels = figure.subplots(1, 3, sharey=True, width_ratios=[1, 1, 0.6])
    places = np.arange(count)
    size = min(9.0, height * 34)
    for axes, key, words in zip(
        panels, ["average_precision", "f1"], ["average precision", "F1"], strict=False
    ):
        everything = np.array([table[name][key] for name in tested], np.float64)
        values = np.array([table[name][key] for name in shown], np.float64)  # None becomes NaN
        worst = values == everything.min() if len(everything) else np.zeros(count, bool)
        axes.barh(places, np.nan_to_num(values), height=0.72, color=np.where(worst, ACCENT, INK))
        title = "not defined: no image has a label"
        if len(everything):
            axes.axvline(everything.mean(), color="black", linewidth=0.8, linestyle="--")
            title = f"{words}, mean {everything.mean():.3f}"
        axes.set_title(title)
        for place, value in zip(places, values, strict=True):
            text = "no images" if np.isnan(value) else f"{value:.2f}"
            colour = "grey" if not value > 0.1 else "white"
            axes.text(0.015, place, text, va="center", fontsize=min(8.0, size * 0.9), color=colour)
    panels[2].hlines(places, 0, 1, color=PALE, linewidth=0.8)
    panels[2].plot(
        [table[name]["threshold"] for name in shown], places, "o", color=INK, markersize=min(5.0, size / 2)
    )
    panels[2].set_title("threshold; right: images")
    for place, name in zip(places, shown, strict=True):
        support = f"{table[name]['support']:,}"
        panels[2].text(
            1.05, place, support, va="center", fontsize=min(8.0, size * 0.9), color="grey", clip_on=False
        )
    for axes in panels:
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(places, [text_of[name] for name in shown], fontsize=size, fontfamily=font)
    panels[0].set_ylim(count - 0.4, -0.6)
    return figure


@matplotlib.rc_context(STYLE)
def precision_recall(
    probabilities: np.ndarray, labels: np.ndarray, classes: list[str], thresholds: np.ndarray
) -> Figure:
    """Draws precision against recall of the MOST_PANELS classes with the lowest average precision, worst first.

    The dot is the threshold; the dashed line is the share of images with the label, the precision of guessing.
    """
    columns = list(multilabel.known_columns(probabilities, labels))
    areas = [multilabel.average_precision(scores, present) for scores, present in columns]
    tested = [place for place, area in enumerate(areas) if area is not None]
    shown = sorted(tested, key=lambda place: areas[place] or 0.0)[:MOST_PANELS]
    note = "Precision and recall, worst first; dot: at the threshold, dashed: by guessing"
    figure, panels = grid(note, "lowest average precision", len(shown), len(classes))
    texts, font = drawable(classes)
    for axes, place in zip(panels, shown, strict=False):
        scores, present = columns[place]
        curve = multilabel.curve(scores, present)
        recall, precision = np.append(0, curve.recall), np.append(curve.precision[:1], curve.precision)
        axes.step(recall, precision, color=INK, linewidth=1.4, where="pre")
        axes.axhline(present.mean(), color="black", linewidth=0.8, linestyle="--")
        answers = int((curve.scores >= thresholds[place]).sum())
        if answers:
            dot = curve.recall[answers - 1], curve.precision[answers - 1]
            axes.plot(*dot, "o", color=ACCENT, markersize=6, clip_on=False, zorder=3)
        axes.set_title(f"{texts[place]}\nAP {areas[place]:.2f}", fontsize=8.5, fontfamily=font, pad=5)
    name_edges(panels[: len(shown)], "recall", "precision")
    return figure


@matplotlib.rc_context(STYLE)
def calibration(probabilities: np.ndarray, labels: np.ndarray, classes: list[str], bins: int) -> Figure:
    """Draws reliability diagrams of the MOST_PANELS classes with the highest calibration error, worst first."""
    columns = list(multilabel.known_columns(probabilities, labels))
    results = {
        place: multilabel.calibration(scores, present, bins)
        for place, (scores, present) in enumerate(columns)
        if present.any()
    }
    shown = sorted(results, key=lambda place: -results[place].error)[:MOST_PANELS]
    note = (
        "Share of images with the label by its probability, worst first; orange: mean probability\n"
        f"dashed: perfectly calibrated; pale: fewer than {FEW_IMAGES} images"
    )
    figure, panels = grid(note, "highest calibration error", len(shown), len(classes))
    texts, font = drawable(classes)
    centres = (np.arange(bins) + 0.5) / bins
    for axes, place in zip(panels, shown, strict=False):
        result = results[place]
        colours = np.where(result.counts < FEW_IMAGES, PALE, INK)
        axes.bar(centres, np.nan_to_num(result.accuracies), 0.94 / bins, color=colours)
        axes.vlines(centres, result.accuracies, result.confidences, color=ACCENT, linewidth=1.2)
        axes.plot(centres, result.confidences, "o", color=ACCENT, markersize=2.5, clip_on=False)
        axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--")
        axes.set_title(f"{texts[place]}\nerror {result.error:.3f}", fontsize=8.5, fontfamily=font, pad=5)
    name_edges(panels[: len(shown)], "probability", "share")
    return figure


def grid(note: str, order: str, count: int, classes: int) -> tuple[Figure, list[Axes]]:
    """Makes a figure with `count` square panels from 0 to 1. `order` says which classes these are, if not all."""
    columns = min(PANEL_COLUMNS, max(count, 1))
    rows = max(1, -(-count // columns))
    title = note
    if not count:
        title = "No image has a label"
    elif count < min(classes, MOST_PANELS):
        title += f"\nNot drawn: {classes - count} of {classes:,} labels, which no image has"
    elif count < classes:
        title += f"\nThe {count} of {classes:,} labels with the {order}"
    height = rows * 2.5 + 0.3 + 0.25 * title.count("\n") if count else 0.5
    figure = Figure(figsize=(max(columns * 2.4, 7.0), height + 0.2))
    figure.suptitle(title, x=0.005, ha="left", fontsize=11)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel())
    for axes in panels:
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_box_aspect(1)
        axes.tick_params(labelsize=8)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels


def name_edges(panels: list[Axes], horizontal: str, vertical: str) -> None:
    """Names the axes of the panels at the left, and of those with none below, which also get their numbers."""
    for place, axes in enumerate(panels):
        if place % PANEL_COLUMNS == 0:
            axes.set_ylabel(vertical, fontsize=8.5)
        if place + PANEL_COLUMNS >= len(panels):
            axes.set_xlabel(horizontal, fontsize=8.5)
            axes.tick_params(labelbottom=True)


@matplotlib.rc_context(STYLE)
def cooccurrence(labels: np.ndarray, answers: np.ndarray, classes: list[str]) -> Figure:
    """Draws which labels are on the same images, in truth and in the answers, bool (n, classes).

    Each row shows, of the images with its label, the share that also has the label of the column. The answers to
    unknown labels are left out. With more than MOST_PAIRED classes those are drawn whose pairs differ most.
    """
    truth = multilabel.cooccurrence(labels == multilabel.PRESENT)
    given = multilabel.cooccurrence(answers & (labels != multilabel.UNKNOWN))
    differences = np.abs(truth - given).sum(axis=1)
    shown = np.sort(np.argsort(-differences, kind="stable")[:MOST_PAIRED])
    texts, font = drawable(classes)
    names, count = [texts[place] for place in shown], len(shown)
    cell = max(0.17, min(0.6, 6 / count))
    side, size = count * cell, max(5.5, min(10.0, cell * 26))
    room = max(map(len, names)) * size * 0.0095  # inches for the longest name
    figure = Figure(figsize=(max(2 * side + room + 2.2, 7.2), side + room + 1.6), layout="compressed")
    title = "Of the images with the label of the row: the share that also has the label of the column"
    if count <= MOST_COUNTED:
        title += "\nDiagonal: the number of images with the label"
    if count < len(classes):
        title += f"\nThe {count} of {len(classes):,} labels whose pairs differ most between truth and answers"
    figure.suptitle(title, x=0.005, ha="left", fontsize=11)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, counts, words in zip(panels, [truth, given], ["labels", "answers"], strict=True):
        ones = np.diag(counts)[shown, None]
        shares = np.where(ones, counts[np.ix_(shown, shown)] / np.maximum(ones, 1), np.nan)
        np.fill_diagonal(shares, np.nan)
        axes.set_facecolor(LIGHT_GREY)
        picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axes.set_xticks(range(count), names, rotation=90, fontsize=size, fontfamily=font)
        axes.set_yticks(range(count), names, fontsize=size, fontfamily=font)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(words)
        for row, column in np.ndindex(count, count) if count <= MOST_COUNTED else ():
            value = shares[row, column]
            text = f"{ones[row, 0]:,}" if row == column else "" if np.isnan(value) else f"{value:.0%}"
            colour = "grey" if row == column else "white" if value > 0.5 else "black"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=size * 0.8)
    bar = figure.colorbar(picture, ax=panels, shrink=0.6, format="{x:.0%}", label="share of the row")
    bar.outline.set_visible(False)
    return figure


@matplotlib.rc_context(STYLE)
def mistakes(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: list[str],
    thresholds: np.ndarray,
    most: int = 3,
) -> Figure:
    """Draws the most confident wrong answers about each label: at most `most` missing and `most` spurious ones.

    Of more than MOST_ROWS classes those with the most wrong answers are drawn.

    images: uint8 or uint16 (n, height, width, channels).
    """
    answers = multilabel.answered(probabilities, thresholds)
    wrong = ((answers != (labels == multilabel.PRESENT)) & (labels != multilabel.UNKNOWN)).sum(axis=0)
    order = np.argsort(-wrong, kind="stable")[:MOST_ROWS]
    shown = np.sort(order[wrong[order] > 0])
    errors = multilabel.worst_errors(probabilities, labels, thresholds, most)
    texts, font = drawable(classes)
    known = int((labels != multilabel.UNKNOWN).sum())
    title = f"Wrong answers: {wrong.sum():,} of {known:,}; the most confident come first"
    if not len(shown):
        title = f"Wrong answers: none of {known:,}"
    elif len(shown) < np.count_nonzero(wrong):
        title += f"\nThe {len(shown)} of {len(classes):,} labels with the most wrong answers"
    rows = max(1, len(shown))
    figure = Figure(figsize=(2 * most * 1.35 + 2.3, len(shown) * 1.55 + 0.9))
    figure.suptitle(title, x=0.005, ha="left", fontsize=11)
    panels = figure.subplots(rows, 2 * most + 1, squeeze=False, width_ratios=[1.4, *[1] * (2 * most)])
    for axes in panels.ravel():
        axes.set_axis_off()
    smooth = "nearest" if max(images.shape[1:3]) < 100 else "antialiased"
    for row, place in zip(panels, shown, strict=False):
        row[0].text(0, 0.6, texts[place], fontsize=9, fontfamily=font, va="bottom")
        note = f"{wrong[place]:,} wrong\nthreshold {thresholds[place]:.0%}"
        row[0].text(0, 0.52, note, fontsize=8, color="grey", va="top")
        for kind, axes_of_kind in zip(
            errors[place]._fields, (row[1 : most + 1], row[most + 1 :]), strict=True
        ):
            for axes, index in zip(axes_of_kind, getattr(errors[place], kind), strict=False):
                axes.imshow(as_rgb(images[index]), interpolation=smooth)
                axes.set_title(f"{kind}, {probabilities[index, place]:.0%}", fontsize=7.5, pad=3)
    return figure
