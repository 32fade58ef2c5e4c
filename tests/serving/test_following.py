"""Tests that the server follows the alias in a real MLflow store, and that every answer names its version."""

import dataclasses
import functools
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from attacks import move_under_load
from linear_models import downloaded, make_params, set_alias, split_data, state, write_model
from servers import running

from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.versions import load, version_in, write_record
from visionpipe.errors import ArtifactError, RegistryError
from visionpipe.serving.service import Follower, Service
from visionpipe.serving.settings import Settings
from visionpipe.stages.register import register
from visionpipe.tracking.lookup import Lookup, MLflowChild, artifact_in, describe_version
from visionpipe.tracking.registry import all_versions
from visionpipe.tracking.store import connect

pytestmark = pytest.mark.usefixtures("in_workspace")
NAME = "followed"


@pytest.fixture(scope="module")
def registered(in_workspace_first):
    """Registers versions 1 to 3 of one model, which make different mistakes."""
    params = make_params(NAME, ["one"])
    for mistaken in (4, 2, 0):
        write_model("one", params, mistaken=mistaken)
        register(params)
    return params


@pytest.fixture
def store(registered):
    store = connect(registered.tracking)
    set_alias(store, "champion", "1")
    return store


def png(image: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def folders(params) -> dict[str, Path]:
    return {str(v.version): artifact_in(downloaded(v)) for v in state(params).versions}


def wait_for_version(server, number: str, seconds: float = 10) -> float:
    start = time.perf_counter()
    while server.get("/model").json["version"] != number:
        assert time.perf_counter() - start < seconds, f"version {number} never came"
        time.sleep(0.02)
    return time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize("moves", [4, pytest.param(50, marks=pytest.mark.rare)])
def test_the_alias_is_followed_under_load_and_every_answer_is_of_the_version_it_names(
    registered, store, moves
):
    images = split_data("test")[0][:8]
    tables = {
        number: Classifier(folder).probabilities(images) for number, folder in folders(registered).items()
    }
    numbers = [str(1 + (move + 1) % 3) for move in range(moves)]
    with running(f"models:/{NAME}@champion") as server:
        move = functools.partial(set_alias, store, "champion")
        result = move_under_load(server, move, numbers, [png(image) for image in images], tables)
        assert server.metric("visionpipe_model_swaps_total") == moves
    assert (result["lost"], result["wrong"]) == ([], 0)
    assert result["versions"] == ["1", "2", "3"]
    assert result["slowest move, seconds"] < 5


def test_a_damaged_candidate_is_refused_and_the_old_version_still_answers(registered, store):
    damaged = next(Path("mlartifacts").rglob(f"{all_versions(store)['2'].source.rsplit('/', 1)[1]}"))
    model = next(damaged.rglob("model.onnx"))
    whole = model.read_bytes()
    refused = 'visionpipe_model_refused_total{version="2"}'
    try:
        with running(f"models:/{NAME}@champion") as server:
            model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
            set_alias(store, "champion", "2")
            deadline = time.perf_counter() + 10
            while not server.metric(refused):
                assert time.perf_counter() < deadline
                time.sleep(0.05)
            answer = server.predict(png(split_data("test")[0][0]))
            assert (answer.status, answer.json["model"]["version"]) == (200, "1")
            assert server.metric('visionpipe_model_version{name="followed",version="1"}') == 1
            time.sleep(0.5)
            assert server.metric(refused) == 1  # not loaded again at every check of the alias
            set_alias(store, "champion", "3")
            wait_for_version(server, "3")
            server.stop()
        assert any("version 2 is refused, version 1 still answers" in line for line in server.log)
    finally:
        model.write_bytes(whole)


def test_model_tells_lineage_and_metrics_of_the_version(store):
    with running(f"models:/{NAME}/3") as server:
        model = server.get("/model").json
        set_alias(store, "champion", "2")
        time.sleep(0.5)
        assert server.get("/model").json["version"] == "3"  # a number is not followed
    version = all_versions(store)["3"]
    assert {key: model["lineage"][key] for key in version.tags} == version.tags
    metrics = store.client.get_run(version.run_id).data.metrics
    assert model["metrics"]["test.accuracy"] == metrics["test.accuracy"]
    assert set(model["metrics"]) == {name for name in metrics if name.startswith(("validation.", "test."))}


def test_the_store_read_directly_and_through_mlflow_say_the_same(store):
    set_alias(store, "champion", "2")
    direct = Lookup(f"models:/{NAME}@champion").current()
    child = MLflowChild(NAME)
    try:
        asked = child.ask("champion", None)
        assert (asked.name, asked.number, asked.tags) == (direct.name, direct.number, direct.tags)
        assert asked.metrics == pytest.approx(direct.metrics)
        for name in ("model.onnx", "labels.json", "preprocessing.json"):
            assert (asked.folder / name).read_bytes() == (direct.folder / name).read_bytes()
        set_alias(store, "champion", "3")
        assert child.ask("champion", None).number == "3"
        with pytest.raises(RegistryError, match="has no alias nobody"):
            child.ask("nobody", None)
        with pytest.raises(RegistryError, match="has no version 99"):
            child.ask(None, "99")
    finally:
        child.close()
    assert not asked.folder.exists()


def test_a_candidate_without_files_is_refused_and_the_next_one_goes_live(registered, store, tmp_path):
    service = Service(Settings(threads=1))
    answers = iter(
        [
            Lookup(f"models:/{NAME}/1").current(),
            RuntimeError("a defect"),
            None,
            Lookup(f"models:/{NAME}/3").current(),
        ]
    )
    gone = dataclasses.replace(Lookup(f"models:/{NAME}/2").current(), folder=tmp_path / "gone")

    def current():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer or gone

    follower, served = Follower(service, current), []
    for _ in range(4):
        follower.look()
        served.append(service.present().number)
    assert served == ["1", "1", "1", "3"]
    text = service.metrics.text().decode()
    assert "visionpipe_registry_errors_total 1.0" in text
    assert 'visionpipe_model_refused_total{version="2"} 1.0' in text
    service.queue.pool.shutdown()


@pytest.mark.slow
def test_an_mlflow_server_is_followed_too(store):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    uri, database = f"http://127.0.0.1:{port}", f"sqlite:///{Path('mlflow.db').absolute()}"
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database]
    with Path("mlflow-server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", port, "--workers", "1"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.perf_counter() + 60
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health").close()
                break
            except OSError:
                assert time.perf_counter() < deadline
                time.sleep(0.2)
        with running(f"models:/{NAME}@champion", MLFLOW_TRACKING_URI=uri) as server:
            assert server.get("/model").json["version"] == "1"
            set_alias(store, "champion", "3")
            wait_for_version(server, "3", 30)
            assert server.stop() == 0
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.mark.parametrize(
    "address", ["models:/followed@nobody", "models:/followed/99", "models:/unknown@champion"]
)
def test_a_missing_version_or_alias_is_an_error(store, address):
    with pytest.raises(RegistryError, match="has no"):
        Lookup(address).current()


def test_a_file_that_does_not_belong_to_an_artifact_is_refused(tmp_path):
    from servers import artifact_folder

    folder = artifact_folder(tmp_path / "model")
    assert load(version_in(folder)).labels
    (folder / "weights.pkl").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"holds weights\.pkl"):
        load(version_in(folder))


