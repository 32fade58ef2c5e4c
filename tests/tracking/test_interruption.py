"""Kills `register` and the creation of a store with signal 9 at every step; the next `register` completes the work."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import mlflow
import pytest
from linear_models import (
    assert_exactly_once,
    assert_verified,
    only,
    state,
    write_model,
    write_params_file,
)
from repository import CHECKOUT, TIMEOUT, environment

from visionpipe.project.sections import TrackingConfig
from visionpipe.tracking.store import connect

# Imports everything once. Then, for each line of its input, forks a child that runs `register` and is killed right
# after the write that the line names. Prints the child's exit code and its writes.
DRIVER = """
import json, os, signal, sys
import alembic.command, mlflow.store.model_registry.sqlalchemy_store, mlflow.store.tracking.sqlalchemy_store
import onnxruntime, pandas, sqlalchemy.orm
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from visionpipe.project.params import load_params
from visionpipe.stages.register import register

sqlalchemy.orm.configure_mappers()
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
    """Starts the driver. `driver(line)` runs `register` in a process that is killed after the write named by `line`."""
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


@pytest.mark.timeout(600)
@pytest.mark.slow
def test_register_killed_after_each_of_its_writes_in_turn_makes_everything_exactly_once(params, driver):
    """Every attempt starts from the state that the previous one left, and is killed one write later."""
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
        store = state(params)
        assert len(store.runs) <= len(params.models), f"after {write}"
        assert len(store.versions) <= 1, f"after {write}"
        for version in store.versions:
            assert_verified(version)
    last = driver()
    assert last.status == 0, last.errors
    assert last.writes == [], "the last attempt before it was complete"
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
from visionpipe.project.sections import TrackingConfig
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


@pytest.mark.slow
def test_two_processes_may_start_at_once_where_a_third_was_killed_while_it_made_the_tables(tmp_path):
    (tmp_path / ".dvc").mkdir()
    command = [sys.executable, "-c", CREATE]
    options = {"cwd": tmp_path, "env": environment(PYTHONPATH=str(CHECKOUT)), "stderr": subprocess.PIPE}
    assert subprocess.run([*command, "150"], **options, timeout=TIMEOUT, check=False).returncode == -9
    processes = [subprocess.Popen([*command, "0"], **options, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=TIMEOUT)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 2, errors
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert sorted(experiment.name for experiment in client.search_experiments()) == ["Default", "fresh"]
