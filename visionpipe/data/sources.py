"""The sources of images: one function per source, which returns a Listing.

zip, folder: one folder per class, laid out as `list_class_folders` says.
table: a folder or archive with a table of its images; table.py reads it.
huggingface: a folder that save_to_disk of the library datasets wrote; huggingface.py reads it.
tfds: any image classification set of TensorFlow Datasets; decode.py decodes the stored bytes, as for every source.
idx: a folder with the four files of MNIST's format (LeCun et al. 1998), gzipped or not.
"""

import contextlib
import functools
import gzip
import io
import sys
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from visionpipe.data.config import PrepareConfig
from visionpipe.data.encodings import text_lines
from visionpipe.data.huggingface import first_bytes, list_saved
from visionpipe.data.labels import check_names, labels_of
from visionpipe.data.listing import SPLIT_NAMES, Listing, Reader, Record, Rejected, list_class_folders
from visionpipe.data.table import list_rows
from visionpipe.data.walk import walk_archive, walk_folder
from visionpipe.errors import DataError, ImageError


@dataclass(frozen=True)
class Content:
    """What a folder or an archive holds. `rejected` cannot be used, and `notes` are remarks for the user."""

    files: dict[str, Reader]
    folders: set[str]
    rejected: list[Rejected]
    notes: tuple[str, ...] = ()


def list_zip(config: PrepareConfig) -> Listing:
    """Lists a zip archive of class folders without unpacking it. Links in the archive are never followed."""
    return class_folders(content_of_zip(config))


def list_folder(config: PrepareConfig) -> Listing:
    """Lists a folder of class folders, by the rules of `walk_folder`."""
    return class_folders(content_of_folder(config))


def class_folders(content: Content) -> Listing:
    listing = list_class_folders(content.files, content.folders, content.rejected)
    return replace(listing, notes=(*content.notes, *listing.notes))


def list_source(config: PrepareConfig, several: bool = False) -> Listing:
    """Lists the images of `prepare.source` with their labels.

    Args:
        several: whether an image may have several labels, or none.

    Raises:
        DataError: there are no such images, or their labels are of the other kind.
    """
    sources = WITH_SEVERAL if several else SOURCES
    if config.source not in sources:
        raise DataError(
            f"prepare.source: {config.source} gives each image one label: write task: single; several labels of an "
            f"image come from {' or '.join(sources)}, such as a table with a column for each label "
            f"(prepare.table.labels) or with a separator (prepare.table.separator)"
        )
    return sources[config.source](config)


def list_table(config: PrepareConfig, several: bool = False) -> Listing:
    """Lists the images that a table names; both are in one folder or zip archive.

    `several`: whether an image may have several labels.
    """
    path = existing(config, Path.exists, "a folder or zip archive")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise DataError(
            f"prepare.path: {path} is a file: set prepare.path to the folder that holds the table and the images, "
            f"which DVC then watches, and prepare.table.path to the table, relative to it"
        )
    content = (content_of_folder if path.is_dir() else content_of_zip)(config)
    listing = list_rows(config, content.files, content.rejected, several)
    return replace(listing, notes=(*content.notes, *listing.notes))


def list_huggingface(config: PrepareConfig, several: bool = False) -> Listing:
    """Lists a set of the library datasets that save_to_disk wrote; `several`: whether an image may have more labels."""
    return list_saved(existing(config, Path.is_dir, "a folder"), config, several)


def content_of_zip(config: PrepareConfig) -> Content:
    """Reads the directory of an archive."""
    path = existing(config, Path.is_file, "a file")
    try:
        archive = zipfile.ZipFile(path)
    except UnicodeDecodeError:
        raise DataError(
            f"prepare.path: {path} has a file name that is not UTF-8, though it says so: unpack it and set "
            "prepare.source: folder"
        ) from None
    except (zipfile.BadZipFile, NotImplementedError, OSError):
        raise DataError(f"prepare.path: {path} is not a zip archive, or is damaged") from None
    lock = threading.Lock()  # ZipFile is not documented to be safe for several threads
    files: dict[str, Reader] = {}
    folders: set[str] = set()
    rejected = []
    members, notes = walk_archive(archive)
    for found in members:
        member = cast(zipfile.ZipInfo, found.place)
        if found.refusal:
            rejected.append(Rejected(found.path, found.refusal))
        elif found.is_folder:
            folders.add(found.path)
        elif found.path in files:
            rejected.append(Rejected(found.path, "appears twice in the archive"))
        else:
            files[found.path] = functools.partial(read_member, archive, member, lock)
    return Content(files, folders, rejected, notes)


