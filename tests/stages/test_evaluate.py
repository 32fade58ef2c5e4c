"""Stage `evaluate` on a linear model whose right answers are known, and the comparison of models."""

import csv
import html
import json
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from onnx_models import write_artifact
from sklearn.metrics import balanced_accuracy_score

from visionpipe.artifact.digest import artifact_sha256
from visionpipe.artifact.speed import measure, measurement_path
from visionpipe.data.config import PrepareConfig
from visionpipe.data.prepared import SPLITS, write_manifest, write_metadata, write_split
from visionpipe.errors import ArtifactError
from visionpipe.escape import visible
from visionpipe.evaluation import metrics
from visionpipe.files import write_json
from visionpipe.project.params import Params
from visionpipe.project.paths import state_folder
from visionpipe.project.sections import ModelConfig
from visionpipe.stages.evaluate import evaluate
from visionpipe.tracking.card import model_card
from visionpipe.tracking.comparison import columns, comparison, read_results

ROOT = Path(__file__).parents[2]
ARTIFACT, REPORT = Path("artifacts/linear"), Path("reports/linear")
CLASSES = ["cat", "dog", "owl", "fox", "hen", "bee"]
SIZE = (12, 10)
PARAMS = Params(
    prepare=PrepareConfig(source="folder", path="images", size=SIZE),
    models={"linear": ModelConfig(variant="ViT-Ti/16", needs="data/prepared/manifest.json")},
    threads=1,
)
WEIGHTS = np.random.default_rng(7).normal(0, 0.003, (12 * 10 * 3, 6))
WEIGHTS -= WEIGHTS.mean(axis=0)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with prepared data and one exported model; the current folder during the test."""
    enter(write_project(tmp_path), monkeypatch)
    return tmp_path


@pytest.fixture(scope="module")
def evaluated_once(tmp_path_factory):
    folder = write_project(tmp_path_factory.mktemp("project"))
    with pytest.MonkeyPatch.context() as patch:
        enter(folder, patch)
        evaluate("linear", PARAMS)
    return folder


@pytest.fixture
def evaluated(evaluated_once, monkeypatch):
    """As `project`, with the stage run; shared by the tests that only read what it wrote."""
    enter(evaluated_once, monkeypatch)


def enter(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.chdir(folder)
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.delenv("DVC_ROOT", raising=False)


def write_project(folder: Path) -> Path:
    (folder / ".dvc").mkdir()
    write_prepared(folder / "data" / "prepared")
    write_artifact(folder / "artifacts" / "linear", CLASSES, SIZE, WEIGHTS)
    return folder


def split_data(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Noise, labelled by the model's own answer in two of three images."""
    count = {"train": 6, "validation": 61, "test": 74}[split]
    random = np.random.default_rng(count)
    images = random.integers(0, 256, (count, *SIZE, 3), np.uint8)
    labels = linear_logits(images).argmax(axis=1)
    labels[::3] = random.integers(0, 6, len(labels[::3]))
    return images, labels.astype(np.int32)


def linear_logits(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64) @ WEIGHTS


