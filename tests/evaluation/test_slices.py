"""Slices of columns of numbers are quarters with bounds, and those of other columns their values."""

import numpy as np
import pytest

from visionpipe.evaluation.slices import in_quarters, slices, worst_slice

RANDOM = np.random.default_rng(0)


def test_ages_are_divided_into_quarters_that_say_their_bounds():
    ages = RANDOM.integers(18, 91, 400)
    correct = ages < 60
    rows = slices(correct, ages % 3, {"age": [str(age) for age in ages]})
    limits = np.quantile(ages, [0.25, 0.5, 0.75])
    assert len(rows) == 4
    for row in rows:
        low, high = map(int, row["value"].split(" to "))
        inside = (ages >= low) & (ages <= high)
        assert (row["images"], row["accuracy"]) == (inside.sum(), correct[inside].mean())
        recalls = [correct[inside & (ages % 3 == label)].mean() for label in range(3)]
        assert row["balanced_accuracy"] == pytest.approx(np.mean(recalls))
        assert 80 <= row["images"] <= 120
        assert sum(low <= limit <= high for limit in limits) <= 1
    assert sum(row["images"] for row in rows) == 400
    assert worst_slice(rows, float(correct.mean())) == rows[0]
    assert worst_slice(rows, 0) is None


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["0,5", "1,5", "2,5", "3,5"] * 2, {"0,5", "1,5", "2,5", "3,5"}),  # a comma, as in the file
        (["-1e3", "0.25", "7", "1000.5"] * 2, {"-1e3", "0.25", "7", "1000.5"}),
        (["3"] * 30 + ["4"] * 30 + ["5"], {"3", "4", "5"}),  # few values: each by itself
        ([f"p{index}" for index in range(50)], {f"p{index}" for index in range(50)}),
        ([str(index) for index in range(50)], {str(index) for index in range(50)}),  # the numbers of rows
        (["1.5"] * 7 + ["2.5"], {"1.5", "2.5"}),
        (["nan", "inf"] * 4, {"nan", "inf"}),
        ([], set()),
    ],
)
def test_values_of_columns(texts, expected):
    assert set(in_quarters(texts)) == expected


def test_the_numbers_of_patients_are_names():
    patients = [str(value) for value in RANDOM.integers(0, 60, 400)]
    assert slices(np.ones(400, bool), np.zeros(400, int), {"patient": patients}, "patient") == []
    assert len(slices(np.ones(400, bool), np.zeros(400, int), {"patient": patients})) == 4


def test_missing_and_unknown_values_are_slices_beside_the_quarters():
    texts = [f"{value:.2f}" for value in RANDOM.normal(0, 1, 200)] + [""] * 30 + ["unknown"] * 12
    rows = slices(np.ones(len(texts), bool), np.zeros(len(texts), int), {"x": texts})
    assert {row["value"]: row["images"] for row in rows if " to " not in row["value"]} == {
        "": 30,
        "unknown": 12,
    }
    assert [row["images"] for row in rows if " to " in row["value"]] == pytest.approx([50] * 4, abs=2)
