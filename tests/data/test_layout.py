"""Which folders are classes and which are splits: decided by what they hold, and said where it may be wrong."""

import re

import pytest

from visionpipe.data.layout import Folder, understand
from visionpipe.data.split_names import split_name
from visionpipe.errors import DataError


def layout(*folders):
    """The layout of folders with two images each."""
    top = Folder()
    for folder in folders:
        for index in range(2):
            top.add(f"{folder}/{index}.png", is_folder=False)
    return understand(top)


def each(*splits, classes=("cat", "dog"), below=""):
    return [f"{split}/{below}{name}" for split in splits for name in classes]


SPLITS = {
    "train": [
        "train",
        "Train",
        "TRAINING",
        "training_set",
        "seg_train",
        "train2017",
        "train_data",
        "images_train",
    ],
    "validation": [
        "val",
        "valid_set",
        "dev",
        "val2017",
        "Validation Images",
        "split=val",
        "验证集",
        "1_valid",
    ],
    "test": ["test", "test_set", "TestData", "testing-images", "holdout", "hold-out", "eval", "測試"],
}


@pytest.mark.parametrize(
    ("split", "name"), [(split, name) for split, names in SPLITS.items() for name in names]
)
def test_a_split_folder_may_have_any_usual_name(split, name):
    others = {"train": ["test"], "validation": ["train"], "test": ["train"]}[split]
    found = layout(*each(name, *others))
    assert found.classes[f"{name}/cat"] == (split, "cat")
    assert found.splits == {split, *others}


@pytest.mark.parametrize(
    "name", ["training shoes", "testa", "valley", "devil", "trainer", "contest", "latest"]
)
def test_a_word_that_begins_or_ends_like_a_split_is_none(name):
    found = split_name(name)
    assert found is None or not found.plain
    assert layout(name, "other").classes == {name: (None, name), "other": (None, "other")}
    assert layout(name, "other").notes == ()


CLASSES = {
    "images lie directly in it": ["train", "car", "bus"],
    "there is no training folder": ["test", "control"],
    "its folders are not those of the others": ["test/a", "test/b", "control/c"],
    "several others hold images": [*each("train", classes=("steam", "diesel")), "car", "bus"],
    "all hold the same": each("train", "car", "bus", classes=("day", "night")),
}


@pytest.mark.parametrize("case", CLASSES)
def test_a_class_that_is_called_like_a_split_is_a_class_with_a_note(case):
    found = layout(*CLASSES[case])
    assert set(found.classes) == {folder.split("/")[0] for folder in CLASSES[case]}
    assert found.splits == frozenset()
    assert "named like a split is taken as a class" in found.notes[0]


def test_names_that_differ_in_the_split_only_are_splits():
    found = layout(*each("flowers_train", "flowers_test"))
    assert found.classes["flowers_test/dog"] == ("test", "dog")
    assert "'flowers_test' as test" in found.notes[0]


@pytest.mark.parametrize("below", ["{0}/", "images/", "animals/"])
def test_folders_around_the_classes_of_a_split_are_skipped(below):
    folders = [
        folder for split in ("seg_train", "seg_test") for folder in each(split, below=below.format(split))
    ]
    found = layout(*(f"archive/archive/{folder}" for folder in folders))
    assert sorted(found.classes.values()) == sorted(
        (split, name) for split in ("test", "train") for name in ("cat", "dog")
    )
    assert found.notes == ()


def test_images_of_a_split_without_classes_are_left_out_with_a_note_and_the_split_is_drawn():
    found = layout(*each("train"), "test/test")
    assert found.splits == {"train"}
    assert (
        "folder 'test' has no folders for classes: its 2 files have no label and are left out" in found.notes
    )
    beside = layout(*each("seg_train", "seg_test"), "seg_pred/seg_pred")
    assert beside.notes == ("1 folder with 2 files beside the split folders is left out: 'seg_pred'",)
    assert beside.is_unused("seg_pred/seg_pred/1.png")


def test_splits_inside_classes_are_kept():
    found = layout(*each("cat", "dog", classes=("train", "test", "masks")), "cow")
    assert found.classes == {
        "cat/train": ("train", "cat"),
        "cat/test": ("test", "cat"),
        "dog/train": ("train", "dog"),
        "dog/test": ("test", "dog"),
        "cow": (None, "cow"),
    }
    assert [re.sub(":.*", "", note) for note in found.notes] == [
        "the class folders hold split folders, which are kept",
        "2 folders beside the split folders of a class are left out",
        "1 class without split folders, whose images are all for training",
    ]


def test_folders_of_the_same_names_are_classes_with_a_note():
    found = layout(*each("A", "B"))
    assert set(found.classes) == {"A", "B"}
    assert "if they are splits, call them train, validation and test" in found.notes[0]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "test"], "'train' holds no folders for classes"),
        (["cat_train", "cat_test", "dog_train", "dog_test"], "are named like splits"),
        (each("val", "test"), "there are folders test, val, but no folder train beside them"),
        (each("test"), "there are folders test, but no folder train beside them"),
    ],
)
def test_what_would_train_on_splits_as_classes_is_refused(folders, message):
    with pytest.raises(DataError, match=message):
        layout(*folders)


def test_a_training_folder_that_is_not_read_is_named():
    top = Folder()
    top.add("train", is_folder=True, refusal="symbolic link")
    top.add("test/cat/1.png", is_folder=False)
    with pytest.raises(DataError, match="the training images cannot be read: 'train': symbolic link"):
        understand(top)