def write_prepared(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split in SPLITS:
        images, labels = split_data(split)
        files = [f"{CLASSES[label]}/{index:03}.png" for index, label in enumerate(labels)]
        write_split(folder, split, images, list(range(len(images))), labels.tolist(), files)
    write_manifest(
        folder,
        size=SIZE,
        classes=CLASSES,
        channel_mean=[0.0] * 3,
        channel_std=[1.0] * 3,
        quarantined=[],
        warnings=[],
    )


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_runs_write_the_same_bytes(project):
    written = []
    for _ in range(2):
        evaluate("linear", PARAMS)
        written.append({path.name: path.read_bytes() for path in REPORT.iterdir()})
        for path in REPORT.iterdir():
            path.unlink()
    assert written[0] == written[1]
    assert sorted(written[0]) == [
        "calibration.png", "confusion.csv", "confusion.png", "metrics.json", "mistakes.png",
        "per_class.json", "per_class.png", "predictions.csv", "slices.json", "slices.png",
    ]  # fmt: skip


def test_metrics_are_those_of_the_model_computed_directly(evaluated):
    found = json.loads((REPORT / "metrics.json").read_text())
    for split in ("validation", "test"):
        images, labels = split_data(split)
        logits = linear_logits(images)
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        expected = metrics.classification_metrics(probabilities, labels, CLASSES, bins=15)
        assert found[split].pop("worst_class") == expected.pop("worst_class")
        assert found[split] == pytest.approx(expected, rel=1e-4)
        assert 0.6 < found[split]["accuracy"] < 0.9
    assert list(found["test"])[:3] == ["accuracy", "top5_accuracy", "balanced_accuracy"]


def test_metadata_are_in_the_predictions_and_make_slices(project):
    folder = project / "data/prepared"
    sites = {
        split: ["left" if index % 4 else "" for index in range(len(split_data(split)[0]))] for split in SPLITS
    }
    for split, values in sites.items():
        write_metadata(folder, split, [(value, f"={index}", "x") for index, value in enumerate(values)])
    written = json.loads((folder / "manifest.json").read_text())
    keys = ("size", "classes", "channel_mean", "channel_std", "quarantined", "warnings")
    (folder / "manifest.json").unlink()
    again = write_manifest(folder, **{key: written[key] for key in keys}, columns=["site", "number", "label"])
    assert again["content_sha256"] == written["content_sha256"]
    evaluate("linear", PARAMS)
    predictions = rows(REPORT / "predictions.csv")
    assert [row["site"] for row in predictions] == sites["validation"] + sites["test"]
    assert (predictions[1]["number"], predictions[1]["metadata label"]) == ("'=1", "x")
    assert list(predictions[0])[-4:] == ["p(bee)", "site", "number", "metadata label"]
    test = [row for row in predictions if row["split"] == "test"]
    for found in json.loads((REPORT / "slices.json").read_text()):
        right = [row["label"] == row["predicted"] for row in test if row["site"] == found["value"]]
        low, high = metrics.wilson_interval(sum(right), len(right))
        assert found == {
            "column": "site", "value": found["value"], "images": len(right), "accuracy": np.mean(right),
            "accuracy_low": low, "accuracy_high": high,
            "balanced_accuracy": pytest.approx(balanced(test, found["value"])),
        }  # fmt: skip
    assert (
        len(json.loads((REPORT / "slices.json").read_text())) == 2
    )  # of no column with one or with many values


def balanced(rows, site):
    inside = [row for row in rows if row["site"] == site]
    return balanced_accuracy_score([row["label"] for row in inside], [row["predicted"] for row in inside])


def test_the_tables_agree_with_the_metrics_and_with_each_other(evaluated):
    found = json.loads((REPORT / "metrics.json").read_text())
    predictions = rows(REPORT / "predictions.csv")
    for split in ("validation", "test"):
        chosen = [row for row in predictions if row["split"] == split]
        assert len(chosen) == found[split]["images"]
        right = [row["label"] == row["predicted"] for row in chosen]
        assert np.mean(right) == found[split]["accuracy"]
        for row in chosen:
            probabilities = [float(row[f"p({name})"]) for name in CLASSES]
            assert sum(probabilities) == pytest.approx(1, abs=4e-6)
            assert max(probabilities) == float(row["confidence"]) == float(row[f"p({row['predicted']})"])
            assert row["file"].startswith(row["label"] + "/")
    pairs = [(row["label"], row["predicted"]) for row in predictions if row["split"] == "test"]
    assert [(row["actual"], row["predicted"]) for row in rows(REPORT / "confusion.csv")] == pairs
    table = json.loads((REPORT / "per_class.json").read_text())
    assert sum(row["support"] for row in table.values()) == found["test"]["images"]


@pytest.mark.parametrize(
    ("classes", "size", "weights", "message"),
    [
        (["cat", "dog", "owl", "fox", "bee", "hen"], SIZE, WEIGHTS, "other classes"),
        (CLASSES, (10, 12), WEIGHTS, r"expects images of size \(10, 12\)"),
        (CLASSES, SIZE, np.full_like(WEIGHTS, np.nan), "NaN"),
    ],
    ids=["classes", "size", "NaN"],
)
def test_an_artifact_that_cannot_be_judged_is_refused_before_anything_is_written(
    project, classes, size, weights, message
):
    write_artifact(ARTIFACT, classes, size, weights)
    with pytest.raises(ArtifactError, match=message):
        evaluate("linear", PARAMS)
    assert not (project / "reports").exists()


def test_speed_is_measured_once_per_artifact_and_number_of_threads(evaluated, tmp_path):
    measured = json.loads(measurement_path(artifact_sha256(ARTIFACT), 1, state_folder()).read_text())
    assert list(measured) == ["latency_p50_ms", "latency_p95_ms", "images_per_second", "peak_memory_mib"]
    known = measurement_path("artifact", 1, tmp_path)
    known.parent.mkdir()
    known.write_text('{"latency_p50_ms": 5.0}')
    assert measure(Path("nowhere"), "artifact", 1, tmp_path) == {"latency_p50_ms": 5.0}
    assert measurement_path("another artifact", 1, tmp_path) != known
    assert measurement_path("artifact", 2, tmp_path) != known


def test_peak_memory_is_that_of_serving_and_not_inherited_from_the_caller(project):
    ballast = np.ones(400 * 2**20, np.uint8)
    found = measure(ARTIFACT, "ballast", 1, project / "state")
    assert 20 < found["peak_memory_mib"] < 250
    assert 0 < found["latency_p50_ms"] <= found["latency_p95_ms"]
    assert found["images_per_second"] >= 999 / found["latency_p50_ms"]
    assert ballast[0] == 1


def test_comparison_marks_the_best_values_and_the_chosen_model():
    unknown = {key: None for column in columns("accuracy") for key in (column.key, *(column.interval or ()))}
    vit = {"validation_accuracy": 0.91, "parameters_count": 5000, "latency_p50_ms": 2.0}
    resnet = {"validation_accuracy": 0.93, "parameters_count": 7000, "latency_p50_ms": 1.5}
    resnet |= {"test_accuracy": 0.9, "test_accuracy_low": 0.88, "test_accuracy_high": 0.92}
    table = comparison(
        [{"model": "vit", **unknown, **vit}, {"model": "resnet", **unknown, **resnet}], "accuracy", "resnet"
    )
    assert table.splitlines()[2:] == [
        "| vit | 0.9100 | – | – | 2.00 | – | **5,000** | – |",
        "| resnet ★ | **0.9300** | 0.9000 (0.8800–0.9200) | – | **1.50** | – | 7,000 | – |",
    ]


def test_rows_hold_what_is_known_and_none_for_the_rest(evaluated):
    lineage = Path("models/linear/lineage.json")
    lineage.parent.mkdir(parents=True)
    lineage.write_text('{"parameters_count": 2160, "model_sha256": "abc"}')
    training = state_folder() / "measurements" / "train-abc.json"
    training.write_text('{"minutes": 1.25, "images_per_second": 3.0}')
    linear, absent = read_results(["linear", "absent"], 1, state_folder(), "accuracy")
    speed = measure(ARTIFACT, artifact_sha256(ARTIFACT), 1, state_folder())
    found = json.loads((REPORT / "metrics.json").read_text())
    assert linear == {
        "model": "linear",
        "validation_accuracy": found["validation"]["accuracy"],
        "test_accuracy": found["test"]["accuracy"],
        "test_accuracy_low": found["test"]["accuracy_low"],
        "test_accuracy_high": found["test"]["accuracy_high"],
        "images_per_second": speed["images_per_second"],
        "latency_p50_ms": speed["latency_p50_ms"],
        "peak_memory_mib": speed["peak_memory_mib"],
        "parameters_count": 2160,
        "training_minutes": 1.25,
    }
    assert {value for key, value in absent.items() if key != "model"} == {None}
    assert comparison([linear, absent], "accuracy").count("–") > len(columns("accuracy"))


MANY = [f"c{index}" for index in range(102)]
HOSTILE = ["</script><script>alert(1)</script>", "=1+1", "$5_$10", "a\rb", 'q"', "|x|"]


def report_of(folder, monkeypatch, classes, images):
    """The folder of a report on a linear model of noise, with so many test images."""
    random = np.random.default_rng(0)
    enter(folder, monkeypatch)
    (folder / ".dvc").mkdir()
    prepared = folder / "data" / "prepared"
    prepared.mkdir(parents=True)
    for split in SPLITS:
        labels = random.integers(0, len(classes), images)
        noise = random.integers(0, 256, (images, 4, 4, 3), np.uint8)
        write_split(
            prepared, split, noise, range(images), labels.tolist(), [f"-{i}.png" for i in range(images)]
        )
    statistics = {"channel_mean": [0.0] * 3, "channel_std": [1.0] * 3}
    write_manifest(prepared, size=(4, 4), classes=classes, **statistics, quarantined=[], warnings=[])
    artifact = write_artifact(folder / "artifacts" / "linear", classes, (4, 4))
    write_json(measurement_path(artifact_sha256(artifact), 1, state_folder()), SPEED)
    evaluate("linear", PARAMS)
    return folder / REPORT


SPEED = {"latency_p50_ms": 1.0, "latency_p95_ms": 1.0, "images_per_second": 1.0, "peak_memory_mib": 1.0}


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return report_of(tmp_path_factory.mktemp("hostile"), patch, HOSTILE, 40)


@pytest.fixture(scope="module")
def large_report(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return report_of(tmp_path_factory.mktemp("large"), patch, MANY, 150)


def test_names_of_classes_do_no_harm_in_tables_and_are_true_in_json(hostile_report, tmp_path):
    report = hostile_report
    assert list(json.loads((report / "per_class.json").read_text())) == HOSTILE
    predictions = rows(report / "predictions.csv")
    assert {row["label"].removeprefix("'") for row in predictions} == set(HOSTILE)
    assert not any(row["label"].startswith("=") or row["file"].startswith("-") for row in predictions)
    plotted = (report / "confusion.csv").read_text()
    assert "<" not in plotted
    assert len({row["actual"] for row in rows(report / "confusion.csv")}) == len(HOSTILE)
    from dvc_render import VegaRenderer
    from dvc_render.html import render_html

    plot = VegaRenderer(rows(report / "confusion.csv"), "p", template="confusion", x="actual", y="predicted")
    page = render_html([plot], tmp_path / "page" / "index.html").read_text()
    assert "alert(1)" in page
    assert page.count("<script") == page.count("</script") == 4


def test_of_many_classes_the_tables_hold_the_likeliest_and_the_most_confused(large_report):
    report = large_report
    predictions = rows(report / "predictions.csv")
    assert list(predictions[0])[4:9] == ["confidence", "p(label)", "second", "p(second)", "third"]
    assert len(predictions) == 300
    for row in predictions:
        shares = [float(row[key]) for key in ("confidence", "p(second)", "p(third)", "p(fourth)", "p(fifth)")]
        assert shares == sorted(shares, reverse=True)
        assert float(row["p(label)"]) <= shares[0]
    plotted = rows(report / "confusion.csv")
    assert len({row["actual"] for row in plotted}) <= 100
    assert {row["predicted"] for row in plotted} - set(MANY) <= {"(other classes)"}


def test_a_report_takes_the_place_of_links_and_does_not_write_through_them(project):
    """As `dvc checkout` makes them into its cache."""
    REPORT.mkdir(parents=True)
    cached = Path("cached")
    cached.write_text("in the cache")
    names = ["calibration.png", "confusion.csv", "confusion.png", "metrics.json"]
    names += [
        "mistakes.png",
        "per_class.json",
        "per_class.png",
        "predictions.csv",
        "slices.json",
        "slices.png",
    ]
    for place, name in enumerate(names):
        (REPORT / name).symlink_to(cached.absolute()) if place % 2 else (REPORT / name).hardlink_to(cached)
    evaluate("linear", PARAMS)
    assert cached.read_text() == "in the cache"
    assert sorted(path.name for path in REPORT.iterdir()) == names


def card() -> str:
    """Of the model whose report lies here, which starts from a file with an odd name."""
    model = {"family": "linear", "init": "a|b.npz"}
    lineage = {"parameters_count": 7, "versions": {"keras": "3"}, "init_sha256": "c", "data_sha256": "d"}
    lineage |= {"params": {"model": model, "train": {}, "prepare": {"path": "<img>"}, "backend": "jax"}}
    write_json(Path("models/linear/lineage.json"), lineage | {"model_sha256": "e", "lineage_id": "f"})
    return model_card("linear", PARAMS, {"precision": "fp32"})


def test_the_card_shows_any_names_as_they_are(hostile_report, monkeypatch):
    monkeypatch.chdir(hostile_report.parents[1])
    page = MarkdownIt("commonmark").enable("table").render(card())
    assert "<script" not in page
    assert "<img" not in page
    for name in HOSTILE:
        assert f"<td>{html.escape(visible(name))}</td>" in page
    assert "<td>a|b.npz, sha256 <code>c</code></td>" in page


def test_the_card_of_many_classes_shows_the_worst(large_report, monkeypatch):
    monkeypatch.chdir(large_report.parents[1])
    text = card()
    assert "102 classes: c0, c1, " in text
    assert "c99 and 2 more." in text
    assert "The table shows the 100 of 102 classes with the lowest F1." in text
    table = json.loads((large_report / "per_class.json").read_text())
    shown = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| c")]
    scores = [table[name]["f1"] for name in shown if name in table]
    assert len(scores) == 100
    assert [score for score in scores if score is not None] == sorted(s for s in scores if s is not None)
