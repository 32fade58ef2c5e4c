"""Walks through folders and zip archives: the one rule by which `prepare`, `predict` and `init` find files.

Names of files come from others: links are not followed out of a folder unless the user says so, nothing is unpacked,
and time and memory are linear in the size of the folder or the archive.
"""

import os
import re
import stat
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from visionpipe.data.encodings import guess_encoding
from visionpipe.escape import visible

MAX_FILE_BYTES = 256 * 2**20
LEAVES = "symbolic link that leaves the folder"
NOT_UTF8 = "file name is not UTF-8"
UNREADABLE = "cannot be read"
ODD = "neither a file nor a folder"
TIMES = (
    16  # that a folder is listed where several links lead to it: links to links would multiply without end
)
COUNTED = 10_000  # entries of a folder that is left out; beyond, its images are not counted
NAMES_SHOWN = 3

PICTURE = re.compile(
    r".*\.(a?png|jpe?g?|jpe|jfif|gif|bmp|dib|tiff?|webp|p[bfgnp]m|avif|hei[cf]|npy|dcm)", re.I | re.S
)
# Stores of files by their content, which programs link the files of a folder to: DVC (the md5 is the name),
# git-annex, and the hub of Hugging Face.
STORES = re.compile(
    r".*/(?:[0-9a-f]{2}/[0-9a-f]{30}"
    r"|annex/objects/(?:[^/]+/){0,2}(?P<key>[A-Z0-9_]+-[^/]+)/(?P=key)"
    r"|blobs/(?:[0-9a-f]{40}|[0-9a-f]{64}))",
    re.S,
)
# By-products of operating systems, storage boxes, synchronisation and editors. Names with a dot in front are hidden.
SYSTEM_NAMES = {
    "__macosx",
    "thumbs.db",
    "thumbs.db:encryptable",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "picasa.ini",
    "icon\r",
    "zbthumbnail.info",
    "@eadir",
    "@tmp",
    "@__thumb",
    "@recycle",
    "@recently-snapshot",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "$extend",
    "recycler",
    "found.000",
    "lost+found",
    "system volume information",
    "network trash folder",
    "temporary items",
    "__pycache__",
}
SYSTEM_FILE = re.compile(
    r".*(~|\.(sw[nop]|tmp|temp|part|partial|crdownload|download|lnk|url|webloc|dvc|ffs_db)|[:.]zone\.identifier)"
    r"|~\$.*",
    re.S,
)
WINDOWS = (0, 10, 14)  # systems that write archives with backslashes: FAT, NTFS, VFAT
UNICODE_PATH = 0x7075
REGULAR = (0, stat.S_IFREG, stat.S_IFDIR)


class Found(NamedTuple):
    """A file or folder below the place where a walk began.

    `path` is relative to it, valid text, with "/" between the names. `place` is where it is: a path of the file system,
    or a member of the archive. A `refusal` is the reason why it is not read; `images` then counts the files in a folder
    whose names are those of images, as far as they could be counted.
    """

    path: str
    place: str | zipfile.ZipInfo
    is_folder: bool = False
    refusal: str | None = None
    images: int = 0


def is_hidden(path: str) -> bool:
    """Whether a file, or a folder around it, is hidden or a by-product of a system or a program."""
    *_, name = parts = path.casefold().split("/")
    return any(part.startswith(".") or part in SYSTEM_NAMES for part in parts) or bool(
        SYSTEM_FILE.fullmatch(name)
    )


def is_named_like_an_image(path: str) -> bool:
    """Whether the name ends like an image's; what a file is, its first bytes decide."""
    return bool(PICTURE.fullmatch(path))


# Folders -----------------------------------------------------------------------------------------------


def walk_folder(folder: str, follow_links: bool = False) -> Iterator[Found]:
    """Yields the files of a folder by name, then those of the folders in it, one after the other.

    Links are followed within the folder, and into a store of files by their content (STORES). With `follow_links` they
    are followed to any file or folder. They are never followed in a circle.
    """
    root = os.path.realpath(folder)
    times: Counter[str] = Counter()
    unread: list[tuple[str, str, str, tuple[str, ...]]] = [("", folder, root, (root,))]
    while unread:
        prefix, place, real, entered = unread.pop()
        try:
            with os.scandir(place) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            yield Found(prefix.rstrip("/"), place, True, f"{UNREADABLE}: {error.strerror}")
            continue
        if prefix:
            yield Found(prefix.rstrip("/"), place, True)
        inner = []
        for entry in entries:
            path = os.fsencode(prefix + entry.name).decode(errors="backslashreplace")
            is_link = entry.is_symlink()
            target = os.path.realpath(entry.path) if is_link else f"{real.rstrip('/')}/{entry.name}"
            is_folder = os.path.isdir(target) if is_link else entry.is_dir()
            if reason := refusal(entry, target, root, entered, follow_links):
                images = count_images(target) if is_folder and "circle" not in reason else 0
                yield Found(path, entry.path, is_folder, reason, images)
            elif not is_folder:
                yield Found(path, entry.path)
            elif times[target] == TIMES:
                reason = f"symbolic links lead to this folder {TIMES} times already"
                yield Found(path, entry.path, True, reason)
            else:
                times[target] += 1
                beyond = (*entered, real, target) if is_link else entered
                inner.append((f"{path}/", entry.path, target, beyond))
        unread += reversed(inner)


