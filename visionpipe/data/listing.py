"""Lists the files of a source, with the class and split that the names of their folders say."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

from visionpipe.data.labels import Labels, read_labels
from visionpipe.data.layout import Folder, Layout, spelling, understand
from visionpipe.data.walk import LEAVES, NOT_UTF8, UNREADABLE, is_hidden
from visionpipe.data.wording import counted, quoted, shown
from visionpipe.errors import DataError

HIDDEN = "hidden or system file"
NOT_IN_A_CLASS = "not in a class folder"
NOT_IN_A_SPLIT = "not in a train, validation or test folder"
# The names of splits in tables and in TensorFlow Datasets; `layout` knows more names of folders.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
NOTES = 20  # folders that are named; a set may have any number of them


class Reader(Protocol):
    """Returns a file's content, or its first `most` bytes; raises ImageError."""

    def __call__(self, most: int = -1) -> bytes: ...


@dataclass(frozen=True)
class Record:
    """One file that may be an image.

    `split` is None if the source has no splits; `read` raises ImageError. Images of one `group` (such as a patient)
    must not be in different splits. `weight` multiplies the image's training loss. `metadata` are the values of the
    listing's `columns`. With `task: multi` an image has `labels`, and `class_name` is how they are written.
    """

    split: str | None
    class_name: str
    file: str
    read: Reader
    group: str | None = None
    weight: float = 1.0
    metadata: tuple[str, ...] = ()
    labels: Labels | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The classes that the image has: one, or with `task: multi` any number."""
        return (self.class_name,) if self.labels is None else self.labels.present


@dataclass(frozen=True)
class Rejected:
    """One file that cannot be used, or one folder that cannot be read.

    `class_name` is the class that it would belong to, if one is known. `images` counts the images in a folder; None
    for a file.
    """

    file: str
    reason: str
    class_name: str | None = None
    images: int | None = None


@dataclass(frozen=True)
class Listing:
    """The content of a source, in an order that depends on the content only.

    Every file is an entry, so that nothing is left out silently. `splits` are those that the source defines, `total` is
    the number of entries, `notes` are remarks for the user, and `columns` names the metadata of every record. `lost`
    are those of the notes that say that a folder is left out. `several`: an image may have several labels.
    """

    classes: tuple[str, ...]
    splits: frozenset[str]
    total: int
    entries: Iterable[Record | Rejected]
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    several: bool = False

    def labels_from(self, text: str) -> Labels | None:
        """Reads the labels that someone wrote for an image; None where an image has one class.

        Raises:
            KeyError: a part of the text is none of the classes.
        """
        if self.several:
            return read_labels(text, self.classes)
        if text not in self.classes:
            raise KeyError(text)
        return None


class UnclearFolders(DataError):
    """Classes and splits cannot be told from the folders; `listing` has their files, all of them rejected."""

    def __init__(self, message: str, listing: Listing):
        super().__init__(message)
        self.listing = listing


def list_class_folders(files: dict[str, Reader], folders: set[str], rejected: list[Rejected]) -> Listing:
    """Reads splits and classes off the paths of files and folders, as `layout.understand` says.

    Images may lie at any depth of a class folder. Class folders whose names differ only in case or Unicode form are one
    class, and a note says so. So does a note for each class that is lost, because its folder or none of its files can
    be read.

    Args:
        files: path → function that reads the file. Paths are relative to the source and have "/" as separator.
        folders: paths of the folders; empty ones are classes, too.
        rejected: files and folders that are already known to be unusable.

    Raises:
        UnclearFolders: folders are named like splits, but there is none for training, or it has no classes.
    """
    top = Folder()
    for path in files:
        if not is_hidden(path):
            top.add(path, is_folder=False)
    for path in folders:
        if not is_hidden(path):
            top.add(path, is_folder=True)
    for item in rejected:
        if item.images is not None and not is_hidden(item.file):
            top.add(item.file, is_folder=True, refusal=item.reason)
    try:
        layout = understand(top)
    except DataError as error:
        unused = [Rejected(path, HIDDEN if is_hidden(path) else NOT_IN_A_CLASS) for path in files]
        unused = sorted([*unused, *rejected], key=lambda entry: entry.file)
        raise UnclearFolders(str(error), Listing((), frozenset(), len(unused), unused)) from None
    names, notes = merge_spellings({name for _, name in layout.classes.values()})
    entries: list[Record | Rejected] = []
    for path, read in files.items():
        if is_hidden(path):
            entries.append(Rejected(path, HIDDEN))
        elif place := layout.place(path):
            entries.append(Record(place[0], names[place[1]], path, read))
        else:
            entries.append(Rejected(path, NOT_IN_A_SPLIT if layout.is_unused(path) else NOT_IN_A_CLASS))
    entries += [with_class(item, layout, names) for item in rejected]
    entries.sort(key=lambda entry: entry.file)
    classes = tuple(sorted(set(names.values())))
    lost = tuple(losses(rejected, layout, classes))
    return Listing(classes, layout.splits, len(entries), entries, (*layout.notes, *notes, *lost), lost=lost)


def with_class(item: Rejected, layout: Layout, names: dict[str, str]) -> Rejected:
    """Returns the rejected file with the class whose folder it lies in."""
    place = layout.place(item.file)
    return replace(item, class_name=names[place[1]]) if place else item


def losses(rejected: list[Rejected], layout: Layout, classes: tuple[str, ...]) -> list[str]:
    """Returns a sentence for each folder that is not read, and for each class of which all files are refused."""
    notes = []
    lost: defaultdict[str, list[Rejected]] = defaultdict(list)
    known = {spelling(name) for name in classes}
    for item in rejected:
        folder = item.file.replace("\\", "/").rpartition("/")[0].rpartition("/")[2]
        if item.images is not None:
            holds = f" with {counted(item.images, 'image')}" if item.images else ""
            notes.append(f"folder {quoted(item.file)}{holds} is left out: {item.reason}{advice(item.reason)}")
        elif not layout.place(item.file) and folder not in ("", ".", "..") and spelling(folder) not in known:
            lost[folder].append(item)
    for folder, items in lost.items():
        first = items[0]
        notes.append(
            f"folder {quoted(folder)} is left out, because {'its only file' if len(items) == 1 else 'no file in it'} "
            f"can be read: {counted(len(items), 'file')}, such as {quoted(first.file)}: {first.reason}"
        )
    return (
        notes
        if len(notes) <= NOTES
        else [*notes[:NOTES], f"{len(notes) - NOTES:,} more folders are left out"]
    )


def advice(reason: str) -> str:
    """Returns what to do about a folder that is refused, or ""."""
    if reason == LEAVES:
        return "; to use it, set prepare.follow_links: true, or give init --follow-links"
    if reason.startswith(UNREADABLE):
        return "; let your user read it (chmod, chown)"
    return "; rename it" if reason == NOT_UTF8 else ""


def merge_spellings(folders: set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Maps folder names to class names, and returns a note for every class with several spellings.

    Spellings of a class differ in case or Unicode form only.
    """
    spellings: dict[str, list[str]] = {}
    for folder in sorted(folders):
        spellings.setdefault(spelling(folder), []).append(folder)
    names = {folder: unicodedata.normalize("NFC", same[0]) for same in spellings.values() for folder in same}
    notes = tuple(
        f"folders {', '.join(ascii(shown(name)) for name in same)} are one class, {names[same[0]]!r}: for separate "
        "classes, give them names that differ in more than case"
        for same in spellings.values()
        if len(same) > 1
    )
    return names, notes
