"""docs/performance.md shows what was measured, and no more."""

import importlib.util
import json
import re
import statistics
from pathlib import Path

import pytest

from visionpipe.project.params import load_params

FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unwrapped(page):
    """Its text, with the lines of a paragraph joined."""
    return re.sub(r"(?<=[^\n|])\n(?=[^\n|])", " ", page.read_text())


@pytest.fixture(scope="module")
def tables():
    return script("tables")


def test_the_page_shows_the_tables_of_the_samples(tables):
    shown = tables.PAGE.read_text().split(tables.BEGIN)[1].split(tables.END)[0]
    assert shown.strip() == tables.measured().strip()
    results = [json.loads(file.read_text()) for file in tables.RESULTS if file.exists()]
    measured = [{sample["model"] for sample in result["samples"]} for result in results]
    assert shown.count("###") == sum(map(len, measured)) > 0


def test_the_page_shows_the_tables_of_the_input_path(tables):
    result = json.loads(tables.INPUT.read_text())
    shown = tables.PAGE.read_text().split(tables.INPUT_BEGIN)[1].split(tables.INPUT_END)[0]
    assert shown.strip() == tables.input_tables(result).strip()
    for contender in {sample["contender"] for sample in result["samples"]}:
        assert f"| {contender} |" in shown


def test_the_loader_makes_at_least_twenty_times_the_batches_that_the_default_models_consume(tables):
    factors = tables.loader_factors(json.loads(tables.INPUT.read_text())["samples"])
    assert min(factors) >= 20
    rates = {
        "loader, flip and crop": 60,
        "loader, flip and crop, b": 40,
        "training of a": 1,
        "training of b": 2,
    }
    samples = [{"round": 0, "contender": name, "batches": rate} for name, rate in rates.items()]
    assert tables.loader_factors(samples) == [20]


def test_memory_does_not_grow_with_the_number_of_stored_images(tables):
    samples = [s for s in json.loads(tables.INPUT.read_text())["samples"] if "anonymous_mib" in s]
    few, many = (
        tables.median([s for s in samples if s["contender"] == f"{count:,} stored images"], "anonymous_mib")
        for count in (10_000, 1_000_000)
    )
    assert many - few < 24  # MiB: labels and two permutations of four bytes an image


def test_the_readme_shows_what_a_teacher_gives_with_every_seed():
    runs = json.loads((FOLDER.parent / "experiments" / "distillation.json").read_text())["runs"]
    assert len(runs) == 3
    assert all(run["test"]["vit-taught"] > run["test"]["vit"] for run in runs)
    taught, alone = (statistics.mean(run["test"][name] for run in runs) for name in ("vit-taught", "vit"))
    assert f"to {taught:.4f} instead of {alone:.4f}" in unwrapped(FOLDER.parent / "README.md")


def test_the_page_shows_the_table_of_the_trainer(tables):
    shown = tables.PAGE.read_text().split(tables.FIT_BEGIN)[1].split(tables.FIT_END)[0]
    assert shown.strip() == tables.fit_table(json.loads(tables.FIT.read_text())).strip()
    samples = [
        {"backend": "b", "loop": "ours", "milliseconds_per_step": [11, 22], "bare": [10, 10, 30], "round": 0},
        {
            "backend": "b",
            "loop": "ours",
            "milliseconds_per_step": [24],
            "bare": [20, 20],
            "round": 1,
            "spent": [1],
        },
    ]
    assert "| b | ours | 22.0 | 20.0 | +10.0% | +10.0% to +15.0% | 3 | 5.0% |" in tables.fit_table(
        {"hardware": "", "samples": samples}
    )


def test_the_page_shows_the_table_of_the_modes(tables):
    shown = tables.PAGE.read_text().split(tables.MODES_BEGIN)[1].split(tables.MODES_END)[0]
    assert shown.strip() == tables.modes_table(json.loads(tables.MODES.read_text())).strip()


def test_the_page_shows_the_kills_and_every_training_ended_at_the_same_bytes():
    kills = script("kills")
    result = json.loads(kills.RESULT.read_text())
    shown = kills.PAGE.read_text().split(kills.BEGIN)[1].split(kills.END)[0]
    assert shown.strip() == kills.table(result).strip()
    assert {entry["backend"] for entry in result["backends"]} == {"tensorflow", "jax", "torch"}
    assert all(len(entry["kills"]) >= 20 for entry in result["backends"])
    assert all(
        {kill["moment"] for kill in entry["kills"]} == set(kills.MOMENTS) for entry in result["backends"]
    )


