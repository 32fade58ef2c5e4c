"""Finds labels that may be wrong: images that look like those of another class.

Out-of-fold predictions come from the features: the mean of the votes of NEIGHBOURS nearest images and of a logistic
regression in FOLDS folds, averaged with those of trained models that have not memorised their labels. They rank the
images by their margin, the probability of the label minus that of the likeliest other class. Which of them to show is
decided by confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068).
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

NEIGHBOURS = 15
FOLDS = 5
KEPT = 5  # classes of each image
CHUNK = 1024  # images
TILE = 2**24  # products of features that are in memory together
ITERATIONS = 100
FEWER_ITERATIONS = 30  # with more than MANY classes, where an iteration takes long
MANY = 200
MEMORISED = 0.99  # training accuracy from which on a model only repeats the given labels
Probabilities = np.ndarray  # float32 (n, classes), also a memory map


@dataclass(frozen=True)
class Predictions:
    """Out-of-fold predictions of n images.

    Attributes:
        given: the probability of the label, (n,).
        best: the KEPT likeliest classes, the likeliest first, (n, KEPT).
        shares: their probabilities, (n, KEPT).
        distance: the mean distance of the features to those of the nearest images, (n,).
    """

    given: np.ndarray
    best: np.ndarray
    shares: np.ndarray
    distance: np.ndarray

    def other(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the likeliest class other than the label, and its probability, (n,) each."""
        column = (self.best[:, 0] == labels).astype(np.int64)
        rows = np.arange(len(labels))
        return self.best[rows, column], self.shares[rows, column]

    def margin(self, labels: np.ndarray) -> np.ndarray:
        """Returns the probability of the label minus that of the likeliest other class, (n,), in [-1, 1]."""
        return np.round(self.given - self.other(labels)[1], 4)


def predict_out_of_fold(
    features: np.ndarray, labels: np.ndarray, classes: int, models: Sequence[Probabilities] = ()
) -> Predictions:
    """Predicts the class of every image from all images but itself.

    Args:
        features: float32 (n, values).
        labels: int (n,).
        models: the probabilities of trained models, each (n, classes).
    """
    scaled = features / max(float(features[:, 0].std()), 1e-6)
    fold, regressions = fit_folds(scaled, labels, classes)
    squares = (scaled**2).sum(axis=1)
    kept = min(KEPT, classes)
    given, distance = np.zeros(len(labels)), np.zeros(len(labels))
    best, shares = np.zeros((len(labels), kept), np.int64), np.zeros((len(labels), kept))
    step = max(1, min(CHUNK, TILE // max(len(labels), 1)))
    for start in tqdm(range(0, len(labels), step), "labels", unit=" blocks", disable=None):
        rows = np.arange(start, min(start + step, len(labels)))
        table, distance[rows] = votes(scaled, squares, labels, classes, rows)
        for number, (weights, bias) in enumerate(regressions):
            of_fold = np.flatnonzero(fold[rows] == number)
            table[of_fold] += softmax(scaled[rows[of_fold]] @ weights + bias)
        table /= 2
        for probabilities in models:
            table += probabilities[rows]
        table /= 1 + len(models)
        given[rows] = table[np.arange(len(rows)), labels[rows]]
        best[rows] = np.argsort(-table, axis=1, kind="stable")[:, :kept]
        shares[rows] = np.take_along_axis(table, best[rows], axis=1)
    return Predictions(given, best, shares, distance)


def votes(
    features: np.ndarray, squares: np.ndarray, labels: np.ndarray, classes: int, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest images of each row, itself left out.

    Returns:
        The shares of the classes among them, (rows, classes), and their mean distance, (rows,).
    """
    count = min(NEIGHBOURS, len(labels) - 1)
    distances = squares[None] - 2 * (features[rows] @ features.T)
    distances[np.arange(len(rows)), rows] = np.inf
    nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
    table = np.zeros((len(rows), classes))
    np.add.at(table, (np.repeat(np.arange(len(rows)), count), labels[nearest].ravel()), 1 / count)
    squared = np.take_along_axis(distances, nearest, axis=1) + squares[rows, None]
    return table, np.sqrt(np.maximum(squared, 0)).mean(axis=1)


def fit_folds(
    features: np.ndarray, labels: np.ndarray, classes: int
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """Fits a logistic regression to all folds but one, for each fold.

    Returns:
        The fold of each image, (n,), and for each fold weights (values, classes) and bias (classes,).
    """
    from sklearn.linear_model import LogisticRegression

    fold = folds(labels)
    regressions = []
    for number in tqdm(range(FOLDS), "regression", unit=" folds", disable=None):
        learned = fold != number
        weights = np.zeros((features.shape[1], classes), np.float32)
        bias = np.full(classes, -1e9, np.float32)  # of a class without an image in these folds
        present = np.unique(labels[learned])
        if len(present) == 1:
            bias[present] = 0
        else:
            model = LogisticRegression(max_iter=FEWER_ITERATIONS if classes > MANY else ITERATIONS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it has not converged: it need not
                model.fit(features[learned], labels[learned])
            slopes, starts = model.coef_, model.intercept_
            if len(present) == 2:  # one row, of the second class
                slopes, starts = np.concatenate([-slopes, slopes]) / 2, np.concatenate([-starts, starts]) / 2
            weights[:, present], bias[present] = slopes.T, starts
        regressions.append((weights, bias))
    return fold, regressions


def folds(labels: np.ndarray) -> np.ndarray:
    """Deals the images of each class into FOLDS folds in turn, (n,)."""
    order = np.argsort(labels, kind="stable")
    fold = np.empty(len(labels), np.int64)
    fold[order] = np.arange(len(labels)) % FOLDS
    return fold


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def confidently_wrong(predictions: Predictions, labels: np.ndarray, classes: int) -> np.ndarray:
    """Whether an image counts as one of another class in the confident joint, bool (n,).

    A class is confident for an image if its probability reaches the mean probability of that class among the images
    that have it as label. The likeliest confident class counts.
    """
    images = np.bincount(labels, minlength=classes)
    thresholds = np.bincount(labels, predictions.given, minlength=classes) / np.maximum(images, 1)
    thresholds[images == 0] = np.inf
    confident = predictions.shares >= thresholds[predictions.best]
    first = np.argmax(confident, axis=1)  # the classes are sorted by probability
    chosen = predictions.best[np.arange(len(labels)), first]
    return confident.any(axis=1) & (chosen != labels)


def indistinguishable(
    predictions: Predictions, labels: np.ndarray, classes: int
) -> list[tuple[int, int, float]]:
    """Returns pairs of classes of which the predictions take one for the other in more than a quarter of the images.

    Each is (class, class, share of the images of both that are predicted as the other), the largest share first.
    """
    predicted = predictions.best[:, 0]
    images = np.bincount(labels, minlength=classes)
    wrong = labels != predicted
    low, high = np.minimum(labels, predicted)[wrong], np.maximum(labels, predicted)[wrong]
    pairs, counts = np.unique(low.astype(np.int64) * classes + high, return_counts=True)
    found = [
        (
            int(pair // classes),
            int(pair % classes),
            round(float(count / (images[pair // classes] + images[pair % classes])), 4),
        )
        for pair, count in zip(pairs, counts, strict=True)
    ]
    return sorted((item for item in found if item[2] > 0.25), key=lambda item: -item[2])
