"""Compares the metrics of several labels with scikit-learn, their thresholds with every possible one."""

import json

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    hamming_loss,
    log_loss,
    precision_recall_fscore_support,
)

from visionpipe.evaluation import multilabel
from visionpipe.evaluation.multilabel import multilabel_metrics, per_label

CLASSES = ["cat", "dog", "owl", "never", "unknown", "always"]
THRESHOLDS = np.array([0.3, 0.5, 0.6, 0.5, 0.5, 0.2])


def predictions(images: int = 400, unknown: float = 0.2, dtype: str = "float32", decimals: int = 2):
    """Makes probabilities with many ties, and labels of which a share is unknown."""
    random = np.random.default_rng(images)
    labels = (random.random((images, len(CLASSES))) < [0.5, 0.2, 0.05, 0, 0.3, 1]).astype(np.int8)
    probabilities = (0.35 * labels + 0.65 * random.random(labels.shape)).round(decimals).astype(dtype)
    labels[random.random(labels.shape) < unknown] = -1
    labels[:, 4] = -1
    return probabilities, labels


def columns(probabilities, labels):
    """Yields what scikit-learn may see of each class, and its threshold."""
    for place in range(labels.shape[1]):
        known = labels[:, place] >= 0
        yield labels[known, place], probabilities[known, place], THRESHOLDS[place]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("unknown", "decimals"), [(0, 9), (0.2, 2), (0.2, 1)])
def test_metrics_equal_those_of_scikit_learn_on_the_known_labels(unknown, decimals, dtype):
    probabilities, labels = predictions(unknown=unknown, decimals=decimals, dtype=dtype)
    table = per_label(probabilities, labels, CLASSES, THRESHOLDS, bins=15)
    areas, scores = {}, {}
    for name, (truth, column, threshold) in zip(CLASSES, columns(probabilities, labels), strict=True):
        row = table[name]
        assert row["support"] == (truth == 1).sum()
        assert (row["known"], row["threshold"]) == (len(truth), threshold)
        if not row["support"]:
            keys = ["average_precision", "precision", "recall", "f1", "calibration_error"]
            assert [row[key] for key in keys] == [None] * 5
            continue
        areas[name] = average_precision_score(truth, column)
        assert row["average_precision"] == pytest.approx(areas[name], abs=1e-9)
        answers = column.astype(np.float64) >= threshold
        *scores[name], _ = precision_recall_fscore_support(truth, answers, average="binary", zero_division=0)
        assert [row["precision"], row["recall"], row["f1"]] == pytest.approx(scores[name], abs=1e-12)
    known = labels >= 0
    truth, flat, answers = labels[known], probabilities[known], (probabilities >= THRESHOLDS)[known]
    complete = known.all(axis=1)
    report = multilabel_metrics(probabilities, labels, CLASSES, THRESHOLDS, bins=15)
    assert list(areas) == ["cat", "dog", "owl", "always"]
    assert report["mean_average_precision"] == pytest.approx(np.mean(list(areas.values())), abs=1e-9)
    assert report["micro_average_precision"] == pytest.approx(average_precision_score(truth, flat), abs=1e-9)
    assert report["worst_class"] == min(areas, key=areas.get)
    assert report["worst_average_precision"] == min(
        row["average_precision"] for row in table.values() if row["f1"]
    )
    assert report["f1_macro"] == pytest.approx(np.mean([f1 for _, _, f1 in scores.values()]), abs=1e-12)
    assert report["f1_micro"] == pytest.approx(f1_score(truth, answers), abs=1e-12)
    assert report["hamming_loss"] == pytest.approx(hamming_loss(truth, answers), abs=1e-12)
    assert report["nll"] == pytest.approx(log_loss(truth, flat.astype(dtype)), rel=1e-6)
    assert report["subset_accuracy"] is None
    assert not complete.any()
    errors = [row["calibration_error"] for row in table.values() if row["support"]]
    assert report["calibration_error"] == pytest.approx(np.mean(errors))
    assert report["mean_average_precision_low"] < report["mean_average_precision"]
    assert report["mean_average_precision"] < report["mean_average_precision_high"]
    assert json.loads(json.dumps([report, table], allow_nan=False)) == [report, table]


def test_macro_average_precision_of_complete_labels_is_that_of_scikit_learn():
    probabilities, labels = predictions(unknown=0)
    tested = [0, 1, 2, 5]
    report = multilabel_metrics(
        probabilities[:, tested], labels[:, tested], list("abcd"), THRESHOLDS[tested], 15
    )
    for key, average in (("mean_average_precision", "macro"), ("micro_average_precision", "micro")):
        expected = average_precision_score(labels[:, tested], probabilities[:, tested], average=average)
        assert report[key] == pytest.approx(expected, abs=1e-9)


def test_subset_accuracy_is_of_the_images_whose_labels_are_all_known():
    labels = np.array([[1, 0], [0, 0], [1, 1], [1, -1]], np.int8)
    answers = np.array([[True, False], [False, False], [True, False], [False, False]])
    assert multilabel.subset_accuracy(labels, answers) == pytest.approx(2 / 3)


