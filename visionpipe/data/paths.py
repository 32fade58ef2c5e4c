"""Finds and reads the image files that a command line names: files, folders, archives, patterns, lists."""

import contextlib
import functools
import glob
import itertools
import os
import re
import stat
import sys
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

from visionpipe.data.encodings import text_lines
from visionpipe.data.formats import SIGNATURES
from visionpipe.data.sources import read_member
from visionpipe.data.walk import (
    LEAVES,
    MAX_FILE_BYTES,
    is_hidden,
    is_named_like_an_image,
    walk_archive,
    walk_folder,
)
from visionpipe.errors import DataError, ImageError
from visionpipe.escape import visible

STDIN = "-"
SMALL = 16 * 2**10  # bytes; such an image is decoded in a fraction of a millisecond
State = list[int]  # of a file on disk; changes whenever its content does


class File(NamedTuple):
    """A file on disk, or a `member` of the archive at `path`. A `refusal` is the reason why it cannot be read."""

    name: str
    path: str
    member: zipfile.ZipInfo | None = None
    refusal: str | None = None


def find_files(
    paths: Iterable[str], follow_links: bool = False, notes: list[str] | None = None
) -> Iterator[File]:
    """Yields every file once, in the order of the arguments, and by name within each argument.

    What lies in a folder or an archive is found by the rules of `prepare`. What is named itself is read in any case.

    Args:
        paths: files, folders, zip archives, patterns, or `-` for paths on standard input, one a line.
        follow_links: whether links in a folder are followed to files and folders outside of it.
        notes: remarks for the user are added to it, such as how the names in an archive were read.

    Raises:
        DataError: a path does not exist, matches nothing as a pattern, or is a damaged archive.
    """
    seen = set()
    notes = [] if notes is None else notes
    for file in itertools.chain.from_iterable(expand(path, follow_links, notes) for path in paths):
        if file.name not in seen:
            seen.add(file.name)
            yield file


def expand(path: str, follow_links: bool, notes: list[str]) -> Iterator[File]:
    """Yields the files that one argument names."""
    if path == STDIN:
        for line in listed_paths():
            yield from expand(line, follow_links, notes)
    elif os.path.isdir(path):
        yield from files_in(path, follow_links)
    elif os.path.isfile(path) and is_archive(path):
        yield from members(path, notes)
    elif os.path.lexists(path):
        yield plain_file(path)
    elif matches := sorted(glob.glob(path, recursive=True)):
        yield from itertools.chain.from_iterable(expand(match, follow_links, notes) for match in matches)
    else:
        raise DataError(
            f"{visible(path)}: there is no such file or folder, and as a pattern it matches nothing"
        )


def listed_paths() -> Iterator[str]:
    """Yields the paths on standard input, one a line.

    A line that names no file is read as Windows and its editors write it: with blanks at its end, with quotes around
    the path, and with backslashes.
    """
    for line in text_lines(sys.stdin.buffer.read()):
        stripped = line.strip()
        if not stripped:
            continue
        unquoted = stripped[1:-1] if stripped[0] == stripped[-1] and stripped[0] in "\"'" else stripped
        readings = dict.fromkeys((line, stripped, unquoted, unquoted.replace("\\", "/")))
        yield next((path for path in readings if os.path.lexists(path)), unquoted)


def files_in(path: str, follow_links: bool) -> Iterator[File]:
    """Yields the files of a folder that `prepare` would look at."""
    for found in walk_folder(path, follow_links):
        if is_hidden(found.path) or (found.is_folder and not found.refusal):
            continue
        name = os.fsencode(os.path.join(path, found.path)).decode(errors="backslashreplace")
        reason = f"{LEAVES}: give --follow-links to use it" if found.refusal == LEAVES else found.refusal
        yield File(name.rstrip("/"), cast(str, found.place), refusal=reason)


def is_archive(path: str) -> bool:
    """Whether a file is a zip archive, and neither its name nor its first bytes are a picture's.

    A picture may have an archive appended to it.
    """
    if is_named_like_an_image(path):
        return False
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            is_picture = any(re.match(start, head) for start in SIGNATURES.values())
            return not is_picture and zipfile.is_zipfile(file)
    except OSError:  # the error is reported when the file is read
        return False


def plain_file(path: str) -> File:
    """Returns a file on disk, with a name that is valid UTF-8."""
    return File(os.fsencode(path).decode(errors="backslashreplace"), path)


def members(path: str, notes: list[str]) -> Iterator[File]:
    """Yields the files of an archive, named ARCHIVE/MEMBER, without unpacking them; adds remarks to `notes`."""
    try:
        with zipfile.ZipFile(path) as archive:
            content, remarks = walk_archive(archive)
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, OSError):
        raise DataError(f"{path} is a damaged zip archive: copy or download it again") from None
    notes += [f"{visible(path)}: {remark}" for remark in remarks]
    for found in sorted(content, key=lambda found: found.path):
        if found.refusal or not (found.is_folder or is_hidden(found.path)):
            yield File(f"{path}/{found.path}", path, cast(zipfile.ZipInfo, found.place), found.refusal)


def is_small(file: File) -> bool:
    """Whether a file has at most SMALL bytes; False if it cannot be read."""
    try:
        return (file.member.file_size if file.member else os.path.getsize(file.path)) <= SMALL
    except OSError:
        return False


def state(file: File) -> State | None:
    """Returns the size and times of the file, or of the archive that holds it; None if it does not exist.

    The ctime is included because a program can set the mtime, but not the ctime.
    """
    try:
        status = os.stat(file.path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def read(file: File) -> bytes:
    """Returns the content of a file; raises ImageError if it cannot be read."""
    if file.refusal:
        raise ImageError("unsupported", file.refusal)
    try:
        if file.member:
            return read_member(open_archive(file.path), file.member, contextlib.nullcontext())
        with open(file.path, "rb", buffering=0, opener=open_without_waiting) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageError("unsupported", "neither a file nor a folder")
            if status.st_size > MAX_FILE_BYTES:
                raise ImageError("unsupported", "larger than 256 MiB")
            return stream.read()
    except (OSError, zipfile.BadZipFile) as error:
        raise ImageError("broken", f"cannot be read: {getattr(error, 'strerror', error)}") from None


def open_without_waiting(path: str, flags: int) -> int:
    """Opens a file; opening a pipe would otherwise wait for another process to write to it."""
    return os.open(path, flags | os.O_NONBLOCK)


@functools.cache
def open_archive(path: str) -> zipfile.ZipFile:
    """Opens an archive once per process: processes that shared an open file would move each other's position."""
    return zipfile.ZipFile(path)
