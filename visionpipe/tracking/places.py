"""Updates the artifact locations in a SQLite store that was moved. Its artifacts are in `mlartifacts` beside it.

MLflow writes the absolute location of every artifact into its tables. After a project was moved, copied, renamed,
mounted elsewhere or restored, MLflow would still read from and write to the old location.
"""

import contextlib
import os
import re
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOCATION = re.compile(r"(?P<root>.*/(?P<kind>mlartifacts|mlruns))(?P<rest>(?:/.*)?)")
COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def folder_of(database: Path) -> Path:
    """Returns the folder of the database file, with links resolved: several checkouts may link to one database."""
    return Path(os.path.realpath(database)).parent


def artifact_root(database: Path) -> Path:
    """Returns the folder of the artifacts of a SQLite store."""
    return folder_of(database) / "mlartifacts"


def relocate(database: Path) -> int:
    """Updates all locations in a store that was moved; returns the number of changed ones."""
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as store:
        changes = []
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column in COLUMNS:
            if table not in tables:
                continue  # not a store, or one of another MLflow version: MLflow itself raises an error later
            names = f"{table} SET {column} = ? WHERE {column} = ?"  # nosec B608: constants of this module
            for (old,) in store.execute(f"SELECT DISTINCT {column} FROM {table}"):  # nosec B608
                new = present_location(old or "", database)
                if new != (old or ""):
                    changes.append((f"UPDATE {names}", (new, old)))
        with store:  # in one transaction
            for statement, values in changes:
                store.execute(statement, values)
    return len(changes)


def present_location(location: str, database: Path) -> str:
    """Returns where an artifact is now, from its recorded location in the store at `database`.

    The location changes if the store was moved or copied. The store was moved if an artifact folder is beside it, or if
    the old artifact folder does not exist. It was copied if a database of its name is beside the old artifact folder.
    An artifact that was not copied with the store keeps its old location.
    """
    match = LOCATION.fullmatch(location)
    if match is None or urlsplit(location).scheme not in ("", "file"):
        return location
    new = folder_of(database) / match["kind"]
    old = local_path(match["root"])
    if new == old or is_same_folder(new, old):
        return location
    moved = new.exists() or not old.exists() or (old.parent / database.name).exists()
    rest = unquote(match["rest"]) if location.startswith("file:") else match["rest"]
    inside = rest.lstrip("/")
    if not moved or (inside and (old / inside).exists() and not (new / inside).exists()):
        return location
    return (new.as_uri() if location.startswith("file:") else str(new)) + match["rest"]


def local_path(location: str) -> Path:
    """Converts a `file:` URL or a plain path to a Path."""
    return Path(unquote(urlsplit(location).path)) if location.startswith("file:") else Path(location)


def is_same_folder(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same folder, through links or mounts."""
    try:
        return one.samefile(other)
    except OSError:
        return False
