"""Compares every metric with scikit-learn, a closed form or plain loops."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    log_loss,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from visionpipe.evaluation import metrics


def random_predictions(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Makes predictions that are better than chance but badly calibrated; the last class is the rarest."""
    random = np.random.default_rng(seed)
    labels = np.minimum(random.integers(0, classes, images), random.integers(0, classes, images))
    logits = random.normal(0, 1.5, (images, classes))
    logits[np.arange(images), labels] += 1.5
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(axis=1, keepdims=True), labels.astype(np.int32)


def names(count: int) -> list[str]:
    return [f"class {index}" for index in range(count)]


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_metrics_equal_those_of_scikit_learn(classes):
    probabilities, labels = random_predictions(500, classes)
    predicted, everything = probabilities.argmax(axis=1), range(classes)
    report = metrics.classification_metrics(probabilities, labels, names(classes), bins=15)
    _, recall, f1, _ = precision_recall_fscore_support(labels, predicted, labels=everything, zero_division=0)
    assert report["accuracy"] == accuracy_score(labels, predicted)
    balanced = balanced_accuracy_score(labels, predicted)
    assert report["balanced_accuracy"] == pytest.approx(balanced, rel=1e-12)
    assert report["macro_f1"] == pytest.approx(f1.mean(), rel=1e-12)
    assert report["worst_recall"] == pytest.approx(recall.min(), rel=1e-12)
    assert report["worst_class"] == f"class {recall.argmin()}"
    assert report["nll"] == pytest.approx(log_loss(labels, probabilities, labels=everything), rel=1e-12)
    assert report["images"] == 500
    if classes > 5:
        top5 = top_k_accuracy_score(labels, probabilities, k=5, labels=everything)
        assert report["top5_accuracy"] == pytest.approx(top5, rel=1e-12)
    else:
        assert "top5_accuracy" not in report


def test_the_table_by_class_equals_that_of_scikit_learn():
    probabilities, labels = random_predictions(300, 7)
    predicted = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predicted, 7)
    np.testing.assert_array_equal(confusion, confusion_matrix(labels, predicted, labels=range(7)))
    expected = precision_recall_fscore_support(labels, predicted, labels=range(7), zero_division=0)
    table = metrics.per_class(confusion, names(7))
    for key, values in zip(["precision", "recall", "f1", "support"], expected, strict=True):
        np.testing.assert_allclose([row[key] for row in table.values()], values, rtol=1e-12)


