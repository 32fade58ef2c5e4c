"""`visionpipe probe`: both probes against plain solutions, and the command on a small repository."""

import json
import os
import re
import subprocess
import sys
import tracemalloc
from contextlib import redirect_stderr

os.environ["KERAS_BACKEND"] = "tensorflow"

import mlflow
import numpy as np
import pytest
from npz_layout import google
from repository import CHECKOUT, environment
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsRegressor

from visionpipe.commands.probe import (
    BATCH,
    NEIGHBOURS,
    RIDGES,
    TEMPERATURE,
    features,
    least_squares,
    nearest_neighbours,
    pixels,
    without_head,
)
from visionpipe.models import build_model
from visionpipe.tasks.multi import Multi
from visionpipe.tasks.single import Single

random = np.random.default_rng(0)
CLASSES = 4


@pytest.fixture(scope="module")
def clusters():
    """Features of overlapping classes and their labels, by split."""
    centres = random.normal(size=(CLASSES, 6))
    labels = {split: random.integers(0, CLASSES, n) for split, n in (("train", 60), ("validation", 40))}
    found = {split: centres[y] + random.normal(0, 1.5, (len(y), 6)) for split, y in labels.items()}
    return {split: x.astype(np.float32) for split, x in found.items()}, labels


def test_neighbours_vote_by_the_cosine_of_their_angle(clusters):
    found, labels = clusters
    for (k, accuracy), wanted in zip(
        nearest_neighbours(found, labels, CLASSES, Single), NEIGHBOURS, strict=True
    ):
        assert k == wanted
        right = 0
        for x, label in zip(found["validation"], labels["validation"], strict=True):
            cosine = [x @ t / np.linalg.norm(x) / np.linalg.norm(t) for t in found["train"]]
            votes = dict.fromkeys(range(CLASSES), 0.0)
            for place in sorted(range(60), key=lambda i: -cosine[i])[: int(k)]:
                votes[labels["train"][place]] += np.exp(cosine[place] / TEMPERATURE)
            right += max(votes, key=lambda c: votes[c]) == label
        assert accuracy == {"validation": right / 40}


def test_the_linear_probe_is_ridge_regression_onto_the_classes(clusters):
    found, labels = clusters
    mean, deviation = found["train"].mean(0), found["train"].std(0)
    scaled = {split: (x - mean) / deviation for split, x in found.items()}
    x = np.concatenate([scaled["train"], np.ones((60, 1))], axis=1)
    targets = np.where(labels["train"][:, None] == np.arange(CLASSES), 1.0, -1.0)
    for (ridge, accuracy), wanted in zip(least_squares(scaled, labels, CLASSES, Single), RIDGES, strict=True):
        penalty = 60 * wanted * np.trace(x[:, :-1].T @ x[:, :-1] / 60) / 6 * np.diag([1.0] * 6 + [0.0])
        weights = np.linalg.solve(x.T @ x + penalty, x.T @ targets)
        answers = (np.concatenate([scaled["validation"], np.ones((40, 1))], axis=1) @ weights).argmax(1)
        assert (ridge, accuracy) == (wanted, {"validation": (answers == labels["validation"]).mean()})


@pytest.fixture(scope="module")
def several():
    """Features of unit length and labels, of which every fourth is unknown but those of the first class, by split."""
    generator = np.random.default_rng(2)
    found, labels = {}, {}
    slopes = generator.normal(size=(6, CLASSES))
    for split, count in (("train", 90), ("validation", 500)):
        x = generator.normal(size=(count, 6)) + 0.5
        labels[split] = (x @ slopes + generator.normal(0, 2, (count, CLASSES)) > 0.5).astype(np.int8)
        found[split] = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
        labels[split][:, 1:][generator.random((count, CLASSES - 1)) < 0.25] = -1
    return found, labels


def mean_average_precision(scores, labels):
    """Scikit-learn's, in float32 as everywhere, of the known labels."""
    return np.mean(
        [
            average_precision_score(label[label >= 0], column[label >= 0])
            for label, column in zip(labels.T, scores.astype(np.float32).T, strict=True)
        ]
    )


