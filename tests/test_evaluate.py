"""Stage `evaluate` on a linear model whose right answers are known, and the comparison of models."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from onnx_models import write_artifact

from visionpipe.config import ModelConfig, Params, PrepareConfig
from visionpipe.data.prepared import SPLITS, write_manifest, write_split
from visionpipe.errors import ArtifactError
from visionpipe.evaluate import evaluate
from visionpipe.evaluation import metrics
from visionpipe.evaluation.comparison import COLUMNS, comparison, read_rows
from visionpipe.evaluation.speed import measure, measurement_path
from visionpipe.lineage import artifact_sha256, state_folder

ROOT = Path(__file__).parents[1]
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
        "per_class.json", "per_class.png", "predictions.csv",
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
    assert list(found["test"])[:4] == ["accuracy", "top5_accuracy", "macro_f1", "worst_recall"]


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
    unknown = {key: None for column in COLUMNS for key in (column.key, *(column.interval or ()))}
    vit = {"validation_accuracy": 0.91, "parameters_count": 5000, "latency_p50_ms": 2.0}
    resnet = {"validation_accuracy": 0.93, "parameters_count": 7000, "latency_p50_ms": 1.5}
    resnet |= {"test_accuracy": 0.9, "test_accuracy_low": 0.88, "test_accuracy_high": 0.92}
    table = comparison(
        [{"model": "vit", **unknown, **vit}, {"model": "resnet", **unknown, **resnet}], chosen="resnet"
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
    linear, absent = read_rows(["linear", "absent"], 1, state_folder())
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
    assert comparison([linear, absent]).count("–") > len(COLUMNS)


def test_reports_replace_what_dvc_has_linked_into_its_cache(project, tmp_path_factory):
    evaluate("linear", PARAMS)
    cache = tmp_path_factory.mktemp("cache")
    for position, file in enumerate(sorted(REPORT.iterdir())):
        cached = cache / file.name
        file.rename(cached)
        cached.write_bytes(b"what DVC keeps")
        (file.symlink_to if position % 2 else file.hardlink_to)(cached)
    evaluate("linear", PARAMS)
    assert {file.read_bytes() for file in cache.iterdir()} == {b"what DVC keeps"}
    assert not any(file.is_symlink() or b"DVC" in file.read_bytes() for file in REPORT.iterdir())