def refusal(
    entry: os.DirEntry[str], target: str, root: str, entered: tuple[str, ...], follow_links: bool
) -> str | None:
    """Returns the reason why an entry of a folder is not read, or None.

    Args:
        target: the path of the entry with links resolved.
        entered: the folders from which and to which links were followed on the way here.
    """
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return NOT_UTF8
    if entry.is_symlink():
        stored = STORES.fullmatch(target)
        if not (follow_links or stored or is_within(target, root)):
            return LEAVES
        if stored and not os.path.lexists(target):
            return (
                "not in git-annex here: run git annex get"
                if stored["key"]
                else "not in DVC's cache: run dvc pull"
            )
        around = (*entered, os.path.realpath(os.path.dirname(entry.path)))
        if os.path.isdir(target) and any(is_within(folder, target) for folder in around):
            return "symbolic link that leads in a circle"
    try:
        status = entry.stat()
    except FileNotFoundError:
        return ODD
    except OSError as error:
        return ODD if entry.is_symlink() else f"{UNREADABLE}: {error.strerror}"
    if stat.S_ISDIR(status.st_mode):
        return None
    if not stat.S_ISREG(status.st_mode):
        return ODD
    return "larger than 256 MiB" if status.st_size > MAX_FILE_BYTES else None


def is_within(path: str, folder: str) -> bool:
    """Whether a path is that of a folder, or of anything in it."""
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


def count_images(folder: str) -> int:
    """Counts the files in a folder whose names are those of images, among its first COUNTED entries."""
    images = left = 0
    for _, _, names in os.walk(folder):
        images += sum(map(is_named_like_an_image, names[: COUNTED - left]))
        left += 1 + len(names)
        if left >= COUNTED:
            break
    return images


# Archives ----------------------------------------------------------------------------------------------


def walk_archive(archive: zipfile.ZipFile) -> tuple[list[Found], tuple[str, ...]]:
    """Returns the members of an archive in its order, and remarks for the user about their names."""
    members = archive.infolist()
    names, notes = member_names(members)
    found = []
    for member, name in zip(members, names, strict=True):
        is_folder = name.endswith("/")
        reason = member_refusal(member, name)
        path = name if reason else "/".join(part for part in name.split("/") if part not in ("", "."))
        if path:
            found.append(Found(path, member, is_folder, reason))
    return found, notes


def member_names(members: list[zipfile.ZipInfo]) -> tuple[list[str], tuple[str, ...]]:
    """Returns the names of an archive's members with "/" as separator, and remarks for the user.

    Archives need not declare the encoding of their names: one is guessed that fits all of them.
    """
    declared = [declared_name(member) for member in members]
    undeclared = [
        raw_name(member)
        for member, name in zip(members, declared, strict=True)
        if name is None and not member.orig_filename.isascii()
    ]
    encoding, certain = guess_encoding(undeclared) if undeclared else ("ascii", True)
    names = [
        raw_name(member).decode(encoding) if name is None else name
        for member, name in zip(members, declared, strict=True)
    ]
    notes: tuple[str, ...] = ()
    if not certain:
        parts = dict.fromkeys(part for raw in undeclared for part in raw.decode(encoding).split("/"))
        odd = [part for part in parts if not part.isascii()]
        more = f" and {len(odd) - NAMES_SHOWN:,} more" if len(odd) > NAMES_SHOWN else ""
        shown = ", ".join(f"'{visible(part[:40])}'" for part in odd[:NAMES_SHOWN])
        notes = (
            f"the archive does not say how its names are encoded: they were read as {encoding}, such as {shown}{more}; "
            "if they are wrong, unpack it where the names are right, and give the folder instead",
        )
    slashes = [with_slashes(member, name) for member, name in zip(members, names, strict=True)]
    return slashes, notes


def raw_name(member: zipfile.ZipInfo) -> bytes:
    """Returns the bytes of a name that is not declared as UTF-8; Python has read them as cp437. A NUL ends the name."""
    return member.orig_filename.encode("cp437").split(b"\0")[0]


def declared_name(member: zipfile.ZipInfo) -> str | None:
    """Returns a name whose encoding the archive declares: by a flag, or by a Unicode path field (APPNOTE 4.6.9)."""
    if member.flag_bits & 0x800:
        return member.orig_filename.split("\0")[0]
    extra = member.extra
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(field) > 5 and field[0] == 1:
            of_this_name = struct.unpack_from("<I", field, 1)[0] == zlib.crc32(
                member.orig_filename.encode("cp437")
            )
            try:
                return field[5:].decode().split("\0")[0] if of_this_name else None
            except UnicodeDecodeError:
                return None
    return None


def with_slashes(member: zipfile.ZipInfo, name: str) -> str:
    """Replaces the separators of Windows, which older .NET programs and others write."""
    return name.replace("\\", "/") if member.create_system in WINDOWS or "/" not in name else name


def member_refusal(member: zipfile.ZipInfo, name: str) -> str | None:
    """Returns the reason why a member of an archive is not read, or None."""
    if ".." in name.split("/") or re.match(r"/|[A-Za-z]:", name):
        return "path leads out of the archive"
    if stat.S_ISLNK(member.external_attr >> 16):
        return "symbolic link"
    if stat.S_IFMT(member.external_attr >> 16) not in REGULAR:
        return ODD
    if member.flag_bits & 0x1:
        return "encrypted"
    return "larger than 256 MiB" if member.file_size > MAX_FILE_BYTES else None
