"""Writing files so that a crash leaves either the old content or the new, and waiting for each other."""

import fcntl
import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[BufferedRandom]:
    """A new file to write and read, which takes the place of `path`, synced, when the block ends well. What a
    killed process has left of another such file goes away.
    """
    import psutil  # not above: the image of the server has none, and reads only

    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if not psutil.pid_exists(int(left.name.split(".")[-2])):
            left.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def flush_to_disk(path: Path) -> None:
    """A file, or a folder: a name is on the disk only when its folder is."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes to a temporary file beside `path`, syncs it, and renames it into place."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def exclusive(lock: Path, waiting: str) -> Iterator[None]:
    """Holds `lock` against other processes; prints `waiting` when it has to wait. Death releases it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_lock(path: Path) -> BinaryIO:
    """Another user's lock may be readable only, which is enough to hold it."""
    try:
        return path.open("ab")
    except PermissionError:
        return path.open("rb")
