"""The image files that a command line names: folders, archives, patterns, lists."""

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
SMALL = 16 * 2**10  # bytes of an image that is decoded in a fraction of a millisecond
PICTURE = re.compile(r"\.(a?png|jpe?g?|jfif|gif|bmp|dib|tiff?|webp|p[bfgnp]m|avif|hei[cf])", re.IGNORECASE)
State = list[int]  # of a file on the disk: what changes whenever its content does


class File(NamedTuple):
    """The file at `path`, or `member` of the archive there; not read where `refusal` says why."""

    name: str
    path: str
    member: zipfile.ZipInfo | None = None
    refusal: str | None = None


def find_files(paths: Iterable[str]) -> Iterator[File]:
    """Every file once, in the order of the arguments and by name within each; raises DataError."""
    seen = set()
    for file in itertools.chain.from_iterable(map(expand, paths)):
        if file.name not in seen:
            seen.add(file.name)
            yield file


def expand(path: str) -> Iterator[File]:
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
    elif found := sorted(glob.glob(path, recursive=True)):
        yield from itertools.chain.from_iterable(map(expand, found))
    else:
        raise DataError(f"{path}: there is no such file or folder, and nothing matches it as a pattern")


def is_archive(path: str) -> bool:
    """Whether the file is a zip archive, and neither its name nor its beginning is a picture's: a picture may carry
    an archive behind its end.
    """
    if PICTURE.fullmatch(os.path.splitext(path)[1]):
        return False
    try:
        with open(path, "rb") as file:
            begins = file.read(16)
            return not any(re.match(start, begins) for start in SIGNATURES.values()) and zipfile.is_zipfile(
                file
            )
    except OSError:  # a file that cannot be read has a row that says so
        return False


def plain_file(path: str) -> File:
    return File(os.fsencode(path).decode(errors="backslashreplace"), path)


def members(path: str) -> Iterator[File]:
    """The files of an archive, as ARCHIVE/MEMBER; nothing is unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            content = archive.infolist()
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError, OSError):
        raise DataError(f"{path} is a zip archive that is damaged") from None
    for member in sorted(content, key=lambda member: member.filename):
        name = member_name(member) or member.filename
        refusal = member_refusal(member)
        if name.endswith("/") or (is_hidden(name) and not refusal):
            continue
        yield File(f"{path}/{name}", path, member, refusal)


def is_small(file: File) -> bool:
    try:
        return (file.member.file_size if file.member else os.path.getsize(file.path)) <= SMALL
    except OSError:
        return False


def state(file: File) -> State | None:
    """Size and times of the file, or of the archive that holds it; None where there is none. The time of the last
    change cannot be set, as that of the last writing can.
    """
    try:
        found = os.stat(file.path)
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def read(file: File) -> bytes:
    """Raises ImageError where there is nothing to read."""
    if file.refusal:
        raise ImageError("unsupported", file.refusal)
    try:
        if file.member:
            return read_member(open_archive(file.path), file.member, contextlib.nullcontext())
        with open(file.path, "rb", buffering=0, opener=open_at_once) as stream:
            state = os.fstat(stream.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise ImageError("unsupported", "neither a file nor a folder")
            if state.st_size > MAX_FILE_BYTES:
                raise ImageError("unsupported", "larger than 256 MiB")
            return stream.read()
    except (OSError, zipfile.BadZipFile) as error:
        raise ImageError("broken", f"cannot be read: {getattr(error, 'strerror', error)}") from None


def open_at_once(path: str, flags: int) -> int:
    """A pipe too, which would else wait for somebody to write."""
    return os.open(path, flags | os.O_NONBLOCK)


@functools.cache
def open_archive(path: str) -> zipfile.ZipFile:
    """Once for each worker: processes that share an open file would move each other's position."""
    return zipfile.ZipFile(path)