def test_the_readme_shows_the_accuracies_of_the_default_models():
    accuracy = script("accuracy")
    assert accuracy.table(json.loads(accuracy.RESULT.read_text())) in unwrapped(FOLDER.parent / "README.md")


def test_a_gpu_has_no_contender_that_would_keep_it_compiling(monkeypatch):
    """All of a model's contenders wait until the slowest has compiled."""
    monkeypatch.syspath_prepend(FOLDER)
    gpu = script("gpu")
    named = {
        model.name: {name for name in gpu.CONTENDERS if gpu.possible(name, model.name)}
        for model in gpu.MODELS
    }
    every = {
        *("visionpipe, torch", "visionpipe, JAX", "visionpipe, JAX, again"),
        *("stock Keras, torch", "stock Keras, JAX", "torch, compiled", "torch, compiled, channels_last"),
    }
    assert named == {"ResNet-50": every, "ViT-B/16": every | {"visionpipe, torch, compiled"}}


@pytest.fixture
def transfer(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return script("transfer")


def test_the_page_shows_the_table_of_fine_tuning(transfer):
    shown = transfer.PAGE.read_text().split(transfer.BEGIN)[1].split(transfer.END)[0]
    assert shown.strip() == transfer.table(json.loads(transfer.RESULT.read_text())).strip()


def test_fine_tuning_beats_training_from_scratch_on_average(transfer):
    runs = json.loads(transfer.RESULT.read_text())["runs"]
    assert len(runs) == 3
    for epochs in map(str, transfer.BUDGETS):
        tuned, scratch = (
            statistics.mean(run["epochs"][epochs]["test"][transfer.best(runs, kind, epochs)] for run in runs)
            for kind in ("finetuned", "scratch")
        )
        assert tuned > scratch + 0.015


def test_the_recipe_is_chosen_on_validation(transfer):
    """The rate that is best on the test images of this result is not the one that is shown."""
    accuracies = {
        "validation": {"scratch-10e-4": 0.7, "scratch-30e-4": 0.8, "finetuned-5e-4-layerwise": 0.9},
        "test": {"scratch-10e-4": 0.75, "scratch-30e-4": 0.6, "finetuned-5e-4-layerwise": 0.85},
    }
    runs = [{"seed": 0, "known": ["bag"], "epochs": {"10": accuracies}}]
    assert transfer.best(runs, "scratch", "10") == "scratch-30e-4"
    lines = transfer.table({"hardware": "a machine", "runs": runs}).splitlines()
    assert lines[2] == "| 10 | from scratch | rate 0.003 | 0.600 | 0.600 | 0.600 | 0.800 |"
    assert lines[3] == "| 10 | fine-tuned | rate 0.0005, layer-wise decay | 0.850 | 0.850 | 0.850 | 0.900 |"


def test_images_that_are_learned_from_are_not_those_that_are_judged(transfer):
    files = transfer.sample()
    known = sorted(files["train"])[::2]
    names = list(transfer.few(files, known, 0).values())
    assert len(set(names)) == len(names) == 5 * (20 + 50 + 100)
    assert not {name.split("/")[1] for name in names} & set(known)
    places = [
        {name.partition("/")[2] for name in names if name.startswith(split)} for split in ("train", "val")
    ]
    assert not places[0] & places[1]


@pytest.mark.parametrize("file", sorted((FOLDER.parent / "experiments").glob("*.yaml")), ids=lambda f: f.stem)
def test_an_experiment_is_valid_and_says_what_came_out_of_it(file):
    load_params(file)
    result = json.loads(file.with_suffix(".json").read_text())
    assert script("accuracy").header(result) in file.read_text()


def test_ratios_are_taken_within_a_round_and_of_a_peers_modes_with_the_one_of_the_highest_median(tables):
    contenders = ("ours", "torch, eager", "torch, compiled")
    samples = [
        {"round": number, "contender": contender, "training": rate}
        for number, rates in enumerate([(10, 5, 4), (30, 10, 30), (80, 20, 10)])
        for contender, rate in zip(contenders, rates, strict=True)
    ]
    left_out = {"round": 0, "contender": "torch, compiled, channels_last", "training": 100}
    # eager: 10/5, 30/10, 80/20
    assert tables.ratio([*samples, left_out], "training", ("ours", tables.FASTEST)) == 3.0
    assert tables.of_ceiling([{"training": 10, "gemm_gflops": 240}], "training", gmac=2) == 0.5


@pytest.fixture(scope="module")
def serving_tables():
    return script("serving_tables")


def test_the_serving_page_shows_the_tables_of_the_samples(serving_tables):
    shown = serving_tables.PAGE.read_text().split(serving_tables.BEGIN)[1].split(serving_tables.END)[0]
    assert shown.strip() == serving_tables.measured().strip()
    samples = json.loads(serving_tables.RESULT.read_text())["samples"]
    assert shown.count("the fastest of") == sum(sample["task"] == "tune" for sample in samples) > 0
    assert shown.count("###") == len({sample["model"] for sample in samples}) > 0


def test_the_offline_rate_shares_the_cores_between_model_and_client(serving_tables):
    # an image takes both cores for 13 ms, and one of them for 2 ms more
    assert serving_tables.offline_rate({"offline_ms": 13, "cores": 2}, 2) == pytest.approx(1000 / 14)


def test_serving_ratios_are_ours_to_theirs(serving_tables):
    common = {"task": "load", "model": "m", "p50_ms": 1.0, "p99_ms": 2.0, "client_share": 0.1, "failed": 0}
    samples = [
        common | {"contender": name, "per_second": rate}
        for name, rate in (("visionpipe serve", 30), ("Other", 10), ("visionpipe serve", 50), ("Other", 20))
    ]
    lines = serving_tables.table({"samples": samples}, "load", "m")
    assert lines[2:4] == [
        "| visionpipe serve | 40.0 | 1.00 | 2.00 | 0 | 10% |  | 2 |",
        "| Other | 15.0 | 1.00 | 2.00 | 0 | 10% | 2.67 | 2 |",
    ]


@pytest.fixture(scope="module")
def hardening_tables():
    spec = importlib.util.spec_from_file_location("hardening_tables", FOLDER / "hardening_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hardening_page_shows_what_was_measured(hardening_tables):
    page = hardening_tables.PAGE.read_text()
    shown = page.split(hardening_tables.BEGIN)[1].split(hardening_tables.END)[0]
    assert shown.strip() == hardening_tables.measured().strip()


def test_the_measured_attacks_broke_nothing(hardening_tables):
    """The issue's own limits, on the committed numbers."""
    tasks = json.loads(hardening_tables.RESULT.read_text())["tasks"]
    every = {make.__name__ for makers in hardening_tables.TABLES.values() for make in makers}
    assert every - set(tasks) <= {"document"}  # which docs/hardening.md says is still to be measured
    assert (tasks["images"]["5xx"], tasks["images"]["crashes"]) == (0, 0)
    assert all(counts["asked"] == counts["right"] for counts in tasks["images"]["kinds"].values())
    assert all(row["seconds"] <= 0.1 and row["MiB"] <= 50 for row in tasks["bombs"]["rows"])
    assert tasks["bombs"]["extra memory of the server, MiB"] <= 50
    for source in tasks["prepare"].values():
        if isinstance(source, dict):
            assert source["kept"] + source["quarantined"] == source["found"]
            assert sum(source[name] for name in list(source)[3:]) == 0
    assert all(status[0] == "4" for status in tasks["requests"]["statuses"])
    assert not any(status[0] == "5" for status in tasks["fuzz"]["statuses"])
    if "document" in tasks:
        assert not any(status[0] == "5" for status in tasks["document"]["statuses"])
        assert tasks["document"]["cases"] >= 10_000
        assert tasks["document"]["runs that found a 5xx"] == 0
    slow = tasks["slow"]
    assert (slow["slow headers"], slow["slow bodies"]) == (200, 200)
    assert slow["headers closed after, at most"] <= 10.5
    assert slow["bodies closed after, at most"] <= 30.5
    assert slow["p99 ms, beside them"] <= 2 * slow["p99 ms, alone"]
    assert (tasks["ends"]["ends"], tasks["ends"]["lost"], tasks["ends"]["exit codes"]) == (20, 0, [0])
    assert (tasks["moves"]["moves"], tasks["moves"]["lost"], tasks["moves"]["wrong"]) == (50, [], 0)
    assert (tasks["corrupt"]["lost"], tasks["corrupt"]["versions"]) == (0, ["1"])
    assert tasks["corrupt"]["refusals in /metrics"] == 1
    assert tasks["fuzz"]["files, threads after"] <= tasks["fuzz"]["files, threads before"]