def test_a_class_without_examples_has_no_numbers_and_counts_in_no_average():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2]])
    table = metrics.per_class(metrics.confusion_matrix(labels, probabilities.argmax(axis=1), 3), names(3))
    assert table["class 2"] == {"precision": None, "recall": None, "f1": None, "support": 0}
    assert table["class 0"] == {"precision": 1.0, "recall": 0.5, "f1": 2 / 3, "support": 2}
    report = metrics.classification_metrics(probabilities, labels, names(3), bins=10)
    assert report["balanced_accuracy"] == pytest.approx((1 / 2 + 1) / 2)
    assert report["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    assert (report["worst_recall"], report["worst_class"]) == (0.5, "class 0")


def test_a_class_that_is_never_predicted_has_precision_zero():
    table = metrics.per_class(np.array([[3, 0], [2, 0]]), names(2))
    assert table["class 1"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}


def test_the_confusion_matrix_has_the_true_class_in_its_rows():
    matrix = metrics.confusion_matrix(np.array([0, 0, 1]), np.array([1, 1, 0]), 3)
    np.testing.assert_array_equal(matrix, [[0, 2, 0], [1, 0, 0], [0, 0, 0]])


def test_ties_do_not_flatter_the_top_five():
    """If all ten classes are equally likely, the first five count as the top five, not all ten."""
    assert metrics.top_accuracy(np.full((10, 10), 0.1), np.arange(10), 5) == 0.5


def test_calibration_error_by_hand():
    """Bin (0, ½] holds 0.5 (wrong); bin (½, 1] holds 0.6 and 0.8 (right) and 0.7 (wrong)."""
    confidence = np.array([0.5, 0.6, 0.8, 0.7])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    calibration = metrics.calibration(probabilities, np.array([1, 0, 0, 1]), bins=2)
    np.testing.assert_array_equal(calibration.counts, [1, 3])
    np.testing.assert_allclose(calibration.confidences, [0.5, 0.7])
    np.testing.assert_allclose(calibration.accuracies, [0, 2 / 3])
    assert calibration.error == pytest.approx(0.25 * 0.5 + 0.75 * (0.7 - 2 / 3))


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_calibration_error_equals_a_loop_over_the_bins(bins):
    probabilities, labels = random_predictions(400, 4)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    expected = 0.0
    for index in range(bins):
        inside = (confidence > index / bins) & (confidence <= (index + 1) / bins)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert metrics.calibration(probabilities, labels, bins).error == pytest.approx(expected, rel=1e-12)


def test_a_certain_and_right_model_is_perfect_in_every_metric():
    report = metrics.classification_metrics(np.eye(3), np.arange(3), names(3), bins=15)
    assert (report["accuracy"], report["macro_f1"], report["worst_recall"]) == (1, 1, 1)
    assert (report["calibration_error"], report["nll"], report["accuracy_high"]) == (0, 0, 1)


def test_a_certain_and_wrong_model_has_a_finite_likelihood():
    report = metrics.classification_metrics(np.eye(2)[::-1], np.arange(2), names(2), bins=15)
    assert report["nll"] == pytest.approx(-math.log(np.finfo(np.float32).tiny))
    assert (report["calibration_error"], report["accuracy_low"]) == (1, 0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_published_examples(successes, trials, low, high):
    """Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3."""
    assert metrics.wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("trials", [1, 25, 34, 1000])  # of which the rounded bound of 34 lies below 1
def test_the_interval_of_all_ends_at_one_and_of_none_at_zero(trials):
    assert metrics.wilson_interval(trials, trials)[1] == 1
    assert metrics.wilson_interval(0, trials)[0] == 0


def test_wilson_bounds_lie_where_the_score_test_just_rejects():
    for bound in metrics.wilson_interval(70, 100):
        assert abs(0.7 - bound) / math.sqrt(bound * (1 - bound) / 100) == pytest.approx(metrics.WILSON_Z)


def test_metrics_are_plain_json():
    probabilities, labels = random_predictions(50, 6)
    report = metrics.classification_metrics(probabilities.astype(np.float32), labels, names(6), bins=15)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_answers_by_batch_and_pairs_give_the_metrics_of_the_whole_table(classes):
    probabilities, labels = random_predictions(70, classes)
    probabilities[::7] = 1 / classes  # ties
    batches = [slice(start, start + 32) for start in range(0, 70, 32)]
    answers = metrics.joined(metrics.answers(probabilities[b], labels[b]) for b in batches)
    np.testing.assert_array_equal(answers.predicted, probabilities.argmax(axis=1))
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(answers.best, order)
    np.testing.assert_array_equal(answers.shares, np.take_along_axis(probabilities, order, axis=1))
    assert metrics.classification_metrics(answers, labels, names(classes), 15) == (
        metrics.classification_metrics(probabilities, labels, names(classes), 15)
    )
    pairs = metrics.pairs(labels, answers.predicted)
    matrix = metrics.confusion_matrix(labels, answers.predicted, classes)
    assert metrics.per_class(pairs, names(classes)) == metrics.per_class(matrix, names(classes))
    for one, other in zip(metrics.nonzero(matrix), pairs, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_most_confused_classes_are_those_of_the_most_frequent_mistakes():
    matrix = np.diag([9, 9, 9, 9, 9])
    matrix[3, 1], matrix[4, 0] = 5, 2
    assert metrics.most_confused(matrix, 5, 2).tolist() == [1, 3]
    assert metrics.most_confused(matrix, 5, 4).tolist() == [0, 1, 3, 4]
    assert metrics.most_confused(matrix, 5, 9).tolist() == [0, 1, 2, 3, 4]
