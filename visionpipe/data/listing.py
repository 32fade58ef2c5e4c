"""What a source holds: records of files, their classes and splits, read off the folders' names."""

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
    """One file that may be an image. `split` is None where the source has none; `read` raises ImageError."""

    split: str | None
    class_name: str
    file: str
    read: Reader


@dataclass(frozen=True)
class Rejected:
    """One file that cannot be used."""

    file: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """What a source holds, in an order that depends on nothing but its content.

    `splits` are those that the source itself makes, `total` is the number of entries, and `notes` are
    remarks for the user. Every file found is an entry: nothing is left out silently.
    """

    classes: tuple[str, ...]
    splits: frozenset[str]
    total: int
    entries: Iterable[Record | Rejected]
    notes: tuple[str, ...] = ()


def list_class_folders(files: dict[str, Reader], folders: set[str], rejected: list[Rejected]) -> Listing:
    """Reads splits and classes off the paths of files and folders, relative to the source and with "/".

    Class folders lie at the top, or within folders for the splits (train, validation or val, test); their
    images may lie at any depth below. A single folder around everything is looked through. Class folders
    whose names differ only in case or Unicode form are one class, with a note.
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
    depth = 1 if splits else 0  # of the class folders
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
    return any(part.startswith(".") or part.casefold() in SYSTEM_FILES for part in path.split("/"))


def wrapping_folder(folders: set[str]) -> str:
    """The single folder around everything, as "name/", or "" if there is none."""
    top = min(folders, key=len, default="")
    is_wrapper = len(folders) > 1 and all(path.startswith(f"{top}/") for path in folders - {top})
    return f"{top}/" if is_wrapper and top.casefold() not in SPLIT_NAMES else ""


def split_folders(folders: set[str]) -> dict[str, str]:
    """Top-level folder → split, for those named like one; DataError if no train is among them."""
    splits = {
        path: SPLIT_NAMES[path.casefold()] for path in sorted(folders) if path.casefold() in SPLIT_NAMES
    }
    if splits and "train" not in splits.values():
        raise DataError(f"folders {', '.join(splits)} are there, but no folder train beside them")
    return splits


def merge_spellings(folders: set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Folder name → class name, and a note for every class whose folders differ in case or Unicode form."""
    spellings: dict[str, list[str]] = {}
    for folder in sorted(folders):
        spellings.setdefault(unicodedata.normalize("NFC", folder).casefold(), []).append(folder)
    names = {folder: unicodedata.normalize("NFC", same[0]) for same in spellings.values() for folder in same}
    notes = tuple(
        f"folders {', '.join(map(ascii, same))} are one class, {names[same[0]]!r}: to keep them apart, "
        "give them names that differ in more than case"
        for same in spellings.values()
        if len(same) > 1
    )
    return names, notes
