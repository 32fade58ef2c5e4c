"""What a recipe comes to: its steps, phases and rates. What would come after the end of a training is refused, what
does not fit is fitted and said. Imports no framework.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from types import SimpleNamespace

from visionpipe.errors import did_you_mean
from visionpipe.models.names import LOGITS, layer_depths
from visionpipe.training.recipe import TrainConfig, begins_with, duration_steps, require
from visionpipe.training.schedule import make_schedule

MIXING = ("mixup", "cutmix")
NEARLY_ZERO = 1e-4  # of the highest rate: what a decay to zero leaves for its last step
MOST_POINTS = 100_000  # of a schedule, where its highest rate is looked for


@dataclass(frozen=True)
class Phase:
    """The steps from `start` to `end`, which is the first of the next phase, or None where the end of the training is
    not known; `train`: what names the layers that are trained, None: all.
    """

    start: int
    end: int | None
    train: tuple[str, ...] | None


@dataclass(frozen=True)
class Plan:
    """`recipe` for so many training `images`; `measured`: the steps of a budget in minutes, once they are known."""

    recipe: TrainConfig
    images: int
    measured: int | None = None

    @property
    def batch_size(self) -> int:
        """At most all images, in whole repetitions."""
        repeats = self.recipe.repeated_augmentation
        return min(self.recipe.batch_size, max(repeats, self.images // repeats * repeats))

    @property
    def epoch_steps(self) -> int:
        """Optimizer steps that see the images about once."""
        from visionpipe.data.batches import steps_per_epoch

        return steps_per_epoch(self.images, self.batch_size)

    @property
    def total_steps(self) -> int | None:
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
        """Raises ConfigError that begins with the key where something does not fit into the training."""
        check_mixing(self.recipe, self.batch_size)
        if self.total_steps is not None:
            check_end(self.recipe, self.total_steps, self.epoch_steps)

    def notes(self) -> Iterator[str]:
        """What of the recipe was fitted."""
        recipe = self.recipe
        if self.batch_size < recipe.batch_size:
            yield f"batch_size: {recipe.batch_size} is more than the {self.images} images: {self.batch_size}"
        warmup = self.warmup_steps()
        for phase in self.phases if recipe.freeze else []:
            length = phase.end and phase.end - phase.start
            if warmup and length and warmup > length:
                yield (
                    f"warmup: {count(warmup, 'step')} are more than the phase from step {phase.start + 1:,} has: "
                    f"its own {length:,}"
                )
        for phase in self.phases:
            rest = ((phase.end or phase.start) - phase.start) % recipe.accumulate
            if rest:
                yield f"accumulate: the last update until step {phase.end:,} is of {count(rest, 'step')}"

    def warmup_steps(self) -> float | None:
        fixed = duration_steps(self.recipe.warmup, self.epoch_steps)
        if fixed is None and self.total_steps is not None:
            return round(self.total_steps * float(self.recipe.warmup))
        return fixed

    def rates(self, phase: Phase) -> tuple[float, float]:
        """The highest and the last learning rate of a phase."""
        import numpy as np

        assert self.total_steps is not None, "of a budget in minutes nothing is known"
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
    """Raises ConfigError for what would come after the end of the training. As long as the number of images is not
    known, and with it the steps of an epoch, only durations in the unit of the budget have been compared.
    """

    def end(duration: str) -> tuple[float, str]:
        """How long a duration is compared with the whole training, which is 1, and that in words."""
        unit = "epochs" if "epoch" in duration else "steps"
        number, whole = float(duration.split()[0]), getattr(recipe, unit)
        if whole is not None:
            return number / whole, f"{whole:,} {unit}"
        if total_steps is None or epoch_steps is None:
            return 0.0, ""
        steps = duration_steps(duration, epoch_steps) or 0.0
        fitting = f" that fit into {recipe.budget}" if recipe.minutes else ""
        return steps / total_steps, f"{total_steps:,} steps{fitting} ({epoch_steps:,} in an epoch)"

    frozen, never = frozen_epochs(recipe), "never comes: the training ends after"
    share, whole = end(f"{frozen} epochs")
    whole = str(recipe.epochs) if recipe.epochs else whole
    require(share < 1, "freeze", f"{frozen} frozen epochs leave none of {whole} for the whole model")
    if isinstance(recipe.warmup, str):
        share, whole = end(recipe.warmup)
        require(share < 1, "warmup", f"{recipe.warmup} leave none of {whole}")
    for at in recipe.decay_at if recipe.schedule == "step" else ():
        if isinstance(at, str):
            share, whole = end(at)
            require(share < 1, "decay_at", f"{at} {never} {whole}")
    steps = total_steps or recipe.steps
    phases = [phase.epochs * epoch_steps for phase in recipe.freeze] if epoch_steps else []
    lengths = [*phases, steps - sum(phases)] if steps else phases
    shortest = min(lengths, default=recipe.accumulate)
    require(
        recipe.accumulate <= shortest,
        "accumulate",
        f"{recipe.accumulate} steps make one update; "
        f"{'a phase' if recipe.freeze else 'the training'} has {shortest:,}",
    )
    for position, entry in enumerate(recipe.augmentation):
        off = entry.get("off_epoch")
        if type(off) is int and entry.get("name") in MIXING:
            key = f"augmentation[{position}].off_epoch"
            share, whole = end(f"{off} epochs")
            require(off, key, "0: it would never mix; leave the entry out")
            require(share < 1, key, f"{off} {never} {whole}; null: it mixes until then")


def check_rates(recipe: TrainConfig, names: Sequence[str]) -> None:
    """Raises ConfigError for a phase all of whose layers have the rate 0; `names`: of the model's layers."""
    by_name = factors(recipe, names)
    for position, phase in enumerate(recipe.freeze):
        trained = [name for name in names if any(begins_with(name, words) for words in phase.train)]
        require(
            not trained or any(by_name[name] for name in trained),
            f"freeze[{position}].train",
            f"{', '.join(trained)} would train at the rate 0, by rates: nothing would be trained",
        )


