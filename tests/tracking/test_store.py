"""Tests the tracking store of a moved project, a store with several users, and the errors of its failures."""

import os
import shutil
import sqlite3
import time
from pathlib import Path

import mlflow
import pytest
import sqlalchemy
from linear_models import only, write_model

from visionpipe import cli
from visionpipe.artifact.digest import artifact_sha256
from visionpipe.errors import RegistryError
from visionpipe.files import claim_folder, exclusive, temporary_folder
from visionpipe.stages.register import golden, register
from visionpipe.tracking import registry, runs
from visionpipe.tracking.lookup import Lookup
from visionpipe.tracking.places import present_location, relocate
from visionpipe.tracking.processes import is_abandoned, is_alive, process_identity
from visionpipe.tracking.registry import all_versions, find_version, logged_model_id, publish
from visionpipe.tracking.runs import create_run_once, record, runs_of
from visionpipe.tracking.store import StoreError, alone, connect, database_of, open_experiment, tracking_uri
from visionpipe.tracking.tags import version_tags

RUN = "0" * 32 + "/artifacts"

# Where artifacts lie ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exist", "location", "expected"),
    [
        (["new/mlartifacts/" + RUN], "old/mlartifacts/" + RUN, "new"),  # moved
        (["new/mlartifacts/" + RUN, "old/mlartifacts/" + RUN], "old/mlartifacts/" + RUN, "new"),  # copied
        ([], "old/mlartifacts", "new"),  # the database alone was restored
        # The database alone was copied: new artifacts go to the new folder, and the others remain in the old one.
        (["old/mlartifacts/" + RUN, "old/mlflow.db"], "old/mlartifacts", "new"),
        (["old/mlartifacts/" + RUN, "old/mlflow.db"], "old/mlartifacts/" + RUN, "old"),
        # The artifacts of this store were in another folder from the start.
        (["old/mlartifacts/" + RUN], "old/mlartifacts", "old"),
        (["new/mlartifacts"], "new/mlartifacts/" + RUN, "new"),
        (["new/mlartifacts"], "old/elsewhere/" + RUN, "old"),  # a location that the user chose
    ],
)
@pytest.mark.parametrize("scheme", ["file://", ""])
def test_a_location_follows_the_store_to_where_it_was_moved(tmp_path, exist, location, expected, scheme):
    base = tmp_path / "ä b"  # which a URL writes differently
    for name in exist:
        (base / name).mkdir(parents=True)
    (base / "new").mkdir(parents=True, exist_ok=True)

    def written(name):
        return (base / name).as_uri() if scheme else str(base / name)

    present = present_location(written(location), base / "new" / "mlflow.db")
    assert present == written(location.replace("old", expected, 1).replace("new", expected, 1))
    assert present_location(present, base / "new" / "mlflow.db") == present


@pytest.mark.parametrize("location", ["s3://bucket/mlartifacts/1", "mlflow-artifacts:/1", "models:/m-1", ""])
def test_a_location_that_is_no_folder_stays(tmp_path, location):
    assert present_location(location, tmp_path / "mlflow.db") == location


def test_a_folder_that_has_two_names_is_not_a_moved_one(tmp_path):
    (tmp_path / "real" / "mlartifacts").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    location = str(tmp_path / "link" / "mlartifacts" / "1")
    assert present_location(location, tmp_path / "real" / "mlflow.db") == location