def content_of_folder(config: PrepareConfig) -> Content:
    """Reads the directories of a folder."""
    root = existing(config, Path.is_dir, "a folder")
    files: dict[str, Reader] = {}
    folders: set[str] = set()
    rejected = []
    for found in walk_folder(str(root), config.follow_links):
        if found.refusal and not found.path:
            raise DataError(f"prepare.path: {root} {found.refusal}")
        if found.refusal:
            images = found.images if found.is_folder else None
            rejected.append(Rejected(found.path, found.refusal, images=images))
        elif found.is_folder:
            folders.add(found.path)
        else:
            files[found.path] = functools.partial(read_file, Path(cast(str, found.place)))
    return Content(files, folders, rejected)


def list_tfds(config: PrepareConfig, several: bool = False) -> Listing:
    """Lists a set of TensorFlow Datasets in the data folder `path`, and downloads it first if it is missing.

    `several`: whether an image may have several labels, in a sequence of ClassLabel.
    """
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        builder = tfds.builder(config.name, data_dir=config.path)
        if not builder.is_prepared():
            builder.download_and_prepare()
    except Exception as error:  # the network, the file system and the set's code raise errors of any class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{config.name} is not in {config.path} and cannot be downloaded: {reason}") from None
    names = {
        name: SPLIT_NAMES[name.casefold()] for name in builder.info.splits if name.casefold() in SPLIT_NAMES
    }
    if "train" not in names.values():
        raise DataError(f"{config.name} has no training split, only {', '.join(builder.info.splits)}")
    label = class_feature(builder.info.features[classification_features(builder.info, several)[1]])
    classes = tuple(label.int2str(index) for index in range(label.num_classes))
    if several:
        check_names(classes, config.name or "")
    unused = sorted(set(builder.info.splits) - set(names))
    return Listing(
        classes=classes,
        splits=frozenset(names.values()),
        total=sum(builder.info.splits[name].num_examples for name in names),
        entries=read_examples(config, builder.info, names, several),
        notes=(f"{config.name} has splits that are not used: {', '.join(unused)}",) if unused else (),
        several=several,
    )


def read_examples(
    config: PrepareConfig, info: Any, names: dict[str, str], several: bool
) -> Iterator[Record | Rejected]:
    """Yields the examples of a set, with the image bytes as they are stored; `names` maps its splits to ours."""
    import tensorflow_datasets as tfds

    image_key, label_key = classification_features(info, several)
    decoders = tfds.decode.PartialDecoding(
        {image_key: True, label_key: True}, {image_key: tfds.decode.SkipDecoding()}
    )
    in_order = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
    int2str = class_feature(info.features[label_key]).int2str
    for name, split in names.items():
        examples = tfds.load(
            config.name,
            split=name,
            data_dir=config.path,
            download=False,
            decoders=decoders,
            read_config=in_order,
        )
        for index, example in enumerate(tfds.as_numpy(examples)):
            file = f"{name}/{index:08d}"
            numbers = np.atleast_1d(example[label_key]).tolist()
            if any(number < 0 for number in numbers):
                yield Rejected(file, "has no label")
                continue
            labels = labels_of(map(int2str, numbers)) if several else None
            read = functools.partial(first_bytes, example[image_key])
            name = str(labels) if several else int2str(numbers[0])
            yield Record(split, name, file, read, labels=labels)


def class_feature(feature: Any) -> Any:
    """Returns the ClassLabel of a feature of TensorFlow Datasets, which may be a sequence of it; else None."""
    import tensorflow_datasets as tfds

    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, tfds.features.ClassLabel) else None


def classification_features(info: Any, several: bool) -> tuple[str, str]:
    """Returns the names of the image and the label feature of a set; its supervised keys take precedence.

    Raises:
        DataError: the set is not for classification, or its images have one label in the place of several or several
            in the place of one.
    """
    import tensorflow_datasets as tfds

    features = dict(info.features) if isinstance(info.features, tfds.features.FeaturesDict) else {}
    supervised = info.supervised_keys or ()
    names = sorted(features, key=lambda name: name not in supervised)
    image = next((name for name in names if isinstance(features[name], tfds.features.Image)), None)
    labels = {
        sequence: next(
            (
                name
                for name in names
                if class_feature(features[name])
                and sequence != isinstance(features[name], tfds.features.ClassLabel)
            ),
            None,
        )
        for sequence in (False, True)
    }
    label = labels[several]
    if label is None and (other := labels[not several]):
        advice = (
            f"one label of each image in {other}: write task: single"
            if several
            else f"several labels of each image in {other}: write task: multi"
        )
        raise DataError(f"{info.name} has {advice}")
    if image is None or label is None:
        raise DataError(f"{info.name} is not for classification: it lacks an Image or a ClassLabel feature")
    return image, label


