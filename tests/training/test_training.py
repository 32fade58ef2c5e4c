"""The trainer: every part of a recipe against a closed form or somebody else's implementation."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import dataclasses
import errno
import itertools
import json
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import get_args, get_type_hints
from unittest.mock import Mock

import keras
import numpy as np
import pytest
import torch
from linear_models import SIZE, make_params, write_prepared

from visionpipe.artifact.canonical import save_keras
from visionpipe.data.prepared import open_prepared
from visionpipe.errors import ConfigError, Interrupted, TrainingError
from visionpipe.files import sha256_json, temporary_name, write_json
from visionpipe.models import build_model
from visionpipe.models.layers import BatchNorm, Rescaling
from visionpipe.project.lineage import train_params
from visionpipe.project.sections import ModelConfig
from visionpipe.tasks import TASKS
from visionpipe.tasks.single import Single
from visionpipe.training.averaging import AveragedModel
from visionpipe.training.checkpoint import Checkpoint, Progress
from visionpipe.training.fit import Training, fit
from visionpipe.training.loss import Objective, class_weights, logit_adjustment
from visionpipe.training.optimizer import make_optimizer, make_schedule, rate_factors
from visionpipe.training.plan import plan_lines
from visionpipe.training.presets import PRESETS
from visionpipe.training.recipe import DistillConfig, FreezeConfig, TrainConfig, begins_with, layered
from visionpipe.training.teacher import Teacher, load_teacher, teacher_logits

random = np.random.default_rng(0)
DISTILL, FREEZE = DistillConfig(teacher="other"), FreezeConfig(epochs=1, train=("logits",))


def recipe(**changes):
    made = TrainConfig(**layered({"epochs": 2, "batch_size": 10, "learning_rate": 0.01}, changes))
    made.check()
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "prepared"
    write_prepared(folder)
    return open_prepared(folder)


@pytest.fixture
def checkpoint(tmp_path):
    return Checkpoint(tmp_path / "checkpoint")


def tiny_model(dropout_rate=0.0):
    """Small enough to compile in a second: a batch norm, which has statistics, and two dense layers."""
    keras.utils.set_random_seed(0)
    images = keras.Input((*SIZE, 3))
    x = BatchNorm(name="norm")(Rescaling([1 / 128] * 3, [-1.0] * 3)(images))
    x = keras.layers.Dense(8, activation="relu", name="hidden")(keras.layers.Flatten()(x))
    x = keras.layers.Dropout(dropout_rate)(x) if dropout_rate else x
    return keras.Model(images, keras.layers.Dense(4, name="logits")(x))


def train(data, checkpoint, teacher=None, model=None, **changes):
    model = model or tiny_model()
    return model, fit(model, data, recipe(**changes), 3, checkpoint, lambda row: None, teacher)


# Schedules


def rates(total, steps_per_epoch=10, phase_start=0, **changes):
    made = recipe(epochs=total // steps_per_epoch, learning_rate=2.0, **changes)
    schedule = make_schedule(made, steps_per_epoch, phase_start)
    return np.array([float(schedule(step, total)) for step in range(total - phase_start)])


def test_cosine_rises_linearly_and_ends_at_its_final_rate():
    step = np.arange(100)
    progress = np.clip((step - 20) / 80, 0, 1)
    expected = 2 * np.minimum((step + 1) / 20, 1) * (0.1 + 0.9 * (1 + np.cos(np.pi * progress)) / 2)
    np.testing.assert_allclose(rates(100, warmup=0.2, final_rate=0.1), expected, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0.3, "3 epochs", "30 steps"])
def test_a_duration_is_a_fraction_epochs_or_steps(warmup):
    np.testing.assert_allclose(rates(100, warmup=warmup), rates(100, warmup="30 steps"), rtol=1e-6)


def test_step_polynomial_and_constant_follow_their_formulas():
    step = np.arange(100)
    expected = 2 * 0.5 ** ((step >= 50).astype(int) + (step >= 80))
    made = rates(100, schedule="step", warmup=0.0, decay_at=("5 epochs", 0.8), decay_factor=0.5)
    np.testing.assert_allclose(made, expected, rtol=1e-6)
    made = rates(100, schedule="polynomial", warmup=0.0, power=2.0)
    np.testing.assert_allclose(made, 2 * (1 - step / 100) ** 2, rtol=1e-4)
    np.testing.assert_allclose(rates(100, schedule="constant", warmup=0.0), np.full(100, 2.0))


def test_a_phase_rises_again_and_goes_on_where_the_curve_is():
    whole, later = rates(100, warmup="10 steps"), rates(100, warmup="10 steps", phase_start=40)
    np.testing.assert_allclose(later[10:], whole[50:], rtol=1e-6)
    np.testing.assert_allclose(later[:10], whole[40:50] * np.arange(1, 11) / 10, rtol=1e-6)


# Optimizers, against torch's on the same gradients


def variables_and_gradients(steps=5):
    values = [random.normal(size=(6, 4)).astype("float32"), random.normal(size=4).astype("float32")]
    # Large ones: Keras adds its epsilon before the correction of the bias, torch after it.
    gradients = [[100 * random.normal(size=v.shape).astype("float32") for v in values] for _ in range(steps)]
    return values, gradients


def updated(values, gradients, factors=None, **changes):
    variables = [keras.Variable(v, name=name) for v, name in zip(values, ("kernel", "bias"), strict=True)]
    made = recipe(schedule="constant", warmup=0.0, **changes)
    paths = dict(zip((v.path for v in variables), factors or (1.0, 1.0), strict=True))
    optimizer = make_optimizer(made, make_schedule(made, 10, 0), paths, variables, 100)
    for step in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in step], variables)
    return [v.numpy() for v in variables]


def updated_by_torch(values, gradients, make, clip=None):
    tensors = [torch.nn.Parameter(torch.tensor(v)) for v in values]
    optimizer = make(tensors)
    for step in gradients:
        for tensor, gradient in zip(tensors, step, strict=True):
            tensor.grad = torch.tensor(gradient)
        if clip:
            torch.nn.utils.clip_grad_norm_(tensors, clip)
        optimizer.step()
    return [t.detach().numpy() for t in tensors]


def groups(tensors, decay, rates=(0.01, 0.01)):
    """Decay on the kernel, none on the bias."""
    return [
        {"params": [tensor], "weight_decay": decay if place == 0 else 0.0, "lr": rate}
        for place, (tensor, rate) in enumerate(zip(tensors, rates, strict=True))
    ]


@pytest.mark.parametrize(("clip", "decay"), [(None, 0.3), (50.0, 0.3), (None, 0.0)])
def test_adamw_is_torchs_with_decay_on_kernels_alone(clip, decay):
    values, gradients = variables_and_gradients()
    mine = updated(values, gradients, weight_decay=decay, clip_norm=clip)
    theirs = updated_by_torch(
        values, gradients, lambda t: torch.optim.AdamW(groups(t, decay), eps=1e-7), clip
    )
    for ours, expected in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_sgd_is_torchs_with_nesterov_momentum():
    values, gradients = variables_and_gradients()
    mine = updated(values, gradients, optimizer="sgd", weight_decay=0.0)
    theirs = updated_by_torch(
        values, gradients, lambda t: torch.optim.SGD(t, lr=0.01, momentum=0.9, nesterov=True)
    )
    # torch's velocity has no learning rate in it and starts one gradient earlier: the same at a constant rate
    for ours, expected in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_a_factor_is_the_learning_rate_of_its_variable_for_step_and_decay():
    values, gradients = variables_and_gradients()
    mine = updated(values, gradients, factors=(0.5, 2.0), weight_decay=0.3)
    theirs = updated_by_torch(
        values, gradients, lambda t: torch.optim.AdamW(groups(t, 0.3, (0.005, 0.02)), eps=1e-7)
    )
    for ours, expected in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(ours, expected, atol=2e-6)


def test_accumulated_gradients_are_one_update_with_their_mean():
    # The schedule still counts steps: at a constant rate both see the same.
    values, gradients = variables_and_gradients(4)
    pairs = [[(a + b) / 2 for a, b in zip(*gradients[start : start + 2], strict=True)] for start in (0, 2)]
    changes = {"optimizer": "sgd", "weight_decay": 0.1, "clip_norm": 100.0}
    mine, expected = updated(values, gradients, accumulate=2, **changes), updated(values, pairs, **changes)
    for ours, wanted in zip(mine, expected, strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5)


@pytest.mark.parametrize("optimizer", ["lamb", "lion", "muon"])
def test_the_other_optimizers_are_kerass_own(optimizer):
    values, gradients = variables_and_gradients()
    mine = updated(values, gradients, optimizer=optimizer, weight_decay=0.0)
    kind = {"lamb": keras.optimizers.Lamb, "lion": keras.optimizers.Lion, "muon": keras.optimizers.Muon}[
        optimizer
    ]
    options = (
        {"momentum": 0.9, "adam_weight_decay": None, "weight_decay": None} if optimizer == "muon" else {}
    )
    theirs, variables = kind(0.01, **options), [keras.Variable(v) for v in values]
    for step in gradients:
        theirs.apply([keras.ops.convert_to_tensor(g) for g in step], variables)
    for ours, variable in zip(mine, variables, strict=True):
        np.testing.assert_allclose(ours, variable.numpy(), atol=1e-6)


def test_only_kernels_decay():
    spared, decayed = set(), set()
    small = {"patch_size": 8, "hidden_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
    for variant, options in (
        ("DeiT-Ti/16", {**small, "register_tokens": 1, "layer_scale": 0.1}),
        ("BoTNet-50", {"filters": 4, "blocks_per_stage": (1, 1), "num_heads": 2}),
        ("CoAtNet-0", {"dims": (8, 8, 8), "blocks_per_stage": (1, 1, 1), "attention_stages": 1, "head_dim": 4}),
    ):  # fmt: skip
        variables = build_model(variant, 3, 32, **options).trainable_variables
        optimizer = make_optimizer(
            recipe(weight_decay=0.1), make_schedule(recipe(), 10, 0), {}, variables, total=10
        )
        for variable in variables:
            (decayed if optimizer._use_weight_decay(variable) else spared).add(variable.path.split("/")[-1])
    assert decayed == {"kernel"}
    assert spared == {
        "bias", "beta", "gamma", "class_token", "distillation_token", "register_tokens", "position_embedding",
        "relative_bias", "relative_rows", "relative_columns", "scale",
    }  # fmt: skip


def test_layer_decay_falls_by_one_factor_for_each_block():
    model = build_model("ViT-Mi/4", 4, 8, hidden_dim=16, depth=2, num_heads=2, mlp_dim=16)
    factors = rate_factors(model, recipe(layer_decay=0.5, rates={"logits": 3.0}))
    found = {path.split("/")[0].replace("_attention", ""): factor for path, factor in factors.items()}
    assert found["patch_embedding"] == found["tokens"] == 0.5**3
    assert found["encoder_block_00"] == 0.5**2
    assert found["encoder_block_01"] == 0.5
    assert found["encoder_norm"] == 1
    assert found["logits"] == 3
    assert set(factors) == {v.path for v in model.trainable_variables}


def test_both_branches_of_a_parallel_block_have_one_factor():
    shape = {"filters": 8, "hidden_dim": 8, "num_heads": 2, "mlp_dim": 8, "depth": 3}
    model = build_model("Conformer-Ti", 4, 32, **shape)
    factors = rate_factors(model, recipe(layer_decay=0.5))
    found = {path.split("/")[0]: factor for path, factor in factors.items()}
    for block, expected in enumerate((0.5**3, 0.5**2, 0.5), start=1):
        own = {factor for name, factor in found.items() if name.startswith(f"stage{block}_block1_")}
        assert own == {expected}


# Losses, against torch's


def loss(targets, outputs, heads=1, weights=None, **changes):
    classes = 3
    return np.asarray(Objective(Single, recipe(**changes), weights, classes, heads).call(targets, outputs))


LABELS = random.dirichlet(np.ones(3), 8).astype("float32")
LOGITS, TOKEN, TAUGHT = (random.normal(size=(8, 3)).astype("float32") * 2 for _ in range(3))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_loss_is_torchs_cross_entropy_with_soft_labels(smoothing):
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(LABELS), label_smoothing=smoothing, reduction="none"
    )
    np.testing.assert_allclose(loss(LABELS, LOGITS, label_smoothing=smoothing), expected, rtol=1e-5)


def test_sigmoid_loss_is_torchs_binary_cross_entropy():
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS), torch.tensor(LABELS), reduction="none"
    ).mean(1)
    np.testing.assert_allclose(loss(LABELS, LOGITS, loss="sigmoid"), expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_is_that_of_plain_torch_and_cross_entropy_at_gamma_0(smoothing):
    targets = torch.tensor(LABELS) * (1 - smoothing) + smoothing / 3
    answered = torch.softmax(torch.tensor(LOGITS).double(), 1)
    expected = -(targets * (1 - answered) ** 2 * answered.log()).sum(1)
    focal = {"loss": "focal", "label_smoothing": smoothing}
    np.testing.assert_allclose(loss(LABELS, LOGITS, **focal), expected, rtol=1e-5)
    plain = loss(LABELS, LOGITS, label_smoothing=smoothing)
    np.testing.assert_allclose(loss(LABELS, LOGITS, **focal, focal_gamma=0.0), plain, rtol=1e-5)
    one, other = np.eye(3, dtype="float32")[[0, 2]][:, None].repeat(8, axis=1)
    mixed = loss(0.3 * one + 0.7 * other, LOGITS, **focal)
    both = 0.3 * loss(one, LOGITS, **focal) + 0.7 * loss(other, LOGITS, **focal)
    np.testing.assert_allclose(mixed, both, rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss_and_its_gradient_are_finite_for_certain_answers(gamma):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3, use_bias=False)])
    model.set_weights([np.eye(3, dtype="float32")])
    objective = Objective(Single, recipe(loss="focal", focal_gamma=gamma), None, 3, 1)
    model.compile(keras.optimizers.SGD(0.1), objective)
    certain = np.float32([[1000, 0, 0], [0, 1000, 0]])
    labels = np.float32([[1, 0, 0], [0.1, 0.2, 0.7]])
    assert np.isfinite(model.train_on_batch(certain, labels))
    assert np.isfinite(model.get_weights()[0]).all()


ROWS = np.repeat([0, 1, 2], [90, 9, 1])


def test_a_logit_adjustment_is_added_in_the_loss_of_the_labels_alone():
    adjusted = {"logit_adjustment": 1.5}
    added = logit_adjustment(recipe(**adjusted), ROWS, 3, None)
    np.testing.assert_allclose(added, 1.5 * np.log([0.9, 0.09, 0.01]), rtol=1e-6)
    objective = Objective(Single, recipe(**adjusted), None, 3, 1, added)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS + added), torch.tensor(LABELS), reduction="none"
    )
    np.testing.assert_allclose(np.asarray(objective.call(LABELS, LOGITS)), expected, rtol=1e-5)
    taught = recipe(**adjusted, distill=dataclasses.replace(DISTILL, weight=1.0))
    outputs = np.concatenate([LOGITS, TAUGHT], 1)
    np.testing.assert_allclose(
        np.asarray(Objective(Single, taught, None, 3, 1, added).call(LABELS, outputs)),
        loss(LABELS, outputs, distill=taught.distill),
    )
    assert logit_adjustment(recipe(), ROWS, 3, None) is None


def test_the_prior_of_a_logit_adjustment_is_that_of_the_targets():
    def prior(labels=ROWS, weights=None, classes=3, **changes):
        return np.exp(logit_adjustment(recipe(logit_adjustment=1.0, **changes), labels, classes, weights))

    one_hot = np.eye(3)[ROWS]
    np.testing.assert_allclose(prior(label_smoothing=0.1), (one_hot * 0.9 + 0.1 / 3).mean(0), rtol=1e-6)
    weights = np.linspace(0, 3, 100, dtype="float32")
    np.testing.assert_allclose(prior(weights=weights), weights @ one_hot / weights.sum(), rtol=1e-5)
    roots = np.sqrt([90, 9, 1])
    np.testing.assert_allclose(prior(sampler="sqrt"), roots / roots.sum(), rtol=1e-6)
    assert prior(classes=4)[3] == prior(classes=4)[2], "a class without an image counts like the rarest"


def test_a_training_draws_and_adjusts_by_its_uneven_labels(data, checkpoint):
    def labels(split):
        every = data.labels(split)
        return np.where(np.arange(len(every)) % 3, 0, every)

    uneven = dataclasses.replace(data)
    object.__setattr__(uneven, "labels", labels)
    made = recipe(logit_adjustment=1.0, sampler="sqrt", augmentation=())
    training = Training(tiny_model(), uneven, made, 3, checkpoint, Teacher())
    drawn = np.concatenate([y.argmax(1) for _, y in training.batches(range(4)).as_numpy_iterator()])
    roots = np.sqrt(np.bincount(labels("train"), minlength=4))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4), 40 * roots / roots.sum(), atol=1)
    adjusted = np.exp(training.objective.adjustment)[roots > 0]
    np.testing.assert_allclose(adjusted, (roots / roots.sum())[roots > 0], rtol=1e-5)


def test_every_loss_has_an_output_function():
    outputs = [task.outputs for task in TASKS.values()]
    assert set().union(*outputs) == set(get_args(get_type_hints(TrainConfig)["loss"]))


def test_newer_keys_with_their_defaults_change_no_train_key():
    defaults = train_params(recipe())
    assert not {"sampler", "focal_gamma", "logit_adjustment"} & defaults.keys()
    assert sha256_json(train_params(TrainConfig(epochs=1))).startswith("411a24a6b245f4b9"), (
        "what it was before these keys"
    )
    changed = train_params(recipe(sampler="sqrt", logit_adjustment=0.5))
    assert changed == defaults | {"sampler": "sqrt", "logit_adjustment": 0.5}
    assert train_params(recipe(loss="focal", focal_gamma=1.0))["focal_gamma"] == 1


def test_the_plan_names_the_keys_for_uneven_classes():
    def lines(**changes):
        return "\n".join(plan_lines(recipe(**changes), 40, ["logits"]))

    assert "  sampler: balanced, every class is drawn equally often\n" in lines(sampler="balanced")
    assert "  class_weights: balanced\n  loss: focal, gamma 1.5\n" in lines(
        class_weights="balanced", loss="focal", focal_gamma=1.5
    )
    assert "  logit_adjustment: 1 · log of each class's share" in lines(logit_adjustment=1.0, sampler="sqrt")
    assert all(key not in lines() for key in ("sampler", "class_weights", "focal", "logit_adjustment"))


def test_a_teacher_is_learned_from_at_a_temperature():
    def kl(student):
        log = torch.nn.functional.log_softmax
        divergence = torch.nn.functional.kl_div(
            log(torch.tensor(student) / 3, -1),
            log(torch.tensor(TAUGHT) / 3, -1),
            reduction="none",
            log_target=True,
        )
        return 9 * divergence.sum(1).numpy()

    soft = {"distill": dataclasses.replace(DISTILL, temperature=3.0, weight=0.25)}
    plain = loss(LABELS, LOGITS)
    on_the_way = loss(LABELS, np.concatenate([LOGITS, TAUGHT], 1), **soft)
    np.testing.assert_allclose(on_the_way, 0.75 * plain + 0.25 * kl(LOGITS), rtol=1e-4)
    beforehand = loss(np.concatenate([LABELS, TAUGHT], 1), LOGITS, **soft)
    np.testing.assert_allclose(beforehand, on_the_way, rtol=1e-6)
    with_token = loss(LABELS, np.concatenate([LOGITS, TOKEN, TAUGHT], 1), heads=2, **soft)
    np.testing.assert_allclose(with_token, 0.75 * plain + 0.25 * kl(TOKEN), rtol=1e-4)
    hard = loss(
        LABELS,
        np.concatenate([LOGITS, TAUGHT], 1),
        distill=dataclasses.replace(DISTILL, hard=True, weight=1.0),
    )
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(LOGITS), torch.tensor(TAUGHT.argmax(1)), reduction="none"
    )
    np.testing.assert_allclose(hard, expected, rtol=1e-5)


def test_balanced_weights_are_inverse_to_the_classes_and_one_on_average():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(Single, "balanced", ["a", "b", "c"], labels)
    np.testing.assert_allclose(weights * np.bincount(labels), np.full(3, 10 / 3), rtol=1e-6)
    assert weights[labels].mean() == pytest.approx(1)
    np.testing.assert_array_equal(
        class_weights(Single, {"b": 2.0, "a": 1.0, "c": 0.5}, ["a", "b", "c"], labels), [1, 2, 0.5]
    )
    one_hot = np.eye(3, dtype="float32")[[2, 0, 1, 1, 0, 2, 0, 1]]
    np.testing.assert_allclose(
        loss(one_hot, LOGITS, weights=weights), loss(one_hot, LOGITS) * weights[one_hot.argmax(1)], rtol=1e-5
    )
    with pytest.raises(ConfigError, match="expected one weight for each of a, b, c; received a, b"):
        class_weights(Single, {"a": 1.0, "b": 1.0}, ["a", "b", "c"], labels)


def test_a_weight_multiplies_the_loss_of_its_image_and_no_metric(data, checkpoint, monkeypatch):
    weights = np.float32([0.0, 0.5, 1.0, 3.0] * 10)
    monkeypatch.setattr(type(data), "weights", lambda self: weights)
    images = keras.Input((*SIZE, 3))
    model = keras.Model(images, keras.layers.Dense(4, name="logits")(keras.layers.Flatten()(images)))
    logits = np.asarray(model(data.images("train").astype(np.float32)))
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(logits), torch.tensor(data.labels("train"), dtype=torch.long), reduction="none"
    ).numpy()
    (row,) = fit(
        model, data, recipe(epochs=1, batch_size=40, learning_rate=1e-9), 0, checkpoint, lambda row: None
    )
    assert row["loss"] == pytest.approx((weights * losses).mean(), rel=1e-4)
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == data.labels("train")).mean())


# The moving average


def test_the_average_follows_its_formula_and_takes_the_statistics_along(data, checkpoint):
    model = tiny_model()
    training = Training(model, data, recipe(ema_decay=0.6, epochs=1), 3, checkpoint, Teacher())
    assert isinstance(training.trained, AveragedModel)
    expected, raw = [v.numpy() for v in training.trained.sources], []
    observe = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: raw.append([v.numpy() for v in training.trained.sources])
    )
    training.start_phase(0)
    images = data.images("train").astype("float32")
    training.trained.fit(
        images, np.eye(4)[data.labels("train")], batch_size=10, callbacks=[observe], verbose=0
    )
    for step, values in enumerate(raw, start=1):
        kept = min(0.6, (1 + step) / (10 + step))
        expected = [kept * a + (1 - kept) * v for a, v in zip(expected, values, strict=True)]
    assert len(raw) == 4
    for average, value in zip(training.trained.averages, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), value, atol=1e-6)
    own = [v.numpy() for v in model.weights]
    with training.trained.averages_in_place():
        np.testing.assert_allclose(model.weights[0].numpy(), expected[0], atol=1e-6)
    assert all((v.numpy() == value).all() for v, value in zip(model.weights, own, strict=True))


# Budgets, phases, what is kept


@pytest.mark.parametrize(("budget", "epochs"), [({"epochs": 3}, 3), ({"steps": 6}, 2), ({"steps": 4}, 1)])
def test_a_training_ends_after_its_steps(data, checkpoint, budget, epochs):
    _, history = train(data, checkpoint, **budget)
    assert [row["epoch"] for row in history] == list(range(1, epochs + 1))
    steps = budget.get("steps", 4 * budget.get("epochs", 0))
    assert checkpoint.read()[0].step == steps


@pytest.mark.slow
def test_a_training_ends_after_its_minutes(data, checkpoint):
    start = time.perf_counter()
    _, history = train(data, checkpoint, minutes=0.25)
    seconds = time.perf_counter() - start
    assert len(history) > 10, "the first epoch, which compiles, does not count as the speed of the others"
    assert 12 < seconds < 25, "it is planned anew after every epoch"
    assert history[-1]["learning_rate"] < 0.002, "the schedule ends with the time"


def test_minutes_end_a_training_within_its_first_epoch_that_is_measured_without_a_seam(
    data, checkpoint, tmp_path, monkeypatch
):
    from visionpipe.training import watch

    original = watch.Watch.on_train_batch_begin

    def slow(self, batch, logs=None):
        time.sleep(0.1)
        original(self, batch, logs)

    monkeypatch.setattr(watch.Watch, "on_train_batch_begin", slow)
    # The first step, which compiles, is spent too.
    one = {"batch_size": 1, "schedule": "constant", "warmup": 0.0}
    _, history = train(data, checkpoint, minutes=0.06, **one)
    steps = checkpoint.read()[0].step
    assert len(history) == 1
    assert 20 <= steps < 40, "an epoch has 40 steps, of which 4 seconds pass for the waiting alone"
    monkeypatch.undo()
    _, expected = train(data, Checkpoint(tmp_path / "in one go"), steps=steps, **one)
    for key in ("loss", "accuracy", "val_loss"):
        assert history[0][key] == expected[0][key]


def test_frozen_phases_train_their_layers_alone_and_leave_statistics(data, checkpoint):
    model = tiny_model()
    seen = [{v.path: v.numpy() for v in model.weights}]

    def report(row):
        seen.append({v.path: v.numpy() for v in model.weights})

    freeze = (FREEZE, FreezeConfig(epochs=1, train=("hidden", "logits")))
    fit(model, data, recipe(epochs=3, freeze=freeze, learning_rate=0.05), 3, checkpoint, report)
    changed = [
        {path.split("/")[0] for path, value in after.items() if (value != before[path]).any()}
        for before, after in itertools.pairwise(seen)
    ]
    assert changed == [{"logits"}, {"hidden", "logits"}, {"norm", "hidden", "logits"}]


def test_after_a_training_no_layer_is_frozen(data, checkpoint):
    model, _ = train(data, checkpoint, steps=5, freeze=(FREEZE,))
    assert all(layer.trainable for layer in model.layers)


@pytest.mark.parametrize("signalled", [False, True], ids=["killed", "signalled"])
def test_interrupted_between_two_phases_it_ends_at_the_same_weights(data, checkpoint, tmp_path, signalled):
    """The checkpoint at the end of a phase has the optimizer of that phase; one that a signal asks for, the next's."""
    from visionpipe.training import watch

    changes = {"epochs": 3, "freeze": (FREEZE,), "ema_decay": 0.9}
    whole, history = train(data, Checkpoint(tmp_path / "whole"), **changes)
    original = watch.Watch.on_train_batch_begin

    def stop(self, batch, logs=None):
        if self.steps[batch] == 4:  # the first one with all layers
            if not signalled:
                raise KeyError("killed")
            self.training.interruption.arrived = signal.SIGTERM
        original(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch.Watch, "on_train_batch_begin", stop)
        with pytest.raises(Interrupted if signalled else KeyError):
            train(data, checkpoint, **changes)
    assert checkpoint.read()[0].step == 4
    assert checkpoint.read()[0].phase == (4 if signalled else 0)
    again, rest = train(data, checkpoint, **changes)
    for key in ("loss", "val_loss", "learning_rate"):
        assert [row[key] for row in rest] == [row[key] for row in history]
    for mine, theirs in zip(again.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_a_rate_for_layers_that_are_not_there_is_refused(data, checkpoint):
    with pytest.raises(
        TrainingError, match=r"train.rates: no layer begins with head.*; the layers begin with .*logits"
    ):
        train(data, checkpoint, rates={"head": 2.0})


def test_a_phase_that_trains_no_layer_names_those_there_are(data, checkpoint):
    later = dataclasses.replace(FREEZE, train=("logits", "head"))
    with pytest.raises(TrainingError, match=r"no layer begins with head.*; the layers begin with .*logits"):
        train(data, checkpoint, epochs=3, freeze=(FREEZE, later))
    assert checkpoint.read() is None, "it was refused before the first phase"


def test_the_best_epoch_is_kept_and_patience_ends_the_training(data, checkpoint):
    # A rate at which the accuracy falls again.
    model, history = train(
        data,
        checkpoint,
        epochs=30,
        patience=2,
        keep="best",
        learning_rate=0.5,
        schedule="constant",
        optimizer="sgd",
    )
    accuracies = [row["val_accuracy"] for row in history]
    assert len(history) < 30
    assert len(history) - 1 - int(np.argmax(accuracies)) == 2
    answers = model.predict(data.images("validation").astype("float32"), verbose=0).argmax(1)
    assert (answers == data.labels("validation")).mean() == pytest.approx(max(accuracies))


# Distillation


def test_a_teachers_answers_are_the_same_beforehand_and_on_the_way(data, tmp_path):
    teacher, _ = train(data, Checkpoint(tmp_path / "teacher"), model=tiny_model(dropout_rate=0.5), epochs=3)
    teacher.trainable = False
    logits = teacher_logits(teacher, data.images("train"), tmp_path / "logits.npy")
    results = [
        train(data, Checkpoint(tmp_path / str(number)), taught, distill=DISTILL)
        for number, taught in enumerate((Teacher(model=teacher), Teacher(logits=logits)))
    ]
    (one, _), (other, _) = results
    for mine, theirs in zip(one.weights, other.weights, strict=True):
        np.testing.assert_allclose(mine.numpy(), theirs.numpy(), atol=1e-4)
    answers = teacher.predict(data.images("train").astype("float32"), verbose=0)
    np.testing.assert_allclose(logits, answers, atol=1e-4)


def test_a_teacher_of_other_classes_or_another_size_is_refused(data, tmp_path):
    file = tmp_path / "model.keras"
    save_keras(tiny_model(), file)
    paths = [{v.path for v in model.variables} for model in (load_teacher(file, data), tiny_model())]
    assert not paths[0] & paths[1], "on torch gradients would not be zeroed"
    (tmp_path / "lineage.json").write_text(json.dumps({"classes": data.classes}))
    assert not load_teacher(file, data).trainable
    (tmp_path / "lineage.json").write_text(json.dumps({"classes": data.classes[::-1]}))
    with pytest.raises(TrainingError, match=r"has other classes: stripes, .*; the student has blue, "):
        load_teacher(file, data)
    save_keras(build_model("ResNet-8", 4, 16), file)
    with pytest.raises(TrainingError, match=r"images of \(16, 16, 3\); the student has"):
        load_teacher(file, data)


def test_without_a_teacher_both_heads_of_a_distilled_vit_learn_the_labels(data, checkpoint):
    small = {"patch_size": 8, "hidden_dim": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
    model = build_model("DeiT-Ti/16", 4, SIZE, **small)
    before = {v.path: v.numpy() for v in model.weights}
    train(data, checkpoint, model=model, epochs=3)
    moved = {path for path, value in before.items() if (model_weight(model, path) != value).any()}
    assert {"logits_class/kernel", "logits_distillation/kernel"} <= moved
    labels, outputs = np.eye(4, dtype="float32")[[0, 1]], random.normal(size=(2, 8)).astype("float32")
    both = [cross_entropy(labels, outputs[:, :4]), cross_entropy(labels, outputs[:, 4:])]
    objective = Objective(Single, recipe(), None, 4, heads=2)
    assert float(objective(labels, outputs)) == pytest.approx(np.mean(both), rel=1e-5)


def model_weight(model, path):
    return next(v.numpy() for v in model.weights if v.path == path)


def cross_entropy(labels, logits):
    return -(labels * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()


# When something goes wrong


def test_weights_that_are_not_finite_end_the_training_and_are_not_saved(data, checkpoint, monkeypatch):
    from visionpipe.training import watch

    original = watch.Watch.on_train_batch_begin

    def spoil(self, batch, logs=None):
        if self.steps[batch] == 6:
            self.model.trainable_variables[0].assign(np.full(self.model.trainable_variables[0].shape, np.nan))
        original(self, batch, logs)

    monkeypatch.setattr(watch.Watch, "on_train_batch_begin", spoil)
    with pytest.raises(
        TrainingError, match="became NaN or infinite before step 6, so they were not saved: lower"
    ):
        train(data, checkpoint, epochs=5, checkpoint_steps=1)
    progress, arrays = checkpoint.read()
    assert progress.step == 5
    assert all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")


def test_a_loss_that_is_not_finite_ends_the_training(data, checkpoint):
    with pytest.raises(
        TrainingError, match=r"the loss became .* in epoch 1, so the epoch was not saved: lower"
    ):
        train(data, checkpoint, learning_rate=1e30, optimizer="sgd", epochs=5, warmup=0.0)
    assert checkpoint.read() is None


def ask_tensorflow():
    import tensorflow as tf

    tf.zeros((10**6, 10**7))


def ask_torch():
    import torch

    torch.empty(10**14)


def ask_jax():
    import jax

    jax.numpy.zeros((10**6, 10**7)).block_until_ready()


@pytest.mark.parametrize("ask", [ask_tensorflow, ask_torch, ask_jax])
def test_every_backends_refusal_of_memory_suggests_a_batch_size(data, checkpoint, monkeypatch, ask):
    with pytest.raises(Exception, match=r"(?i)memory|alloc|exhausted") as refusal:
        ask()  # once: TensorFlow takes ten seconds to say no
    monkeypatch.setattr(Training, "run", Mock(side_effect=refusal.value))
    for changes, advice in (
        ({}, "try 5, with train.accumulate: 2 for the same update"),
        ({"batch_size": 6, "repeated_augmentation": 2}, "try 2, with train.accumulate: 2"),
        ({"batch_size": 1}, "no batch can be smaller; try a smaller variant, or smaller images"),
    ):
        with pytest.raises(TrainingError, match=rf"out of memory at train.batch_size \d+: {advice}"):
            train(data, checkpoint, **changes)


def test_a_signal_during_the_last_validation_is_not_forgotten(data, checkpoint, tmp_path, monkeypatch):
    whole, history = train(data, Checkpoint(tmp_path / "whole"), epochs=2)
    original = Training.finish_epoch

    def finish_epoch(self, epoch, logs):
        if epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "finish_epoch", finish_epoch)
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(data, checkpoint, epochs=2)
    again, rest = train(data, checkpoint, epochs=2)
    assert [row["val_loss"] for row in rest] == [row["val_loss"] for row in history]
    for mine, theirs in zip(again.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_a_damaged_checkpoint_is_not_used_and_the_one_before_it_is(data, checkpoint, capsys):
    train(data, checkpoint, epochs=2)
    newest, before = checkpoint.files()
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert checkpoint.read()[0].step == 4
    assert f"{newest.name} is damaged" in capsys.readouterr().out
    assert checkpoint.files() == [before]
    newest.write_bytes(content[:100])
    assert checkpoint.read()[0].step == 4
    before.write_bytes(b"")
    assert checkpoint.read() is None


def test_what_a_killed_process_left_goes_away_and_what_a_living_one_writes_stays(checkpoint, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, other = (tmp_path / temporary_name(Path("a.json"), number) for number in (ended.pid, os.getppid()))
    for file in (left, other):
        file.write_text("half of")
    write_json(tmp_path / "a.json", {"whole": True})
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "a.json"]
    checkpoint.folder.mkdir()
    (checkpoint.folder / f".step-0000000004.checkpoint.{ended.pid}.tmp").write_text("half of")
    assert checkpoint.read() is None
    assert list(checkpoint.folder.iterdir()) == []


def test_a_full_disk_costs_a_checkpoint_and_not_the_training(data, checkpoint, monkeypatch, capsys):
    write = np.savez

    def full_after_the_first(file, **arrays):
        if not checkpoint.files():
            return write(file, **arrays)
        file.write(b"some of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez", full_after_the_first)
    _, history = train(data, checkpoint, epochs=2)
    assert len(history) == 2
    assert (
        "no checkpoint was written at step 8: [Errno 28] No space left on device" in capsys.readouterr().out
    )
    assert list(checkpoint.folder.iterdir()) == checkpoint.files()
    assert checkpoint.read()[0].step == 4


def test_a_signal_leaves_a_checkpoint_from_which_the_training_ends_at_the_same_weights(
    data, checkpoint, tmp_path
):
    whole, history = train(data, Checkpoint(tmp_path / "whole"), epochs=3, ema_decay=0.9)
    training_steps = []

    def stop_at(step):
        while not training_steps or training_steps[-1] < step:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    from visionpipe.training import watch

    original = watch.Watch.on_train_batch_begin

    def slow(self, batch, logs=None):
        training_steps.append(self.steps[batch])
        time.sleep(0.05)
        original(self, batch, logs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch.Watch, "on_train_batch_begin", slow)
        threading.Thread(target=stop_at, args=(5,)).start()
        with pytest.raises(Interrupted, match="SIGTERM"):
            train(data, checkpoint, epochs=3, ema_decay=0.9)
    stopped = checkpoint.read()[0].step
    assert 5 <= stopped <= 7
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    again, rest = train(data, checkpoint, epochs=3, ema_decay=0.9)
    assert [row["loss"] for row in rest] == [row["loss"] for row in history]
    for mine, theirs in zip(again.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_progress_survives_its_file(checkpoint):
    progress = Progress(7, 9, 1.5, {"loss": 0.1}, [{"epoch": 1.0}], [np.arange(3.0)], 4)
    checkpoint.save([keras.Variable(2.0)], progress)
    found, (array,) = checkpoint.read()
    assert dataclasses.replace(found, best=[]) == dataclasses.replace(progress, best=[])
    np.testing.assert_array_equal(found.best[0], np.arange(3.0))
    assert array == 2


# Recipes by name


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_recipe_that_its_keys_override(preset):
    params = make_params("x", ["one"])
    common = {"epochs": 1, "batch_size": 7, "repeated_augmentation": 1}
    models = {"one": ModelConfig("ResNet-8", "", train={"preset": preset, "steps": 90, "batch_size": 30})}
    made = dataclasses.replace(params, train=common, models=models).train_config("one")
    assert (made.epochs, made.steps, made.batch_size) == (None, 90, 30)
    assert made.learning_rate == PRESETS[preset]["learning_rate"]


# Plans: what fits into a training, and what does not. The set has 40 images: 4 steps of 10.

MIXUP = {"name": "mixup"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 4, "freeze": (FREEZE,)}, "freeze: phases of 1 epoch are too long"),
        ({"steps": 3, "warmup": "1 epoch"}, "1 epoch is too long: the training ends after 3 steps .4 in an epoch."),
        ({"epochs": 2, "warmup": "8 steps"}, "8 steps is too long: the training ends after 8 steps .4 in an epoch."),
        ({"epochs": 1, "accumulate": 100}, "accumulate: 100 steps make one update, but the training has only 4"),
        ({"epochs": 3, "accumulate": 5, "freeze": (FREEZE,)}, "5 steps make one update, but a phase has only 4"),
        ({"schedule": "step", "decay_at": ("8 steps",)}, "decay_at: 8 steps is too late: the training ends after 8"),
        ({"steps": 8, "augmentation": ({**MIXUP, "off_epoch": 2},)}, r"\[0\].off_epoch: 2 is too late"),
        ({"augmentation": ({**MIXUP, "off_epoch": 0},)}, r"augmentation\[0\].off_epoch: 0: mixup would never mix"),
        ({"batch_size": 1, "augmentation": (MIXUP,)}, r"\[0\]: mixup has nothing to mix with in a batch of one"),
    ],
)  # fmt: skip
def test_what_would_come_after_the_end_of_the_training_is_refused(data, checkpoint, changes, message):
    with pytest.raises(ConfigError, match=f"train.*{message}"):
        train(data, checkpoint, **changes)
    assert checkpoint.read() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power": 2.0}, "power: has no effect with schedule: cosine"),
        ({"schedule": "constant", "final_rate": 0.1}, "final_rate: has no effect with schedule: constant"),
        ({"decay_at": (0.1,)}, "decay_at: has no effect"),
        ({"focal_gamma": 1.0}, "focal_gamma: has no effect with loss: softmax: leave it out"),
        ({"focal_gamma": -1.0, "loss": "focal"}, "focal_gamma: must be finite and not negative"),
        ({"sampler": "sqrt", "class_weights": "balanced"}, "class_weights: balanced would correct"),
        ({"sampler": "balanced", "logit_adjustment": 1.0}, "logit_adjustment: has no effect with sampler: balanced"),
        ({"loss": "focal", "logit_adjustment": 1.0}, "logit_adjustment: is for loss: softmax, not focal"),
        ({"loss": "sigmoid", "logit_adjustment": 1.0}, "logit_adjustment: is for loss: softmax, not sigmoid"),
        ({"class_weights": {"a": 1.0}, "logit_adjustment": 1.0}, "logit_adjustment: would correct the classes"),
        ({"distill": DistillConfig("x", temperature=3.0, hard=True)}, "distill.temperature: has no effect with hard"),
    ],
)  # fmt: skip
def test_a_value_that_nothing_reads_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)