def test_a_packed_version_keeps_its_name_and_is_compared_with_its_digest(registered, tmp_path):
    import shutil

    version = Lookup(f"models:/{NAME}/1").current()
    shutil.copytree(version.folder, tmp_path / "model")
    write_record(version, tmp_path / "model" / "version.json")
    packed = version_in(tmp_path / "model")
    assert (packed.name, packed.number, packed.tags, packed.metrics) == (
        version.name,
        version.number,
        version.tags,
        version.metrics,
    )
    load(packed)
    labels = json.loads((packed.folder / "labels.json").read_text())
    (packed.folder / "labels.json").write_text(json.dumps(labels | {"classes": labels["classes"][::-1]}))
    with pytest.raises(ArtifactError, match="version 1 of followed is damaged"):
        load(packed)


def test_the_version_of_a_recreated_store_goes_live_though_it_has_the_same_number(store):
    service = Service(Settings(threads=1))
    first, other = (Lookup(f"models:/{NAME}/{number}").current() for number in (1, 2))
    answers = iter([first, first, dataclasses.replace(other, number="1")])
    follower = Follower(service, lambda: next(answers))
    lives = []
    for _ in range(3):
        follower.look()
        lives.append(service.present())
    assert lives[0] is lives[1]
    assert [live.number for live in lives] == ["1", "1", "1"]
    assert lives[2].version.tags["artifact_sha256"] == other.tags["artifact_sha256"]
    service.queue.pool.shutdown()


