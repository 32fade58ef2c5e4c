"""Where the artifacts of a SQLite store lie: beside it, in `mlartifacts`, wherever the store is moved to.

MLflow writes the absolute place of every artifact into its tables. A project that was moved, copied, renamed,
mounted elsewhere or restored would read from, and write to, the place where it was.
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
    """The folder that the database itself lies in: several checkouts may have links to one."""
    return Path(os.path.realpath(database)).parent


def artifact_root(database: Path) -> Path:
    return folder_of(database) / "mlartifacts"


def relocate(database: Path) -> int:
    """Lets all locations in the store follow it to where it lies now; returns how many have changed."""
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as store:
        changes = []
        tables = {name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        for table, column in COLUMNS:
            if table not in tables:
                continue  # MLflow will say that the file is of an older version of it, or no store
            names = f"{table} SET {column} = ? WHERE {column} = ?"  # nosec B608: constants of this module
            for (old,) in store.execute(f"SELECT DISTINCT {column} FROM {table}"):  # nosec B608
                new = present_location(old or "", database)
                if new != (old or ""):
                    changes.append((f"UPDATE {names}", (new, old)))
        with store:  # one transaction: all of them or none
            for statement, values in changes:
                store.execute(statement, values)
    return len(changes)


def present_location(location: str, database: Path) -> str:
    """Where an artifact location of the store at `database` is now: `location` itself, unless the store was moved.

    It was moved where artifacts lie beside it or none lie where they were; and it is a copy where another database
    lies beside those. What was not copied with the store stays where it is.
    """
    match = LOCATION.fullmatch(location)
    if match is None or urlsplit(location).scheme not in ("", "file"):
        return location
    here = folder_of(database) / match["kind"]
    before = local_path(match["root"])
    if here == before or same(here, before):
        return location
    moved = here.exists() or not before.exists() or (before.parent / database.name).exists()
    rest = unquote(match["rest"]) if location.startswith("file:") else match["rest"]
    inside = rest.lstrip("/")
    if not moved or (inside and (before / inside).exists() and not (here / inside).exists()):
        return location
    return (here.as_uri() if location.startswith("file:") else str(here)) + match["rest"]


def local_path(location: str) -> Path:
    return Path(unquote(urlsplit(location).path)) if location.startswith("file:") else Path(location)


def same(one: Path, other: Path) -> bool:
    """Whether both are one folder, as with links and mounts."""
    try:
        return one.samefile(other)
    except OSError:
        return False
