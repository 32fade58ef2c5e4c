"""Defines every error that a user can cause. The command line prints its message as one line and exits with status 1.

VisionpipeError
├── ConfigError     params.yaml or the command line asks for something impossible
├── LockError       code.lock is missing, or names other code or libraries than those that run
├── BackendError    the Keras backend is unknown, not installed, or contradicted by the environment
├── DataError       the data set is unusable: a missing source, a single class, damaged prepared files
├── ImageError      one image cannot be decoded; `code` says why
├── WeightsError    a checkpoint is missing, damaged, of an unknown format, or does not fit the model
├── TrainingError   training cannot continue: a NaN loss, too little memory, an unknown layer
├── Interrupted     a signal ended the training
├── ArtifactError   an exported model is missing or damaged, or disagrees with the trained model
└── RegistryError   the tracking store or the model registry fails or refuses a request
"""

import difflib
import errno
import os
import re
import signal
from collections.abc import Iterable
from typing import Literal

# Appended to an error if a number is expected and text was given.
YAML_EXPONENT = " (YAML reads 1e-3 as text: write 1.0e-3)"


class VisionpipeError(Exception):
    """Base class of all errors whose message is meant for the user."""


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

    `code`: `unsupported` (the format is not accepted), `broken` (a damaged file of an accepted
    format) or `too_large` (more pixels than the limit, or a decompression bomb).
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
    """A signal ended the training. The process exits with 128 plus the signal's number, as is usual in shells."""

    def __init__(self, number: signal.Signals):
        super().__init__(f"interrupted by {number.name}: run dvc repro to resume from the last checkpoint")
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


# The messages of the system, NumPy and SQLite when the disk, the quota or `ulimit -f` does not let a file grow.
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
    """Returns the words that report a full disk in `error` or in one of its causes; None for any other error."""
    while error is not None:
        if match := FULL.search(str(error)):
            return match[0]
        error = error.__cause__ or error.__context__
    return None
