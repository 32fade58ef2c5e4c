"""One training, from a fresh or restored model to its last epoch."""

import time
from collections.abc import Callable

import keras
import numpy as np
from tqdm import tqdm

from visionpipe.config import TrainConfig
from visionpipe.data.augmentation import make_augmentation
from visionpipe.data.batches import ValidationBatches, steps_per_epoch, training_batches
from visionpipe.data.prepared import Prepared
from visionpipe.errors import TrainingError
from visionpipe.training.checkpoint import Checkpoint
from visionpipe.training.optimizer import make_optimizer

History = list[dict[str, float]]


class EpochEnd(keras.callbacks.Callback):
    """Progress, history, NaN check and checkpoint, once per epoch.

    `async_safe` tells Keras that the batch hook needs no loss, so that no step waits for the device.
    """

    async_safe = True

    def __init__(
        self,
        history: History,
        checkpoint: Checkpoint,
        seed: int,
        steps: int,
        images_per_epoch: int,
        report: Callable[[dict[str, float]], None],
    ):
        super().__init__()
        self.history, self.checkpoint, self.report = history, checkpoint, report
        self.seed, self.steps, self.images_per_epoch = seed, steps, images_per_epoch

    def on_train_begin(self, logs: dict | None = None) -> None:
        # Again, now that Keras has built the model: on torch that advanced the layers' generators.
        self.checkpoint.restore(self.model)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.first_step = epoch * self.steps
        self.started = time.perf_counter()
        # disable=None: a bar on a terminal, nothing in a file or a pipe
        self.bar = tqdm(total=self.steps, desc=f"epoch {epoch + 1}", unit="step", leave=False, disable=None)

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if keras.backend.backend() == "torch":
            # Dropout draws from torch's global generator, as does each new data iterator, of which a
            # resumed training makes one more: so it starts anew at every step.
            import torch

            torch.manual_seed(self.seed * 2**32 + self.first_step + batch)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.bar.update()

    def on_test_begin(self, logs: dict | None = None) -> None:
        self.trained = time.perf_counter()  # validation comes at the end of each epoch

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.bar.close()
        optimizer = self.model.optimizer
        row = {"epoch": epoch + 1, **{name: float(value) for name, value in (logs or {}).items()}}
        row["learning_rate"] = float(optimizer.learning_rate)
        if not np.isfinite(row["loss"]):
            raise TrainingError(
                f"the loss became {row['loss']} in epoch {epoch + 1}: nothing was saved from it; "
                f"lower train.learning_rate, or raise train.warmup_fraction"
            )
        row["seconds"] = time.perf_counter() - self.started
        row["images_per_second"] = self.images_per_epoch / (self.trained - self.started)
        self.history.append(row)
        self.checkpoint.save(self.model, self.history)
        left = row["seconds"] * (self.params["epochs"] - epoch - 1)
        print(
            f"  epoch {epoch + 1:3d}/{self.params['epochs']}  loss {row['loss']:.3f}  "
            f"accuracy {row['accuracy']:.3f}  validation accuracy {row['val_accuracy']:.3f}  "
            f"{row['images_per_second']:,.0f} images/s  {left:.0f} s left",
            flush=True,
        )
        self.report(row)


def fit(
    model: keras.Model,
    data: Prepared,
    recipe: TrainConfig,
    seed: int,
    checkpoint: Checkpoint,
    report: Callable[[dict[str, float]], None],
) -> History:
    """Trains `model` in place, continuing from `checkpoint` where there is one.

    `report` is called with each epoch's row. Returns one row per epoch: epoch, loss, accuracy, val_loss,
    val_accuracy, learning_rate, seconds, images_per_second.
    """
    images, labels, classes = data.images("train"), data.labels("train"), len(data.classes)
    batch_size = min(recipe.batch_size, len(labels))
    steps = steps_per_epoch(len(labels), batch_size)
    model.compile(
        make_optimizer(recipe, steps * recipe.epochs),
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=recipe.label_smoothing),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    history = checkpoint.restore(model)
    if history:
        print(f"  continuing after epoch {len(history)} of {recipe.epochs}", flush=True)
    batches = training_batches(
        images,
        labels,
        classes=classes,
        batch_size=batch_size,
        seed=seed,
        augment=make_augmentation(recipe.augmentation, seed, steps),
        steps=range(len(history) * steps, recipe.epochs * steps),
    )
    try:
        model.fit(
            batches,
            steps_per_epoch=steps,
            initial_epoch=len(history),
            epochs=recipe.epochs,
            validation_data=ValidationBatches(data.images("validation"), data.labels("validation"), classes),
            callbacks=[EpochEnd(history, checkpoint, seed, steps, steps * batch_size, report)],
            shuffle=False,  # the sampler's order is final
            verbose=0,
        )
    except Exception as error:
        if ran_out_of_memory(error):
            raise TrainingError(
                f"out of memory at train.batch_size {batch_size}: try {max(1, batch_size // 2)}"
            ) from error
        raise
    return history


def ran_out_of_memory(error: Exception) -> bool:
    """Each framework has its own class for it; their messages agree better."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "oom when" in text
