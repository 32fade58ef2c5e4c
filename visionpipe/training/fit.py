"""Trains a fresh or restored model to the last step of its recipe."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import keras
import numpy as np

from visionpipe.acceleration.network import Network, accelerate
from visionpipe.data.augmentation import make_augmentation
from visionpipe.data.batches import EVALUATION_BATCH, evaluation_batches, training_batches
from visionpipe.data.prepared import Prepared
from visionpipe.errors import ConfigError, TrainingError
from visionpipe.models.names import TWO_HEADS
from visionpipe.tasks import TASKS
from visionpipe.training.averaging import AveragedModel
from visionpipe.training.checkpoint import Arrays, Checkpoint, Progress, Row, as_array
from visionpipe.training.interruption import Interruption
from visionpipe.training.loss import Objective, class_weights, logit_adjustment
from visionpipe.training.memory import memory_errors_named
from visionpipe.training.optimizer import check_layers, make_optimizer, make_schedule, rate_factors
from visionpipe.training.plan import Plan, frozen_epochs
from visionpipe.training.recipe import TrainConfig, begins_with
from visionpipe.training.teacher import Teacher, with_teacher
from visionpipe.training.watch import Watch, epoch_line

Report = Callable[[Row], None]
MEASURED_STEPS = 20  # before a budget in minutes is converted into steps
GUESSED_EPOCHS = 10  # the assumed budget until then


def fit(
    model: keras.Model,
    data: Prepared,
    recipe: TrainConfig,
    seed: int,
    checkpoint: Checkpoint,
    report: Report,
    teacher: Teacher | None = None,
) -> list[Row]:
    """Trains `model` in place, and continues from the newest state in `checkpoint` if there is one.

    Args:
        report: called with each epoch's row.

    Returns:
        One row per epoch: epoch, loss, the task's training metrics, val_loss, its score on the validation images as
        val_SCORE, learning_rate, seconds, images_per_second.

    Raises:
        ConfigError: the recipe does not fit the number of training images.
        TrainingError: the memory is not enough, or the loss or the weights are not finite.
        Interrupted: Ctrl-C or SIGTERM.
    """
    with memory_errors_named(replace(recipe, batch_size=Plan(recipe, len(data.labels("train"))).batch_size)):
        training = Training(model, data, recipe, seed, checkpoint, teacher or Teacher())
        with Interruption() as training.interruption:
            training.run(report)
            training.interruption.raise_if_arrived()
    return training.progress.history


class Training:
    """Holds the state of `fit`: the model, the network that trains it, the data and the progress."""

    interruption: Interruption

    def __init__(
        self,
        model: keras.Model,
        data: Prepared,
        recipe: TrainConfig,
        seed: int,
        checkpoint: Checkpoint,
        teacher: Teacher,
    ):
        self.model = model = accelerate(model)
        self.data, self.recipe, self.seed, self.checkpoint = data, recipe, seed, checkpoint
        self.task = TASKS[data.task]
        self.images, self.labels = data.images("train"), data.labels("train")
        self.weights = data.weights()
        self.plan = Plan(recipe, len(self.labels))
        self.check_plan()
        self.batch_size, self.epoch_steps = self.plan.batch_size, self.plan.epoch_steps
        self.teacher = teacher
        self.heads = [layer.output for layer in model.layers if layer.name in TWO_HEADS] or [model.output]
        outputs = with_teacher(model, self.heads, teacher.model)
        self.trained = (
            Network(model.input, outputs)
            if recipe.ema_decay is None
            else AveragedModel(model, outputs, recipe.ema_decay)
        )
        # Of all images, so it is computed only where the order of the images depends on it.
        by_class = recipe.sampler != "shuffle"
        self.drawn_as = self.task.sampled_classes(self.labels) if by_class else None
        self.objective = Objective(
            self.task,
            recipe,
            class_weights(self.task, recipe.class_weights, data.classes, self.labels),
            len(data.classes),
            len(self.heads),
            logit_adjustment(recipe, self.labels, len(data.classes), self.weights),
        )
        # Validation runs the model that is saved: the same layers, without the teacher and the second head.
        model.compile(
            loss=keras.losses.CategoricalCrossentropy(from_logits=True),
            metrics=self.task.training_metrics(len(data.classes)),
        )
        check_layers(model, "train.freeze", [name for phase in recipe.freeze for name in phase.train])
        self.progress = Progress(total_steps=self.plan.total_steps or GUESSED_EPOCHS * self.epoch_steps)
        self.augment = make_augmentation(recipe.augmentation, seed, self.epoch_steps)
        self.restored: Arrays = []
        self.step_seconds = 0.0  # of the last epoch that this process trained
        self.last_save = time.perf_counter()

    # The training loop

    def run(self, report: Report) -> None:
        state = self.checkpoint.read()
        if state:
            self.progress, self.restored = state
            print(f"  continuing after step {self.progress.step} of {self.progress.total_steps}", flush=True)
        self.start_phase(self.progress.phase)
        self.restore()
        while not self.finished():
            start = self.plan.phase_of(self.progress.step).start
            if start != self.progress.phase:
                self.start_phase(start)
                self.restored = []  # the state of the previous phase, which the variables have already
            epoch = len(self.progress.history)
            logs = self.train_epoch(epoch)
            self.interruption.raise_if_arrived()
            row = self.finish_epoch(epoch, logs)
            self.interruption.raise_if_arrived()
            self.progress.history.append(row)
            self.progress.seconds, self.progress.logs = 0.0, {}
            print(epoch_line(row, -(-self.progress.total_steps // self.epoch_steps)), flush=True)
            report(row)
        self.take_final_weights()

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Trains the remaining steps of an epoch; returns loss and accuracy over the whole epoch."""
        if not self.steps_of(epoch):  # an interruption came between the epoch's last step and its validation
            return self.progress.logs
        if self.recipe.minutes and not self.step_seconds:  # a few steps tell how many fit into the budget
            self.train_steps(epoch, self.steps_of(epoch)[:MEASURED_STEPS])
            self.plan_for_minutes(0.0)
            if self.steps_of(epoch):
                # Includes the metrics of the epoch so far, which Keras would reset.
                self.restored = [as_array(v) for v in self.variables()]
        if self.steps_of(epoch):
            self.train_steps(epoch, self.steps_of(epoch))
        self.trained.reset_metrics()
        self.save()
        return self.progress.logs

    def steps_of(self, epoch: int) -> range:
        """Returns the steps of an epoch that are still to be trained."""
        return range(self.progress.step, min((epoch + 1) * self.epoch_steps, self.progress.total_steps))

    def train_steps(self, epoch: int, steps: range) -> None:
        watch = Watch(self, steps, f"epoch {epoch + 1}")
        history = self.trained.fit(self.batches(steps), callbacks=[watch], verbose=0, shuffle=False).history
        logs = {name: float(values[-1]) for name, values in history.items()}
        if not np.isfinite(logs["loss"]):
            raise TrainingError(
                f"the loss became {logs['loss']} in epoch {epoch + 1}, so the epoch was not saved: lower "
                f"train.learning_rate, raise train.warmup, or set train.clip_norm: 1.0"
            )
        self.progress.step, self.progress.seconds, self.progress.logs = steps.stop, watch.seconds(), logs
        self.step_seconds = watch.step_seconds()

    def batches(self, steps: range) -> Any:
        """Returns a `tf.data.Dataset` of the batches of these steps."""
        return training_batches(
            self.images,
            self.labels,
            targets=self.targets,
            batch_size=self.batch_size,
            seed=self.seed,
            augment=self.augment,
            steps=steps,
            repeated_augmentation=self.recipe.repeated_augmentation,
            teacher_logits=self.teacher.logits,
            weights=self.weights,
            sampler=self.recipe.sampler,
            drawn_as=self.drawn_as,
        )

    def finish_epoch(self, epoch: int, logs: dict[str, float]) -> Row:
        """Validates the model, updates the best weights and a budget in minutes, and returns the epoch's row."""
        start = time.perf_counter()
        validation = evaluation_batches(
            self.data.images("validation"),
            self.data.labels("validation"),
            self.targets,
            min(EVALUATION_BATCH, 4 * self.batch_size),  # takes no more memory than training does
        )
        with self.weights_to_save():
            scores = self.task.validate(self.model, validation, self.data.labels("validation"))
            best = max(self.scores(), default=-1.0)
            if self.recipe.keep == "best" and scores[self.task.score] > best:
                self.progress.best = [as_array(v) for v in self.model.weights]
        trained = self.progress.seconds
        steps = self.progress.step - epoch * self.epoch_steps
        if self.recipe.minutes and self.step_seconds:
            self.plan_for_minutes(time.perf_counter() - start)
        return {
            "epoch": epoch + 1,
            **logs,
            **{f"val_{name}": value for name, value in scores.items()},
            "val_score": scores[self.task.score],
            "learning_rate": float(self.trained.optimizer.learning_rate),
            "seconds": trained + time.perf_counter() - start,
            "images_per_second": steps * self.batch_size / trained,
        }

    def take_final_weights(self) -> None:
        """Puts the best weights or the averages into the model, if the recipe keeps them; unfreezes all layers."""
        for layer in self.model.layers:
            layer.trainable = True
        if self.progress.best:
            for variable, value in zip(self.model.weights, self.progress.best, strict=True):
                variable.assign(value)
        elif isinstance(self.trained, AveragedModel):
            self.trained.take_averages()

    # Phases: which layers are trained

    def start_phase(self, start: int) -> None:
        """Freezes and unfreezes layers for the phase whose first step is `start`, and compiles a new optimizer."""
        phase, self.progress.phase = self.plan.phase_of(start), start
        for layer in self.model.layers:
            layer.trainable = phase.train is None or any(
                begins_with(layer.name, name) for name in phase.train
            )
        variables = self.trained.trainable_variables
        optimizer = make_optimizer(
            self.recipe,
            make_schedule(self.recipe, self.epoch_steps, phase.start, phase.end if phase.train else None),
            rate_factors(self.model, self.recipe),
            variables,
            self.progress.total_steps,
            phase.end and phase.end - phase.start,
        )
        self.trained.compile(
            optimizer, self.objective, metrics=self.task.training_metrics(len(self.data.classes))
        )
        # Keras makes the metric's variables at the first update, but the values of a checkpoint need them earlier.
        blank = np.zeros((1, self.trained.output_shape[-1]), np.float32)
        self.trained.compute_metrics(None, blank, blank)

    # The budget

    def check_plan(self, measured: int | None = None) -> None:
        """Raises ConfigError if a part of the recipe would come after the end of the training."""
        try:
            replace(self.plan, measured=measured).check()
        except ConfigError as error:
            raise ConfigError(f"train.{error}") from None

    def plan_for_minutes(self, validation_seconds: float) -> None:
        """Sets the total to the steps that fit into the remaining time, with a validation after each epoch."""
        spent = (
            sum(row["seconds"] for row in self.progress.history) + self.progress.seconds + validation_seconds
        )
        left = float(self.recipe.minutes or 0) * 60 - spent
        per_step = self.step_seconds + validation_seconds / self.epoch_steps
        total = self.progress.step + max(0, int(left / per_step))
        # Rounds up, so that the last update is of `accumulate` steps like all others.
        total += -max(0, total - self.plan.frozen_steps) % self.recipe.accumulate
        # A later refusal would waste the training.
        if self.progress.step <= max(MEASURED_STEPS, self.plan.frozen_steps):
            self.check_plan(total)
        self.progress.total_steps = total
        self.trained.optimizer.total_steps.assign(self.progress.total_steps)

    def scores(self) -> list[float]:
        """Returns the score of each epoch on the validation images."""
        return [row["val_score"] for row in self.progress.history]

    def targets(self, labels: np.ndarray) -> np.ndarray:
        return self.task.targets(labels, len(self.data.classes))

    def finished(self) -> bool:
        history, patience = self.progress.history, self.recipe.patience
        # Epochs of frozen phases do not count, or the training could end before the whole model is trained.
        scores = self.scores()[frozen_epochs(self.recipe) :]
        since_best = len(scores) - 1 - int(np.argmax(scores)) if scores else 0
        if patience and since_best >= patience:
            print(
                f"  no better validation {self.task.score.replace('_', ' ')} for {patience} epochs: the training ends",
                flush=True,
            )
            return True
        return len(history) * self.epoch_steps >= self.progress.total_steps

    # State

    def variables(self) -> list[Any]:
        """Returns all variables that change during the training, in a fixed order."""
        averages = self.trained.averages if isinstance(self.trained, AveragedModel) else []
        optimizer = self.trained.optimizer.variables
        return [*self.model.variables, *averages, *optimizer, *self.trained.metrics_variables]

    def restore(self) -> None:
        """Assigns the values of the checkpoint, if one was read, to the variables."""
        for variable, value in zip(self.variables() if self.restored else [], self.restored, strict=True):
            variable.assign(value)

    def save(self) -> None:
        """Writes a checkpoint. If the disk is full, the training goes on without it."""
        try:
            self.checkpoint.save(self.variables(), self.progress)
        except OSError as error:
            print(
                f"  no checkpoint was written at step {self.progress.step}: {error}; the previous one remains",
                flush=True,
            )
        self.last_save = time.perf_counter()

    def save_is_due(self, step: int) -> bool:
        every = self.recipe.checkpoint_steps
        minutes = (time.perf_counter() - self.last_save) / 60
        return bool(every and step % every == 0) or minutes > self.recipe.checkpoint_minutes

    def weights_to_save(self) -> contextlib.AbstractContextManager[None]:
        trained = self.trained
        return trained.averages_in_place() if isinstance(trained, AveragedModel) else contextlib.nullcontext()
