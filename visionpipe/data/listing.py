"""Lists the files of a source, with the class and split that the names of their folders say."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from visionpipe.errors import DataError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
SYSTEM_FILES = {"__macosx", "thumbs.db", "desktop.ini"}


class Reader(Protocol):
    """Returns a file's content, or its first `most` bytes; raises ImageError."""

    def __call__(self, most: int = -1) -> bytes: ...


@dataclass(frozen=True)
class Record:
    """One file that may be an image.

    `split` is None if the source has no splits; `read` raises ImageError. Images of one `group` (such as a patient)
    must not be in different splits. `weight` multiplies the image's training loss. `metadata` are the values of the
    listing's `columns`.
    """

    split: str | None
    class_name: str
    file: str
    read: Reader
    group: str | None = None
    weight: float = 1.0
    metadata: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """One file that cannot be used."""

    file: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The content of a source, in an order that depends on the content only.

    Every file is an entry, so that nothing is left out silently. `splits` are those that the source defines, `total` is
    the number of entries, `notes` are remarks for the user, and `columns` names the metadata of every record.
    """

    classes: tuple[str, ...]
    splits: frozenset[str]
    total: int
    entries: Iterable[Record | Rejected]
    notes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


def list_class_folders(files: dict[str, Reader], folders: set[str], rejected: list[Rejected]) -> Listing:
    """Reads splits and classes off the paths of files and folders.

    Class folders lie at the top, or in folders for the splits (train, validation or val, test). Their images may lie at
    any depth. A single folder around everything is skipped. Class folders whose names differ only in case or Unicode
    form are one class, and a note says so.

    Args:
        files: path → function that reads the file. Paths are relative to the source and have "/" as separator.
        folders: paths of the folders; empty ones are classes, too.
        rejected: files that are already known to be unusable.

    Raises:
        DataError: there are folders for splits, but none for training.
    """
    entries: list[Record | Rejected] = list(rejected)
    entries += [Rejected(path, "hidden or system file") for path in files if is_hidden(path)]
    visible = {path: read for path, read in files.items() if not is_hidden(path)}
    parents = {str(parent) for path in visible for parent in PurePosixPath(path).parents} - {"."}
    visible_folders = parents | {path for path in folders if not is_hidden(path)}
    wrapper = wrapping_folder(visible_folders)
    visible_folders.discard(wrapper.rstrip("/"))
    inner_folders = [path.removeprefix(wrapper).split("/") for path in visible_folders]
    splits = split_folders({parts[0] for parts in inner_folders})
    depth = 1 if splits else 0  # where the class folders lie
    names, notes = merge_spellings(
        {parts[depth] for parts in inner_folders if len(parts) > depth and (not splits or parts[0] in splits)}
    )
    for path, read in visible.items():
        parts = path.removeprefix(wrapper).split("/")
        if not path.startswith(wrapper) or len(parts) < depth + 2:
            entries.append(Rejected(path, "not in a class folder"))
        elif splits and parts[0] not in splits:
            entries.append(Rejected(path, "not in a train, validation or test folder"))
        else:
            entries.append(Record(splits.get(parts[0]), names[parts[depth]], path, read))
    entries.sort(key=lambda entry: entry.file)
    classes = tuple(sorted(set(names.values())))
    return Listing(classes, frozenset(splits.values()), len(entries), entries, notes)


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder around it, is hidden or belongs to an operating system."""
    return any(part.startswith(".") or part.casefold() in SYSTEM_FILES for part in path.split("/"))


def wrapping_folder(folders: set[str]) -> str:
    """Returns the single folder around everything, as "name/", or "" if there is none."""
    top = min(folders, key=len, default="")
    is_wrapper = len(folders) > 1 and all(path.startswith(f"{top}/") for path in folders - {top})
    return f"{top}/" if is_wrapper and top.casefold() not in SPLIT_NAMES else ""


def split_folders(folders: set[str]) -> dict[str, str]:
    """Maps the folders that are named like a split to that split; raises DataError if there is none for training."""
    splits = {
        path: SPLIT_NAMES[path.casefold()] for path in sorted(folders) if path.casefold() in SPLIT_NAMES
    }
    if splits and "train" not in splits.values():
        raise DataError(
            f"there are folders {', '.join(splits)}, but no folder train beside them: add it, or rename them"
        )
    return splits


def merge_spellings(folders: set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Maps folder names to class names, and returns a note for every class with several spellings.

    Spellings of a class differ in case or Unicode form only.
    """
    spellings: dict[str, list[str]] = {}
    for folder in sorted(folders):
        spellings.setdefault(unicodedata.normalize("NFC", folder).casefold(), []).append(folder)
    names = {folder: unicodedata.normalize("NFC", same[0]) for same in spellings.values() for folder in same}
    notes = tuple(
        f"folders {', '.join(map(ascii, same))} are one class, {names[same[0]]!r}: for separate classes, "
        "give them names that differ in more than case"
        for same in spellings.values()
        if len(same) > 1
    )
    return names, notes
