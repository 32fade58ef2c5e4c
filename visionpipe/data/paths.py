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
from typing import NamedTuple

from visionpipe.data.decode import SIGNATURES
from visionpipe.data.listing import is_hidden
from visionpipe.data.sources import MAX_FILE_BYTES, member_name, member_refusal, read_member
from visionpipe.errors import DataError, ImageError

STDIN = "-"
SMALL = 16 * 2**10  # bytes; such an image is decoded in a fraction of a millisecond
PICTURE = re.compile(r"\.(a?png|jpe?g?|jfif|gif|bmp|dib|tiff?|webp|p[bfgnp]m|avif|hei[cf])", re.IGNORECASE)
State = list[int]  # of a file on disk; changes whenever its content does


class File(NamedTuple):
    """A file on disk, or a `member` of the archive at `path`. A `refusal` is the reason why it cannot be read."""

    name: str
    path: str
    member: zipfile.ZipInfo | None = None
    refusal: str | None = None


def find_files(paths: Iterable[str]) -> Iterator[File]:
    """Yields every file once, in the order of the arguments, and by name within each argument.

    Args:
        paths: files, folders, zip archives, patterns, or `-` for paths on standard input, one a line.

    Raises:
        DataError: a path does not exist, matches nothing as a pattern, or is a damaged archive.
    """
    seen = set()
    for file in itertools.chain.from_iterable(map(expand, paths)):
        if file.name not in seen:
            seen.add(file.name)
            yield file


def expand(path: str) -> Iterator[File]:
    """Yields the files that one argument names."""
    if path == STDIN:
        for line in sys.stdin:
            if line.rstrip("\n"):
                yield from expand(line.rstrip("\n"))
    elif os.path.isdir(path):
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            for name in sorted(names):
                if not is_hidden(name):
                    yield plain_file(os.path.join(folder, name))
    elif os.path.isfile(path) and is_archive(path):
        yield from members(path)
    elif os.path.lexists(path):
        yield plain_file(path)
    elif matches := sorted(glob.glob(path, recursive=True)):
        yield from itertools.chain.from_iterable(map(expand, matches))
    else:
        raise DataError(f"{path}: there is no such file or folder, and as a pattern it matches nothing")


def is_archive(path: str) -> bool:
    """Whether a file is a zip archive, and neither its name nor its first bytes are a picture's.

    A picture may have an archive appended to it.
    """
    if PICTURE.fullmatch(os.path.splitext(path)[1]):
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


def members(path: str) -> Iterator[File]:
    """Yields the files of an archive, named ARCHIVE/MEMBER, without unpacking them."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.infolist()
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, OSError):
        raise DataError(f"{path} is a damaged zip archive: copy or download it again") from None
    for member in sorted(content, key=lambda member: member.filename):
        name = member_name(member) or member.filename
        refusal = member_refusal(member)
        if name.endswith("/") or (is_hidden(name) and not refusal):
            continue
        yield File(f"{path}/{name}", path, member, refusal)


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
