"""The pictures: what they show, that they open, and that equal reports are equal files."""

import io

import numpy as np
import pytest
from PIL import Image

from visionpipe.evaluation import metrics, pictures


def report(classes: int):
    """Images, labels and probabilities of a mediocre model; the last class has no examples."""
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


def test_the_gallery_shows_the_most_confident_mistakes_first_and_no_right_answers():
    images = np.full((5, 8, 8, 3), np.arange(5).reshape(5, 1, 1, 1), np.uint8)
    labels = np.zeros(5, int)
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9], [0.3, 0.7], [0.8, 0.2]])
    panels = pictures.mistakes(images, labels, probabilities, ["cat", "dog"], 2).axes
    shown = [panel for panel in panels if panel.images]
    assert [panel.images[0].get_array().max() for panel in shown] == [2, 3]
    assert [panel.get_title(loc="left") for panel in shown] == [
        "is cat\nsaid dog, 90%",
        "is cat\nsaid dog, 70%",
    ]


def test_without_mistakes_the_gallery_says_so():
    figure = pictures.mistakes(np.zeros((2, 8, 8, 3), np.uint8), np.arange(2), np.eye(2), ["cat", "dog"], 9)
    assert figure.get_suptitle() == "All 2 images are right"


def test_the_confusion_picture_writes_the_counts_and_colours_by_row():
    axes = pictures.confusion(np.array([[3, 1], [0, 0]]), ["cat", "dog"]).axes[0]
    assert sorted(text.get_text() for text in axes.texts) == ["1", "3"]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25], [0, 0]])
