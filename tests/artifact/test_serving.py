"""Tests the classifier alone, inside an MLflow model in a fresh process, and behind `mlflow models serve`."""

import base64
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
from onnx_models import write_artifact
from PIL import Image

from visionpipe.artifact.canonical import with_probabilities
from visionpipe.artifact.classifier import BATCH, Classifier
from visionpipe.artifact.package import pyfunc_arguments
from visionpipe.data.frame import frame
from visionpipe.errors import ArtifactError

CLASSES = ["cat", "dog", "owl", "fox", "hen", "bee", "ant"]
SIZE = (16, 20)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    return write_artifact(tmp_path_factory.mktemp("artifacts") / "linear", CLASSES, SIZE)


@pytest.fixture(scope="module")
def classifier(artifact):
    return Classifier(artifact)


@pytest.fixture(scope="module")
def model(artifact, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow") / "model"
    mlflow.pyfunc.save_model(folder, **pyfunc_arguments(artifact, tmp_path_factory.mktemp("code")))
    return folder


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """Starts `mlflow models serve`; returns the address for requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", str(model), "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with log.open("w") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, log)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(20)


def wait_for(address: str, server: subprocess.Popen, log: Path) -> None:
    for _ in range(300):
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def post(url: str, *images: object) -> tuple[int, dict]:
    body = json.dumps({"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}})
    request = urllib.request.Request(url, body.encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def picture(form: str, mode: str, width: int, height: int) -> bytes:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form)
    return file.getvalue()


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


PICTURES = {
    "PNG of the model's size": picture("PNG", "RGB", 20, 16),
    "larger PNG": picture("PNG", "RGB", 97, 61),
    "smaller PNG": picture("PNG", "RGB", 5, 9),
    "grey PNG": picture("PNG", "L", 31, 40),
    "PNG with transparency": picture("PNG", "RGBA", 24, 24),
    "JPEG": picture("JPEG", "RGB", 64, 48),
    "grey JPEG": picture("JPEG", "L", 48, 64),
}


# the classifier


def test_logits_are_the_matrix_product_and_probabilities_its_softmax(tmp_path):
    weights = np.random.default_rng(1).normal(0, 0.01, (4 * 5 * 3, 3))
    classifier = Classifier(write_artifact(tmp_path, ["a", "b", "c"], (4, 5), weights), threads=1)
    images = np.random.default_rng(2).integers(0, 256, (2 * BATCH + 3, 4, 5, 3), np.uint8)
    expected = images.reshape(len(images), -1) @ weights
    np.testing.assert_allclose(classifier.logits(images), expected, rtol=1e-4, atol=1e-4)
    softmax = np.exp(expected) / np.exp(expected).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(classifier.probabilities(images), softmax, rtol=1e-3)
    assert classifier.logits(images).dtype == np.float32


def test_a_model_that_was_exported_without_probabilities_answers_with_the_softmax(classifier, tmp_path):
    folder, images = write_artifact(tmp_path, CLASSES, SIZE), classifier.noise(5)
    model = onnx.load(folder / "model.onnx")
    del model.graph.node[-1], model.graph.output[-1]
    onnx.save(model, folder / "model.onnx")
    (folder / "labels.json").write_text(json.dumps(CLASSES))
    old = Classifier(folder)
    assert old.labels == CLASSES
    np.testing.assert_allclose(old.probabilities(images), classifier.probabilities(images), rtol=1e-5)


def test_a_model_of_the_sigmoid_loss_answers_with_the_sigmoid(tmp_path):
    folder = write_artifact(tmp_path, CLASSES, SIZE)
    model = onnx.load(folder / "model.onnx")
    del model.graph.node[-1], model.graph.output[-1]
    (folder / "model.onnx").write_bytes(with_probabilities(model.SerializeToString(), "sigmoid"))
    classifier = Classifier(folder)
    images = classifier.noise(3)
    expected = 1 / (1 + np.exp(-classifier.logits(images).astype(np.float64)))
    # ONNX Runtime approximates the sigmoid by a quotient of polynomials.
    np.testing.assert_allclose(classifier.probabilities(images), expected, rtol=1e-5, atol=1e-7)


def test_probabilities_stay_finite_where_the_exponential_alone_would_overflow(tmp_path):
    weights = np.full((4 * 4 * 3, 2), [1000.0, -1000.0])
    probabilities = Classifier(write_artifact(tmp_path, ["a", "b"], (4, 4), weights)).probabilities(
        np.full((1, 4, 4, 3), 255, np.uint8)
    )
    np.testing.assert_array_equal(probabilities, [[1.0, 0.0]])


def test_an_image_gets_the_same_answer_alone_and_in_any_company(classifier):
    images = np.random.default_rng(3).integers(0, 256, (BATCH + 5, *SIZE, 3), np.uint8)
    together = classifier.probabilities(images)
    alone = np.concatenate([classifier.probabilities(image[None]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_array_equal(together.argmax(axis=1), alone.argmax(axis=1))
    np.testing.assert_allclose(classifier.probabilities(images[::-1]), together[::-1], atol=1e-6)


def test_whole_numbers_and_floats_of_the_same_images_give_the_same_logits(classifier):
    images = np.random.default_rng(4).integers(0, 256, (3, *SIZE, 3), np.uint8)
    np.testing.assert_array_equal(classifier.logits(images), classifier.logits(images.astype(np.float64)))


def test_images_are_resized_as_the_artifact_says(artifact, tmp_path):
    shutil.copytree(artifact, tmp_path / "artifact")
    framing = {"size": SIZE, "interpolation": "bilinear", "crop_ratio": 0.8}
    (tmp_path / "artifact" / "preprocessing.json").write_text(json.dumps(framing))
    image = np.random.default_rng(3).integers(0, 256, (50, 60, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    expected = frame(image, SIZE, "bilinear", 0.8)
    np.testing.assert_array_equal(Classifier(tmp_path / "artifact").preprocess(buffer.getvalue()), expected)
    assert (Classifier(artifact).preprocess(buffer.getvalue()) != expected).any()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.onnx", None, "model.onnx cannot be read"),
        ("labels.json", None, "labels.json cannot be read"),
        ("preprocessing.json", None, "preprocessing.json cannot be read"),
        ("model.onnx", b"", "model.onnx does not run"),
        ("model.onnx", b"\x08\x0a\x12", "model.onnx does not run"),
        ("labels.json", b'["cat", ', "labels.json is not valid JSON"),
        ("labels.json", b'{"cat": 0}', "labels.json does not list class names"),
        ("labels.json", b'{"version": 2, "task": "single", "classes": [1]}', "does not list class names"),
        ("labels.json", b'{"version": 3, "task": "x", "classes": []}', "exported by a newer visionpipe"),
        ("labels.json", b'["cat", "dog"]', "model.onnx has 7 classes, labels.json 2"),
        ("preprocessing.json", b"{}", "preprocessing.json has no size"),
        ("preprocessing.json", b'{"size": [0, 20]}', "preprocessing.json has no size"),
        ("preprocessing.json", b'{"size": [8, 8]}', "model.onnx does not run"),
        (
            "preprocessing.json",
            b'{"size": [16, 20], "crop_ratio": 0}',
            "has an unknown interpolation, crop_ratio or key",
        ),
        (
            "preprocessing.json",
            b'{"size": [16, 20], "interpolation": "cubic"}',
            "has an unknown interpolation, crop_ratio or key",
        ),
        (
            "preprocessing.json",
            b'{"size": [16, 20], "mean": [0, 0, 0]}',
            "has an unknown interpolation, crop_ratio or key",
        ),
    ],
)
def test_a_missing_or_damaged_file_is_named_in_one_line(tmp_path, name, content, message):
    write_artifact(tmp_path, CLASSES, SIZE)
    (tmp_path / name).unlink() if content is None else (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        Classifier(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# the MLflow model


def test_a_fresh_process_runs_the_code_of_the_model_and_no_deep_learning_framework(model, tmp_path):
    """The current folder and PYTHONPATH hold another visionpipe, which must not be imported."""
    script = f"""
import sys, json, mlflow
answer = mlflow.pyfunc.load_model({str(model)!r}).predict([{{"image": {encode(PICTURES["JPEG"])!r}}}])
import visionpipe.data.decode, visionpipe.artifact.classifier
print(json.dumps({{
    "label": answer[0]["label"],
    "code": [module.__file__ for name, module in sys.modules.items() if name.startswith("visionpipe")],
    "frameworks": [name for name in ("keras", "tensorflow", "jax", "torch") if name in sys.modules],
}}))
"""
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["frameworks"] == []
    assert len(answer["code"]) >= 6
    assert all(path.startswith(str(model / "code")) for path in answer["code"])
    assert answer["label"] in CLASSES


def test_the_model_holds_no_pickle(model):
    endings = {path.suffix for path in model.rglob("*") if path.is_file()}
    assert endings <= {".py", ".onnx", ".json", ".yaml", ".txt", ""}


# mlflow models serve


@pytest.mark.parametrize("name", PICTURES)
def test_the_server_answers_as_the_classifier_does(url, classifier, name):
    status, body = post(url, encode(PICTURES[name]))
    expected = classifier.probabilities(classifier.preprocess(PICTURES[name])[None])[0]
    assert status == 200
    assert body["predictions"] == [
        {
            "label": CLASSES[expected.argmax()],
            "probability": expected.max(),
            "probabilities": dict(zip(CLASSES, expected.tolist(), strict=True)),
        }
    ]


def test_a_request_of_several_images_is_answered_in_their_order(url):
    texts = [encode(data) for data in PICTURES.values()]
    _, together = post(url, *texts)
    labels = [post(url, text)[1]["predictions"][0]["label"] for text in texts]
    assert [prediction["label"] for prediction in together["predictions"]] == labels
    assert len(set(labels)) > 1


BLACK = io.BytesIO()
Image.new("1", (13_000, 13_000)).save(BLACK, "PNG")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("not base64!", "not plain base64"),
        ("é", "not plain base64"),
        (encode(PICTURES["JPEG"])[:-1], "not plain base64"),
        ("data:image/png;base64," + encode(PICTURES["grey PNG"]), "any data: prefix"),
        ("", "not an image"),
        (None, "not a base64 string"),
        (5, "not a base64 string"),
        (encode(b"only text"), "not an image"),
        (encode(PICTURES["larger PNG"][:600]), "a PNG that is cut off"),
        (encode(BLACK.getvalue()), "13000 × 13000 pixels"),
        ("A" * 28_000_004, "28,000,004 characters of base64 exceed the limit of 28,000,000"),
    ],
    ids=[
        "garbage",
        "accent",
        "padding",
        "data URL",
        "empty",
        "null",
        "number",
        "text",
        "truncated",
        "pixels",
        "length",
    ],
)
def test_a_bad_image_is_answered_with_its_row_and_one_sentence(url, text, reason):
    status, body = post(url, encode(PICTURES["JPEG"]), text)
    assert status == 400
    assert set(body) == {"error_code", "message"}
    assert body["message"].startswith("row 1: ")
    assert reason in body["message"]
    assert len(body["message"]) < 120
    assert "\n" not in body["message"]


def test_eight_clients_at_once_get_the_answers_of_one_after_the_other(url):
    texts = [encode(data) for data in PICTURES.values()] * 6
    one_by_one = [post(url, text) for text in texts]
    with ThreadPoolExecutor(8) as clients:
        at_once = list(clients.map(lambda text: post(url, text), texts))
    assert at_once == one_by_one
