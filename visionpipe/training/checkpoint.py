"""Checkpoints, from which an interrupted training continues at any step and ends with the same bits."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from visionpipe.errors import TrainingError
from visionpipe.files import replacing_file

KEPT = 2
Arrays = list[np.ndarray]
Row = dict[str, float]


@dataclass
class Progress:
    """Holds the state of a training that is not in variables.

    Attributes:
        step: the number of steps done.
        total_steps: the number of steps of the whole training.
        seconds: the time that the steps of the unfinished epoch have taken.
        logs: loss and accuracy of the unfinished epoch, if only its validation is missing.
        history: one row per finished epoch.
        best: the weights of the epoch with the best validation accuracy; empty unless the recipe says `keep: best`.
        phase: the first step of the phase that the optimizer belongs to.
    """

    step: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    logs: Row = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    best: Arrays = field(default_factory=list)
    phase: int = 0


class Checkpoint:
    """Writes the states of one training to `folder`, and reads the newest undamaged one.

    A file holds the progress and all variables, including seed states, averages, optimizer and metrics. Data order,
    augmentation and torch's generator need no state, because they are functions of the step. Each file ends with its
    sha256: a damaged file is noticed, and the previous one is used.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, variables: Sequence[Any], progress: Progress) -> None:
        """Writes a checkpoint, and removes all but the newest two.

        Raises:
            TrainingError: a variable is not finite. The previous checkpoints remain.
            OSError: the disk is full. The previous checkpoints remain.
        """
        arrays = {f"variable-{i:05d}": as_array(v) for i, v in enumerate(variables)}
        for array in arrays.values():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise TrainingError(
                    f"the weights became NaN or infinite before step {progress.step}, so they were not saved: lower "
                    f"train.learning_rate, raise train.warmup, or set train.clip_norm: 1.0"
                )
        arrays |= {f"best-{i:05d}": array for i, array in enumerate(progress.best)}
        facts = {name: value for name, value in asdict(progress).items() if name != "best"}
        arrays["progress"] = np.array(json.dumps(facts))
        with replacing_file(self.folder / f"step-{progress.step:010d}.checkpoint") as file:
            np.savez(file, allow_pickle=False, **arrays)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").digest()
            file.seek(0, 2)
            file.write(digest)
        for old in self.files()[KEPT:]:
            old.unlink()

    def read(self) -> tuple[Progress, Arrays] | None:
        """Returns the newest undamaged state; None if there is none. Removes damaged files."""
        for leftover in self.folder.glob(".*.tmp"):  # from a killed process: only one at a time trains a key
            leftover.unlink()
        for file in self.files():
            if not sound(file):
                print(f"  checkpoint {file.name} is damaged and was removed", flush=True)
                file.unlink()  # or `save` would count it among the newest two
                continue
            with np.load(file, allow_pickle=False) as arrays:
                progress = Progress(**json.loads(str(arrays["progress"])))
                progress.best = [arrays[name] for name in arrays.files if name.startswith("best-")]
                return progress, [arrays[name] for name in arrays.files if name.startswith("variable-")]
        return None

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.checkpoint"), reverse=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def sound(file: Path) -> bool:
    """Whether the last 32 bytes of a file are the sha256 of the bytes before them."""
    digest, left = hashlib.sha256(), file.stat().st_size - 32
    with file.open("rb") as content:
        while left > 0 and (part := content.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
        return left == 0 and content.read() == digest.digest()


def as_array(variable: Any) -> np.ndarray:
    """Copies a variable to NumPy. Keras's array is, on torch and JAX, the memory that the next step writes to."""
    import keras

    return np.array(keras.ops.convert_to_numpy(variable))
