"""docs/results/ shows what was measured, and no more; benchmarks/ can measure it again."""

import importlib
import re
import statistics
import sys
from pathlib import Path

import pytest

from benchmarks.accuracy import pipeline, transfer
from benchmarks.accuracy import tables as accuracy
from benchmarks.markdown import machine, median
from benchmarks.results import read
from benchmarks.robustness import kills
from benchmarks.robustness import tables as robustness
from benchmarks.serving import tables as serving
from benchmarks.speed import gpu
from benchmarks.speed import tables as speed
from benchmarks.tables import PAGES, PARTS, answers
from visionpipe.project.params import load_params

CHECKOUT = Path(__file__).parents[1]
SCRIPTS = (
    *("speed.models", "speed.gpu", "speed.input", "speed.trainer", "speed.modes"),
    *("speed.augmentation", "speed.prepare", "speed.growth", "serving.compare"),
    *(
        "accuracy.pipeline",
        "accuracy.transfer",
        "accuracy.heat_map",
        "accuracy.doctor",
        "accuracy.imbalance",
        "robustness.battery",
        "robustness.kills",
    ),
)


def unwrapped(page):
    """Returns its text, with the lines of a paragraph joined."""
    return re.sub(r"(?<=[^\n|])\n(?=[^\n|])", " ", page.read_text())


def shown(name):
    [part] = [part for part in PARTS if part.name == name]
    return part.shown()


# The pages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS, ids=lambda part: f"{part.page}: {part.name}")
def test_a_page_shows_what_was_measured(part):
    assert part.shown().strip() == part.text().strip() != ""


def test_every_generated_part_is_written_by_the_one_writer():
    marked = {
        (page.relative_to(PAGES).as_posix(), name)
        for page in PAGES.glob("*.md")
        for name in re.findall(r"<!-- begin: (.+) -->", page.read_text())
    }
    assert marked == {(part.page, part.name) for part in PARTS}
    measured_by = {part.name for part in PARTS} - {"summary"}
    assert all((CHECKOUT / name).exists() for name in measured_by)


def test_the_index_has_about_ten_answers_and_every_answer_names_its_machine():
    machines = {machine(read(file)).split(",")[0] for file in (CHECKOUT / "benchmarks").rglob("*.json")}
    assert len([answer for answer in answers() if not answer.detail]) in range(8, 13)
    for answer in answers():
        assert any(f"({name}" in answer.text for name in machines), answer


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_starts_and_says_how(name, monkeypatch, capsys):
    script = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 0
    assert f"python -m benchmarks.{name}" in script.__doc__
    assert script.__doc__.split()[0] in capsys.readouterr().out


def test_every_script_is_known():
    files = (CHECKOUT / "benchmarks").glob("*/*.py")
    with_options = {file for file in files if "ArgumentParser" in file.read_text()}
    assert {f"{file.parent.name}.{file.stem}" for file in with_options} == set(SCRIPTS)


def test_no_other_test_imports_a_benchmark():
    """What both need is in tests/shared."""
    importing = [
        file.name
        for file in (CHECKOUT / "tests").rglob("*.py")
        if re.search(r"^\s*(from|import) benchmarks\b", file.read_text(), re.MULTILINE)
    ]
    assert importing == ["test_benchmarks.py"]


# Speed -------------------------------------------------------------------------------------------------


def test_the_page_has_every_model_of_every_processor():
    for name, files in (("benchmarks/speed/models.py", speed.CPUS), ("benchmarks/speed/gpu.py", [speed.GPU])):
        measured = [{sample["model"] for sample in read(file)["samples"]} for file in files]
        assert shown(name).count("###") == sum(map(len, measured)) > 0


def test_ratios_are_taken_within_a_round_and_of_a_peers_modes_with_the_one_of_the_highest_median():
    contenders = ("ours", "torch, eager", "torch, compiled")
    samples = [
        {"round": number, "contender": contender, "training": rate}
        for number, rates in enumerate([(10, 5, 4), (30, 10, 30), (80, 20, 10)])
        for contender, rate in zip(contenders, rates, strict=True)
    ]
    left_out = {"round": 0, "contender": "torch, compiled, channels_last", "training": 100}
    # eager: 10/5, 30/10, 80/20
    assert speed.ratio([*samples, left_out], "training", ("ours", speed.FASTEST)) == 3.0
    assert speed.of_ceiling([{"training": 10, "gemm_gflops": 240}], "training", gmac=2) == 0.5


