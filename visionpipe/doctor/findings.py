"""What the doctor looks at, the kinds of findings with what to do about them, and their form."""

from dataclasses import dataclass, field

import numpy as np

from visionpipe.data.labels import ABSENT, PRESENT, readable
from visionpipe.data.measures import as_picture
from visionpipe.data.prepared import Prepared
from visionpipe.errors import DataError


@dataclass(frozen=True)
class Images:
    """All images of a prepared data set, in the order of its splits.

    Attributes:
        labels: int32 (n,), or int8 (n, classes) where an image may have several.
        files: the names of the source files.
        split: the position of each image's split in `data.splits`, (n,).
        measures: see data/prepared.py; `thumbnail` is there if every split has it.
    """

    data: Prepared
    labels: np.ndarray
    files: list[str]
    split: np.ndarray
    measures: dict[str, np.ndarray]

    def pixels(self, row: int) -> np.ndarray:
        """Returns one prepared image as a picture, uint8 (height, width, 3)."""
        name = self.data.splits[self.split[row]]
        return as_picture(self.data.images(name)[row - int(np.searchsorted(self.split, self.split[row]))])

    @property
    def several(self) -> bool:
        """Whether an image may have several labels."""
        return self.labels.ndim > 1

    def class_name(self, row: int) -> str:
        """Returns the class of an image, or all its labels as text, such as "cat | dog"."""
        labels = self.labels[row]
        return readable(labels, self.data.classes) if self.several else self.data.classes[labels]

    def having(self, index: int) -> np.ndarray:
        """Whether each image is of a class, or has it among its labels, bool (n,)."""
        return self.labels[:, index] == PRESENT if self.several else self.labels == index

    def lacking(self, index: int) -> np.ndarray:
        """Whether each image is known not to be of a class, bool (n,)."""
        return self.labels[:, index] == ABSENT if self.several else self.labels != index

    def split_name(self, row: int) -> str:
        return self.data.splits[self.split[row]]


def all_images(data: Prepared) -> Images:
    """Joins the splits; raises DataError for data that an older version has prepared, without measures."""
    measures = []
    for split in data.splits:
        of_split = data.measures(split)
        if of_split is None:
            raise DataError(
                f"{data.folder} was prepared by an older version and has no measures-{split}.npz: run dvc repro "
                "--force prepare"
            )
        measures.append(of_split)
    counts = [len(data.labels(split)) for split in data.splits]
    names = set.intersection(*(set(of_split) for of_split in measures))
    return Images(
        data,
        np.concatenate([data.labels(split) for split in data.splits]),
        [file for split in data.splits for file in data.files(split)],
        np.repeat(np.arange(len(counts)), counts),
        {name: np.concatenate([of_split[name] for of_split in measures]) for name in sorted(names)},
    )


@dataclass(frozen=True)
class Item:
    """One thing that was found: the images to look at side by side, and what to say about them.

    Attributes:
        rows: positions of the images, the first of them the one in question.
        note: what was found, in a few words.
        suggestions: row → the class or the group for decisions.csv; "" for an image that is best dropped or kept.
        difference: whether the difference of the first two images is shown.
    """

    rows: list[int]
    note: str
    suggestions: dict[int, str] = field(default_factory=dict)
    difference: bool = False


@dataclass(frozen=True)
class Kind:
    """What the page says about a kind of finding.

    Attributes:
        title: what it is.
        unit: what is counted, one and several.
        sure: how sure a finding is.
        what: what it means.
        advice: what to do.
        severe: whether it makes a number of a report false, or lets mistakes go unseen.
    """

    title: str
    unit: tuple[str, str]
    sure: str
    what: str
    advice: str
    severe: bool = False