def list_idx(config: PrepareConfig) -> Listing:
    """Lists `train-images-idx3-ubyte` and `t10k-images-idx3-ubyte` with their labels.

    The lines of classes.txt in the same folder name the classes; without that file, numbers do.
    """
    folder = existing(config, Path.is_dir, "a folder")
    parts = {}
    for prefix, split in (("train", "train"), ("t10k", "test")):
        images = read_idx(folder, f"{prefix}-images-idx3-ubyte", 3)
        labels = read_idx(folder, f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise DataError(
                f"prepare.path: {folder}: {len(images):,} {prefix} images, but {len(labels):,} labels"
            )
        parts[prefix, split] = images, labels
    count = 1 + max(int(labels.max(initial=0)) for _, labels in parts.values())
    names = folder / "classes.txt"
    classes = tuple(read_names(names)[:count] if names.exists() else map(str, range(count)))
    if len(set(classes)) < count or "" in classes:
        raise DataError(f"prepare.path: {names} must have {count} lines, a different name on each")
    entries = (
        Record(split, classes[label], f"{prefix}/{index:05d}", functools.partial(as_png, images[index]))
        for (prefix, split), (images, labels) in parts.items()
        for index, label in enumerate(labels)
    )
    total = sum(len(labels) for _, labels in parts.values())
    return Listing(classes, frozenset({"train", "test"}), total, entries, notes=())


def read_names(file: Path) -> list[str]:
    """Reads a file of names, one a line, as any editor or shell writes it; blanks around a name are no part of it."""
    lines = [line.strip() for line in text_lines(file.read_bytes())]
    if not all(line.isprintable() for line in lines):
        raise DataError(f"prepare.path: {file} is not a list of names in UTF-8: save it as UTF-8 text")
    return lines


def read_idx(folder: Path, name: str, dimensions: int) -> np.ndarray:
    """Reads an idx file of 3 or 1 dimensions: uint8 (n, height, width) or (n,).

    Its header has the sizes as big-endian int32.
    """
    file = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if file is None:
        raise DataError(f"prepare.path: {folder} has no {name} or {name}.gz, as prepare.source: idx needs")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error):
        raise DataError(f"prepare.path: {file} is damaged: download or copy it again") from None
    header = np.frombuffer(content[: 4 + 4 * dimensions].ljust(4 + 4 * dimensions, b"\0"), ">i4")
    if header[0] != 0x800 + dimensions or len(content) != header.nbytes + np.prod(header[1:], dtype=np.int64):
        raise DataError(f"prepare.path: {file} is not an idx file of {dimensions} dimensions, or is damaged")
    return np.frombuffer(content, np.uint8, offset=header.nbytes).reshape(header[1:])


def as_png(pixels: np.ndarray, most: int = -1) -> bytes:
    """Encodes grey pixels as a PNG file, so that all sources share one decoder."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return first_bytes(buffer.getvalue(), most)


SOURCES: dict[str, Callable[[PrepareConfig], Listing]] = {
    "zip": list_zip,
    "folder": list_folder,
    "table": list_table,
    "huggingface": list_huggingface,
    "tfds": list_tfds,
    "idx": list_idx,
}
WITH_SEVERAL: dict[str, Callable[[PrepareConfig], Listing]] = {
    "table": functools.partial(list_table, several=True),
    "huggingface": functools.partial(list_huggingface, several=True),
    "tfds": functools.partial(list_tfds, several=True),
}


def existing(config: PrepareConfig, has_kind: Callable[[Path], bool], kind: str) -> Path:
    """Returns the source's path; raises DataError if it does not exist, or is not the `kind` that `has_kind` checks."""
    path = Path(config.path)
    if not path.exists():
        raise DataError(
            f"prepare.path: {path} does not exist: set it in params.yaml to where the images are, or run dvc pull"
        )
    if not has_kind(path):
        raise DataError(f"prepare.path: {path} is not {kind}, as prepare.source: {config.source} needs")
    return path


def read_member(
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    lock: contextlib.AbstractContextManager[Any],
    most: int = -1,
) -> bytes:
    """Reads a member of an archive, or its first `most` bytes; raises ImageError if the member is damaged."""
    try:
        with lock, archive.open(member) as file:
            return file.read(most)
    except Exception:  # decompressors, checksums and the file system raise errors of any class
        raise ImageError("broken", "damaged in the archive, or compressed by an unknown method") from None


def read_file(path: Path, most: int = -1) -> bytes:
    """Reads a file, or its first `most` bytes; raises ImageError if that fails."""
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError as error:
        raise ImageError("broken", f"cannot be read: {error.strerror}") from None
