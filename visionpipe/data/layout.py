"""Tells which folders are classes and which are splits, by what they hold and by their names.

A split folder holds class folders that the other split folders hold too. A class folder holds images. So a folder
"train" of images beside "car" and "bus" is a class, and "seg_train" and "seg_test" with the same folders are splits.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from visionpipe.data.split_names import ANYTHING, PLAIN, UNLABELLED, SplitName, split_name, words_of
from visionpipe.data.walk import is_named_like_an_image
from visionpipe.data.wording import counted, is_are, listed, quoted, shown
from visionpipe.errors import DataError

LEVELS = 8  # of folders that are told apart; deeper ones count as the content of the eighth


@dataclass
class Folder:
    """A folder of the source: the folders in it by name, and how many files lie directly in it.

    `images`: those of the files that are named like images, or have no ending. `refusal`: the reason why the folder is
    not read.
    """

    folders: dict[str, "Folder"] = field(default_factory=dict)
    files: int = 0
    images: int = 0
    refusal: str | None = None

    def add(self, path: str, is_folder: bool, refusal: str | None = None) -> None:
        """Adds a file or folder. Only LEVELS folders of its path are remembered, whatever its length."""
        *parents, name = path.split("/", LEVELS)
        folder = self
        for part in (*parents, name) if is_folder else parents:
            folder = folder.folders.setdefault(part, Folder())
        if is_folder:
            folder.refusal = refusal
        else:
            folder.files += 1
            folder.images += is_named_like_an_image(path) or "." not in name

    @property
    def inner(self) -> dict[str, "Folder"]:
        """The folders in it that can be read."""
        return {name: folder for name, folder in self.folders.items() if not folder.refusal}

    def all_files(self) -> int:
        """Counts the files at any depth."""
        return self.files + sum(folder.all_files() for folder in self.folders.values())

    def all_images(self) -> int:
        """Counts the files at any depth that are named like images."""
        return self.images + sum(folder.all_images() for folder in self.folders.values())


@dataclass
class Layout:
    """How the folders of a source were understood.

    `classes`: path of a class folder → its split, or None, and its name; `splits`: those that have a folder;
    `unused`: paths of folders whose files are in no split; `notes`: remarks for the user.
    """

    classes: dict[str, tuple[str | None, str]]
    splits: frozenset[str]
    unused: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def place(self, path: str) -> tuple[str | None, str] | None:
        """Returns the split and the name of the class folder that a path lies in, or None."""
        return next((self.classes[folder] for folder in around(path) if folder in self.classes), None)

    def is_unused(self, path: str) -> bool:
        """Whether a path lies in a folder that is neither a class nor a split."""
        return any(folder in self.unused for folder in around(path))


def around(path: str) -> Iterator[str]:
    """Yields the folders around a path, from the outermost, at most LEVELS."""
    end = path.find("/")
    for _ in range(LEVELS):
        if end < 0:
            return
        yield path[:end]
        end = path.find("/", end + 1)


def understand(top: Folder) -> Layout:
    """Finds the class folders and the splits of a source; raises DataError where they cannot be told."""
    prefix, parent = skip_wrappers(top)
    named = {name: parsed for name in parent.folders if (parsed := split_name(name))}
    equal_rest = {parsed.rest for parsed in named.values() if len(splits_of(named, parsed.rest)) > 1}
    candidates = {name: one for name, one in named.items() if one.plain or one.rest in equal_rest}
    if are_splits(parent, candidates):
        return with_splits(parent, prefix, candidates)
    if inside := splits_inside(parent):
        return with_splits_inside(parent, prefix, inside)
    return with_classes(parent, prefix, named)


def skip_wrappers(top: Folder) -> tuple[str, Folder]:
    """Goes down through folders that are alone and hold folders; returns their path, as "a/b/", and the last of them.

    A folder that is named like a split is none of them, nor is one below the first that holds images.
    """
    prefix, parent = "", top
    while len(parent.folders) == 1:
        ((name, only),) = parent.folders.items()
        plain = (parsed := split_name(name)) is not None and parsed.plain
        if not only.folders or plain or (prefix and only.images):
            break
        prefix, parent = f"{prefix}{name}/", only
    return prefix, parent


def splits_of(named: dict[str, SplitName], rest: str) -> set[str]:
    """Returns the splits that names with this rest have: more than one shows that the word names the split."""
    return {one.split for one in named.values() if one.rest == rest}


def are_splits(parent: Folder, candidates: dict[str, SplitName]) -> bool:
    """Whether the folders that are named like splits are splits, and not classes of such names.

    Raises:
        DataError: no class can be told from them, or there are none for training.
    """
    if not candidates:
        return False
    folders = {name: parent.folders[name] for name in candidates}
    others = [
        folder
        for name, folder in parent.folders.items()
        if name not in candidates and folder.all_images() and not UNLABELLED & set(words_of(name))
    ]
    inner = {name: class_names(unwrapped(name, folder)) for name, folder in folders.items()}
    training = [name for name in sorted(candidates) if candidates[name].split == "train"]
    several = len({one.split for one in candidates.values()}) > 1
    if any(inner[name] for name in training):
        if several or not others:
            return True
        alike = class_names(others[0]) & set().union(*inner.values())
        return len(others) == 1 and bool(alike or others[0].images)
    if training and folders[training[0]].refusal and (several or not others):
        raise DataError(
            f"the training images cannot be read: {quoted(training[0])}: {folders[training[0]].refusal}"
        )
    if several and (training or not any(inner.values())):
        if any(folder.all_images() for folder in folders.values()):
            without = quoted((training or sorted(candidates))[0])
            raise DataError(
                f"the folders {listed(candidates)} are named like splits, but {without} holds no folders for classes: "
                "put a folder for each class into it, or rename the folders if they are the classes"
            )
    elif any(inner.values()) and (len(candidates) > 1 or not others):
        raise DataError(
            f"there are folders {', '.join(map(shown, sorted(candidates)))}, but no folder train beside them: add it, "
            "or rename them"
        )
    return bool(training) and not others


def unwrapped(name: str, folder: Folder) -> Folder:
    """Returns the folder within a split folder that holds the class folders: seg_train/seg_train, train/images."""
    while len(folder.folders) == 1 and not folder.images:
        ((inner_name, inner),) = folder.folders.items()
        parsed, own = split_name(inner_name), split_name(name)
        same = inner_name.casefold() == name.casefold() or (parsed and own and parsed.split == own.split)
        if not inner.folders and not (same and inner.files):
            break
        if not (same or inner_name.casefold() in ANYTHING):
            break
        name, folder = inner_name, inner
    return folder


def class_names(folder: Folder) -> set[str]:
    """Returns the names of the folders in it, as they are compared between splits."""
    return {spelling(name) for name in folder.folders}


def spelling(name: str) -> str:
    """Returns what is the same for spellings of a name that differ in case or Unicode form only."""
    return unicodedata.normalize("NFC", name).casefold()


def with_splits(parent: Folder, prefix: str, candidates: dict[str, SplitName]) -> Layout:
    """Reads split folders, each with class folders in it."""
    notes = []
    splits = resolved(candidates)
    roots = {name: path_of_unwrapped(name, parent.folders[name]) for name in candidates}
    while True:
        names = {spelling(name) for _, folder in roots.values() for name in folder.folders}
        only = [next(iter(folder.folders.items()), None) for _, folder in roots.values()]
        if len(names) != 1 or not all(
            item is None or (item[1].folders and not item[1].images) for item in only
        ):
            break
        roots = {
            name: (f"{path}/{item[0]}", item[1]) if item else (path, folder)
            for (name, (path, folder)), item in zip(roots.items(), only, strict=True)
        }
    classes: dict[str, tuple[str | None, str]] = {}
    counts: Counter[str] = Counter()
    for name, (path, folder) in roots.items():
        for class_name in folder.inner:
            classes[f"{prefix}{path}/{class_name}"] = (splits[name], class_name)
        counts.update(class_names(folder))
        if not folder.folders and folder.files:
            notes.append(
                f"folder {quoted(name)} has no folders for classes: its {counted(folder.files, 'file')} "
                f"{'has' if folder.files == 1 else 'have'} no label and {is_are(folder.files)} left out"
            )
    doubtful = len(set(splits.values())) < len(splits) or (
        len(splits) > 1 and max(counts.values(), default=0) < 2
    )
    if doubtful or any(one.split == "evaluation" or not one.plain for one in candidates.values()):
        notes.append(
            "folders that were taken as splits: "
            + ", ".join(f"{quoted(name)} as {split}" for name, split in sorted(splits.items())[:LEVELS])
        )
    unused = [name for name in parent.inner if name not in candidates]
    if filled := {name: count for name in unused if (count := parent.folders[name].all_files())}:
        notes.append(
            f"{counted(len(filled), 'folder')} with {counted(sum(filled.values()), 'file')} beside the split folders "
            f"{is_are(len(filled))} left out: {listed(filled)}"
        )
    # A split without usable images is refused later, but not one of images without labels: it is drawn.
    given = {splits[name] for name, (_, folder) in roots.items() if folder.folders or not folder.files}
    return Layout(classes, frozenset(given), frozenset(f"{prefix}{name}" for name in unused), tuple(notes))


def resolved(candidates: dict[str, SplitName]) -> dict[str, str]:
    """Returns the split of each folder. Images for evaluation are for testing, or for validation where others test."""
    has_test = any(one.split == "test" for one in candidates.values())
    held_out = "validation" if has_test else "test"
    return {name: held_out if one.split == "evaluation" else one.split for name, one in candidates.items()}


def splits_named(names: Iterable[str]) -> dict[str, str]:
    """Maps the names of splits in a table or a data set to splits; a name that says none is left out."""
    return resolved({name: parsed for name in sorted(names) if (parsed := split_name(name))})


def split_notes(splits: dict[str, str]) -> list[str]:
    """Says how the names of splits were read that are not the usual ones; `splits`: what `splits_named` returns."""
    unusual = [f"{quoted(name)} as {split}" for name, split in splits.items() if name.casefold() not in PLAIN]
    return [f"names that were taken as splits: {', '.join(unusual)}"] if unusual else []


def path_of_unwrapped(name: str, folder: Folder) -> tuple[str, Folder]:
    """Returns what `unwrapped` returns, with its path from the folder around the splits."""
    path, goal = name, unwrapped(name, folder)
    while folder is not goal:
        ((inner_name, folder),) = folder.folders.items()
        path = f"{path}/{inner_name}"
    return path, goal


def splits_inside(parent: Folder) -> dict[str, dict[str, str]]:
    """Returns class folder → the folders in it that are splits, where any class has training and other images."""
    inside = {}
    for name, folder in parent.inner.items():
        candidates = {inner: one for inner in folder.inner if (one := split_name(inner)) and one.plain}
        if candidates:
            inside[name] = resolved(candidates)
    divided = any({"train"} < set(splits.values()) for splits in inside.values())
    return inside if divided else {}


def with_splits_inside(parent: Folder, prefix: str, inside: dict[str, dict[str, str]]) -> Layout:
    """Reads class folders with split folders in them: CLASS/train, CLASS/test."""
    classes: dict[str, tuple[str | None, str]] = {}
    unused, without = [], []
    for name, folder in parent.inner.items():
        if name not in inside:
            classes[f"{prefix}{name}"] = (None, name)
            without.append(name)
            continue
        for inner in folder.inner:
            if inner in inside[name]:
                classes[f"{prefix}{name}/{inner}"] = (inside[name][inner], name)
            elif folder.folders[inner].all_files():
                unused.append(f"{name}/{inner}")
    example = next(iter(inside.items()))
    notes = [
        "the class folders hold split folders, which are kept: "
        + ", ".join(f"{quoted(f'{example[0]}/{inner}')} as {split}" for inner, split in example[1].items())
    ]
    if unused:
        notes.append(
            f"{counted(len(unused), 'folder')} beside the split folders of a class {is_are(len(unused))} left out: "
            f"{listed(unused)}"
        )
    if without:
        notes.append(
            f"{counted(len(without), 'class', 'classes')} without split folders, whose images are all for training: "
            f"{listed(without)}"
        )
    splits = frozenset(split for split, _ in classes.values() if split)
    divided = frozenset(f"{prefix}{name}" for name in inside)
    return Layout(classes, splits, divided, tuple(notes))


def with_classes(parent: Folder, prefix: str, named: dict[str, SplitName]) -> Layout:
    """Reads class folders that are in no split folders."""
    notes = []
    several = len({one.split for one in named.values()}) > 1
    doubtful = [name for name, one in named.items() if one.plain or several]
    if doubtful and len(parent.folders) > 1:
        one = len(doubtful) == 1
        notes.append(
            f"{counted(len(doubtful), 'folder')} named like a split {is_are(len(doubtful))} taken as "
            f"{'a class' if one else 'classes'}: {listed(doubtful)}; if {'it is' if one else 'they are'} none, put "
            f"folders for classes into {'it' if one else 'each'}"
        )
    shared = shared_names(parent)
    if shared:
        notes.append(
            f"the folders {listed(parent.folders)} are taken as classes, but hold folders of the same names "
            f"({listed(shared)}): if they are splits, call them train, validation and test"
        )
    classes: dict[str, tuple[str | None, str]] = {f"{prefix}{name}": (None, name) for name in parent.inner}
    return Layout(classes, frozenset(), notes=tuple(notes))


def shared_names(parent: Folder) -> list[str]:
    """Returns the names that all folders hold, if those are folders of images and at least two, as in splits."""
    if len(parent.folders) < 2 or any(folder.images for folder in parent.folders.values()):
        return []
    shared = set.intersection(*(class_names(folder) for folder in parent.folders.values()))
    return sorted(shared) if len(shared) > 1 else []