def test_an_entry_with_another_schedule_leaves_behind_what_the_common_one_reads():
    common = {"epochs": 9, "final_rate": 0.1, "warmup": 0.2}
    assert layered(common, {"schedule": "step", "decay_factor": 0.5}).keys() == {
        "epochs", "warmup", "schedule", "decay_factor"
    }  # fmt: skip
    assert layered(common, {"schedule": "polynomial"})["final_rate"] == 0.1
    focal = {"loss": "focal", "focal_gamma": 1.0}
    assert layered(focal, {"loss": "softmax"}) == {"loss": "softmax"}
    assert layered(focal, {"loss": "focal"}) == layered(focal, {}) == focal


def test_minutes_that_end_in_a_frozen_phase_are_refused_when_that_is_known(data, checkpoint):
    with pytest.raises(
        ConfigError, match=r"too long: the training ends after \d+ steps that fit into 0.001 minutes"
    ):
        train(data, checkpoint, minutes=0.001, freeze=(dataclasses.replace(FREEZE, epochs=100),))


def test_a_phase_shorter_than_the_warm_up_still_reaches_its_rate():
    made = recipe(epochs=10, learning_rate=2.0, warmup="8 steps", schedule="constant", freeze=(FREEZE,))
    schedule = make_schedule(made, 4, 0, 4)
    np.testing.assert_allclose([float(schedule(step, 40)) for step in range(4)], [0.5, 1.0, 1.5, 2.0])
    schedule = make_schedule(made, 4, 4)
    np.testing.assert_allclose([float(schedule(step, 40)) for step in (0, 7, 20)], [0.25, 2.0, 2.0])