def check_mixing(recipe: TrainConfig, batch_size: int) -> None:
    for position, entry in enumerate(recipe.augmentation):
        require(
            batch_size > 1 or entry.get("name") not in MIXING,
            f"augmentation[{position}]", f"{entry.get('name')} has nothing to mix with in a batch of one image",
        )  # fmt: skip


def is_layer(words: str, names: Sequence[str]) -> bool:
    """Whether they name one of `names`, or a part of one: a block's may stand for those of its layers."""
    return inside(words, names) or any(begins_with(name, words) for name in names)


def no_layer(word: str, names: Sequence[str]) -> str:
    first = ", ".join(sorted({name.split("_")[0] for name in names}))
    return f"no layer begins with {word}{did_you_mean(word, names)}; there are {first}"


def factors(recipe: TrainConfig, names: Sequence[str]) -> dict[str, float]:
    """Layer → factor of the learning rate. What lies before the first block is one block more below it, what lies
    behind the last one has the full rate.
    """
    depths = layer_depths(names)
    full = layer_depths([*names, LOGITS])[LOGITS]
    found = {}
    for name in names:
        found[name] = recipe.layer_decay ** (full - depths[name])
        for words, own in recipe.rates.items():
            found[name] *= own if begins_with(name, words) else 1.0
    return found


def plan_lines(recipe: TrainConfig, images: int | None, names: Sequence[str]) -> Iterator[str]:
    """What `visionpipe params` and a training print: the phases with their steps, and the rates of their layers.

    `images`: those of the training split, None before they have been prepared; `names`: of the blocks, which stand for
    their layers, and of the layers outside of them.
    """
    comparable = recipe.epochs and not any("step" in str(at) for at in (recipe.warmup, *recipe.decay_at))
    if images is None:
        end = "" if comparable else ", without the rates at the end"
        yield f"  in epochs, because the number of training images is known after prepare{end}"
        # Epochs and fractions have the same rates whatever the number of steps; 1,000 images are one as good as any.
        plan = Plan(replace(recipe, batch_size=1, repeated_augmentation=1, accumulate=1), 1000)
    else:
        plan = Plan(recipe, images)
        whole = f"{plan.total_steps:,}" if plan.total_steps else f"as many as fit into {recipe.budget}"
        yield f"  {images:,} training images: {count(plan.epoch_steps, 'step')} an epoch, {whole} in all"
        yield from (f"  {note}" for note in plan.notes())
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


def when(plan: Plan, number: int, in_steps: bool) -> str:
    """Such as "steps 1 to 64" or "epochs 2 to 6"."""
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
    """Neighbours among the layers of one rate, by their names, and its factor; of those that `train` names."""
    words = [*recipe.rates, *(train or ())]
    parts = [word for word in dict.fromkeys(words) if word not in names and inside(word, names)]
    names = [name for name in (*names, *parts) if not train or any(begins_with(name, word) for word in train)]
    by_name, depths = factors(recipe, names), layer_depths(names)
    places = sorted(names, key=depths.__getitem__)
    return [(", ".join(same), factor) for factor, same in groupby(places, key=by_name.__getitem__)]


def inside(word: str, names: Sequence[str]) -> bool:
    """Whether it names a part of one of the blocks."""
    return any(begins_with(word, name) for name in names)


def count(number: float, unit: str) -> str:
    return f"{number:,.6g} {unit}{'' if number == 1 else 's'}"