def test_neighbours_vote_on_each_of_several_labels_as_scikit_learns_do(several):
    found, labels = several
    answers = dict(nearest_neighbours(found, labels, CLASSES, Multi))
    every = {split: np.maximum(y, 0) for split, y in labels.items()}
    answers_known = dict(nearest_neighbours(found, every, CLASSES, Multi))
    assert set(answers) == set(answers_known) == set(NEIGHBOURS)
    for k in NEIGHBOURS:
        model = KNeighborsRegressor(k, weights=lambda d: np.exp(-(d**2) / 2 / TEMPERATURE), algorithm="brute")
        x, y = found["train"], labels["train"]
        known, present = (model.fit(x, side).predict(found["validation"]) for side in (y >= 0, y == 1))
        priors = np.broadcast_to((y == 1).sum(0) / (y >= 0).sum(0), known.shape)
        shares = np.divide(present, known, out=priors.copy(), where=known > 0)
        expected = mean_average_precision(shares, labels["validation"])
        assert answers[k]["validation"] == pytest.approx(expected, abs=1e-9)
        expected = mean_average_precision(
            model.fit(x, every["train"]).predict(found["validation"]), every["validation"]
        )
        assert answers_known[k]["validation"] == pytest.approx(expected, abs=1e-9)


def test_the_linear_probe_of_several_labels_is_scikit_learns_ridge_on_the_images_that_know_the_label(several):
    found, labels = several
    for ridge, scores in least_squares(found, labels, CLASSES, Multi):
        answers = np.zeros((500, CLASSES))
        for column, label in enumerate(labels["train"].T):
            x, y = found["train"][label >= 0].astype(np.float64), np.where(label[label >= 0] == 1, 1.0, -1.0)
            alpha = ridge * len(x) * x.var(axis=0).mean()
            answers[:, column] = Ridge(alpha).fit(x, y).predict(found["validation"])
        expected = mean_average_precision(answers, labels["validation"])
        assert scores["validation"] == pytest.approx(expected, abs=1e-9)


def test_a_label_that_no_training_image_knows_is_no_error(several):
    found, labels = several
    unknown = labels | {"train": labels["train"].copy()}
    unknown["train"][:, 2] = -1
    for probed in (nearest_neighbours, least_squares):
        for (_, scores), (_, before) in zip(
            probed(found, unknown, CLASSES, Multi), probed(found, labels, CLASSES, Multi), strict=True
        ):
            assert 0 < scores["validation"] < before["validation"]


def test_the_probes_take_no_memory_for_classes_times_images():
    """20,000 classes of 40,000 images: a number for each pair would be 6.4 GB."""
    labels = {"train": np.arange(20_000).repeat(2), "validation": np.arange(0, 20_000, 40)}
    centres = np.random.default_rng(1).normal(size=(20_000, 24)).astype(np.float32)
    found = {split: centres[y] for split, y in labels.items()}
    tracemalloc.start()
    (_, accuracy), *_ = nearest_neighbours(
        {k: x[:4000] for k, x in found.items()}, {k: y[:4000] for k, y in labels.items()}, 20_000, Single
    )
    assert accuracy["validation"] == 0.1
    next(least_squares(found, labels, 20_000, Single))
    assert tracemalloc.get_traced_memory()[1] < 400 * 2**20
    tracemalloc.stop()


def test_pixels_are_averaged_down():
    images = random.integers(0, 256, (3, 32, 50, 3), np.uint8)
    found = pixels(images)
    assert found.shape == (3, 16 * 16 * 3)
    np.testing.assert_allclose(
        found[1].reshape(16, 16, 3)[2, 5], images[1, 4:6, 15:18].mean((0, 1)), rtol=1e-6
    )


def test_features_are_what_the_head_reads_and_a_terminal_shows_how_far_they_are(terminal):
    model = build_model("ResNet-8", 3, 16, filters=4)
    images = random.integers(0, 256, (BATCH + 3, 16, 16, 3), np.uint8)
    with redirect_stderr(terminal):
        found = features(without_head(model), images, "some images")
    head = model.get_layer("logits")
    np.testing.assert_allclose(found @ head.kernel + head.bias, model(images), atol=1e-5)
    assert "some images: 100%|" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def rows(output):
    lines = [line for line in output.splitlines() if line.startswith("| ") and "---" not in line]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: [float(cell.replace(",", "")) for cell in row[1:]] for row in cells[1:]}


# Makes an entry's model, and then gives one command after the other, in one process: its start takes longest.
COMMANDS = """
import json, os, sys
os.environ["KERAS_BACKEND"], os.environ["TF_CPP_MIN_LOG_LEVEL"] = "tensorflow", "3"
from pathlib import Path
from visionpipe.project.backend import start_backend
from visionpipe.artifact.canonical import save_keras
from visionpipe.cli import main
from visionpipe.project.params import load_params
from visionpipe.models import model_from_spec
params = load_params()
start_backend(params)
for arguments in json.loads(sys.argv[1]):
    if arguments == "train resnet":
        pixels = ((100.0,) * 3, (50.0,) * 3)
        model = model_from_spec(params.model_spec("resnet"), 4, params.prepare.size, *pixels)
        save_keras(model, Path("models/resnet/model.keras"))
        continue
    print("exit", main(["probe", *arguments]), flush=True)
    print("----", flush=True)
    print("----", file=sys.stderr, flush=True)
"""


