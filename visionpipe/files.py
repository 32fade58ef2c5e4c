"""Writing files so that a crash leaves either the old content or the new, and waiting for each other."""

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path
from typing import Any, BinaryIO

TEMPORARY = "visionpipe.part-"  # starts the names of temporary folders


@contextmanager
def replacing(path: Path) -> Iterator[BufferedRandom]:
    """A new file to write and read, which takes the place of `path`, synced, when the block ends well. What a
    killed process has left of another such file goes away.
    """
    temporary = temporary_beside(path)
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        flush_to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which becomes `path` when the block ends well, and which everybody may read. What a
    killed process has left of another such folder goes away.
    """
    temporary = temporary_beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for inner in (temporary, *temporary.rglob("*")):
            inner.chmod(0o755 if inner.is_dir() else 0o644)
            flush_to_disk(inner)
        temporary.rename(path)
        flush_to_disk(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_beside(path: Path) -> Path:
    """A name for this process beside `path`; removes what dead processes of this machine have left under theirs."""
    import psutil  # not above: the image of the server has none, and reads only

    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(glob.escape(temporary_name(path, "")).replace("-.tmp", "-*.tmp")):
        if not psutil.pid_exists(int(left.name.split("-")[-1].removesuffix(".tmp"))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(temporary_name(path, os.getpid()))


def temporary_name(path: Path, process: int | str) -> str:
    """The name of a process's temporary file for `path`; processes of several machines may share a folder."""
    machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f".{path.name}.{machine}-{process}.tmp"


def without_temporaries(path: str) -> str:
    """The path with the names that temporary files and folders in it are going to have."""
    return "/".join(re.sub(r"^\.(.+)\.[0-9a-f]{8}-\d+\.tmp$", r"\1", part) for part in path.split("/"))


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


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Makes a folder in `parent`, by default where the system has such, and removes it after the block."""
    folder, claim = claim_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(claim)


def claim_folder(parent: Path | None = None) -> tuple[Path, int]:
    """Makes a temporary folder; returns it and an open file, whose lock says that this process lives.

    Folders whose process was killed are removed: the kernel has released their locks.
    """
    parent = parent or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # of another user, in use, or removed by another process
            claim = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(claim)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=parent))
        with suppress(FileNotFoundError):  # another process has removed it, as it was not locked yet
            claim = os.open(folder, os.O_RDONLY)
            with suppress(OSError):  # a file system without locks of folders, where nobody removes one either
                fcntl.flock(claim, fcntl.LOCK_SH)
            if folder.exists():
                return folder, claim
            os.close(claim)


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Hashes a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def copied(source: Path, target: Path) -> Path:
    """Copies a folder's files by their content alone: what a link leads to, with this process's permissions."""
    return Path(shutil.copytree(source, target, copy_function=shutil.copyfile))
