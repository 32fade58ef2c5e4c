"""Tests what the pictures of several labels show, and that they open."""

import numpy as np
import pytest
from PIL import Image

from visionpipe.evaluation import multilabel, multilabel_pictures, pictures


def report(classes: int, images: int = 80):
    """Makes labels, probabilities and names; no image has the last label, if there are several."""
    random = np.random.default_rng(classes)
    labels = (random.random((images, classes)) < 0.3).astype(np.int8)
    probabilities = (0.4 * labels + 0.6 * random.random(labels.shape)).astype(np.float32)
    labels[random.random(labels.shape) < 0.1] = -1
    labels[:, -1] = np.minimum(labels[:, -1], 0 if classes > 1 else 1)
    return labels, probabilities, [f"$finding$ number {place} of a list" for place in range(classes)]


@pytest.mark.parametrize(("classes", "channels"), [(1, 1), (5, 3), (120, 4)])
def test_every_picture_is_drawn_with_few_and_many_classes(tmp_path, classes, channels):
    labels, probabilities, names = report(classes)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, channels), np.uint8)
    thresholds, _ = multilabel.fit_thresholds(probabilities, labels)
    table = multilabel.per_label(probabilities, labels, names, thresholds, 15)
    for figure in (
        multilabel_pictures.per_label(table),
        multilabel_pictures.precision_recall(probabilities, labels, names, thresholds),
        multilabel_pictures.calibration(probabilities, labels, names, 15),
        multilabel_pictures.cooccurrence(labels, multilabel.answered(probabilities, thresholds), names),
        multilabel_pictures.mistakes(images, labels, probabilities, names, thresholds, most=1),
    ):
        pictures.save(figure, tmp_path / "picture.png")
        assert np.ptp(np.asarray(Image.open(tmp_path / "picture.png").convert("L"))) > 200


def test_grids_show_the_worst_first_and_say_what_they_leave_out():
    labels, probabilities, names = report(20, images=300)
    thresholds, _ = multilabel.fit_thresholds(probabilities, labels)
    table = multilabel.per_label(probabilities, labels, names, thresholds, 15)
    figure = multilabel_pictures.precision_recall(probabilities, labels, names, thresholds)
    shown = [axes.get_title(loc="left").split("AP ")[1] for axes in figure.axes]
    worst = sorted(row["average_precision"] for row in table.values() if row["support"])[:12]
    assert shown == [f"{value:.2f}" for value in worst]
    assert "The 12 of 20 labels with the lowest average precision" in figure.get_suptitle()
    few = slice(0, 5)
    labels[:, 4] = 0
    figure = multilabel_pictures.calibration(probabilities[:, few], labels[:, few], names[few], 15)
    assert "Not drawn: 1 of 5 labels, which no image has" in figure.get_suptitle()


def test_the_dot_is_the_precision_and_recall_at_the_threshold():
    labels, probabilities, names = report(3, images=300)
    thresholds = np.array([0.3, 0.5, 0.7])
    table = multilabel.per_label(probabilities, labels, names, thresholds, 15)
    figure = multilabel_pictures.precision_recall(probabilities, labels, names, thresholds)
    dots = {
        tuple(np.ravel(line.get_xydata()).round(9)) for axes in figure.axes for line in axes.lines
        if line.get_marker() == "o"
    }  # fmt: skip
    assert dots == {
        (round(row["recall"], 9), round(row["precision"], 9)) for row in table.values() if row["support"]
    }


def test_cooccurrence_shows_shares_and_counts():
    labels = np.array([[1, 1], [1, 0], [1, -1], [0, 0]], np.int8)
    answers = np.array([[True, False], [True, True], [False, True], [True, False]])
    figure = multilabel_pictures.cooccurrence(labels, answers, ["cat", "dog"])
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes[:2]]
    assert texts == [["3", "33%", "100%", "1"], ["3", "33%", "100%", "1"]]


def test_the_gallery_shows_missing_and_spurious_answers_of_each_label():
    images = np.full((4, 8, 8, 1), np.arange(4).reshape(4, 1, 1, 1), np.uint8)
    labels = np.array([[1, 0], [0, 0], [1, 0], [-1, 0]], np.int8)
    probabilities = np.array([[0.1, 0.2], [0.9, 0.2], [0.8, 0.1], [0.9, 0.1]], np.float32)
    figure = multilabel_pictures.mistakes(images, labels, probabilities, ["cat", "dog"], np.array([0.5, 0.5]))
    shown = [axes for axes in figure.axes if axes.images]
    assert figure.get_suptitle() == "Wrong answers: 2 of 7; the most confident come first"
    assert [axes.get_title(loc="left") for axes in shown] == ["missing, 10%", "spurious, 90%"]
    assert [axes.images[0].get_array().max() for axes in shown] == [0, 1]
    figure = multilabel_pictures.mistakes(
        images, labels, probabilities, ["cat", "dog"], np.array([0.05, 0.95])
    )
    assert figure.get_suptitle().startswith("Wrong answers: 1 of 7;")


def test_without_a_wrong_answer_the_gallery_says_so():
    figure = multilabel_pictures.mistakes(
        np.zeros((1, 8, 8, 3), np.uint8),
        np.array([[1]], np.int8),
        np.array([[0.9]]),
        ["cat"],
        np.array([0.5]),
    )
    assert figure.get_suptitle() == "Wrong answers: none of 1"
