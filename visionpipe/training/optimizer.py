"""Optimizers and the learning-rate schedule."""

import keras

from visionpipe.config import TrainConfig

# Shrinking these towards zero does not regularise (He et al. 2019, arXiv:1812.01187, section 3.1).
UNDECAYED = ["bias", "gamma", "beta", "token", "embedding"]


def make_schedule(config: TrainConfig, steps: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up from 0, then half a cosine down to 0 at the last of `steps`."""
    warmup = round(config.warmup_fraction * steps)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else config.learning_rate,
        decay_steps=max(1, steps - warmup),
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )


def make_optimizer(config: TrainConfig, steps: int) -> keras.optimizers.Optimizer:
    """The optimizer of the recipe. Weight decay is decoupled (Loshchilov & Hutter 2019)."""
    schedule = make_schedule(config, steps)
    optimizer: keras.optimizers.Optimizer
    if config.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(
            schedule, momentum=0.9, nesterov=True, weight_decay=config.weight_decay or None
        )
    else:
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay)
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=UNDECAYED)
    return optimizer
