"""`visionpipe preview`: the picture shows the images, the versions and the labels that training would see."""

import numpy as np
import pytest
from PIL import Image

from visionpipe.commands.preview import ROWS, VERSIONS, contact_sheet, described, one_of_each_class


@pytest.mark.slow
def test_it_writes_a_picture_with_every_row_and_version_and_prints_its_path(project):
    project.change("train.augmentation", [{"name": "flip"}, {"name": "mixup", "alpha": 1.0}])
    project.visionpipe("prepare")
    path = project.root / project.visionpipe("preview", "vit").stdout.strip()
    first = path.read_bytes()
    with Image.open(path) as picture:
        picture.load()
        assert picture.width > 800
        assert len(picture.getcolors(2**24)) > 100
    assert (project.root / project.visionpipe("preview", "vit").stdout.strip()).read_bytes() == first
    assert not project.git("status", "--porcelain", "--", ".visionpipe")


def test_before_prepare_it_says_what_to_do(project):
    result = project.visionpipe("preview", check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert "run dvc repro" in line


def test_rows_take_the_classes_in_turn():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, 2])
    assert one_of_each_class(labels).tolist() == [0, 3, 5, 1, 4, 6, 2, 7]
    assert one_of_each_class(np.arange(100) % 50).tolist() == list(range(ROWS))
    assert one_of_each_class(np.array([1, 0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("target", "text"),
    [([1, 0, 0], "\na"), ([0.25, 0, 0.75], "c 75%\na 25%"), ([0, 0.5, 0.5], "b 50%\nc 50%")],
)
def test_a_label_is_described_by_its_classes_and_shares(target, text):
    assert described(np.float32(target), ["a", "b", "c"]) == text


def test_the_sheet_holds_the_original_and_each_version_in_a_row():
    images = np.random.default_rng(0).uniform(0, 255, (VERSIONS + 1, 3, 6, 8, 3)).astype(np.float32)
    targets = np.eye(3, dtype=np.float32)
    figure = contact_sheet([(column, targets) for column in images], ["a", "b", "c"], "title")
    shown = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert len(shown) == 3 * (VERSIONS + 1)
    np.testing.assert_array_equal(shown[VERSIONS + 2], images[1, 1].round())
