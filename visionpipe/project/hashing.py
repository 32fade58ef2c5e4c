"""Finds what DVC cannot hash in a folder of images: `dvc repro` fails, or waits for ever, before `prepare` begins.

A pattern in .dvcignore is the only way to make DVC leave a file out, and only within the project.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

from visionpipe.data.walk import NOT_UTF8, ODD, UNREADABLE, Found, walk_folder
from visionpipe.data.wording import counted, quoted
from visionpipe.project.params import PARAMS_FILE

SIMPLE = re.compile(r"[\w./-]+")  # a path that means itself in .dvcignore


def unhashable(images: Path, project: Path = Path()) -> str | None:
    """Returns a sentence about the files in a folder that DVC cannot hash, with what to do; None if there are none."""
    if not images.is_dir():
        return None
    found = list(stopping(images))
    if not found:
        return None
    file = os.path.join(images, found[0].path)
    ignored = ""
    inside = os.path.relpath(file, project)
    if not inside.startswith("..") and SIMPLE.fullmatch(inside):
        ignored = f", or add the line /{inside} to .dvcignore"
    more = "" if len(found) == 1 else f" and {len(found) - 1:,} more"
    return (
        f"dvc repro stops at {counted(len(found), 'file or folder', 'files and folders')} that DVC cannot read: "
        f"{quoted(file)}{more} ({found[0].refusal}): remove or repair {'it' if len(found) == 1 else 'them'}{ignored}"
    )


def unhashable_of_project() -> str | None:
    """Returns the sentence for the images that params.yaml names; None where it does not name any."""
    try:
        path = yaml.safe_load(PARAMS_FILE.read_text(encoding="utf-8"))["prepare"]["path"]
        return unhashable(Path(path))
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return None


def stopping(images: Path) -> Iterator[Found]:
    """Yields what DVC cannot hash. It reads hidden files, too, and follows links."""
    for found in walk_folder(str(images), follow_links=True):
        if found.refusal in (ODD, NOT_UTF8) or (found.refusal or "").startswith(UNREADABLE):
            yield found
        elif not found.is_folder and not os.access(str(found.place), os.R_OK):
            yield found._replace(refusal=f"{UNREADABLE}: Permission denied")
