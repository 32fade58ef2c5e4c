"""The source `huggingface`: a folder that `save_to_disk` of the library datasets wrote, read without a network."""

import functools
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from visionpipe.data.config import PrepareConfig, TableConfig
from visionpipe.data.labels import Labels, check_names, labels_of
from visionpipe.data.layout import split_notes, splits_named
from visionpipe.data.listing import Listing, Record, Rejected
from visionpipe.data.measurements import refuse_measured
from visionpipe.data.spreadsheet import text_of
from visionpipe.errors import DataError, did_you_mean

MARKS = ("dataset_dict.json", "state.json")  # one of them is in each folder of save_to_disk
LABELS = ("label", "labels", "class", "category", "target", "fine_label")
NEEDED = "prepare.source: huggingface needs the library datasets: pip install 'visionpipe[hf]'"


def list_saved(path: Path, config: PrepareConfig, several: bool = False) -> Listing:
    """Lists a `Dataset` or `DatasetDict` in a folder; each split of a `DatasetDict` is one of ours.

    Args:
        several: whether an image may have several labels, in a list of ClassLabel.

    Raises:
        DataError: the folder is of another kind, or the set is not one of images with such labels.
    """
    parts = load(path)
    splits = splits_named(parts)
    names = {name: splits[name] for name in parts if name in splits}
    notes = []
    if len(parts) == 1:
        names = {next(iter(parts)): ""}
    elif "train" not in names.values():
        raise DataError(f"prepare.path: {path} has no training split, only {', '.join(parts)}")
    else:
        unused = [name for name in parts if name not in names]
        notes += [f"{path} has splits that are not used: {', '.join(unused)}"] if unused else []
        notes += split_notes(names)
    features = Features(next(iter(parts.values())).features, config, path, several)
    classes = features.classes
    if classes is None:
        words = [name for split in names for name in features.words(parts[split])]
        refuse_measured(words, f"prepare.table.label: the column {features.label!r} of {path}")
        classes = sorted(set(words))
    if features.unused:
        notes.append(f"{path} has columns that are no text and no number: {', '.join(features.unused)}")
    return Listing(
        classes=tuple(classes),
        splits=frozenset(names.values()) - {""},
        total=sum(len(parts[name]) for name in names),
        entries=read_rows(parts, names, features),
        notes=tuple(notes),
        columns=tuple(features.metadata),
        several=several,
    )


def several_reason(path: Path) -> str:
    """Says which column of a saved set holds several labels of an image; "" where a column holds a single one."""
    features = next(iter(load(path).values())).features
    lists = [name for name, kind in features.items() if is_several(kind)]
    return f"the column {lists[0]} holds lists of classes" if lists and not label_columns(features) else ""


def label_columns(features: Any) -> list[str]:
    """Returns the columns that may hold one label of each image: those of ClassLabel, or else texts and numbers."""
    import datasets

    single = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    return single or [name for name in LABELS if is_value(features.get(name))]


def load(path: Path) -> dict[str, Any]:
    """Opens the splits of a saved set; a set without splits is one named data. Raises DataError."""
    try:
        import datasets
    except ModuleNotFoundError:
        raise DataError(NEEDED) from None
    if not any((path / mark).is_file() for mark in MARKS):
        kind = "" if not any(path.rglob("*.parquet")) else ", but files of the Hub"
        raise DataError(
            f"prepare.path: {path} is not what save_to_disk of datasets writes{kind}: make such a folder with "
            f"visionpipe download NAME PATH"
        )
    if not any(path.rglob("*.arrow")):
        raise DataError(
            f"prepare.path: {path} has no .arrow file: a streamed set (IterableDataset) holds no images; load it "
            f"without streaming=True, then save_to_disk"
        )
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # damaged folders raise errors of any class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"prepare.path: {path} cannot be read: {reason}") from None
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"data": loaded}


