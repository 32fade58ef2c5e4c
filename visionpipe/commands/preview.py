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

ROWS, VERSIONS = 8, 7


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

    from visionpipe.tasks import TASKS

    labels = data.labels("train")
    rows = one_of_each_class(labels)
    images, targets = data.images("train")[rows], TASKS[data.task].targets(labels[rows], len(data.classes))
    augment = make_augmentation(entries, params.seed, steps_per_epoch=VERSIONS)
    columns = [(model_input(images), targets)]
    for step in range(VERSIONS):
        augmented = augment(tf.constant(images), tf.constant(targets), tf.constant(step, tf.int64))
        columns.append(tuple(tensor.numpy() for tensor in augmented))
    kinds = ", ".join(entry["name"] for entry in entries) or "no augmentation"
    path = state_folder() / "previews" / f"{name}.png"
    save(contact_sheet(columns, data.classes, f"{drawable([name])[0][0]}: {kinds}"), path)
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
def contact_sheet(columns: list[tuple[np.ndarray, np.ndarray]], classes: list[str], title: str) -> Figure:
    """Draws one row per image: the original and its versions, with their labels.

    `columns`: images float32 (rows, height, width, channels) in [0, 255], and targets float32 (rows, classes).
    """
    rows, height, width = columns[0][0].shape[:3]
    texts, font = drawable(classes)
    cell = 1.35
    figure = Figure(figsize=(len(columns) * cell, rows * (cell * height / width + 0.38) + 0.6))
    figure.suptitle(title, x=0.005, ha="left", fontsize=11, fontfamily=drawable([title])[1])
    panels = figure.subplots(rows, len(columns), squeeze=False)
    for column, (images, targets) in enumerate(columns):
        for axes, image, target in zip(panels[:, column], images, targets, strict=True):
            axes.imshow(
                as_rgb(image.round().astype(np.uint8)),
                interpolation="nearest" if width < 100 else "antialiased",
            )
            axes.set_axis_off()
            # `described` always returns two lines, so that all rows have the same height.
            text = described(target, texts)
            axes.set_title(text, fontsize=6.5, fontfamily=font, pad=2, loc="center")
    text = f"original:\n{described(columns[0][1][0], texts).strip()}"
    panels[0, 0].set_title(text, fontsize=6.5, fontfamily=font, pad=2, loc="center")
    return figure


def described(target: np.ndarray, texts: list[str]) -> str:
    """Names the one or two classes of a label, with their shares if there are two."""
    most = [index for index in np.argsort(-target, kind="stable")[:2] if target[index] >= 0.005]
    if len(most) == 1:
        return f"\n{texts[most[0]]}"
    return "\n".join(f"{texts[index]} {target[index]:.0%}" for index in most)
