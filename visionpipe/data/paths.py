"""The image files that a command line names: folders, archives, patterns, lists."""

import contextlib
import functools
import glob
import itertools
import os
import stat
import sys
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from visionpipe.data.listing import is_hidden
from visionpipe.data.sources import MAX_FILE_BYTES, member_name, member_refusal, read_member
from visionpipe.errors import DataError, ImageError

STDIN = "-"
SMALL = 16 * 2**10  # bytes of an image that is decoded in a fraction of a millisecond


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
    elif os.path.isfile(path) and zipfile.is_zipfile(path):
        yield from members(path)
    elif os.path.lexists(path):
        yield plain_file(path)
    elif found := sorted(glob.glob(path, recursive=True)):
        yield from itertools.chain.from_iterable(map(expand, found))
    else:
        raise DataError(f"{path}: there is no such file or folder, and nothing matches it as a pattern")


def plain_file(path: str) -> File:
    return File(os.fsencode(path).decode(errors="backslashreplace"), path)


def members(path: str) -> Iterator[File]:
    """The files of an archive, as ARCHIVE/MEMBER; nothing is unpacked."""
    with zipfile.ZipFile(path) as archive:
        content = archive.infolist()
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
