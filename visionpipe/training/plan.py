"""The steps, phases and learning rates that a recipe amounts to.

A part of the recipe that would come after the end of the training is an error. A part that is only too long is
shortened, and a note says so. This module imports no framework.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from types import SimpleNamespace

from visionpipe.errors import did_you_mean
from visionpipe.models.names import LOGITS, layer_depths
from visionpipe.training.recipe import TrainConfig, begins_with, check_value, duration_steps
from visionpipe.training.schedule import make_schedule

MIXING = ("mixup", "cutmix")
NEARLY_ZERO = 1e-4  # of the highest rate: a decay to zero ends below it and is printed as 0
MOST_POINTS = 100_000  # at which a schedule is evaluated to find its highest rate


@dataclass(frozen=True)
class Phase:
    """Part of a training in which the same layers are trained.

    Attributes:
        start: the first step.
        end: the first step of the next phase; None if the end of the training is not known.
        train: layer names, or their first words, of the layers that are trained; None for all layers.
    """

    start: int
    end: int | None
    train: tuple[str, ...] | None


@dataclass(frozen=True)
class Plan:
    """Computes the steps and phases of a recipe.

    Attributes:
        images: the number of training images.
        measured: the number of steps of a budget in minutes, once the speed has been measured.
    """

    recipe: TrainConfig
    images: int
    measured: int | None = None

    @property
    def batch_size(self) -> int:
        """The images per step: those of the recipe, or fewer if there are not as many images."""
        repeats = self.recipe.repeated_augmentation
        return min(self.recipe.batch_size, max(repeats, self.images // repeats * repeats))

    @property
    def epoch_steps(self) -> int:
        """The number of steps that see all images about once."""
        from visionpipe.data.batches import steps_per_epoch

        return steps_per_epoch(self.images, self.batch_size)

    @property
    def total_steps(self) -> int | None:
        """The number of steps of the training; None for a budget in minutes that has not been measured."""
        recipe = self.recipe
        if self.measured is not None or recipe.epochs is None:
            return self.measured if recipe.steps is None else recipe.steps
        return recipe.epochs * self.epoch_steps

    @property
    def frozen_steps(self) -> int:
        return frozen_epochs(self.recipe) * self.epoch_steps

    @property
    def phases(self) -> list[Phase]:
        start, phases = 0, []
        for phase in self.recipe.freeze:
            end = start + phase.epochs * self.epoch_steps
            phases.append(Phase(start, end, phase.train))
            start = end
        return [*phases, Phase(start, self.total_steps, None)]

    def phase_of(self, step: int) -> Phase:
        return next(phase for phase in reversed(self.phases) if phase.start <= step)

    def check(self) -> None:
        """Raises ConfigError, beginning with the key, if a part of the recipe does not fit into the training."""
        check_mixing(self.recipe, self.batch_size)
        if self.total_steps is not None:
            check_end(self.recipe, self.total_steps, self.epoch_steps)

    def notes(self) -> Iterator[str]:
        """Yields a line for each part of the recipe that is shortened to fit."""
        recipe = self.recipe
        if self.batch_size < recipe.batch_size:
            yield f"batch_size: {recipe.batch_size} is more than the {self.images} images; {self.batch_size} is used"
        warmup = self.warmup_steps()
        for phase in self.phases if recipe.freeze else []:
            length = phase.end and phase.end - phase.start
            if warmup and length and warmup > length:
                yield (
                    f"warmup: {count(warmup, 'step')} are shortened to the {count(length, 'step')} of the phase from "
                    f"step {phase.start + 1:,}"
                )
        for phase in self.phases:
            rest = ((phase.end or phase.start) - phase.start) % recipe.accumulate
            if rest:
                yield f"accumulate: the update at step {phase.end:,} has only {count(rest, 'step')}"

    def warmup_steps(self) -> float | None:
        fixed = duration_steps(self.recipe.warmup, self.epoch_steps)
        if fixed is None and self.total_steps is not None:
            return round(self.total_steps * float(self.recipe.warmup))
        return fixed

    def rates(self, phase: Phase) -> tuple[float, float]:
        """Returns the highest and the last learning rate of a phase."""
        import numpy as np

        assert self.total_steps is not None, "a budget in minutes has no rates before it is measured"
        assert phase.end is not None
        ops = SimpleNamespace(**vars(np), cast=lambda x, kind: np.asarray(x, kind))
        end = phase.end if phase.end < self.total_steps else None
        schedule = make_schedule(self.recipe, self.epoch_steps, phase.start, end, ops)
        last = phase.end - phase.start - 1
        steps = np.linspace(0, last, min(last + 1, MOST_POINTS)).round()
        rates = np.broadcast_to(schedule(steps, self.total_steps), steps.shape)
        return float(rates.max()), float(rates[-1])


def frozen_epochs(recipe: TrainConfig) -> int:
    return sum(phase.epochs for phase in recipe.freeze)


def check_end(recipe: TrainConfig, total_steps: int | None = None, epoch_steps: int | None = None) -> None:
    """Raises ConfigError, beginning with the key, if a part of the recipe would come after the end of the training.

    Without `total_steps` and `epoch_steps` only durations in the unit of the budget can be checked.
    """

    def end(duration: str) -> tuple[float, str]:
        """Returns a duration as a share of the training, and the length of the training in words."""
        unit = "epochs" if "epoch" in duration else "steps"
        number, whole = float(duration.split()[0]), getattr(recipe, unit)
        if whole is not None:
            return number / whole, f"{whole:,} {unit if whole > 1 else unit[:-1]}"
        if total_steps is None or epoch_steps is None:
            return 0.0, ""
        steps = duration_steps(duration, epoch_steps) or 0.0
        fitting = f" that fit into {recipe.budget}" if recipe.minutes else ""
        return steps / total_steps, f"{total_steps:,} steps{fitting} ({epoch_steps:,} in an epoch)"

    frozen, late = frozen_epochs(recipe), "is too late: the training ends after"
    share, whole = end(f"{frozen} epochs")
    check_value(
        share < 1,
        "freeze",
        f"phases of {count(frozen, 'epoch')} are too long: the training ends after {whole}",
    )
    if isinstance(recipe.warmup, str):
        share, whole = end(recipe.warmup)
        check_value(share < 1, "warmup", f"{recipe.warmup} is too long: the training ends after {whole}")
    for at in recipe.decay_at if recipe.schedule == "step" else ():
        if isinstance(at, str):
            share, whole = end(at)
            check_value(share < 1, "decay_at", f"{at} {late} {whole}")
    steps = total_steps or recipe.steps
    phases = [phase.epochs * epoch_steps for phase in recipe.freeze] if epoch_steps else []
    lengths = [*phases, steps - sum(phases)] if steps else phases
    shortest = min(lengths, default=recipe.accumulate)
    check_value(
        recipe.accumulate <= shortest,
        "accumulate",
        f"{recipe.accumulate} steps make one update, but "
        f"{'a phase' if recipe.freeze else 'the training'} has only {shortest:,}",
    )
    for position, entry in enumerate(recipe.augmentation):
        off = entry.get("off_epoch")
        if type(off) is int and entry.get("name") in MIXING:
            key = f"augmentation[{position}].off_epoch"
            share, whole = end(f"{off} epochs")
            check_value(off, key, f"0: {entry['name']} would never mix; leave the entry out")
            check_value(share < 1, key, f"{off} {late} {whole}; write null to mix until the end")


def check_rates(recipe: TrainConfig, names: Sequence[str]) -> None:
    """Raises ConfigError if a phase trains only layers whose rate is 0. `names`: all layers of the model."""
    by_name = factors(recipe, names)
    for position, phase in enumerate(recipe.freeze):
        trained = [name for name in names if any(begins_with(name, words) for words in phase.train)]
        check_value(
            not trained or any(by_name[name] for name in trained),
            f"freeze[{position}].train",
            f"nothing would be trained: rates gives the rate 0 to {', '.join(trained)}",
        )


def check_mixing(recipe: TrainConfig, batch_size: int) -> None:
    for position, entry in enumerate(recipe.augmentation):
        check_value(
            batch_size > 1 or entry.get("name") not in MIXING,
            f"augmentation[{position}]", f"{entry.get('name')} has nothing to mix with in a batch of one image",
        )  # fmt: skip


def is_layer(words: str, names: Sequence[str]) -> bool:
    """Whether `words` are the first words of one of `names`, or name a layer inside a block among `names`."""
    return inside(words, names) or any(begins_with(name, words) for name in names)


def no_layer(word: str, names: Sequence[str]) -> str:
    first = ", ".join(sorted({name.split("_")[0] for name in names}))
    return f"no layer begins with {word}{did_you_mean(word, names)}; the layers begin with {first}"


def factors(recipe: TrainConfig, names: Sequence[str]) -> dict[str, float]:
    """Returns layer → factor of the learning rate, by `layer_decay` and `rates`.

    The layers before the first block count as one more block; those after the last block have the full rate.
    """
    depths = layer_depths(names)
    full = layer_depths([*names, LOGITS])[LOGITS]
    by_layer = {}
    for name in names:
        by_layer[name] = recipe.layer_decay ** (full - depths[name])
        for words, factor in recipe.rates.items():
            by_layer[name] *= factor if begins_with(name, words) else 1.0
    return by_layer


def plan_lines(recipe: TrainConfig, images: int | None, names: Sequence[str]) -> Iterator[str]:
    """Yields the lines about a plan that `visionpipe params` and a training print: phases, steps and rates.

    Args:
        images: the number of training images; None before the stage prepare has run.
        names: the blocks, which stand for their layers, and the layers outside of blocks.
    """
    comparable = recipe.epochs and not any("step" in str(at) for at in (recipe.warmup, *recipe.decay_at))
    if images is None:
        end = "" if comparable else ", and so are the rates at the end"
        yield f"  in epochs: the number of training images is known only after the stage prepare{end}"
        # Rates by epochs and fractions do not depend on the number of steps; 1,000 images are an arbitrary choice.
        plan = Plan(replace(recipe, batch_size=1, repeated_augmentation=1, accumulate=1), 1000)
    else:
        plan = Plan(recipe, images)
        whole = f"{plan.total_steps:,}" if plan.total_steps else f"as many as fit into {recipe.budget}"
        yield f"  {images:,} training images: {count(plan.epoch_steps, 'step')} per epoch, {whole} in all"
        yield from (f"  {note}" for note in plan.notes())
    yield from imbalance_lines(recipe)
    for number, phase in enumerate(plan.phases):
        trained = ", ".join(phase.train) if phase.train else "all layers"
        yield f"  {when(plan, number, images is not None)}: {trained}"
        known = plan.total_steps is not None and (images is not None or comparable)
        highest, last = plan.rates(phase) if known else (recipe.learning_rate, None)
        rows = grouped(recipe, names, phase.train)
        for layers, factor in rows:
            final = 0.0 if last is None or last < NEARLY_ZERO * highest else last * factor
            end = "" if last is None else f", at the end {final:.3g}"
            yield f"    {layers if len(rows) > 1 else 'rate'}: up to {highest * factor:.3g}{end}"


def imbalance_lines(recipe: TrainConfig) -> Iterator[str]:
    """Yields a line for each key that changes what a rare class counts."""
    if recipe.sampler == "balanced":
        yield "  sampler: balanced, every class is drawn equally often"
    if recipe.sampler == "sqrt":
        yield "  sampler: sqrt, a class is drawn by the square root of the number of its images"
    if recipe.class_weights is not None:
        by_name = "balanced" if recipe.class_weights == "balanced" else "by name"
        yield f"  class_weights: {by_name}"
    if recipe.loss == "focal":
        yield f"  loss: focal, gamma {recipe.focal_gamma:g}"
    if recipe.logit_adjustment is not None:
        yield f"  logit_adjustment: {recipe.logit_adjustment:g} · log of each class's share, in the loss alone"


def when(plan: Plan, number: int, in_steps: bool) -> str:
    """Says when phase `number` is: "steps 1 to 64" or "epochs 2 to 6"."""
    phase, unit, size = (
        plan.phases[number],
        "steps" if in_steps else "epochs",
        1 if in_steps else plan.epoch_steps,
    )
    first = phase.start // size + 1
    if number == len(plan.recipe.freeze) and not in_steps and not plan.recipe.epochs:
        return f"{unit} {first:,} to the end, after {plan.recipe.budget}"
    if phase.end is None:
        return f"{unit} {first:,} to the end, after {plan.recipe.budget}"
    return f"{unit} {first:,} to {phase.end // size:,}"


def grouped(
    recipe: TrainConfig, names: Sequence[str], train: Sequence[str] | None
) -> list[tuple[str, float]]:
    """Returns groups of neighbouring layers with the same rate, each with the rate's factor.

    `train`: the layers to include; None for all.
    """
    words = [*recipe.rates, *(train or ())]
    parts = [word for word in dict.fromkeys(words) if word not in names and inside(word, names)]
    names = [name for name in (*names, *parts) if not train or any(begins_with(name, word) for word in train)]
    by_name, depths = factors(recipe, names), layer_depths(names)
    places = sorted(names, key=depths.__getitem__)
    return [(", ".join(same), factor) for factor, same in groupby(places, key=by_name.__getitem__)]


def inside(word: str, names: Sequence[str]) -> bool:
    """Whether `word` names a layer inside one of the blocks."""
    return any(begins_with(word, name) for name in names)


def count(number: float, unit: str) -> str:
    return f"{number:,.6g} {unit}{'' if number == 1 else 's'}"
