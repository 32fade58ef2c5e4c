"""Tests what the pictures show, that they open, and that equal reports give equal files."""

import io
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from visionpipe.evaluation import metrics, pictures
from visionpipe.evaluation.labels import drawable
from visionpipe.evaluation.slices import slices


def report(classes: int):
    """Makes images, labels, probabilities of a mediocre model, and class names; the last class has no images."""
    random = np.random.default_rng(classes)
    labels = np.arange(60) % max(classes - 1, 1)
    probabilities = random.dirichlet(np.ones(classes), 60)
    probabilities[::2] = 0.5 / classes + 0.5 * np.eye(classes)[labels[::2]]
    images = random.integers(0, 256, (60, 28, 28, 3), np.uint8)
    return images, labels, probabilities, [f"kind number {index} of a thing" for index in range(classes)]


def figures(classes: int):
    images, labels, probabilities, names = report(classes)
    matrix = metrics.confusion_matrix(labels, probabilities.argmax(axis=1), classes)
    yield "confusion", pictures.confusion(matrix, names)
    yield "per class", pictures.per_class(metrics.per_class(matrix, names))
    yield "calibration", pictures.calibration(metrics.calibration(probabilities, labels, 15))
    yield "mistakes", pictures.mistakes(images, labels, probabilities, names, 9)
    metadata = {"site": [f"hospital {index % 4}" for index in range(60)], "x" * 99: ["$a$", ""] * 30}
    yield "slices", pictures.slices(slices(probabilities.argmax(axis=1) == labels, labels, metadata), 0.5)
    yield "no slices", pictures.slices([], 0.5)


@pytest.mark.parametrize("classes", [2, 100])
def test_every_picture_is_a_png_and_the_same_file_when_drawn_again(tmp_path, classes):
    for (name, first), (_, second) in zip(figures(classes), figures(classes), strict=True):
        pictures.save(first, tmp_path / "first.png")
        pictures.save(second, tmp_path / "second.png")
        data = (tmp_path / "first.png").read_bytes()
        assert data == (tmp_path / "second.png").read_bytes(), name
        image = Image.open(io.BytesIO(data))
        assert not image.text, name
        assert np.ptp(np.asarray(image.convert("L"))) > 200, name


def test_slices_below_the_rest_have_another_colour_and_of_many_the_worst_are_drawn():
    rows = [
        {"column": "age", "value": f"{place}", "images": 20, "accuracy": share, "accuracy_low": share - 0.1,
         "accuracy_high": share + 0.1}
        for place, share in enumerate(np.linspace(0.2, 0.9, 60))
    ]  # fmt: skip
    figure = pictures.slices(rows, 0.8)
    (axes,) = figure.axes
    assert figure.get_suptitle() == "The 50 of 60 values of the metadata with the lowest accuracy"
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"age: {place}" for place in range(50)]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert sum(line.get_color() == pictures.ACCENT for line in dots) == sum(
        row["accuracy"] < 0.7 for row in rows
    )


def test_the_gallery_shows_the_most_confident_mistakes_first_and_no_right_answers():
    images = np.full((5, 8, 8, 3), np.arange(5).reshape(5, 1, 1, 1), np.uint8)
    labels = np.zeros(5, int)
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9], [0.3, 0.7], [0.8, 0.2]])
    panels = pictures.mistakes(images, labels, probabilities, ["cat", "dog"], 2).axes
    shown = [panel for panel in panels if panel.images]
    assert [panel.images[0].get_array().max() for panel in shown] == [2, 3]
    assert [panel.get_title(loc="left") for panel in shown] == [
        "is cat\npredicted dog, 90%",
        "is cat\npredicted dog, 70%",
    ]


def test_without_mistakes_the_gallery_says_so():
    figure = pictures.mistakes(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), np.eye(2), ["cat", "dog"], 9)
    assert figure.get_suptitle() == "All 2 predictions are right"


def test_the_confusion_picture_writes_the_counts_and_colours_by_row():
    axes = pictures.confusion(np.array([[3, 1], [0, 0]]), ["cat", "dog"]).axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "3"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])


HOSTILE = ["$5_$10", "a_$", "$\\foo$", "a\nb", "\u202eabc", "猫", "犬", "<b>x</b>", "{x}", "%s", "a" * 300]


