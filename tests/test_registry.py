"""The tracking store and the model registry: nothing twice, nothing lost, nothing unverified.

The models here are linear and written without training; the store, the uploads and the kills are real.
"""

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import yaml
from onnx_models import write_artifact
from project import CHECKOUT, CLASSES, TIMEOUT, Tracked, environment, pattern, tracked

from visionpipe.backend import thread_count
from visionpipe.config import ModelConfig, Params, PrepareConfig, TrackingConfig
from visionpipe.data.prepared import PREPARED, SPLITS, write_manifest, write_split
from visionpipe.errors import RegistryError
from visionpipe.evaluate import evaluate
from visionpipe.evaluation.speed import measurement_path
from visionpipe.files import exclusive, write_json
from visionpipe.inspection import lineage
from visionpipe.lineage import artifact_sha256, lineage_id, sha256_file, train_key
from visionpipe.promotion import promote, rollback
from visionpipe.prune import prune
from visionpipe.register import RECEIPT, golden, register, version_tags
from visionpipe.tracking.registry import publish
from visionpipe.tracking.runs import record
from visionpipe.tracking.store import connect
from visionpipe.train import training_identity

SIZE = (8, 8)
NEEDS = "data/prepared/manifest.json"


# Building blocks ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with prepared images and one tracking store. Tests keep apart by the names they use in it."""
    folder = tmp_path_factory.mktemp("workspace")
    (folder / ".dvc").mkdir()
    for name in ("dvc.yaml", "visionpipe"):
        (folder / name).symlink_to(CHECKOUT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_prepared(PREPARED)
    return folder


@pytest.fixture(autouse=True)
def _in_the_workspace(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def params(request):
    """Parameters of two models, with an experiment and a registered model of the test's own."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]
    return make_params(name, ["one", "two"])


def make_params(name: str, models: list[str]) -> Params:
    return Params(
        PrepareConfig(
            source="zip", path="data/tiny.zip", size=SIZE, validation_fraction=0.2, test_fraction=0.2
        ),
        models={model: ModelConfig(variant="ResNet-8", needs=NEEDS) for model in models},
        tracking=TrackingConfig(experiment=name, model=name),
        threads=1,
    )


def state(params: Params) -> Tracked:
    return tracked(Path("mlflow.db"), params.tracking.model, params.tracking.experiment)


def split_data(split: str) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(SPLITS.index(split))
    labels = np.arange({"train": 40, "validation": 60, "test": 80}[split], dtype=np.int32) % len(CLASSES)
    return np.stack([pattern(label, random) for label in labels]), labels


def write_prepared(folder: Path) -> None:
    folder.mkdir(parents=True)
    for split in SPLITS:
        images, labels = split_data(split)
        write_split(
            folder,
            split,
            images,
            range(len(images)),
            labels,
            [f"{split}/{i}.png" for i in range(len(images))],
        )
    write_manifest(
        folder, size=SIZE, classes=list(CLASSES), channel_mean=[0.0] * 3, channel_std=[1.0] * 3, quarantined=[], warnings=[]
    )  # fmt: skip


def linear_weights(mistaken: int) -> np.ndarray:
    """Weights (pixels, classes) that are right but for `mistaken` classes, which they take for each other."""
    random = np.random.default_rng(0)
    means = np.stack(
        [np.mean([pattern(c, random) for _ in range(50)], axis=0).ravel() for c in range(len(CLASSES))]
    )
    weights = (means - means.mean(axis=0)).T / 1000
    order = np.arange(len(CLASSES))
    order[:mistaken] = np.roll(order[:mistaken], 1)
    return weights[:, order]


def write_model(name: str, params: Params, mistaken: int = 0, seed: int = 0, epochs: int = 2) -> None:
    """What train, export and evaluate leave behind for a linear model."""
    folder = Path("models") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.keras").write_bytes(f"{name} {mistaken} {seed}".encode())
    columns = "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate"
    rows = [f"{epoch},1.0,0.5,1.0,0.5,0.01" for epoch in range(1, epochs + 1)]
    (folder / "history.csv").write_text("\n".join([columns, *rows]) + "\n")
    identity = {
        "data_sha256": json.loads((PREPARED / "manifest.json").read_text())["content_sha256"],
        "code": {},
        "params": {
            "backend": "tensorflow",
            "seed": seed,
            "model": {"family": "linear"},
            "train": {},
            "prepare": {},
        },
        "versions": {"keras": "3"},
    }
    key, model_sha256 = train_key(identity | {"name": name}), sha256_file(folder / "model.keras")
    write_json(
        folder / "lineage.json",
        {"name": name, "train_key": key, "lineage_id": lineage_id(key, model_sha256), "model_sha256": model_sha256,
         "parameters_count": 768, **identity},
    )  # fmt: skip
    artifact = write_artifact(
        Path("artifacts") / name, list(CLASSES), SIZE, linear_weights(mistaken) + seed * 1e-7
    )
    speed = {"latency_p50_ms": 1.0, "latency_p95_ms": 1.0, "images_per_second": 1.0, "peak_memory_mib": 1.0}
    write_json(
        measurement_path(artifact_sha256(artifact), thread_count(params), Path(".visionpipe").absolute()),
        speed,
    )
    evaluate(name, params)


def only(params: Params, *models: str) -> Params:
    return dataclasses.replace(params, models={name: params.models[name] for name in models})


def assert_exactly_once(params: Params, runs: list[str], versions: int) -> None:
    """One finished run for each of `runs`, curves without double points, so many versions, aliases on them."""
    found = state(params)
    assert found.finished == sorted(runs)
    assert len(found.runs) == len(runs)
    assert found.doubled() == []
    assert len(found.versions) == versions
    assert set(found.aliases) == ({"challenger", "champion"} if versions else set())
    for version in found.versions:
        assert_verified(version)


def assert_verified(version) -> None:
    """What lies in the store under a version is what its tags say."""
    folder = Path(
        mlflow.artifacts.download_artifacts(
            version.source, tracking_uri=f"sqlite:///{Path('mlflow.db').absolute()}"
        )
    )
    (artifact,) = (folder / "artifacts").glob("*/model.onnx")
    assert artifact_sha256(artifact.parent) == version.tags["artifact_sha256"]


# Registering -------------------------------------------------------------------------------------------


def test_registering_twice_makes_nothing_twice(params, capfd):
    for mistaken, name in enumerate(params.models):
        write_model(name, params, mistaken=2 * mistaken)
    register(params)
    assert_exactly_once(params, ["one", "two"], versions=1)
    receipt = RECEIPT.read_bytes()
    register(params)
    assert_exactly_once(params, ["one", "two"], versions=1)
    assert RECEIPT.read_bytes() == receipt
    assert capfd.readouterr().err == ""


def test_a_version_carries_its_card_and_pinned_requirements_and_no_pickle(params):
    write_model("one", params)
    register(only(params, "one"))
    (version,) = state(params).versions
    folder = Path(
        mlflow.artifacts.download_artifacts(
            version.source, tracking_uri=connect(params.tracking).client.tracking_uri
        )
    )
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib", ".pt"))]
    assert any(name.endswith("MODEL_CARD.md") for name in files)
    requirements = (folder / "requirements.txt").read_text().split()
    assert requirements
    assert all("==" in line for line in requirements)
    assert "tensorflow" not in " ".join(requirements)
    for label in CLASSES:
        assert label in version.description


def test_challenger_moves_only_to_what_is_better_on_validation_and_champion_stays(params):
    model = only(params, "one")
    accuracies = []
    for mistaken, expected in ((2, "1"), (4, "1"), (0, "3")):
        write_model("one", model, mistaken=mistaken)
        register(model)
        found = state(params)
        accuracies.append(float(found.versions[-1].tags["validation_accuracy"]))
        assert found.aliases == {"challenger": expected, "champion": "1"}
    assert accuracies[1] < accuracies[0] < accuracies[2]
    assert_exactly_once(params, ["one"] * 3, versions=3)


def test_the_same_artifact_from_another_training_is_no_new_version(params):
    model = only(params, "one")
    write_model("one", model)
    register(model)
    made = json.loads(Path("models/one/lineage.json").read_text())
    made |= {"train_key": "0" * 64, "lineage_id": "1" * 64}
    write_json(Path("models/one/lineage.json"), made)
    register(model)
    assert_exactly_once(params, ["one", "one"], versions=1)


def test_a_failed_gate_registers_nothing_and_says_so(params, capsys):
    write_model("one", params, mistaken=2)
    gate = dataclasses.replace(params.register.gate, accuracy=0.9)
    register(
        dataclasses.replace(only(params, "one"), register=dataclasses.replace(params.register, gate=gate))
    )
    assert_exactly_once(params, ["one"], versions=0)
    receipt = json.loads(RECEIPT.read_text())
    assert (receipt["passed"], receipt["chosen"]) == (False, None)
    said = capsys.readouterr().out
    assert "NOTHING WAS REGISTERED" in said
    assert "is below 0.9" in said


def test_an_upload_that_arrives_damaged_is_never_registered(params, monkeypatch):
    write_model("one", params)
    upload = mlflow.MlflowClient.log_model_artifacts

    def damaging(client, model_id, local_dir):
        upload(client, model_id, local_dir)
        for file in Path("mlartifacts").rglob(f"{model_id}/**/model.onnx"):
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "log_model_artifacts", damaging)
        with pytest.raises(RegistryError, match=r"model.onnx came back changed"):
            register(only(params, "one"))
    assert_exactly_once(params, ["one"], versions=0)
    register(only(params, "one"))
    assert_exactly_once(params, ["one"], versions=1)


def test_an_upload_that_answers_otherwise_is_never_registered(params):
    write_model("one", params)
    store = connect(params.tracking)
    run_id = record(store, Path("models/one"))
    right = golden("one")
    wrong = dataclasses.replace(right, answers=[*right.answers[:-1], right.answers[0] | {"label": "red"}])
    assert wrong != right
    with pytest.raises(RegistryError, match="answers otherwise"):
        publish(store, run_id, "one", Path("artifacts/one"), "# card", wrong, version_tags("one"))
    assert_exactly_once(params, ["one"], versions=0)


# Runs --------------------------------------------------------------------------------------------------


def test_another_model_from_the_same_training_key_is_a_run_of_its_own_and_says_why(params):
    write_model("one", params)
    store = connect(params.tracking)
    first = record(store, Path("models/one"))
    made = json.loads(Path("models/one/lineage.json").read_text())
    write_json(Path("models/one/lineage.json"), made | {"lineage_id": "2" * 64, "model_sha256": "3" * 64})
    second = record(store, Path("models/one"))
    assert len({first, second, record(store, Path("models/one"))}) == 2
    assert "another model" in store.client.get_run(second).data.tags["note"]
    assert "note" not in store.client.get_run(first).data.tags


def test_a_history_longer_than_one_request_arrives_whole_and_once(params):
    write_model("one", params, epochs=450)
    store = connect(params.tracking)
    run_id = record(store, Path("models/one"))
    for metric in ("accuracy", "loss", "val_accuracy"):
        assert steps(store, run_id, metric) == list(range(1, 451))


def test_a_history_whose_logging_was_cut_off_is_completed(params, monkeypatch):
    write_model("one", params, epochs=450)
    store = connect(params.tracking)
    sent, send = [], store.client._tracking_client.store.log_batch

    def cut_off(**request):
        sent.append(len(request["metrics"]))
        if len(sent) == 4:  # the parameters, and two parts of the history, arrived
            raise ConnectionError("cut off")
        return send(**request)

    with monkeypatch.context() as patch:
        patch.setattr(store.client._tracking_client.store, "log_batch", cut_off)
        with pytest.raises(ConnectionError):
            record(store, Path("models/one"))
    assert sum(sent[:3]) > 0
    run_id = record(store, Path("models/one"))
    for metric in ("accuracy", "loss", "val_accuracy"):
        assert steps(store, run_id, metric) == list(range(1, 451))


def steps(store, run_id: str, metric: str) -> list[int]:
    return sorted(point.step for point in store.client.get_metric_history(run_id, metric))


def test_a_new_evaluation_replaces_the_numbers_of_the_old_one(params):
    write_model("one", params)
    register(only(params, "one"))
    report = Path("reports/one/metrics.json")
    metrics = json.loads(report.read_text())
    metrics["test"]["accuracy"] = 0.125
    write_json(report, metrics)
    register(only(params, "one"))
    assert state(params).run("one").data.metrics["test.accuracy"] == 0.125
    assert len(state(params).runs) == 1


# Killed with signal 9 ----------------------------------------------------------------------------------

# Imports everything once; then, for each line of its input, forks a child that runs `register` and is killed
# right after the write that the line names. Prints the child's exit code and the writes that it made.
DRIVER = """
import json, os, shutil, signal, sys, tempfile
import mlflow.pyfunc, numpy, onnxruntime, pandas
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from visionpipe.config import load_params
from visionpipe.evaluation.comparison import comparison
from visionpipe.register import register
from visionpipe.tracking.card import model_card
from visionpipe.tracking.store import connect

WRITES = ("create_", "delete_", "finalize_", "log_", "restore_", "set_", "update_")
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

def describe(client, name, arguments, options):
    details = [options["run_name"]] if "run_name" in options else []
    if arguments and isinstance(arguments[0], str) and len(arguments[0]) == 32:
        details.append(MlflowClient.get_run(client, arguments[0]).info.run_name)
    if name in ("set_tag", "set_registered_model_alias"):
        details.append(arguments[1])
    if name in ("log_artifact", "log_artifacts"):
        details.append(os.path.basename(arguments[1]))
    if name == "log_batch":
        details += [kind for kind in ("params", "metrics") if options.get(kind)]
        details += [metric.key for metric in options.get("metrics", [])][:1]
    return " ".join([name, *details])

def watch(name, fatal, writes):
    original = getattr(MlflowClient, name)
    def watched(client, *arguments, **options):
        write = describe(client, name, arguments, options)
        result = original(client, *arguments, **options)
        os.write(writes, (write + "\\n").encode())
        if write == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(MlflowClient, name, watched)

whole_upload = LocalArtifactRepository.log_artifacts

def upload_half(repository, local_dir, artifact_path=None):
    if "MLmodel" not in os.listdir(local_dir):
        return whole_upload(repository, local_dir, artifact_path)
    files = [os.path.join(folder, name) for folder, _, names in os.walk(local_dir) for name in names]
    for file in files[: len(files) // 2]:
        LocalArtifactRepository.log_artifact(repository, file, artifact_path)
    os.kill(os.getpid(), signal.SIGKILL)

def child(line, writes):
    if line == "half an upload":
        LocalArtifactRepository.log_artifacts = upload_half
    for name in dir(MlflowClient):
        if name.startswith(WRITES):
            watch(name, line, writes)
    register(load_params())

for line in sys.stdin:
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            child(line.strip(), writing)
            status = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as file:
        writes = file.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    print(json.dumps([status, writes]), file=answers, flush=True)
"""


@pytest.fixture(scope="module")
def driver(workspace, tmp_path_factory):
    """`driver(line)`: one `register` in a process that is killed after the write named by `line`."""
    errors = (tmp_path_factory.mktemp("driver") / "stderr.txt").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=workspace, env=environment(PYTHONPATH=str(CHECKOUT)),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
    )  # fmt: skip

    def call(line: str = "") -> SimpleNamespace:
        print(line, file=process.stdin, flush=True)
        answer = process.stdout.readline()
        errors.seek(0)
        assert answer, errors.read()
        status, writes = json.loads(answer)
        return SimpleNamespace(status=status, writes=writes, errors=errors.read())

    yield call
    process.stdin.close()
    process.wait(TIMEOUT)
    process.stdout.close()
    errors.close()


def write_params_file(params: Params) -> None:
    content = json.loads(json.dumps(dataclasses.asdict(params)))
    Path("params.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.timeout(600)
def test_register_killed_after_each_of_its_writes_in_turn_makes_everything_exactly_once(params, driver):
    """Every attempt starts from what the one before it left, and dies one write further on."""
    for mistaken, name in enumerate(params.models):
        write_model(name, params, mistaken=2 * mistaken)
    write_params_file(
        dataclasses.replace(params, tracking=TrackingConfig(f"{params.tracking.model}-whole", "whole"))
    )
    whole = driver()
    assert whole.status == 0, whole.errors
    assert len(whole.writes) == len(set(whole.writes)), "the names of the writes must tell them apart"
    assert whole.writes[-1] == "set_registered_model_alias champion"
    writes = [write for write in whole.writes if write != "create_experiment"]

    write_params_file(params)
    for write in writes:
        killed = driver(write)
        assert killed.status == -9, f"not reached: {write}; {killed.writes}; {killed.errors}"
        found = state(params)
        assert len(found.runs) <= len(params.models), f"after {write}"
        assert len(found.versions) <= 1, f"after {write}"
        for version in found.versions:
            assert_verified(version)
    last = driver()
    assert last.status == 0, last.errors
    assert last.writes == [], "nothing was left to do"
    assert_exactly_once(params, ["one", "two"], versions=1)
    logged = connect(params.tracking).client.search_logged_models([state(params).runs[0].info.experiment_id])
    assert [model.status for model in logged] == ["READY"]
    outputs = state(params).run(state(params).versions[0].tags["model"]).outputs.model_outputs
    assert [output.model_id for output in outputs] == [logged[0].model_id]


def test_register_killed_half_way_through_an_upload_uploads_again(params, driver):
    write_model("one", params)
    write_params_file(only(params, "one"))
    assert driver("half an upload").status == -9
    assert state(params).versions == []
    assert driver().status == 0
    assert_exactly_once(params, ["one"], versions=1)


CREATE = """
import os, signal, sys
from sqlalchemy import event
from sqlalchemy.engine import Engine
from visionpipe.config import TrackingConfig
from visionpipe.tracking.store import connect

left = int(sys.argv[1])

@event.listens_for(Engine, "after_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

connect(TrackingConfig("fresh", "fresh"))
"""


def test_a_store_that_was_killed_while_its_tables_were_made_is_made_again(tmp_path):
    command = [sys.executable, "-c", CREATE]
    options = {
        "cwd": tmp_path,
        "env": environment(PYTHONPATH=str(CHECKOUT)),
        "timeout": TIMEOUT,
        "check": False,
    }
    (tmp_path / ".dvc").mkdir()
    assert subprocess.run([*command, "150"], **options).returncode == -9
    result = subprocess.run([*command, "0"], **options, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_four_processes_may_start_at_once_on_a_fresh_store(tmp_path):
    (tmp_path / ".dvc").mkdir()
    command = [sys.executable, "-c", CREATE, "0"]
    options = {
        "cwd": tmp_path,
        "env": environment(PYTHONPATH=str(CHECKOUT)),
        "stderr": subprocess.PIPE,
        "text": True,
    }
    processes = [subprocess.Popen(command, **options) for _ in range(4)]
    errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert sorted(experiment.name for experiment in client.search_experiments()) == ["Default", "fresh"]


# Promotion, lineage, prune -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registered(workspace, request):
    """Three versions, from bad to good: 1 takes all classes for others, 2 two of them, 3 none."""
    params = make_params("registered", ["one"])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setenv("PYTHONPATH", str(CHECKOUT))
        for mistaken in (4, 2, 0):
            write_model("one", params, mistaken=mistaken)
            register(params)
    return params


@pytest.fixture
def registry(registered):
    """The three versions with `champion` on 1, `challenger` on 2, and an empty log of moves."""
    store = connect(registered.tracking)
    set_alias(store, "champion", "1")
    set_alias(store, "challenger", "2")
    for tag in store.client.get_registered_model(store.model_name).tags:
        store.client.delete_registered_model_tag(store.model_name, tag)
    return store


def set_alias(store, alias: str, version: str) -> None:
    store.client.set_registered_model_alias(store.model_name, alias, version)


def champion(store) -> str:
    return str(store.client.get_model_version_by_alias(store.model_name, "champion").version)


def test_promote_makes_a_better_challenger_the_champion_and_logs_it(registry, registered, capsys):
    promote(registered)
    assert champion(registry) == "2"
    tags = registry.client.get_registered_model(registry.model_name).tags
    (entry,) = (json.loads(value) for value in tags.values())
    assert (entry["action"], entry["from"], entry["to"]) == ("promote", "1", "2")
    assert entry["test_accuracy"]["2"] > entry["test_accuracy"]["1"]
    assert entry["by"]
    assert entry["time"].endswith("Z")
    assert "champion: version 1 → version 2" in capsys.readouterr().out


def test_promote_refuses_a_challenger_that_is_not_better_on_the_same_test_images(registry, registered):
    set_alias(registry, "champion", "3")
    with pytest.raises(RegistryError, match=r"version 2 is not better than version 3"):
        promote(registered)
    assert champion(registry) == "3"
    assert registry.client.get_registered_model(registry.model_name).tags == {}


def test_promote_judges_by_the_test_images_and_not_by_what_a_version_says_of_itself(registry, registered):
    client = registry.client
    honest = client.get_model_version(registry.model_name, "2").tags["test_accuracy"]
    client.set_model_version_tag(registry.model_name, "2", "test_accuracy", "0.0")
    promote(registered)
    client.set_model_version_tag(registry.model_name, "2", "test_accuracy", honest)
    assert champion(registry) == "2"


def test_promoting_the_champion_itself_changes_nothing(registry, registered, capsys):
    set_alias(registry, "champion", "2")
    promote(registered)
    assert "nothing to promote" in capsys.readouterr().out
    assert registry.client.get_registered_model(registry.model_name).tags == {}


def test_rollback_goes_back_one_champion_at_a_time_and_then_says_that_there_is_none(registry, registered):
    promote(registered)
    set_alias(registry, "challenger", "3")
    promote(registered)
    assert champion(registry) == "3"
    rollback(registered)
    assert champion(registry) == "2"
    rollback(registered)
    assert champion(registry) == "1"
    with pytest.raises(RegistryError, match="no earlier champion"):
        rollback(registered)
    assert champion(registry) == "1"


def test_a_promotion_that_was_interrupted_and_repeated_needs_one_rollback(registry, registered):
    promote(registered)
    set_alias(registry, "champion", "1")  # as if killed between the log entry and the alias
    promote(registered)
    rollback(registered)
    assert champion(registry) == "1"
    with pytest.raises(RegistryError, match="no earlier champion"):
        rollback(registered)


def test_rollback_to_a_version_that_was_deleted_is_one_clear_error(registry, registered):
    promote(registered)
    registry.client.set_registered_model_tag(
        registry.model_name, "promotion.0002", json.dumps({"action": "promote", "from": "77", "to": "2"})
    )
    with pytest.raises(RegistryError, match=r"version 77 .* was deleted"):
        rollback(registered)
    assert champion(registry) == "2"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (promote, "has no challenger"),
        (rollback, "no earlier champion"),
        (lambda params: lineage("champion", params), "no version or alias 'champion'"),
    ],
)
def test_an_empty_registry_is_one_clear_error(params, command, message):
    with pytest.raises(RegistryError, match=message):
        command(params)


def test_lineage_names_what_made_a_version(registry, registered, capsys):
    lineage("champion", registered)
    by_alias = capsys.readouterr().out
    lineage("1", registered)
    assert capsys.readouterr().out == by_alias
    version = registry.client.get_model_version(registry.model_name, "1")
    run = registry.client.get_run(version.run_id)
    data = json.loads((PREPARED / "manifest.json").read_text())["content_sha256"]
    for fact in (data, run.info.run_id, run.info.run_name, version.tags["model_sha256"], "git commit"):
        assert fact in by_alias
    assert aliases_line(by_alias) == "champion"
    lineage("2", registered)
    assert aliases_line(capsys.readouterr().out) == "challenger"
    with pytest.raises(RegistryError, match="no version or alias '99'"):
        lineage("99", registered)


def aliases_line(text: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith("aliases "))
    return line.removeprefix("aliases").strip()


def test_prune_removes_only_what_neither_an_alias_nor_a_rollback_nor_this_checkout_needs(params, capsys):
    model = only(params, "one")
    for mistaken in (4, 2, 3, 0):
        write_model("one", model, mistaken=mistaken)
        register(model)
    store = connect(params.tracking)
    set_alias(store, "champion", "1")
    set_alias(store, "challenger", "2")
    promote(model)  # 1 stays needed for a rollback; 3 is needed by nothing; 4 was made by the models here
    capsys.readouterr()

    prune(model, delete=False)
    listed = capsys.readouterr().out
    assert "would remove version 3 (one)" in listed
    assert listed.count("would remove version") == 2  # 3 and 4
    assert listed.count("would remove run") == 1
    assert len(state(params).versions) == 4

    prune(model, delete=True)
    left = state(params)
    assert [str(version.version) for version in left.versions] == ["1", "2"]
    assert len(left.runs) == 3
    assert left.aliases == {"champion": "2", "challenger": "2"}
    capsys.readouterr()
    prune(model, delete=False)
    assert "nothing to prune" in capsys.readouterr().out
    rollback(model)
    assert champion(store) == "1"


def test_prune_spares_trainings_that_run_or_would_be_taken_up_again(params, capsys):
    store = connect(params.tracking)
    data_sha256 = json.loads((PREPARED / "manifest.json").read_text())["content_sha256"]
    keys = {
        "going": "a" * 64,
        "interrupted": train_key(training_identity("one", params, data_sha256)),
        "abandoned": "b" * 64,
    }
    for name, key in keys.items():
        (Path(".visionpipe/checkpoints") / key).mkdir(parents=True)
        store.client.create_run(store.experiment_id, run_name=name, tags={"train_key": key, "model": name})
    with exclusive(Path(".visionpipe/locks") / keys["going"], "waiting"):
        prune(params, delete=True)
    assert {run.info.run_name for run in state(params).runs} == {"going", "interrupted"}
    left = {folder.name for folder in Path(".visionpipe/checkpoints").iterdir()}
    assert left == {keys["going"], keys["interrupted"]}
    prune(params, delete=True)
    assert [run.info.run_name for run in state(params).runs] == ["interrupted"]
