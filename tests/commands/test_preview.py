"""`visionpipe preview`: the picture shows the images, the versions and the labels that training would see."""

import numpy as np
import pytest
from PIL import Image

from visionpipe.commands.preview import MOST_LINES, ROWS, VERSIONS, caption, contact_sheet, one_of_each_class
from visionpipe.tasks.multi import Multi
from visionpipe.tasks.single import Single


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
    assert caption(Single.described(np.float32(target), ["a", "b", "c"]), 2) == text


@pytest.mark.parametrize(
    ("rows", "share", "lines"),
    [
        (([1, 0, 0], [0, 1, 0]), 1.0, ["a"]),
        (([1, 0, 1], [1, 1, 0]), 0.7, ["a", "c 70%", "b 30%"]),
        (([0, 0, 0], [0, 0, 0]), 1.0, ["no label"]),
        (([0, 0, 0], [1, 0, 0]), 0.75, ["a 25%"]),
        (([0, -1, 1], [0, -1, -1]), 0.5, ["c 50%", "b unknown"]),
        (([0, -1, -1], [0, -1, -1]), 1.0, ["2 labels unknown"]),
        (([-1, -1, -1], [1, 1, 1]), 0.9, ["a 10%", "b 10%", "c 10%"]),
    ],
)
def test_several_labels_are_described_each_with_its_share_and_what_is_unknown(rows, share, lines):
    one, other = Multi.targets(np.array(rows, np.int8), 3)
    assert Multi.described(share * one + (1 - share) * other, ["a", "b", "c"]) == lines


def test_a_caption_has_its_number_of_lines_and_counts_what_is_left_out():
    assert caption(["a"], 3) == "\n\na"
    assert caption(list("abcdef"), 4) == "a\nb\nc\nand 3 more"


def test_a_sheet_of_several_labels_has_rows_of_one_height():
    targets = Multi.targets(np.array([[1] * 6, [0] * 6, [-1] * 6], np.int8), 6)
    images = np.zeros((3, 8, 8, 3), np.float32)
    figure = contact_sheet([(images, targets)] * 2, list("abcdef"), "title", Multi)
    titles = [axes.get_title() for axes in figure.axes]
    assert {title.count("\n") for title in titles} == {MOST_LINES - 1}
    assert titles[0].splitlines() == ["original:", "a", "b", "c", "and 3 more"]
    assert titles[1].splitlines()[-1] == "and 2 more"
    assert (titles[2].strip(), titles[4].strip()) == ("no label", "6 labels unknown")


def test_the_sheet_holds_the_original_and_each_version_in_a_row():
    images = np.random.default_rng(0).uniform(0, 255, (VERSIONS + 1, 3, 6, 8, 3)).astype(np.float32)
    targets = np.eye(3, dtype=np.float32)
    figure = contact_sheet([(column, targets) for column in images], ["a", "b", "c"], "title", Single)
    shown = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert len(shown) == 3 * (VERSIONS + 1)
    np.testing.assert_array_equal(shown[VERSIONS + 2], images[1, 1].round())
