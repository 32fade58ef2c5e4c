"""Work between two steps of a training: the progress bar, checkpoints and signals."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import keras
from tqdm import tqdm

from visionpipe.training.checkpoint import Row

if TYPE_CHECKING:
    from visionpipe.training.fit import Training


ESTIMATE_AFTER = 20  # steps, after which the time of the training is estimated and printed


class Watch(keras.callbacks.Callback):
    """Shows progress, writes checkpoints and acts on signals before each step.

    Keras runs callbacks after a step in another thread, when the state may already have changed. So all work is done
    before a step, in the thread that trains. Only a checkpoint waits for values that the device is still computing.
    """

    def __init__(self, training: "Training", steps: range, title: str):
        super().__init__()
        self.training, self.steps = training, steps
        # disable=None: a bar on a terminal, nothing in a file or a pipe
        self.bar = tqdm(total=len(steps), desc=title, unit="step", leave=False, disable=None)
        self.before = training.progress.seconds
        self.seed_torch = torch_seeding()

    def seconds(self) -> float:
        """Returns the time that the steps of this epoch have taken, including those before an interruption."""
        return self.before + time.perf_counter() - self.started

    def step_seconds(self) -> float:
        """Returns the mean time of a step, without the first step, which may compile."""
        end = time.perf_counter()
        return (end - self.second_step) / (len(self.steps) - 1) if len(self.steps) > 1 else end - self.started

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        # Restores a second time: since the first, Keras has reset the metrics, and building the model has advanced the
        # generators of torch's layers.
        self.training.restore()
        self.training.restored = []
        self.started = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        step = self.steps[batch]
        if batch == 1:
            self.second_step = time.perf_counter()
        # Dropout draws from torch's global generator, and so does each new data iterator. A resumed training makes one
        # iterator more. So the generator is seeded at every step.
        self.seed_torch(self.training.seed * 2**32 + step)
        if self.training.interruption.arrived:
            self.save(step)
            self.training.interruption.raise_if_arrived()
        elif batch and self.training.save_is_due(step):
            self.save(step)
        if batch == ESTIMATE_AFTER and not self.training.step_seconds:
            self.wait_for_device()
            seconds = (time.perf_counter() - self.second_step) / (batch - 1)
            minutes = seconds * (self.training.progress.total_steps - step) / 60
            tqdm.write(f"  {1000 * seconds:.0f} ms per step: about {minutes:.1f} minutes remain")
        self.bar.update()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.bar.close()

    def wait_for_device(self) -> None:
        """Waits until the device has done all steps; JAX only queues them."""
        _ = self.model  # on JAX this property assigns the current values to the variables
        keras.ops.convert_to_numpy(self.training.trained.optimizer.iterations)

    def save(self, step: int) -> None:
        self.wait_for_device()
        self.training.progress.step, self.training.progress.seconds = step, self.seconds()
        self.training.save()


def torch_seeding() -> Callable[[int], object]:
    """Returns the function that seeds torch's global generator; on other backends it does nothing."""
    if keras.backend.backend() != "torch":
        return lambda seed: None
    import torch

    # Without an accelerator torch.manual_seed takes 0.5 ms, to record the call for a later start of an accelerator.
    return torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed


def epoch_line(row: Row, epochs: int) -> str:
    """Returns the line that is printed after an epoch.

    The time left assumes that each of the `epochs` takes as long as this one.
    """
    left = row["seconds"] * max(0, epochs - row["epoch"])
    (score,) = (name[4:] for name in row if name.startswith("val_") and name[4:] not in ("loss", "score"))
    words, trained = score.replace("_", " "), row.get(score)
    return (
        f"  epoch {row['epoch']:3.0f}/{epochs}  loss {row['loss']:.3f}  "
        + ("" if trained is None else f"{words} {trained:.3f}  ")
        + f"validation {words} {row[f'val_{score}']:.3f}  {row['images_per_second']:,.0f} images/s  {left:.0f} s left"
    )
