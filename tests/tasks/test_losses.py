"""Compares the losses of several labels with plain PyTorch in double precision."""

import numpy as np
import pytest
import torch

from visionpipe.tasks import losses
from visionpipe.tasks.multi import Multi
from visionpipe.training.loss import Objective
from visionpipe.training.recipe import DistillConfig, TrainConfig

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(0, 3, (40, 6)).astype(np.float32)
LABELS = RANDOM.integers(-1, 2, (40, 6))
POSITIVES, NEGATIVES = ((value == LABELS).astype(np.float32) for value in (1, 0))
SUM = POSITIVES + NEGATIVES
KNOWN = torch.tensor(LABELS >= 0)


def mean_of_known(table):
    """The mean over the known labels of each image, by masking."""
    return np.array([row[known].mean().item() for row, known in zip(table, KNOWN, strict=True)])


def of_torch(gamma_present=0.0, gamma_absent=0.0, margin=0.0):
    logits, present = torch.tensor(LOGITS, dtype=torch.float64), torch.tensor(LABELS == 1)
    shares = torch.sigmoid(logits)
    shifted = (shares - margin).clamp(min=0)
    return torch.where(
        present,
        -((1 - shares) ** gamma_present) * torch.log(shares),
        -(shifted**gamma_absent) * torch.log(1 - shifted),
    )


def test_binary_is_torchs_cross_entropy_of_the_known_labels():
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS), torch.tensor(POSITIVES), reduction="none"
    )
    received = np.asarray(losses.binary(POSITIVES, NEGATIVES, SUM, LOGITS))
    np.testing.assert_allclose(received, mean_of_known(expected), rtol=1e-5)


def test_focal_and_asymmetric_are_those_of_the_papers():
    received = np.asarray(losses.binary(POSITIVES, NEGATIVES, SUM, LOGITS, 2.0))
    np.testing.assert_allclose(received, mean_of_known(of_torch(2, 2)), rtol=1e-4, atol=1e-6)
    received = np.asarray(losses.asymmetric(POSITIVES, NEGATIVES, SUM, LOGITS, 1.0, 4.0, 0.05))
    np.testing.assert_allclose(received, mean_of_known(of_torch(1, 4, 0.05)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [losses.binary, lambda *a: losses.asymmetric(*a, 1.0, 4.0, 0.05)])
def test_an_image_of_which_nothing_is_known_teaches_nothing(loss):
    nothing = np.zeros_like(LOGITS)
    np.testing.assert_array_equal(np.asarray(loss(nothing, nothing, nothing, LOGITS)), 0)


def test_smoothing_is_torchs_cross_entropy_with_softer_targets():
    soft = losses.smoothed(POSITIVES, NEGATIVES, 0.2)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor(LOGITS), torch.tensor(POSITIVES * 0.8 + 0.1), reduction="none"
    )
    np.testing.assert_allclose(
        np.asarray(losses.binary(*soft, SUM, LOGITS)), mean_of_known(expected), rtol=1e-5
    )


def test_the_divergence_of_sigmoids_is_that_of_pairs_of_probabilities():
    teacher = RANDOM.normal(0, 3, LOGITS.shape).astype(np.float32)
    p, q = (torch.sigmoid(torch.tensor(x, dtype=torch.float64) / 2) for x in (teacher, LOGITS))
    expected = 4 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean(1)
    received = np.asarray(losses.binary_divergence(LOGITS, teacher, 2.0))
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("beforehand", [True, False])
@pytest.mark.parametrize("hard", [True, False])
def test_a_student_learns_the_known_labels_and_all_answers_of_its_teacher(hard, beforehand):
    """Of a label that nobody knows the teacher's answer is all that there is to learn."""
    temperature = 1.0 if hard else 2.0
    teacher = RANDOM.normal(0, 3, LOGITS.shape).astype(np.float32)
    distill = DistillConfig("other", temperature=temperature, weight=0.3, hard=hard)
    objective = Objective(Multi, TrainConfig(loss="sigmoid", distill=distill), None, LOGITS.shape[1], 1)
    targets = Multi.targets(LABELS.astype(np.int8), LOGITS.shape[1])
    beside = (targets, np.concatenate([LOGITS, teacher], axis=1))
    received = objective.call(
        *((np.concatenate([targets, teacher], axis=1), LOGITS) if beforehand else beside)
    )

    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    answers = torch.tensor(teacher, dtype=torch.float64)
    labels = torch.tensor(np.maximum(LABELS, 0), dtype=torch.float64)
    supervised = (entropy(logits, labels, reduction="none") * KNOWN).sum(1) / KNOWN.sum(1).clamp(min=1)
    if hard:
        taught = entropy(logits, (answers.sigmoid() >= 0.5).double(), reduction="none").mean(1)
    else:
        shares = (answers / temperature).sigmoid()
        least = torch.distributions.Bernoulli(shares).entropy()
        cross = entropy(logits / temperature, shares, reduction="none")
        taught = temperature**2 * (cross - least).mean(1)
    expected = 0.7 * supervised + 0.3 * taught
    np.testing.assert_allclose(np.asarray(received), expected.detach(), rtol=1e-4, atol=1e-5)
