"""Writes files so that a crash leaves either the old content or the new, and locks them against other processes."""

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

TEMPORARY = "visionpipe.part-"  # prefix of the names of temporary folders


@contextmanager
def replacing_file(path: Path) -> Iterator[BufferedRandom]:
    """Opens a new file for writing and reading, which is synced and renamed to `path` if the block succeeds.

    Removes temporary files of `path` that killed processes left behind.
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
    """Makes a new folder, which is synced, made readable for everybody and renamed to `path` if the block succeeds.

    Removes temporary folders of `path` that killed processes left behind.
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
    """Returns this process's temporary path beside `path`. Removes the temporary files of dead processes there."""
    import psutil  # not at the top: the container image has no psutil, and its server writes no files

    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(glob.escape(temporary_name(path, "")).replace("-.tmp", "-*.tmp")):
        if not psutil.pid_exists(int(left.name.split("-")[-1].removesuffix(".tmp"))):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.with_name(temporary_name(path, os.getpid()))


def temporary_name(path: Path, process: int | str) -> str:
    """Returns the name of a process's temporary file for `path`. It names the machine: several may share a folder."""
    machine = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f".{path.name}.{machine}-{process}.tmp"


def without_temporaries(path: str) -> str:
    """Replaces the temporary names in a path by the final names of these files and folders."""
    return "/".join(re.sub(r"^\.(.+)\.[0-9a-f]{8}-\d+\.tmp$", r"\1", part) for part in path.split("/"))


def flush_to_disk(path: Path) -> None:
    """Syncs a file or a folder. After a file was created or renamed, its folder must be synced too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes to a temporary file beside `path`, syncs it, and renames it into place."""
    with replacing_file(path) as file:
        file.write(content)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, indented by two spaces, like `write_bytes`."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


@contextmanager
def exclusive(lock: Path, waiting: str) -> Iterator[None]:
    """Holds the lock file `lock` during the block. Prints `waiting` if another process holds it.

    The lock is released when its process dies.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open_lock(lock) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_lock(path: Path) -> BinaryIO:
    """Opens a lock file. Another user's lock file may be read-only, which is enough for locking it."""
    try:
        return path.open("ab")
    except PermissionError:
        return path.open("rb")


@contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Makes a folder in `parent`, by default the system's temporary folder, and removes it after the block."""
    folder, claim = claim_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(claim)


def claim_folder(parent: Path | None = None) -> tuple[Path, int]:
    """Makes a temporary folder. Returns its path, and a locked file descriptor to be closed after removing the folder.

    The lock shows other processes that this process is alive. Folders of killed processes, whose locks the kernel has
    released, are removed.
    """
    parent = parent or Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # the folder is another user's, in use, or already removed
            claim = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
            finally:
                os.close(claim)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=parent))
        with suppress(FileNotFoundError):  # another process removed it before it was locked
            claim = os.open(folder, os.O_RDONLY)
            with suppress(
                OSError
            ):  # a file system that cannot lock folders, on which nobody removes them either
                fcntl.flock(claim, fcntl.LOCK_SH)
            if folder.exists():
                return folder, claim
            os.close(claim)


def sha256_file(path: Path) -> str:
    """Hashes a file's content; returns 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(content: Any) -> str:
    """Hashes a JSON value, independently of the order of its keys; returns 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def copy_contents(source: Path, target: Path) -> Path:
    """Copies a folder: links are resolved, and the copies get this process's default permissions. Returns `target`."""
    return Path(shutil.copytree(source, target, copy_function=shutil.copyfile))
