"""docs/performance.md shows what was measured, and no more."""

import importlib.util
import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", FOLDER / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_tables_of_the_samples(tables):
    shown = tables.PAGE.read_text().split(tables.BEGIN)[1].split(tables.END)[0]
    assert shown.strip() == tables.measured().strip()
    results = [json.loads(file.read_text()) for file in tables.RESULTS if file.exists()]
    measured = [{sample["model"] for sample in result["samples"]} for result in results]
    assert shown.count("###") == sum(map(len, measured)) > 0


def test_ratios_are_taken_within_a_round(tables):
    samples = [
        {"round": number, "contender": contender, "training": rate}
        for number, rates in enumerate([(10, 5, 4), (30, 10, 20), (80, 20, 10)])
        for contender, rate in zip(("ours", "torch, eager", "torch, compiled"), rates, strict=True)
    ]
    # 10/5, 30/20, 80/20: the fastest torch mode of each round
    assert tables.ratio(samples, "training", ("ours", tables.FASTEST)) == 2.0
    assert tables.of_ceiling([{"training": 10, "gemm_gflops": 240}], "training", gmac=2) == 0.5