def probed(project, *commands, **variables):
    """For each command: exit code, output, errors."""
    project.visionpipe("prepare")
    result = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=project.root, env=environment() | {"PYTHONPATH": str(CHECKOUT)} | variables,
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    outputs, errors = (stream.split("----\n")[:-1] for stream in (result.stdout, result.stderr))
    return [
        (int(re.search(r"^exit (\d)$", output, re.M)[1]), output, error)
        for output, error in zip(outputs, errors, strict=True)
    ]


@pytest.mark.slow
def test_the_command_judges_trained_models_and_sources_and_logs_each_once(project):
    shape = {"width": 64, "depth": 4, "heads": 2, "mlp": 128, "patch": 4, "grid": (4, 4)}
    np.savez(project.root / "x.npz", **google(**shape, class_token=False))
    source = ["x.npz", "--variant", "ViT-Mi/4"]
    results = probed(project, "train resnet", [], source, source, [*source, "--size", "16"])
    assert [(code, error) for code, _, error in results] == [(0, "")] * 4, "a progress bar in a pipe?"
    entries, first, second, _ = (rows(output) for _, output, _ in results)
    assert list(entries) == ["pixels", "resnet"]
    width, *accuracies, _ = entries["pixels"]
    assert (width, len(accuracies)) == (8 * 8 * 3, 4)
    assert min(accuracies) > 0.6, "a tenth of the labels is wrong, and the rest can be read off the pixels"
    assert "x.npz: google-research .npz, sha256" in results[1][1]
    assert "resized: tokens/position_embedding, 4×4 → 2×2, linear" in results[1][1]
    assert first["x.npz"][:-1] == second["x.npz"][:-1]

    uri = f"sqlite:///{project.root / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, uri)
    experiments = [experiment.name for experiment in client.search_experiments()]
    assert "visionpipe" not in experiments
    found = client.get_experiment_by_name("visionpipe probes").experiment_id
    runs = {
        run.data.params["image_size"] + run.data.tags["source"]: run for run in client.search_runs([found])
    }
    assert sorted(runs) == ["[16, 16]x.npz", "[8, 8]models/resnet/model.keras", "[8, 8]x.npz"]
    metrics = runs["[8, 8]x.npz"].data.metrics
    names = [
        f"{probe}.{split}.accuracy" for probe in ("neighbours", "linear") for split in ("validation", "test")
    ]
    assert [round(metrics[name], 4) for name in names] == first["x.npz"][1:5]


BAD = [
    ([], "no model is trained yet: run dvc repro, or name a source"),
    (["resnet"], "resnet is not trained yet"),
    (["none.npz"], "none.npz: no such file; other sources are URLs"),
    (["x.npz"], "x.npz does not name its model variant: add --variant"),
    (["x.npz", "--variant", "ViT-Mi4"], "no 'ViT-Mi4' (did you mean 'ViT-Mi/4'?)"),
    (["x.npz", "--variant", "ViT-Mi/4"], "not of this model: "),
    (["x.npz", "--variant", "ViT-S/16"], "image size 8×8 is not divisible by patch_size 16"),
    (["broken.npz", "--variant", "ViT-Mi/4"], "broken.npz is damaged: "),
    (["http://127.0.0.1:9/x.npz"], "http://127.0.0.1:9/x.npz cannot be downloaded: "),
    (["models:/visionpipe@champion"], "there is no tracking store"),
]


@pytest.mark.slow
def test_what_cannot_be_probed_is_one_line_and_exit_code_1(project, tmp_path):
    np.savez(project.root / "x.npz", **google())
    content = (project.root / "x.npz").read_bytes()
    (project.root / "broken.npz").write_bytes(content[: len(content) // 2])
    commands = [arguments for arguments, _ in BAD]
    results = probed(project, *commands, VISIONPIPE_CACHE=str(tmp_path / "cache"))
    for (arguments, message), (code, _, error) in zip(BAD, results, strict=True):
        assert code == 1, arguments
        (line,) = error.splitlines()
        assert line.startswith("visionpipe: ")
        assert message in line