def test_a_copied_project_reads_and_writes_its_own_artifacts_only(params, tmp_path, monkeypatch):
    write_model("one", params)
    register(only(params, "one"))
    store = connect(params.tracking)
    with sqlite3.connect("mlflow.db") as source, sqlite3.connect(tmp_path / "mlflow.db") as target:
        source.backup(target)
    for version in all_versions(store).values():
        source = Path(
            store.client.get_logged_model(logged_model_id(version)).artifact_location.removeprefix("file://")
        )
        shutil.copytree(source, tmp_path / "mlartifacts" / source.relative_to(Path("mlartifacts").absolute()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    copy = connect(params.tracking)
    experiment = copy.client.get_experiment(copy.experiment_id)
    assert experiment.artifact_location == (tmp_path / "mlartifacts").as_uri()
    (version,) = all_versions(copy).values()
    assert copy.client.get_model_version_download_uri(copy.model_name, version.version).startswith(
        tmp_path.as_uri()
    )
    assert relocate(tmp_path / "mlflow.db") == 0


# Several at once ----------------------------------------------------------------------------------------


def test_the_lock_of_a_sqlite_store_lies_beside_the_file_itself(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "checkout").mkdir()
    (tmp_path / "store" / "mlflow.db").touch()
    (tmp_path / "checkout" / "mlflow.db").symlink_to(tmp_path / "store" / "mlflow.db")
    with alone(f"sqlite:///{tmp_path / 'checkout' / 'mlflow.db'}", "store", "waiting"):
        assert [path.name for path in (tmp_path / "store").iterdir() if path.suffix == ".lock"]


def test_a_lock_of_another_user_need_not_be_writable(tmp_path, monkeypatch):
    lock, original = tmp_path / "lock", Path.open
    lock.touch()

    def refused(path, mode="r", *arguments):
        if path == lock and mode != "rb":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, mode, *arguments)

    monkeypatch.setattr(Path, "open", refused)
    with exclusive(lock, "waiting"):
        pass


def test_an_experiment_that_another_user_makes_at_the_same_time_is_taken(params, monkeypatch):
    store = connect(params.tracking)
    answers = iter([None, store.client.get_experiment_by_name(params.tracking.experiment)])
    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", lambda *_: next(answers))
    assert open_experiment(store.client, params.tracking.experiment, None) == store.experiment_id


@pytest.mark.parametrize(
    ("first", "settled", "stays"), [("0", False, "rival"), ("g", False, "own"), ("g", True, "rival")]
)
def test_of_two_runs_that_are_created_at_once_one_stays(params, monkeypatch, first, settled, stays):
    """The rival's id starts with `first`, so it is smaller or larger than ours. The rival decides while we wait."""
    store = connect(params.tracking)
    identity = {
        "params": {"model": {"family": "f"}, "backend": "b"},
        "data_sha256": "d",
        "code": "c0de",
        "versions": {},
    }
    create, rivals = runs.create_run, []
    smaller = type("Smaller", (), {"hex": first + f"{time.time_ns():031d}"})

    def together(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr("mlflow.store.tracking.sqlalchemy_store.uuid.uuid4", lambda: smaller)
            rivals.append(create(*arguments).info.run_id)
        if settled:
            store.client.set_tag(rivals[0], runs.SETTLED, "true")
        return create(*arguments)

    def decides(_):
        if stays == "rival":
            store.client.set_tag(rivals[0], runs.SETTLED, "true")
        else:
            store.client.delete_run(rivals[0])

    monkeypatch.setattr(runs, "create_run", together)
    monkeypatch.setattr(
        "visionpipe.tracking.runs.time", type("Time", (), {"sleep": decides, "time": time.time})
    )
    chosen = create_run_once(store, "one", "key", identity, trained_here=False).info.run_id
    assert [run.info.run_id for run in runs_of(store, "key")] == [chosen]
    assert (chosen == rivals[0]) == (stays == "rival")


def test_of_two_versions_of_one_artifact_that_are_made_at_once_the_older_one_stays(params, monkeypatch):
    write_model("one", params)
    register(only(params, "one"))
    store = connect(params.tracking)
    (first,) = all_versions(store).values()
    looked = []

    def late(*arguments):  # the rival's version is visible only after ours was created
        looked.append(arguments)
        return find_version(*arguments) if len(looked) > 1 else None

    monkeypatch.setattr(registry, "find_version", late)
    version = publish(
        store,
        record(store, Path("models/one")),
        "one",
        Path("artifacts/one"),
        "#",
        golden("one"),
        version_tags("one"),
    )
    assert str(version.version) == str(first.version)
    assert list(all_versions(store)) == [str(first.version)]


def test_a_process_is_abandoned_only_where_it_is_known_to_be_dead():
    here = process_identity()
    machine, number, _ = here.rsplit(" ", 2)
    assert is_alive(here)
    assert not is_abandoned(here)
    assert is_abandoned(f"{machine} {number} 1.00")  # an earlier process with the same id
    assert not is_abandoned(f"another-{here}")
    assert not is_abandoned("")


# What people do in the MLflow UI -------------------------------------------------------------------------


def test_a_version_whose_files_are_gone_has_them_uploaded_again(params, capsys):
    write_model("one", params)
    register(only(params, "one"))
    store = connect(params.tracking)
    (version,) = all_versions(store).values()
    folder = Path(
        store.client.get_logged_model(logged_model_id(version)).artifact_location.removeprefix("file://")
    )
    shutil.rmtree(folder)
    register(only(params, "one"))
    assert "uploaded again" in capsys.readouterr().out
    (model,) = folder.glob("artifacts/*/model.onnx")
    assert artifact_sha256(model.parent) == version.tags["artifact_sha256"]
    assert list(all_versions(store)) == ["1"]


def test_a_failure_of_the_store_is_a_sentence_that_names_it(params):
    store = connect(params.tracking)
    with pytest.raises(StoreError, match=rf"the tracking store {store.uri} failed in get_run: .*no-such-run"):
        store.client.get_run("no-such-run")


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("sqlite:////dev/null/mlflow.db", "cannot be opened: .*File exists"),
        ("http://127.0.0.1:9", "cannot be opened"),
        ("nonsense://store", "cannot be opened"),
    ],
)
def test_a_store_that_cannot_be_reached_is_a_sentence_soon(params, monkeypatch, uri, says):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    start = time.monotonic()
    with pytest.raises(RegistryError, match=says):
        connect(params.tracking)
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("error", "command", "says"),
    [
        (
            OSError(28, "No space left on device", "/x"),
            "export",
            "/x cannot be written (No space left on device)",
        ),
        (
            PermissionError(13, "Permission denied", "/x"),
            "export",
            "Permission denied: /x; visionpipe --debug export",
        ),
        (KeyError("tag"), "lineage", "lineage failed at the content of the tracking store sqlite"),
        (StopIteration(), "promote", "promote failed at the content of the tracking store sqlite"),
    ],
)
def test_what_the_machine_or_the_store_refuses_is_one_line(monkeypatch, capsys, error, command, says):
    def fail(_):
        raise error

    monkeypatch.setattr(cli, "run", fail)
    arguments = [command, *{"export": ["one"], "lineage": ["1"]}.get(command, [])]
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert cli.main(["--debug", *arguments]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_an_error_is_one_line_where_the_store_has_no_address_too(tmp_path, monkeypatch, capsys):
    def fail(_):
        raise KeyError("tag")

    monkeypatch.setattr(cli, "run", fail)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "what?"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert cli.main(["lineage", "1"]) == 1
    assert "lineage failed at the content of the tracking store (KeyError" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:secret@mlflow.example.com")
    assert cli.main(["lineage", "1"]) == 1
    assert "the tracking store https://mlflow.example.com (KeyError" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["what?", "a%41b", "a%20b?mode=memory"])
