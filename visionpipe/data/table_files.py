"""Finds the files of a folder or archive by the names that a table has for them."""

import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable

ADDRESS = re.compile(r"[A-Za-z][\w+.-]+://")
ABSOLUTE = re.compile(r"/|[A-Za-z]:[/\\]|\\\\")


class Unusable(Exception):
    """One row cannot be used; the message says why."""


class Files:
    """The files of `prepare.path`, found by what a table calls them."""

    def __init__(self, files: Iterable[str], refused: dict[str, str], path: str):
        self.files, self.refused, self.path = set(files), refused, path
        self.loose: dict[str, list[str]] = defaultdict(list)  # also without the extension
        for file in sorted(self.files):
            self.loose[folded(file)].append(file)
            self.loose[folded(posixpath.splitext(file)[0])].append(file)
        self.guesses: dict[str, list[tuple[str, str]]] = defaultdict(list)

    def resolve(self, base: str, name: str) -> str:
        """Returns the file that a table calls `name`; raises Unusable where there is none, or more than one."""
        if ADDRESS.match(name.strip()):
            raise Unusable("an address: download the images, and name the files")
        for written in dict.fromkeys((name, name.strip(), name.strip().replace("\\", "/"))):
            if ABSOLUTE.match(written):
                file = self.resolve_absolute(written)
            else:
                file = posixpath.normpath(posixpath.join(base, written))
            if file in self.files:
                return file
            if file in self.refused:
                raise Unusable(self.refused[file])
        if file == ".." or file.startswith("../"):
            raise Unusable(f"leads out of {self.path}")
        matches = self.loose.get(folded(file), [])
        if len(matches) > 1:
            raise Unusable(f"may be any of {', '.join(matches)}")
        if not matches:
            raise Unusable("no such file")
        extended = folded(matches[0]) != folded(file)
        self.guesses["extension" if extended else "spelling"].append((name.strip(), matches[0]))
        return matches[0]

    def resolve_absolute(self, name: str) -> str:
        """Returns the path below `prepare.path` of an absolute path, which may be of another machine."""
        parts = re.sub(r"^[A-Za-z]:", "", name.replace("\\", "/")).strip("/").split("/")
        inside = posixpath.normpath("/".join(parts))
        here = posixpath.abspath(self.path).strip("/")
        if inside.startswith(f"{here}/"):
            return inside.removeprefix(f"{here}/")
        for start in range(1, len(parts)):
            tail = "/".join(parts[start:])
            if tail in self.files or folded(tail) in self.loose:
                self.guesses["place"].append((name, tail))
                return tail
        raise Unusable(f"not below {self.path}")

    def notes(self) -> list[str]:
        """Says which names were not those of the files."""
        texts = {
            "extension": "names without the extension of the file",
            "spelling": "names in another case or Unicode form than the file",
            "place": "absolute paths of another place, of which the end names a file here",
        }
        return [
            f"{texts[kind]}: {len(guesses):,}, such as {guesses[0][0]!r} for {guesses[0][1]!r}"
            for kind, guesses in self.guesses.items()
        ]


def folded(path: str) -> str:
    """Returns a path in one case and Unicode form."""
    return unicodedata.normalize("NFC", path).casefold()


def guessed_root(names: Iterable[str], files: Iterable[str]) -> str | None:
    """Returns the folder below which most of these names are files, with or without their extension; else None."""
    folders: Counter[str] = Counter()
    wanted = {folded(name.strip().replace("\\", "/")).removeprefix("./") for name in names}
    last = {name.rpartition("/")[2] for name in wanted}
    for file in files:
        for path in dict.fromkeys((file, posixpath.splitext(file)[0])):
            if folded(path).rpartition("/")[2] not in last:
                continue
            parts = path.split("/")
            for start in range(len(parts)):
                if folded("/".join(parts[start:])) in wanted:
                    folders["/".join(parts[:start])] += 1
    return max(folders, key=lambda folder: (folders[folder], -len(folder))) if folders else None
