"""Checkpoints that bring an interrupted training back to the same bits, from any step."""

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
    """Where a training stands, beside its variables.

    `step`: steps done. `phase`: the first step of the phase that the optimizer belongs to. `history`: one row per
    finished epoch. `seconds`: what the unfinished epoch has taken, training alone; `logs`: its loss and accuracy,
    where only its validation is missing. `total_steps`: those of the whole training. `best`: the weights of the epoch
    with the best validation accuracy so far, where the recipe keeps those.
    """

    step: int = 0
    total_steps: int = 0
    seconds: float = 0.0
    logs: Row = field(default_factory=dict)
    history: list[Row] = field(default_factory=list)
    best: Arrays = field(default_factory=list)
    phase: int = 0


class Checkpoint:
    """The newest sound states of one training in `folder`.

    A file holds all variables (seed states, averages, the optimizer's and the metrics' among them) and the
    progress. Data order and augmentation need no state, they are functions of the step, as is torch's generator.
    Each file ends with its sha256, so that a damaged one is noticed and the one before it used.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, variables: Sequence[Any], progress: Progress) -> None:
        """Raises TrainingError where a variable is not finite, and OSError where the disk is full; the checkpoint
        before this one is still there then.
        """
        arrays = {f"variable-{i:05d}": as_array(v) for i, v in enumerate(variables)}
        for array in arrays.values():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise TrainingError(
                    f"the weights stopped being finite before step {progress.step}: they were not saved; lower "
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
        """The newest sound state, or None."""
        for left in self.folder.glob(".*.tmp"):  # of a process that was killed: one trains a key at a time
            left.unlink()
        for file in self.files():
            if not sound(file):
                print(f"  checkpoint {file.name} is damaged: it is left out", flush=True)
                file.unlink()  # or it would count among those that are kept
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
    """Whether the last 32 bytes are the sha256 of those before them."""
    digest, left = hashlib.sha256(), file.stat().st_size - 32
    with file.open("rb") as content:
        while left > 0 and (part := content.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
        return left == 0 and content.read() == digest.digest()


def as_array(variable: Any) -> np.ndarray:
    """A copy: what Keras gives is, on torch and JAX, the memory that the next step writes to."""
    import keras

    return np.array(keras.ops.convert_to_numpy(variable))