def test_any_name_is_drawn_unchanged_or_with_escaped_characters(tmp_path):
    random = np.random.default_rng(0)
    labels, probabilities = np.arange(60) % len(HOSTILE), random.dirichlet(np.ones(len(HOSTILE)), 60)
    matrix = metrics.confusion_matrix(labels, probabilities.argmax(axis=1), len(HOSTILE))
    confusion = pictures.confusion(matrix, HOSTILE)
    ticks = [text.get_text() for text in confusion.axes[0].get_yticklabels()]
    shown = ["$5_$10", "a_$", "$\\foo$", "a\\nb", "\\u202eabc", "\\u732b", "\\u72ac", "<b>x</b>", "{x}", "%s"]
    assert ticks == [*shown, "a" * 21 + "…"]
    for figure in (
        confusion,
        pictures.per_class(metrics.per_class(matrix, HOSTILE)),
        pictures.mistakes(np.zeros((60, 8, 8, 3), np.uint8), labels, probabilities, HOSTILE, 60),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pictures.save(figure, tmp_path / "picture.png")
        texts = figure.findobj(Text)
        assert not any(text.get_parse_math() for text in texts if "$" in text.get_text())


LOOK_ALIKE = [
    "cat",
    "c\u0430t",
    "cat ",
    "ca\u200dt",
    "\u732b",
    "\\u732b",
    "\u72ac",
    "e\u0301",
    "\u00e9",
    "x" * 30 + "1",
]
LOOK_ALIKE += ["x" * 30 + "2", "x" * 30 + "1" + "x" * 30, "\u062f\u064a\u0643", "\u0628\u0637", "\U0001d538"]


def test_no_two_classes_look_alike_in_any_picture(tmp_path):
    """As the pixels say: each label is drawn alone, and no two of the pictures are equal."""
    texts, fonts = drawable(LOOK_ALIKE)
    assert texts[0] == "cat"
    pictures_of = set()
    for text in texts:
        figure = Figure(figsize=(4, 0.4), dpi=60)
        figure.text(0.5, 0.5, text, fontfamily=fonts, ha="center")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pictures.save(figure, tmp_path / "text.png")
        pictures_of.add((tmp_path / "text.png").read_bytes())
    assert len(pictures_of) == len(LOOK_ALIKE)


def test_the_sum_of_other_classes_is_not_taken_for_a_class_of_that_name():
    names = [pictures.OTHERS, *(f"{index}" for index in range(100))]
    ticks = pictures.confusion(np.eye(101, dtype=int), names).axes[0].get_xticklabels()
    assert len({text.get_text() for text in ticks}) == len(ticks)


def test_of_many_classes_the_most_confused_are_drawn_and_the_title_says_so():
    """Uses Pairs of 20,000 classes; their matrix would take 3.2 GB."""
    labels = np.repeat(np.arange(20_000), 2)
    predicted = labels.copy()
    predicted[[14_000, 14_001]] = 19_999  # class 7,000, both images
    predicted[10] = 8
    names = [f"class {index}" for index in range(20_000)]
    pairs = metrics.pairs(labels, predicted)
    axes = pictures.confusion(pairs, names).axes[0]
    assert axes.get_title(loc="left") == (
        "Confusion matrix of 40,000 images: the 100 of 20,000 classes with the most frequent mistakes"
    )
    shown = [text.get_text() for text in axes.get_yticklabels()]
    assert {"class 7000", "class 19999", "class 5", "class 8"} < set(shown)
    row = np.asarray(axes.images[0].get_array())[shown.index("class 7000")]
    assert row[shown.index("class 19999")] == 1
    assert row.shape == (101,)
    figure = pictures.per_class(metrics.per_class(pairs, names))
    title = "The 100 of 20,000 classes with the lowest F1; the means are of all classes"
    assert figure.get_suptitle() == title
    assert figure.axes[0].get_yticklabels()[0].get_text() == "class 7000"


def test_the_last_column_sums_the_classes_that_are_not_shown():
    matrix = np.zeros((101, 101), int)
    matrix[0] = 1
    axes = pictures.confusion(matrix, [f"{index}" for index in range(101)]).axes[0]
    assert axes.get_xticklabels()[-1].get_text() == "(other classes)"
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array())[0], 1 / 101)
