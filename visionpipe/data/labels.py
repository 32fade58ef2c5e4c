"""The labels of an image with `task: multi`: those that it has, and those of which nothing is known."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from visionpipe.errors import DataError

PRESENT, ABSENT, UNKNOWN = 1, 0, -1  # the values of labels-SPLIT.npy
SEPARATOR = "|"  # in readable sets of labels, such as "cat | dog"
NO_LABEL = "no label"


@dataclass(frozen=True, slots=True, repr=False)
class Labels:
    """The labels of one image. Classes that are neither `present` nor `unknown` are absent.

    Both are sorted, so that equal sets are equal.
    """

    present: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f" {SEPARATOR} ".join(self.present) or NO_LABEL

    def __repr__(self) -> str:
        return repr(str(self) + (f" (unknown: {', '.join(self.unknown)})" if self.unknown else ""))

    def contradicts(self, other: "Labels") -> bool:
        """Whether a class is present in one of the two and known to be absent in the other."""
        differing = set(self.present) ^ set(other.present)
        return not differing <= {*self.unknown, *other.unknown}


def labels_of(present: Iterable[str], unknown: Iterable[str] = ()) -> Labels:
    """Makes the labels of an image from names in any order."""
    return Labels(tuple(sorted(set(present))), tuple(sorted(set(unknown))))


def label_matrix(labels: Sequence[Labels], classes: Sequence[str]) -> np.ndarray:
    """Returns the labels of images as int8 (n, classes): PRESENT, ABSENT or UNKNOWN.

    Unknown labels that are none of the classes have no column: no image has them.
    """
    positions = {name: position for position, name in enumerate(classes)}
    matrix = np.full((len(labels), len(classes)), ABSENT, np.int8)
    for row, of_image in enumerate(labels):
        matrix[row, [positions[name] for name in of_image.present]] = PRESENT
        matrix[row, [positions[name] for name in of_image.unknown if name in positions]] = UNKNOWN
    return matrix


def readable(row: np.ndarray, classes: Sequence[str]) -> str:
    """Returns the labels of an image, int8 (classes,), as text, such as "cat | dog" or "no label"."""
    return str(labels_of(classes[position] for position in np.flatnonzero(row == PRESENT).tolist()))


def read_labels(text: str, classes: Sequence[str]) -> Labels:
    """Reads labels as `Labels` writes them: "cat | dog"; "no label" is the empty set.

    Raises:
        KeyError: a part of the text is none of the classes.
    """
    if text.strip() == NO_LABEL:
        return Labels(())
    names = [name.strip() for name in text.split(SEPARATOR)]
    for name in names:
        if name not in classes:
            raise KeyError(name)
    return labels_of(names)


def check_names(classes: Iterable[str], where: str) -> None:
    """Raises DataError for a class whose name could not be read back from a set of labels."""
    for name in classes:
        if SEPARATOR in name or name == NO_LABEL:
            reason = (
                f"has a {SEPARATOR!r}, which separates labels"
                if SEPARATOR in name
                else "is that of an empty set"
            )
            raise DataError(
                f"{where}: the name of the class {name!r} {reason} in reports and decisions: rename it"
            )