EQUAL = "certain where the pixels are equal, very likely where they nearly are"
LOOK = "look at them, the first is the most suspicious"
KINDS = {  # the word in the column `finding` of decisions.csv → what the page says; the page has this order
    "label-conflict": Kind(
        "One picture, several labels",
        ("image", "images"),
        EQUAL,
        "These copies of one picture have different labels. At most one label can be right.",
        "In decisions.csv write relabel into the row of the wrong one (it takes the suggestion, the class after the "
        "arrow), or drop where none is clear.",
        severe=True,
    ),
    "leak": Kind(
        "Copies in two splits",
        ("image", "images"),
        EQUAL,
        "Validation and test images with a copy in an earlier split can be answered from memory, so the measured "
        "accuracy is too high. reports/NAME/metrics.json has the accuracy without them.",
        "For all at once set prepare.duplicates: keep draws copies into one split, drop leaves one of them. Or decide "
        "in decisions.csv: write group into all rows of a set of copies. Splits of your own never change; there write "
        "drop into the rows of the images that are marked with drop?, so that the test images stay.",
        severe=True,
    ),
    "shortcut": Kind(
        "Shortcuts",
        ("class", "classes"),
        "the F1 is measured out of fold; whether a model uses it is open",
        "Something that should not matter gives these classes away. A model may learn that instead of the picture, "
        "and fail on images from elsewhere.",
        "Collect images of these classes from the same source as the others, or cut off, resize or recompress what "
        "gives them away. For size, format and compression, register.gate.max_shortcut refuses models on such data.",
        severe=True,
    ),
    "label": Kind(
        "Labels to look at",
        ("image", "images"),
        LOOK,
        "These images look more like another class; beside each are two clear examples of it. In a set with many "
        "wrong labels most of these are wrong. In a clean set they are its hardest images.",
        "In decisions.csv write relabel (it takes the suggestion), relabel CLASS, keep or drop.",
    ),
    "outlier": Kind(
        "Images unlike all others",
        ("image", "images"),
        LOOK,
        "They are far from every other image, or look like no class: foreign pictures, screenshots, rare views.",
        "In decisions.csv write drop, or keep if the model will meet such images.",
    ),
    "quality": Kind(
        "Dark, bright, blurred, blank, tiny and odd pictures",
        ("image", "images"),
        "measured, relative to the rest of the set",
        "They teach a model little, and count as mistakes in the test.",
        "In decisions.csv write drop, or keep if the model will meet such images.",
    ),
    "copy": Kind(
        "Copies within a split",
        ("superfluous image", "superfluous images"),
        EQUAL,
        "A picture that is there several times counts several times.",
        "In decisions.csv write drop into the rows of the superfluous ones, or set prepare.duplicates to drop. Keeping "
        "them is fine where each is a picture of its own.",
    ),
    "similar-classes": Kind(
        "Classes that look alike",
        ("pair of classes", "pairs of classes"),
        "by simple features; a trained model may tell them apart",
        "Their difference may be too fine for these images, or nobody labelled them consistently.",
        "Look at both folders. Merge them if they are one class for you. If the difference is fine, prepare larger "
        "images (prepare.size).",
    ),
    "imbalance": Kind(
        "Rare classes",
        ("class", "classes"),
        "counted",
        "A model may ignore them without losing much accuracy.",
        "Set train.sampler: sqrt and train.logit_adjustment: 1.0, look at the balanced accuracy, set "
        "register.gate.worst_recall, and add images.",
    ),
    "rare-labels": Kind(
        "Rare labels",
        ("label", "labels"),
        "counted",
        "A model may never answer them without losing much of its mean average precision.",
        "Set train.class_weights: balanced or train.sampler: sqrt, look at the average precision of each label, set "
        "register.gate.worst_average_precision, and add images.",
    ),
    "drift": Kind(
        "Splits that differ",
        ("difference", "differences"),
        "larger than chance allows",
        "Validation or test images are of another kind than the training images, so the measured accuracy is that of "
        "another task.",
        "If the splits were made by hand, let prepare draw them: put all class folders side by side. If the "
        "difference is the purpose, leave it.",
    ),
    "metadata": Kind(
        "Metadata that give classes away",
        ("class", "classes"),
        "the F1 is measured out of fold; whether a model can see it is open",
        "A model never sees the columns of the table. But a camera, a site or a day may show in the picture, and then "
        "it may learn that instead.",
        "If the column is another name of the class, or follows from it, leave it. Else add images of the class with "
        "other values of the column, or of other classes with this value, and look at reports/NAME/slices.png.",
    ),
    "file-names": Kind(
        "File names that give classes away",
        ("class", "classes"),
        "the F1 is measured out of fold",
        "A model never sees names. But names of another camera, place or day may come with pictures that show it.",
        "Find out why the names differ. If the pictures come from different sources, mix the sources in each class.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """Everything of one kind that was found.

    Attributes:
        key: the kind, of KINDS.
        count: how many of the kind's unit.
        items: all of them, the worst first.
    """

    key: str
    count: int
    items: list[Item]

    @property
    def kind(self) -> Kind:
        """What the page says about this kind."""
        return KINDS[self.key]

    @property
    def unit(self) -> str:
        """What is counted, in singular or plural."""
        return self.kind.unit[self.count != 1]