def test_a_folder_that_an_address_cannot_name_is_one_sentence_and_nothing_is_made(
    tmp_path, params, monkeypatch, name
):
    (folder := tmp_path / name).mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for ask in (lambda: connect(params.tracking), lambda: Lookup("models:/visionpipe@champion")):
        with pytest.raises(RegistryError, match=r"rename the folder, or set MLFLOW_TRACKING_URI") as said:
            ask()
        assert str(folder) in str(said.value)
    assert sorted(tmp_path.rglob("*")) == [folder]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


@pytest.mark.parametrize("name", ["50% off", "a&b#c;d", "ä b"])
def test_a_folder_of_other_special_characters_is_named_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / name))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert database_of(tracking_uri()) == tmp_path / name / "mlflow.db"


def test_the_file_of_an_address_is_the_one_that_sqlalchemy_opens():
    for uri in ("sqlite:////tmp/a%20b/x.db", "sqlite:///x.db?timeout=5", "sqlite:////a%zz/x.db"):
        assert str(database_of(uri)) == sqlalchemy.make_url(uri).database
    assert database_of("https://mlflow.example.com") is None


def test_the_options_of_an_address_are_no_part_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db?timeout=5")
    with pytest.raises(RegistryError, match=r"there is no tracking store .*/mlflow\.db: run"):
        Lookup("models:/visionpipe@champion").current()


# Temporary folders --------------------------------------------------------------------------------------


def test_the_temporary_folder_of_a_killed_process_is_removed_and_one_in_use_is_not(tmp_path):
    left, claim = claim_folder(tmp_path)
    (left / "model").mkdir()
    os.close(claim)  # as the kernel does for a killed process
    with temporary_folder(tmp_path) as first, temporary_folder(tmp_path) as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert list(tmp_path.iterdir()) == []


def test_no_sentence_has_the_password_of_the_tracking_store(monkeypatch, capsys):
    address = "https://user:secret@127.0.0.1:1"

    def fail(_):
        raise StoreError(address, "does not answer", OSError(f"no connection to {address}"))

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["check"]) == 1
    said = capsys.readouterr().err
    assert "https://127.0.0.1:1 does not answer" in said
    assert "secret" not in said