class Features:
    """The columns of a set by what they hold: the image, the label, and metadata."""

    def __init__(self, features: Any, config: PrepareConfig, path: Path, several: bool):
        import datasets

        self.features, self.path = features, path
        options = config.table or TableConfig()
        images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
        self.image = self.named("table.file", options.file, images, "a column of images", "file")
        single = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
        lists = [name for name, kind in features.items() if is_several(kind)]
        self.several = several
        self.label = self.labels_named(options, lists) if several else self.label_named(options, lists)
        kind = list_of(features[self.label]) or features[self.label]
        self.classes = list(kind.names) if isinstance(kind, datasets.ClassLabel) else None
        if several:
            check_names(self.classes or (), f"prepare.path: {path}")
        self.group = options.group or (config.group if config.group in features else None)
        self.weight = options.weight
        for key, name in (("table.group", self.group), ("table.weight", self.weight)):
            if name is not None and name not in features:
                raise DataError(self.missing(key, name))
        others = [name for name in features if name not in (self.image, self.label, self.weight)]
        if options.metadata is not None:
            for name in options.metadata:
                if name not in features:
                    raise DataError(self.missing("table.metadata", name))
            others = list(options.metadata)
        self.metadata = [name for name in others if is_value(features[name]) or name in single]
        self.unused = [name for name in others if name not in self.metadata and name not in images]

    def label_named(self, options: TableConfig, lists: list[str]) -> str:
        """Returns the column with one label of each image."""
        single = label_columns(self.features)
        written = options.label != TableConfig.label and options.label in self.features
        chosen = options.label if written else lists[0] if lists and not single else None
        if chosen in lists:
            raise DataError(
                f"prepare.path: {self.path}: the column {chosen} holds several labels of an image: write task: multi, "
                f"or choose a column with a single label"
            )
        known = single or [name for name in self.features if is_value(self.features[name])]
        return self.named("table.label", options.label, known, "a column of labels", "label")

    def labels_named(self, options: TableConfig, lists: list[str]) -> str:
        """Returns the column with the lists of labels."""
        for key in ("labels", "separator"):
            if getattr(options, key) is not None:
                raise DataError(
                    f"prepare.table.{key}: is for prepare.source: table; a set of the library datasets has its labels "
                    f"in one column of lists of ClassLabel: name it in prepare.table.label"
                )
        written = options.label if options.label in self.features and options.label not in lists else None
        if (written and options.label != TableConfig.label) or not lists:
            column = written or next((name for name in self.features if name != self.image), "no column")
            raise DataError(
                f"prepare.path: {self.path}: the column {column} holds no list of classes (Sequence of ClassLabel), "
                f"which task: multi needs: write task: single where each image has one label"
            )
        return self.named("table.label", options.label, lists, "a column of lists of classes", "label")

    def named(self, key: str, written: str, found: list[str], what: str, default: str) -> str:
        """Returns the column that params.yaml names, or else the only one of a kind."""
        if written in self.features and (written != default or written in found):
            return written
        if written != default:
            raise DataError(self.missing(key, written))
        if len(found) == 1:
            return found[0]
        several = f"{len(found)} of them: {', '.join(found)}" if found else f"only {', '.join(self.features)}"
        raise DataError(
            f"prepare.path: {self.path} needs {what}, and has {several}: name it in prepare.{key}"
        )

    def missing(self, key: str, name: str) -> str:
        return (
            f"prepare.{key}: {self.path} has no column {name!r}{did_you_mean(name, self.features)}; it has "
            f"{', '.join(self.features)}"
        )

    def words(self, rows: Any) -> Iterator[str]:
        """Yields the labels of a set whose labels are text or numbers."""
        yield from filter(None, map(text_of, rows.select_columns([self.label])[self.label]))

    def labels_in(self, value: Any) -> Labels | None:
        """Returns the labels in a list of numbers of classes; None where the list or one of them is missing."""
        if value is None or any(number is None or number < 0 for number in value):
            return None
        names = self.classes or ()
        return labels_of(names[number] for number in value)

    def text(self, name: str, value: Any) -> str:
        """Formats a value; that of a class is its name."""
        kind = self.features[name]
        if hasattr(kind, "int2str"):
            return "" if value is None or value < 0 else str(kind.int2str(value))
        return text_of(value)


def is_value(kind: Any) -> bool:
    """Whether a feature is a text or a number."""
    import datasets

    return isinstance(kind, datasets.Value) and kind.dtype not in ("binary", "large_binary")


def is_several(kind: Any) -> bool:
    """Whether a feature is a list of classes."""
    import datasets

    return isinstance(list_of(kind), datasets.ClassLabel)


def list_of(kind: Any) -> Any:
    """Returns the feature of which a feature is a list; else None."""
    return kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)


def read_rows(
    parts: dict[str, Any], names: dict[str, str], features: Features
) -> Iterator[Record | Rejected]:
    """Yields the rows, with the bytes of the images as they are stored; `names` maps splits of the set to ours."""
    import datasets

    for name, split in names.items():
        rows = parts[name].with_format(None).cast_column(features.image, datasets.Image(decode=False))
        for index, row in enumerate(rows):
            image = row[features.image] or {}
            written = os.path.basename((image.get("path") or "").replace("\\", "/"))
            file = f"{name}/{index:08d}" + (f"/{written}" if written else "")
            labels = features.labels_in(row[features.label]) if features.several else None
            none = features.several and labels is None
            label = "" if none else str(labels or features.text(features.label, row[features.label]))
            weight = 1.0 if features.weight is None else row[features.weight]
            if not label:
                yield Rejected(file, "has no label")
            elif image.get("bytes") is None:
                yield Rejected(
                    file, "the set holds only a path of this image: save it with its images embedded"
                )
            elif not isinstance(weight, int | float) or not 0 <= weight < math.inf:
                yield Rejected(file, f"the weight {weight!r} is not a number of at least 0")
            else:
                metadata = tuple(features.text(column, row[column]) for column in features.metadata)
                group = features.text(features.group, row[features.group]) if features.group else ""
                read = functools.partial(first_bytes, image["bytes"])
                yield Record(split or None, label, file, read, group or None, float(weight), metadata, labels)


def first_bytes(content: bytes, most: int = -1) -> bytes:
    """Returns the first `most` bytes, or all of them where `most` is negative."""
    return content if most < 0 else content[:most]