def test_a_gpu_has_no_contender_that_would_keep_it_compiling():
    """All of a model's contenders wait until the slowest has compiled."""
    named = {
        model.name: {name for name in gpu.CONTENDERS if gpu.possible(name, model.name)}
        for model in gpu.MODELS
    }
    every = {
        *("visionpipe, torch", "visionpipe, JAX", "visionpipe, JAX, again"),
        *("stock Keras, torch", "stock Keras, JAX", "torch, compiled", "torch, compiled, channels_last"),
    }
    assert named == {"ResNet-50": every, "ViT-B/16": every | {"visionpipe, torch, compiled"}}


def test_the_page_of_the_input_path_has_every_contender():
    for contender in {sample["contender"] for sample in read(speed.INPUT)["samples"]}:
        assert f"| {contender} |" in shown("benchmarks/speed/input.py")


def test_the_loader_makes_at_least_twenty_times_the_batches_that_the_default_models_consume():
    assert min(speed.loader_factors(read(speed.INPUT)["samples"])) >= 20
    rates = {
        "loader, flip and crop": 60,
        "loader, flip and crop, b": 40,
        "training of a": 1,
        "training of b": 2,
    }
    samples = [{"round": 0, "contender": name, "batches": rate} for name, rate in rates.items()]
    assert speed.loader_factors(samples) == [20]


def test_memory_does_not_grow_with_the_number_of_stored_images():
    samples = [s for s in read(speed.INPUT)["samples"] if "anonymous_mib" in s]
    few, many = (
        median([s for s in samples if s["contender"] == f"{count:,} stored images"], "anonymous_mib")
        for count in (10_000, 1_000_000)
    )
    assert many - few < 24  # MiB: labels and two permutations of four bytes an image


def test_an_epoch_is_compared_with_the_bare_epochs_before_and_after_it():
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
    assert "| b | ours | 22.0 | 20.0 | +10.0% | +10.0% to +15.0% | 3 | 5.0% |" in speed.trainer_table(
        {"hardware": "", "samples": samples}
    )


# Accuracy ----------------------------------------------------------------------------------------------


def test_the_readme_shows_the_accuracies_of_the_default_models():
    assert accuracy.seeds_table(read(accuracy.PIPELINE)) in unwrapped(CHECKOUT / "README.md")


def test_the_guide_shows_what_a_teacher_gives_with_every_seed():
    runs = read(accuracy.TEACHER)["runs"]
    assert len(runs) == 3
    assert all(run["test"]["vit-taught"] > run["test"]["vit"] for run in runs)
    taught, alone = (statistics.mean(run["test"][name] for run in runs) for name in ("vit-taught", "vit"))
    guide = unwrapped(CHECKOUT / "docs" / "guides" / "recipes.md")
    assert f"a test accuracy of {taught:.4f} in eleven epochs, and {alone:.4f} without a teacher" in guide


@pytest.mark.parametrize("file", sorted((CHECKOUT / "experiments").glob("*.yaml")), ids=lambda f: f.stem)
def test_an_experiment_is_valid_and_says_what_came_out_of_it(file):
    load_params(file)
    assert pipeline.header(read(file.with_suffix(".json"))) in file.read_text()
    assert f"| `{file.name}` |" in shown("experiments")


def test_fine_tuning_beats_training_from_scratch_on_average():
    runs = read(accuracy.TRANSFER)["runs"]
    assert len(runs) == 3
    for epochs in map(str, transfer.BUDGETS):
        tuned, scratch = (
            statistics.mean(run["epochs"][epochs]["test"][accuracy.best(runs, kind, epochs)] for run in runs)
            for kind in ("finetuned", "scratch")
        )
        assert tuned > scratch + 0.015


