"""`visionpipe preview`: draws a picture of augmented training images, with the augmentation that training runs."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from visionpipe.data.augmentation import make_augmentation
from visionpipe.data.form import as_rgb, model_input
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.evaluation.labels import drawable
from visionpipe.evaluation.pictures import STYLE, save
from visionpipe.project.backend import check_backend, start_backend
from visionpipe.project.params import Params
from visionpipe.project.paths import state_folder
from visionpipe.tasks import TASKS, Task

ROWS, VERSIONS = 8, 7
LEAST_LINES, MOST_LINES = 2, 5  # of a caption


def preview(name: str | None, params: Params) -> Path:
    """Writes a contact sheet of augmented training images, prints its path and returns it.

    A row shows one training image, and its versions with the random draws of the first steps. The rows are one batch,
    so mixup and cutmix mix them with each other.

    `name`: the entry of `models:` whose recipe is shown; None for the first one.
    """
    name = name or next(iter(params.models))
    entries = params.train_config(name).augmentation
    check_backend(params)
    data = open_prepared(PREPARED)
    start_backend(params)
    import tensorflow as tf

    labels, task = data.labels("train"), TASKS[data.task]
    rows = one_of_each_class(task.sampled_classes(labels))
    images, targets = data.images("train")[rows], task.targets(labels[rows], len(data.classes))
    augment = make_augmentation(entries, params.seed, steps_per_epoch=VERSIONS)
    columns = [(model_input(images), targets)]
    for step in range(VERSIONS):
        augmented = augment(tf.constant(images), tf.constant(targets), tf.constant(step, tf.int64))
        columns.append(tuple(tensor.numpy() for tensor in augmented))
    kinds = ", ".join(entry["name"] for entry in entries) or "no augmentation"
    path = state_folder() / "previews" / f"{name}.png"
    save(contact_sheet(columns, data.classes, f"{drawable([name])[0][0]}: {kinds}", task), path)
    print(path)
    return path


def one_of_each_class(labels: np.ndarray) -> np.ndarray:
    """Returns the indices of ROWS images, or of all if there are fewer, taking one image of each class in turn."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    within = np.arange(len(labels)) - np.repeat(starts, counts)
    return order[np.argsort(within, kind="stable")][:ROWS]


@matplotlib.rc_context(
    STYLE | {"figure.constrained_layout.w_pad": 0.03, "figure.constrained_layout.h_pad": 0.03}
)
def contact_sheet(
    columns: list[tuple[np.ndarray, np.ndarray]], classes: list[str], title: str, task: type[Task]
) -> Figure:
    """Draws one row per image: the original and its versions, with their labels.

    `columns`: images float32 (rows, height, width, channels) in [0, 255], and the task's targets of them.
    """
    rows, height, width = columns[0][0].shape[:3]
    texts, font = drawable(classes)
    captions = [[task.described(target, texts) for target in targets] for _, targets in columns]
    captions[0][0].insert(0, "original:")
    # All captions have the same number of lines, so that all rows have the same height.
    depth = max(LEAST_LINES, *(min(len(lines), MOST_LINES) for column in captions for lines in column))
    cell = 1.35
    above = 0.18 + 0.1 * depth
    figure = Figure(figsize=(len(columns) * cell, rows * (cell * height / width + above) + 0.6))
    figure.suptitle(title, x=0.005, ha="left", fontsize=11, fontfamily=drawable([title])[1])
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for column, ((images, _), described) in enumerate(zip(columns, captions, strict=True)):
        for axes, image, lines in zip(panels[:, column], images, described, strict=True):
            axes.imshow(
                as_rgb(image.round().astype(np.uint8)),
                interpolation="nearest" if width < 100 else "antialiased",
            )
            axes.set_axis_off()
            axes.set_title(caption(lines, depth), fontsize=6.5, fontfamily=font, pad=2, loc="center")
    return figure


def caption(lines: list[str], depth: int) -> str:
    """Joins lines, and puts empty ones above them or says how many are left out, so that they are `depth`."""
    if len(lines) > depth:
        lines = [*lines[: depth - 1], f"and {len(lines) - depth + 1} more"]
    return "\n".join([*[""] * (depth - len(lines)), *lines])
