"""Every error that a user can cause. The command line prints it as one line and exits 1.

VisionpipeError
├── ConfigError     params.yaml or the command line asks for something impossible
├── LockError       code.lock is missing, or names other code or libraries than those that run
├── BackendError    the Keras backend is unknown, not installed, or contradicted by the environment
├── DataError       the images as a whole: missing source, one class only, prepared files damaged
├── ImageError      one image cannot be decoded; `code` says why
├── WeightsError    a checkpoint is missing, damaged, of no known format, or not of this model
├── TrainingError   training cannot go on: NaN loss, out of memory, no such layer
├── Interrupted     a signal ended the training
├── ArtifactError   an exported model is missing, damaged, or does not agree with the trained one
└── RegistryError   the tracking store or the model registry refuses
"""

import difflib
import errno
import os
import re
import signal
from collections.abc import Iterable
from typing import Literal

YAML_EXPONENT = " (YAML reads 1e-3 as text: write 1.0e-3)"  # where text stands in place of a number


class VisionpipeError(Exception):
    """Base of all errors that carry a message for the user."""


class ConfigError(VisionpipeError):
    pass


class LockError(VisionpipeError):
    pass


class BackendError(VisionpipeError):
    pass


class DataError(VisionpipeError):
    pass


class ImageError(VisionpipeError):
    """One image cannot be decoded.

    `code`: `unsupported` (not one of the accepted formats), `broken` (a damaged file of an
    accepted format) or `too_large` (more pixels than the limit, or a bomb).
    """

    def __init__(self, code: Literal["unsupported", "broken", "too_large"], reason: str):
        super().__init__(reason)
        self.code = code
        self.reason = reason


class WeightsError(VisionpipeError):
    pass


class TrainingError(VisionpipeError):
    pass


class Interrupted(VisionpipeError):
    """`signal`: the one that came. The process ends with 128 and its number, as after the signal itself."""

    def __init__(self, number: signal.Signals):
        super().__init__(f"interrupted by {number.name}: dvc repro goes on from the last checkpoint")
        self.signal = number


class ArtifactError(VisionpipeError):
    pass


class RegistryError(VisionpipeError):
    pass


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns a hint at the known word that is most like `word`, with a leading space, or "" if none is like it."""
    lowered = {name.lower(): name for name in known}
    match = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.5)
    return f" (did you mean {lowered[match[0]]!r}?)" if match else ""


# What the system, NumPy and SQLite say where a file cannot grow: the disk, the quota or `ulimit -f` has an end.
FULL = re.compile(
    "|".join(
        [
            *(re.escape(os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
            r"\d+ requested and \d+ written",
            "database or disk is full",
            "disk I/O error",
        ]
    ),
    re.IGNORECASE,
)


def no_room(error: BaseException | None) -> str | None:
    """The words that say so where the error, or one that led to it, is of a full disk."""
    while error is not None:
        if found := FULL.search(str(error)):
            return found[0]
        error = error.__cause__ or error.__context__
    return None