def test_the_recipe_is_chosen_on_validation():
    """The rate that is best on the test images of this result is not the one that is shown."""
    accuracies = {
        "validation": {"scratch-10e-4": 0.7, "scratch-30e-4": 0.8, "finetuned-5e-4-layerwise": 0.9},
        "test": {"scratch-10e-4": 0.75, "scratch-30e-4": 0.6, "finetuned-5e-4-layerwise": 0.85},
    }
    runs = [{"seed": 0, "known": ["bag"], "epochs": {"10": accuracies}}]
    assert accuracy.best(runs, "scratch", "10") == "scratch-30e-4"
    lines = accuracy.transfer_table({"hardware": "a machine", "runs": runs}).splitlines()
    assert lines[2] == "| 10 | from scratch | rate 0.003 | 0.600 | 0.600 | 0.600 | 0.800 |"
    assert lines[3] == "| 10 | fine-tuned | rate 0.0005, layer-wise decay | 0.850 | 0.850 | 0.850 | 0.900 |"


def test_images_that_are_learned_from_are_not_those_that_are_judged():
    files = transfer.sample()
    known = sorted(files["train"])[::2]
    names = list(transfer.few(files, known, 0).values())
    assert len(set(names)) == len(names) == 5 * (20 + 50 + 100)
    assert not {name.split("/")[1] for name in names} & set(known)
    places = [
        {name.partition("/")[2] for name in names if name.startswith(split)} for split in ("train", "val")
    ]
    assert not places[0] & places[1]


# Serving -----------------------------------------------------------------------------------------------


def test_the_serving_page_has_every_model_and_the_searched_settings():
    samples = read(serving.RESULT)["samples"]
    text = shown("benchmarks/serving/compare.py")
    assert text.count("the fastest of") == sum(sample["task"] == "tune" for sample in samples) > 0
    assert text.count("###") == len({sample["model"] for sample in samples}) > 0


def test_the_offline_rate_shares_the_cores_between_model_and_client():
    # an image takes both cores for 13 ms, and one of them for 2 ms more
    assert serving.offline_rate({"offline_ms": 13, "cores": 2}, 2) == pytest.approx(1000 / 14)


def test_serving_ratios_are_ours_to_theirs():
    common = {"task": "load", "model": "m", "p50_ms": 1.0, "p99_ms": 2.0, "client_share": 0.1, "failed": 0}
    samples = [
        common | {"contender": name, "per_second": rate}
        for name, rate in (("visionpipe serve", 30), ("Other", 10), ("visionpipe serve", 50), ("Other", 20))
    ]
    lines = serving.contenders_table({"samples": samples}, "load", "m")
    assert lines[2:4] == [
        "| visionpipe serve | 40.0 | 1.00 | 2.00 | 0 | 10% |  | 2 |",
        "| Other | 15.0 | 1.00 | 2.00 | 0 | 10% | 2.67 | 2 |",
    ]


# Robustness --------------------------------------------------------------------------------------------


def test_every_backend_was_killed_at_every_moment():
    result = read(robustness.KILLS)
    assert {entry["backend"] for entry in result["backends"]} == {"tensorflow", "jax", "torch"}
    assert all(len(entry["kills"]) >= 20 for entry in result["backends"])
    assert all(
        {kill["moment"] for kill in entry["kills"]} == set(kills.MOMENTS) for entry in result["backends"]
    )


def test_the_measured_attacks_broke_nothing():
    tasks = read(robustness.BATTERY)["tasks"]
    every = {make.__name__ for makers in robustness.TABLES.values() for make in makers}
    assert every == set(tasks)
    assert (tasks["images"]["5xx"], tasks["images"]["crashes"]) == (0, 0)
    assert all(counts["asked"] == counts["right"] for counts in tasks["images"]["kinds"].values())
    assert all(row["seconds"] <= 0.1 and row["MiB"] <= 50 for row in tasks["bombs"]["rows"])
    assert tasks["bombs"]["extra memory of the server, MiB"] <= 50
    for source in tasks["prepare"].values():
        if isinstance(source, dict):
            assert source["kept"] + source["quarantined"] == source["found"]
            assert sum(source[name] for name in list(source)[3:]) == 0
            assert set(source) == set(robustness.COLUMNS)
    assert all(status[0] == "4" for status in tasks["requests"]["statuses"])
    assert not any(status[0] == "5" for status in tasks["fuzz"]["statuses"])
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