def test_metrics_and_readiness_tell_whether_the_alias_is_followed(store, tmp_path, caplog):
    service = Service(Settings(threads=1))
    one, two = (Lookup(f"models:/{NAME}/{number}").current() for number in (1, 2))
    gone = dataclasses.replace(two, folder=tmp_path / "gone")
    answers = iter([one, RegistryError("no route"), RegistryError("no route"), one, gone, two])

    def current():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    follower, told = Follower(service, current), []
    for _ in range(6):
        follower.look()
        metric = re.search(r'visionpipe_following{name="followed"} (\S+)', service.metrics.text().decode())
        told.append((service.unfollowed, float(metric[1])))
    silent, refused = "the registry does not answer", "version 2 is refused"
    assert told[:4] == [("", 1), (silent, 0), (silent, 0), ("", 1)]
    assert told[4] == (refused, 0)
    assert told[5] == (refused, 0)  # a refused version is loaded again only after a minute
    assert [record.message for record in caplog.records].count(f"{silent}: no route") == 1
    service.queue.pool.shutdown()


def test_a_database_that_does_not_answer_is_said_and_the_process_that_asks_replaced(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://user:secret@127.0.0.1:1/mlflow")
    child = MLflowChild(NAME)
    try:
        for _ in range(2):
            with pytest.raises(RegistryError, match="does not answer") as said:
                child.ask("champion", None)
            assert "secret" not in str(said.value)
            child._process.kill()
            child._process.wait()
    finally:
        child.close()
    with pytest.raises(RegistryError, match="was stopped"):
        child.ask("champion", None)


def test_a_process_that_dies_repeatedly_is_restarted_after_longer_and_longer_pauses(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    child, pauses = MLflowChild(NAME), []
    try:
        for _ in range(5):
            with pytest.raises(RegistryError, match=r"ended \(exit code"):
                child.ask("champion", None)
            pauses.append(child._not_before - time.monotonic())
            child._not_before = 0.0
    finally:
        child.close()
    np.testing.assert_allclose(pauses, [0, 1, 2, 4, 8], atol=0.5)


def test_a_damaged_download_is_repeated_after_a_minute(registered, store, tmp_path):
    model = next(Path("mlartifacts").rglob(all_versions(store)["1"].source.rsplit("/", 1)[1])).rglob(
        "model.onnx"
    )
    path, downloads = next(model), []
    whole = path.read_bytes()
    ask = functools.partial(
        describe_version, store.client, NAME, None, "1", tmp_path, lambda: downloads.append(1)
    )
    try:
        path.write_bytes(whole[:-1])
        for _ in range(2):
            damaged = Path(ask()["folder"])
    finally:
        path.write_bytes(whole)
    assert len(downloads) == 1
    assert (damaged / "model.onnx").read_bytes() != whole
    os.utime(damaged.parents[1] / "damaged", (0, 0))
    assert (Path(ask()["folder"]) / "model.onnx").read_bytes() == whole
    ask()
    assert len(downloads) == 2


def test_the_artifacts_of_a_moved_store_are_read_from_their_new_folder(registered, store, tmp_path):
    (before := tmp_path / "before").mkdir()
    with sqlite3.connect("mlflow.db") as source, sqlite3.connect(before / "mlflow.db") as target:
        source.backup(target)
    shutil.copytree("mlartifacts", before / "mlartifacts")
    before.rename(after := tmp_path / "after")
    lookup = Lookup(f"models:/{NAME}@champion")
    lookup.uri = f"sqlite:///{after / 'mlflow.db'}"
    assert lookup.current().folder.is_relative_to(after)


def test_a_deleted_version_is_an_error(registered, store, tmp_path):
    with sqlite3.connect("mlflow.db") as source, sqlite3.connect(tmp_path / "mlflow.db") as target:
        source.backup(target)
        target.execute("UPDATE model_versions SET current_stage = 'Deleted_Internal' WHERE version = 2")
    lookup = Lookup(f"models:/{NAME}/2")
    lookup.uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with pytest.raises(RegistryError, match=f"{NAME} has no version 2"):
        lookup.current()
