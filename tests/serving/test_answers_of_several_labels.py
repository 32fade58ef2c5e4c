"""Tests how a model that names any number of labels answers: over HTTP, in tables and inside an MLflow model."""

import base64
import csv
import json

import mlflow
import numpy as np
import pandas
import pyarrow.parquet
import pytest
from onnx_models import write_artifact
from servers import picture, running

import visionpipe
from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.package import pyfunc_arguments
from visionpipe.commands.predict import predict
from visionpipe.errors import ArtifactError
from visionpipe.tasks.multi import Multi

LABELS, SIZE = ["cat", "a, b", "dog"], (6, 6)
PICTURES = [picture(width=8 + index) for index in range(12)]

pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A model with thresholds at quantiles of its answers, so that every number of labels occurs."""
    folder = tmp_path_factory.mktemp("several")
    classifier = Classifier(write_artifact(folder / "first", LABELS, SIZE, task=Multi((0.5,) * 3)))
    table = np.stack([classifier.probabilities(classifier.preprocess(data)[None])[0] for data in PICTURES])
    thresholds = tuple(np.quantile(table, [0.4, 0.6, 0.5], axis=0).diagonal().tolist())
    return write_artifact(folder / "model", LABELS, SIZE, task=Multi(thresholds))


@pytest.fixture(scope="module")
def expected(artifact):
    """The labels of each picture, computed from logits and thresholds alone."""
    classifier = Classifier(artifact)
    thresholds = json.loads((artifact / "labels.json").read_text())["thresholds"]
    logits = np.concatenate([classifier.logits(classifier.preprocess(data)[None]) for data in PICTURES])
    shares = 1 / (1 + np.exp(-logits.astype(np.float64)))
    named = [
        [LABELS[place] for place in np.argsort(-row) if row[place] >= thresholds[place]] for row in shares
    ]
    assert {len(names) for names in named} >= {0, 1, 2}
    return named


def test_the_server_names_the_labels_that_reach_their_thresholds(artifact, expected):
    with running(artifact) as server:
        predictions = [server.predict(data).json["predictions"][0] for data in PICTURES]
        assert [prediction["labels"] for prediction in predictions] == expected
        assert all(prediction["probabilities"].keys() == set(LABELS) for prediction in predictions)
        assert "label" not in predictions[0]
        short = [server.predict(data, "?top_k=1").json["predictions"][0] for data in PICTURES]
        assert [answer["labels"] for answer in short] == expected
        for answer, full in zip(short, predictions, strict=True):
            likeliest = max(full["probabilities"], key=full["probabilities"].get)
            assert answer["probabilities"].keys() == {likeliest, *full["labels"]}
        described = server.get("/model").json
        assert (described["task"], len(described["thresholds"])) == ("multi", 3)
        request = {
            "inputs": [
                {
                    "name": "files",
                    "datatype": "BYTES",
                    "shape": [1],
                    "data": [base64.b64encode(PICTURES[0]).decode()],
                }
            ]
        }
        path = f"/v2/models/{described['name']}/infer"
        outputs = server.request("POST", path, json.dumps(request)).json["outputs"]
        assert [json.loads(text) for text in outputs[1]["data"]] == expected[:1]


def test_a_table_of_predictions_has_a_column_per_label(artifact, expected, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for index, data in enumerate(PICTURES):
        (images / f"{index:02d}.png").write_bytes(data)
    predict([str(images)], tmp_path / "table.csv", str(artifact), probabilities=True)
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [[name for name in LABELS if row[f"label({name})"] == "1"] for row in rows] == [
        sorted(names, key=LABELS.index) for names in expected
    ]
    assert 0 < float(rows[0]["p(a, b)"]) < 1
    predict([str(images)], tmp_path / "table.parquet", str(artifact), probabilities=False)
    table = pyarrow.parquet.read_table(tmp_path / "table.parquet").to_pylist()
    assert [sum(row[f"label({name})"] for name in LABELS) for row in table] == list(map(len, expected))
    answers = visionpipe.load(artifact).predict(
        [images / f"{index:02d}.png" for index in range(len(PICTURES))]
    )
    assert [answer.labels for answer in answers] == expected


def test_the_mlflow_model_answers_with_labels(artifact, expected, tmp_path):
    mlflow.pyfunc.save_model(tmp_path / "model", **pyfunc_arguments(artifact, tmp_path / "code"))
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    answers = model.predict(
        pandas.DataFrame({"image": [base64.b64encode(data).decode() for data in PICTURES]})
    )
    assert [answer["labels"] for answer in answers] == expected


@pytest.mark.parametrize("thresholds", [None, [0.5], [0.5, 2, 0.5], "abc", ["x", 0, 0]])
def test_damaged_thresholds_are_refused_in_one_line(artifact, tmp_path, thresholds):
    folder = write_artifact(tmp_path, LABELS, SIZE, task=Multi((0.5,) * 3))
    content = json.loads((folder / "labels.json").read_text()) | {"thresholds": thresholds}
    (folder / "labels.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=r"labels\.json is damaged"):
        Classifier(folder)