def test_calibration_compares_probability_with_the_share_of_images_bin_by_bin():
    probabilities, labels = predictions()
    truth, column, _ = next(columns(probabilities, labels))
    column = column.astype(np.float64)
    error = 0
    for place in range(15):
        inside = (column > place / 15) & (column <= (place + 1) / 15) | (column == 0) & (place == 0)
        if inside.any():
            error += inside.mean() * abs(column[inside].mean() - truth[inside].mean())
    assert multilabel.calibration(column, truth == 1, 15).error == pytest.approx(error, abs=1e-12)


def test_one_confident_error_costs_no_more_than_the_precision_of_its_dtype():
    probabilities, labels = np.array([[1.0, 0.0]], np.float32), np.array([[0, 1]], np.int8)
    expected = -np.log(np.finfo(np.float32).eps)
    assert multilabel.negative_log_likelihood(probabilities, labels) == pytest.approx(expected, rel=1e-6)


def test_the_interval_is_that_of_resampled_images():
    probabilities, labels = predictions(60)
    random, means = np.random.default_rng(7), []
    for _ in range(30):
        drawn = random.integers(0, 60, 60, dtype=np.int32)
        areas = [
            average_precision_score(truth, column)
            for truth, column, _ in columns(probabilities[drawn], labels[drawn])
            if (truth == 1).any()
        ]
        means.append(np.mean(areas))
    interval = multilabel.mean_average_precision_interval(probabilities, labels, resamples=30, seed=7)
    assert interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1e-9)


@pytest.mark.parametrize(
    ("size", "resamples"), [(1000, 1000), (2_000_000, 1000), (10_000_000, 200), (10**9, 100)]
)
def test_many_labels_are_resampled_less_often(size, resamples):
    assert multilabel.affordable_resamples(size) == resamples


@pytest.mark.parametrize("value", [0, -1])
def test_without_any_present_label_nothing_fails(value):
    probabilities, labels = np.full((5, 2), 0.7, np.float32), np.full((5, 2), value, np.int8)
    report = multilabel_metrics(probabilities, labels, ["a", "b"], np.array([0.5, 0.9]), 15)
    wrong = {"hamming_loss": 0.5, "subset_accuracy": 0, "nll": pytest.approx(-np.log(0.3), rel=1e-5)}
    expected = dict.fromkeys(report) | {"images": 5} | (wrong if value == 0 else {})
    assert report == expected


@pytest.mark.parametrize("decimals", [1, 2, 9])
@pytest.mark.parametrize("precision", [None, 0.6, 0.9])
def test_no_other_threshold_is_better_than_the_fitted_one(precision, decimals):
    probabilities, labels = predictions(decimals=decimals)
    fitted, successes = multilabel.fit_thresholds(probabilities, labels, precision)
    tested = 0
    for (truth, column, _), threshold, success in zip(
        columns(probabilities, labels), fitted, successes, strict=True
    ):
        scores = {}
        for candidate in np.unique(column):
            answers = column >= candidate
            hits = (answers & (truth == 1)).sum()
            scores[candidate] = (2 * hits / ((truth == 1).sum() + answers.sum()), hits / answers.sum())
        if precision is None:
            wanted = max(scores, key=lambda c: (scores[c][0], c), default=None)
        else:
            wanted = min((c for c in scores if scores[c][1] >= precision), default=None)
        if wanted is None or len(set(truth)) < 2:
            assert (threshold, success) == (0.5, False)
            continue
        assert success
        assert ((column >= threshold) == (column >= wanted)).all()
        tested += 1
    assert tested >= 2


def test_a_threshold_lies_between_two_probabilities():
    probabilities = np.array([[0.9], [0.8], [0.4], [0.1]], np.float32)
    labels = np.array([[1], [1], [0], [0]], np.int8)
    assert multilabel.fit_thresholds(probabilities, labels)[0] == pytest.approx([0.6])
    assert multilabel.fit_thresholds(probabilities, labels, precision=0.5)[0] == pytest.approx([0.05])


def test_cooccurrence_counts_the_images_with_both_labels(monkeypatch):
    _, labels = predictions()
    monkeypatch.setattr(multilabel, "BLOCK", 64)
    counts = multilabel.cooccurrence(labels == 1)
    for first, second in np.ndindex(counts.shape):
        assert counts[first, second] == ((labels[:, first] == 1) & (labels[:, second] == 1)).sum()


def test_the_worst_errors_are_the_most_confident_and_known():
    probabilities = np.array([[0.9], [0.1], [0.05], [0.8], [0.95], [0.9], [0.01]])
    labels = np.array([[0], [1], [1], [0], [1], [0], [-1]], np.int8)
    (errors,) = multilabel.worst_errors(probabilities, labels, np.array([0.5]), 2)
    assert errors.missing.tolist() == [2, 1]
    assert errors.spurious.tolist() == [0, 5]