def test_the_steps_that_are_left_make_an_update_of_their_own():
    values, gradients = variables_and_gradients(4)
    kept = {
        "optimizer": "sgd",
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.1,
        "clip_norm": 100.0,
    }

    def after(gradients, **changes):
        variables = [keras.Variable(v, name=name) for v, name in zip(values, ("kernel", "bias"), strict=True)]
        made = recipe(**kept, **changes)
        optimizer = make_optimizer(made, make_schedule(made, 10, 0), {}, variables, 4, phase_steps=4)
        for step in gradients:
            optimizer.apply([keras.ops.convert_to_tensor(g) for g in step], variables)
        return [v.numpy() for v in variables]

    mean = [sum(parts) / 3 for parts in zip(*gradients[:3], strict=True)]
    for ours, wanted in zip(after(gradients, accumulate=3), after([mean, gradients[3]]), strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def plain_model():
    """Without statistics, which a batch of four times as many images would see otherwise."""
    keras.utils.set_random_seed(0)
    images = keras.Input((*SIZE, 3))
    x = keras.layers.Flatten()(Rescaling([1 / 128] * 3, [-1.0] * 3)(images))
    return keras.Model(images, keras.layers.Dense(4, name="logits")(x))


def test_the_average_of_accumulated_steps_is_that_of_their_updates(data, tmp_path):
    common = {"schedule": "constant", "warmup": 0.0, "optimizer": "sgd", "ema_decay": 0.8, "epochs": 3}
    found = [
        train(data, Checkpoint(tmp_path / str(size)), model=plain_model(), batch_size=size, accumulate=20 // size,
              **common)[0].get_weights()
        for size in (20, 5)
    ]  # fmt: skip
    for ours, wanted in zip(*found, strict=True):
        np.testing.assert_allclose(ours, wanted, atol=1e-6)
    assert np.abs(found[0][0] - plain_model().get_weights()[0]).max() > 1e-3


def test_epochs_of_a_frozen_phase_do_not_count_for_patience(data, checkpoint):
    freeze = (dataclasses.replace(FREEZE, epochs=4),)
    _, history = train(data, checkpoint, epochs=9, patience=1, freeze=freeze, learning_rate=1e-9)
    assert len(history) == 6, "two epochs of the whole model, of which the second is not better"


def test_layers_are_named_by_whole_words():
    for name, words, said in (
        ("encoder_block_01", "encoder_block_01", True), ("encoder_block_01_mlp", "encoder_block_01", True),
        ("encoder_block_10", "encoder_block_1", False), ("stage1_block10_conv1", "stage1_block1", False),
        ("pre_logits", "logits", False), ("encoder_norm", "encoder_", True), ("logits", "", False),
    ):  # fmt: skip
        assert begins_with(name, words) == said, (name, words)


def test_a_plan_says_phases_rates_and_what_was_fitted():
    names = ["patch_embedding", "encoder_block_00", "encoder_block_01", "encoder_norm", "logits"]
    made = recipe(
        epochs=3, batch_size=64, warmup="20 steps", schedule="constant", layer_decay=0.5, freeze=(FREEZE,),
        rates={"logits": 3.0}, accumulate=1,
    )  # fmt: skip
    assert list(plan_lines(made, 40, names)) == [
        "  40 training images: 1 step per epoch, 3 in all",
        "  batch_size: 64 is more than the 40 images; 40 is used",
        "  warmup: 20 steps are shortened to the 1 step of the phase from step 1",
        "  warmup: 20 steps are shortened to the 2 steps of the phase from step 2",
        "  steps 1 to 1: logits",
        "    rate: up to 0.03, at the end 0.03",
        "  steps 2 to 3: all layers",
        "    patch_embedding: up to 0.00125, at the end 0.00125",
        "    encoder_block_00: up to 0.0025, at the end 0.0025",
        "    encoder_block_01: up to 0.005, at the end 0.005",
        "    encoder_norm: up to 0.01, at the end 0.01",
        "    logits: up to 0.03, at the end 0.03",
    ]
    before = list(plan_lines(recipe(epochs=3, freeze=(FREEZE,)), None, names))
    assert before[0].endswith("is known only after the stage prepare")
    assert [line.split(":")[0] for line in before[1::2]] == ["  epochs 1 to 1", "  epochs 2 to 3"]
    assert [line.split(",")[0] for line in plan_lines(recipe(minutes=2.0), None, names)][1:] == [
        "  epochs 1 to the end", "    rate: up to 0.01"
    ]  # fmt: skip
    assert list(plan_lines(recipe(minutes=2.0, freeze=(FREEZE,)), 640, names))[1:] == [
        "  steps 1 to 64: logits", "    rate: up to 0.01",
        "  steps 65 to the end, after 2.0 minutes: all layers", "    rate: up to 0.01",
    ]  # fmt: skip


def test_half_precision_sees_the_pixels_as_float32_normalises_them():
    pixels = np.linspace(220, 240, 41, dtype="float32").reshape(-1, 1, 1, 1).repeat(3, -1)
    layer = Rescaling([1 / 3.3] * 3, [-230 / 3.3] * 3, dtype="mixed_bfloat16")
    seen = np.asarray(keras.ops.cast(layer(pixels), "float32"))
    np.testing.assert_allclose(seen, (pixels - 230) / 3.3, rtol=2**-8, atol=1e-4)
