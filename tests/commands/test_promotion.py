"""Three versions and two aliases: which one serves, how that changes, and what is no longer needed."""

import dataclasses
import json
import os
import shutil
import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from linear_models import SIZE, assert_exactly_once, downloaded, make_params, set_alias, state, write_model
from onnx_models import write_artifact
from repository import CLASSES

from visionpipe.artifact.versions import load
from visionpipe.commands.check import check
from visionpipe.commands.lineage import lineage
from visionpipe.commands.promote import Move, champions_before, promote, rollback
from visionpipe.commands.prune import prune
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.errors import ArtifactError, LockError, RegistryError
from visionpipe.files import exclusive, write_json
from visionpipe.stages.register import alias_summary, golden, register
from visionpipe.stages.training_plan import resolve_training
from visionpipe.tracking.comparison import compare
from visionpipe.tracking.lookup import Lookup, artifact_in, describe_version
from visionpipe.tracking.receipt import RECEIPT
from visionpipe.tracking.registry import all_versions, locked_files, logged_model_id, move_aliases, publish
from visionpipe.tracking.runs import record
from visionpipe.tracking.store import connect
from visionpipe.tracking.tags import version_tags
from visionpipe.tracking.verification import compare_answers

pytestmark = pytest.mark.usefixtures("in_workspace")


@pytest.fixture(scope="module")
def registered(in_workspace_first):
    """Three versions of one model, from bad to good: 1 takes all classes for others, 2 half of them, 3 none.

    `steps` are the aliases as each registration left them.
    """
    params, steps = make_params("registered", ["one"]), []
    for mistaken in (4, 2, 0):
        write_model("one", params, mistaken=mistaken)
        register(params)
        steps.append(state(params).aliases)
    return SimpleNamespace(params=params, steps=steps)


@pytest.fixture
def registry(registered, tmp_path, monkeypatch):
    """A copy of the store of three versions, with `champion` on 1 and `challenger` on 2."""
    with sqlite3.connect("mlflow.db") as source, sqlite3.connect(tmp_path / "mlflow.db") as target:
        source.backup(target)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    # A process that imports MLflow takes seconds: one test lets it answer.
    monkeypatch.setattr("visionpipe.tracking.verification.compare_answers", lambda *_: None)
    store = connect(registered.params.tracking)
    set_alias(store, "champion", "1")
    set_alias(store, "challenger", "2")
    return store


def champion(store) -> str:
    return str(store.client.get_model_version_by_alias(store.model_name, "champion").version)


# Registering -------------------------------------------------------------------------------------------


def test_a_better_version_becomes_challenger_and_champion_stays(registered):
    assert registered.steps == [
        {"challenger": "1", "champion": "1"},
        {"challenger": "2", "champion": "1"},
        {"challenger": "3", "champion": "1"},
    ]
    assert_exactly_once(registered.params, ["one"] * 3, versions=3)


def test_a_version_that_is_not_better_on_validation_moves_no_alias(registry):
    versions = all_versions(registry)
    assert move_aliases(registry, versions["1"]) == []
    assert move_aliases(registry, versions["2"]) == []
    assert move_aliases(registry, versions["3"]) == ["challenger"]


def test_a_version_from_other_data_cannot_be_compared_and_becomes_challenger(registry):
    worse = all_versions(registry)["1"]
    registry.client.set_model_version_tag(registry.model_name, "1", "data_sha256", "other")
    worse.tags["data_sha256"] = "other"
    assert move_aliases(registry, worse) == ["challenger"]
    assert "promote --new-data" not in alias_summary(registry, [])  # champion and challenger are one now
    set_alias(registry, "champion", "2")
    assert "trained on other data: visionpipe promote compares both" in alias_summary(registry, [])


def test_registering_again_makes_nothing_and_the_same_receipt(registered, capfd):
    write_model("one", registered.params)
    register(registered.params)
    receipt = RECEIPT.read_bytes()
    register(registered.params)
    assert RECEIPT.read_bytes() == receipt
    assert_exactly_once(registered.params, ["one"] * 3, versions=3)
    assert capfd.readouterr().err == ""


def test_the_same_artifact_from_another_training_is_a_run_but_no_version(registry, registered):
    write_model("one", registered.params)
    made = json.loads(Path("models/one/lineage.json").read_text())
    write_json(Path("models/one/lineage.json"), made | {"train_key": "0" * 64, "lineage_id": "1" * 64})
    register(registered.params)
    assert len(registry.client.search_runs([registry.experiment_id])) == 4
    assert len(all_versions(registry)) == 3


def test_a_version_carries_its_card_and_pinned_requirements_and_no_pickle(registered):
    version = state(registered.params).versions[-1]
    folder = downloaded(version)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert not [name for name in files if name.endswith((".pkl", ".pickle", ".joblib", ".pt"))]
    assert any(name.endswith("MODEL_CARD.md") for name in files)
    requirements = (folder / "requirements.txt").read_text().split()
    assert requirements
    assert all("==" in line for line in requirements)
    assert not {"keras", "tensorflow", "jax", "torch"} & {line.split("==")[0] for line in requirements}
    for label in CLASSES:
        assert label in version.description


# Promotion and rollback --------------------------------------------------------------------------------


def test_promote_makes_a_better_challenger_the_champion_and_logs_it(registry, registered, capsys):
    promote(registered.params)
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
        promote(registered.params)
    assert champion(registry) == "3"
    assert registry.client.get_registered_model(registry.model_name).tags == {}


def test_promote_judges_by_the_test_images_and_not_by_what_a_version_says_of_itself(registry, registered):
    client = registry.client
    honest = client.get_model_version(registry.model_name, "2").tags["test_accuracy"]
    client.set_model_version_tag(registry.model_name, "2", "test_accuracy", "0.0")
    promote(registered.params)
    client.set_model_version_tag(registry.model_name, "2", "test_accuracy", honest)
    assert champion(registry) == "2"


def test_promoting_the_champion_itself_changes_nothing(registry, registered, capsys):
    set_alias(registry, "champion", "2")
    promote(registered.params)
    assert "nothing to promote" in capsys.readouterr().out
    assert registry.client.get_registered_model(registry.model_name).tags == {}


def test_a_champion_of_other_classes_gives_way_only_when_that_is_asked_for(registry, registered, capsys):
    write_model("other", registered.params)
    write_artifact(Path("artifacts") / "other", list(CLASSES)[::-1], SIZE)
    version = publish(
        registry,
        record(registry, Path("models") / "other"),
        "other",
        Path("artifacts") / "other",
        "# A card",
        golden("other"),
        version_tags("other"),
    )
    set_alias(registry, "champion", str(version.version))
    with pytest.raises(RegistryError, match="cannot be compared: visionpipe promote --new-data promotes"):
        promote(registered.params)
    assert champion(registry) == str(version.version)
    promote(registered.params, new_data=True)
    assert champion(registry) == "2"
    assert "not compared" in capsys.readouterr().out
    rollback(registered.params)
    assert champion(registry) == str(version.version)


def test_rollback_goes_back_one_champion_at_a_time_and_then_says_that_there_is_none(registry, registered):
    promote(registered.params)
    set_alias(registry, "challenger", "3")
    promote(registered.params)
    assert champion(registry) == "3"
    rollback(registered.params)
    assert champion(registry) == "2"
    rollback(registered.params)
    assert champion(registry) == "1"
    with pytest.raises(RegistryError, match="no earlier champion"):
        rollback(registered.params)
    assert champion(registry) == "1"


def test_a_promotion_that_was_interrupted_and_repeated_needs_one_rollback(registry, registered):
    promote(registered.params)
    set_alias(registry, "champion", "1")  # as if killed between the log entry and the alias
    promote(registered.params)
    rollback(registered.params)
    assert champion(registry) == "1"
    with pytest.raises(RegistryError, match="no earlier champion"):
        rollback(registered.params)


def test_rollback_to_a_version_that_was_deleted_is_one_clear_error(registry, registered):
    promote(registered.params)
    registry.client.set_registered_model_tag(
        registry.model_name, "promotion.0002", json.dumps({"action": "promote", "from": "77", "to": "2"})
    )
    with pytest.raises(RegistryError, match=r"version 77 .* was deleted"):
        rollback(registered.params)
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
    lineage("champion", registered.params)
    by_alias = capsys.readouterr().out
    lineage("1", registered.params)
    assert capsys.readouterr().out == by_alias
    version = registry.client.get_model_version(registry.model_name, "1")
    run = registry.client.get_run(version.run_id)
    data = json.loads((PREPARED / "manifest.json").read_text())["content_sha256"]
    for fact in (data, run.info.run_id, run.info.run_name, version.tags["model_sha256"], "git commit"):
        assert fact in by_alias
    assert aliases_line(by_alias) == "champion"
    lineage("2", registered.params)
    assert aliases_line(capsys.readouterr().out) == "challenger"
    with pytest.raises(RegistryError, match="no version or alias '99'"):
        lineage("99", registered.params)


def aliases_line(text: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith("aliases "))
    return line.removeprefix("aliases").strip()


def test_prune_removes_only_what_neither_an_alias_nor_a_rollback_nor_this_checkout_needs(
    registry, registered, capsys
):
    client, name = registry.client, registry.model_name
    write_model("one", registered.params)  # the third version's model is the one that lies here
    promote(registered.params)  # 1 stays needed for a rollback
    client.set_terminated(client.create_run(registry.experiment_id, run_name="forgotten").info.run_id)
    capsys.readouterr()

    def listed():
        prune(registered.params, delete=False)
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("would remove")]

    assert listed() == ["would remove run forgotten (finished)"]
    write_model("one", registered.params, mistaken=3)  # now 3 is needed by nothing, nor its run
    run = client.get_run(all_versions(registry)["3"].run_id).info.run_name
    assert sorted(listed()) == [
        "would remove run forgotten (finished)",
        f"would remove run {run} (finished)",
        "would remove version 3 (one)",
    ]
    assert len(all_versions(registry)) == 3

    prune(registered.params, delete=True)
    assert sorted(all_versions(registry)) == ["1", "2"]
    assert len(client.search_runs([registry.experiment_id])) == 2
    assert client.get_registered_model(name).aliases.keys() == {"champion", "challenger"}
    capsys.readouterr()
    prune(registered.params, delete=False)
    assert capsys.readouterr().out == "nothing to prune\n"
    rollback(registered.params)
    assert champion(registry) == "1"


def test_prune_leaves_a_store_on_a_server_to_its_other_users(registry, registered, capsys, monkeypatch):
    monkeypatch.setattr("visionpipe.commands.prune.tracking_uri", lambda: "https://mlflow.example.com")
    write_model("one", registered.params, mistaken=3)
    prune(registered.params, delete=True)
    assert "may serve other checkouts too" in capsys.readouterr().out
    assert len(all_versions(registry)) == 3


def test_prune_removes_nothing_where_code_lock_is_damaged(params, monkeypatch, tmp_path):
    checkpoint = Path(".visionpipe/checkpoints") / ("c" * 64)
    checkpoint.mkdir(parents=True)
    monkeypatch.setattr("visionpipe.project.lock.LOCK", Path("damaged.lock"))
    Path("damaged.lock").write_text("<<<<<<< ours")
    with pytest.raises(LockError, match=r"damaged.lock is damaged"):
        prune(params, delete=True)
    assert checkpoint.exists()
    checkpoint.rmdir()
    Path("damaged.lock").unlink()


def test_prune_spares_trainings_that_run_or_would_be_taken_up_again(params, capsys):
    store = connect(params.tracking)
    keys = {
        "going": "a" * 64,
        "interrupted": resolve_training("one", params, open_prepared(PREPARED)).key,
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


# What serves is verified --------------------------------------------------------------------------------


def damage(folder: Path) -> str:
    (file,) = folder.glob("artifacts/*/model.onnx")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    return "version 2 .* is damaged"


def remove_files(folder: Path) -> str:
    shutil.rmtree(folder)
    return "the files of version 2 .* were deleted"


def break_code(folder: Path) -> str:
    (code,) = folder.rglob("artifact/classifier.py")
    code.write_text("raise RuntimeError('no such instruction')")
    return "version 2 .* cannot be loaded: .*no such instruction"


@pytest.mark.parametrize("spoil", [damage, remove_files, break_code])
def test_neither_promote_nor_rollback_puts_a_version_in_charge_that_is_not_what_was_registered(
    registry, registered, tmp_path, monkeypatch, spoil
):
    folder = tmp_path / "files" / "2"
    shutil.copytree(downloaded(all_versions(registry)["2"]), folder)
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        store.execute(
            "UPDATE model_versions SET storage_location = ? WHERE name = ? AND version = '2'",
            (str(folder), registry.model_name),
        )
    if spoil is break_code:  # which only a process that loads it notices
        monkeypatch.setattr("visionpipe.tracking.verification.compare_answers", compare_answers)
    reason = spoil(folder)
    with pytest.raises(RegistryError, match=reason):
        promote(registered.params)
    assert champion(registry) == "1"
    assert registry.client.get_registered_model(registry.model_name).tags == {}
    if spoil is not break_code:
        set_alias(registry, "champion", "3")
        entry = {"action": "promote", "from": "2", "to": "3"}
        registry.client.set_registered_model_tag(registry.model_name, "promotion.0001", json.dumps(entry))
        with pytest.raises(RegistryError, match=reason):
            rollback(registered.params)
        assert champion(registry) == "3"


def test_a_user_without_a_name_promotes(registry, registered, monkeypatch):
    def nobody():
        raise OSError("No username set in the environment")

    monkeypatch.setattr("getpass.getuser", nobody)
    promote(registered.params)
    (entry,) = registry.client.get_registered_model(registry.model_name).tags.values()
    assert json.loads(entry)["by"] == f"user {os.getuid()}"


@pytest.mark.parametrize(
    ("log", "champion", "expected"),
    [
        ([], None, []),
        ([("promote", "1", "2"), ("promote", "2", "3")], "3", ["1", "2"]),
        ([("promote", "1", "2"), ("promote", "2", "3"), ("rollback", "3", "2")], "2", ["1"]),
        ([("promote", "1", "2")], "1", []),  # interrupted: a rollback would lead from 1 to 1
        ([("promote", "1", "2"), ("promote", "1", "2")], "2", ["1"]),  # and repeated
        ([("promote", "1", "2"), ("rollback", "2", "1")], "2", ["1"]),  # a rollback that was interrupted
        ([("promote", "1", "2"), ("promote", "5", "6")], "6", ["1", "5"]),  # 5 was given the alias by hand
        ([("promote", None, "1")], "1", []),
    ],
)
def test_a_rollback_goes_back_through_the_moves_that_really_happened(log, champion, expected):
    moves = [Move(action, before, to, "", "") for action, before, to in log]
    assert champions_before(moves, champion) == expected


# What people make and delete in the MLflow UI -------------------------------------------------------------


def test_a_version_of_the_ui_is_one_clear_sentence_in_every_command(registry, registered, capsys):
    two = all_versions(registry)["2"]
    made = registry.client.create_model_version(registry.model_name, source=two.source, run_id=two.run_id)
    set_alias(registry, "challenger", str(made.version))
    lineage("challenger", registered.params)
    assert "was not made by visionpipe register" in capsys.readouterr().out
    with pytest.raises(RegistryError, match=r"was not made by visionpipe register.* run visionpipe register"):
        promote(registered.params)
    assert champion(registry) == "1"
    assert move_aliases(registry, two) == ["challenger"]
    assert "has no validation score" in capsys.readouterr().out
    set_alias(registry, "champion", str(made.version))
    assert "not made by visionpipe register" in alias_summary(registry, [])
    served = Lookup(f"models:/{registry.model_name}@champion").current()
    with pytest.raises(ArtifactError, match=r"was not made by visionpipe register.* run visionpipe register"):
        load(served)
    with pytest.raises(RegistryError, match="nowhere holds no exported model: run visionpipe register"):
        artifact_in(Path("/nowhere"))
    promote(registered.params, new_data=True)
    assert champion(registry) == "2"


@pytest.mark.parametrize("command", ["lineage", "promote", "check", "predict"])
def test_an_alias_of_a_deleted_version_is_one_clear_sentence_and_register_moves_it(
    registry, registered, command
):
    with sqlite3.connect(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")) as store:
        store.execute("UPDATE registered_model_aliases SET version = 77 WHERE alias = 'champion'")
    write_json(RECEIPT, {"passed": True, "chosen": "one", "models": {"one": receipt_of(registry, "1")}})
    address = f"models:/{registry.model_name}@champion"
    ask = {
        "lineage": lambda: lineage("champion", registered.params),
        "promote": lambda: promote(registered.params),
        "check": lambda: check(registered.params),
        "predict": lambda: Lookup(address).current(),
    }[command]
    says = r"alias champion of .* points to version 77, which was deleted: set .* or run visionpipe register"
    with pytest.raises(RegistryError, match=says):
        ask()
    if command == "predict":
        with pytest.raises(RegistryError, match=says):
            describe_version(
                registry.client._client, registry.model_name, "champion", None, Path(), lambda: None
            )
    assert move_aliases(registry, all_versions(registry)["1"]) == ["champion"]
    assert champion(registry) == "1"


def receipt_of(store, number: str) -> dict:
    return {"artifact_sha256": all_versions(store)[number].tags["artifact_sha256"], "failures": []}


@pytest.mark.parametrize("tag", ["[]", '{"a": {}}', "not JSON", "", "7", "null", '{"a": ["b"], "c": "d"}'])
def test_a_tag_that_is_no_mapping_of_md5s_counts_as_none(registry, registered, capsys, tag):
    registry.client.set_model_version_tag(registry.model_name, "1", "dvc_lock", tag)
    lineage("1", registered.params)
    prune(registered.params, delete=False)
    assert "dvc.lock (md5)" in capsys.readouterr().out
    expected = {"c": "d"} if "c" in tag else {}
    assert locked_files(SimpleNamespace(tags={"dvc_lock": tag})) == expected


@pytest.mark.parametrize(
    "text",
    [
        '{"passed":',
        "{}",
        "[]",
        "",
        '{"passed": true, "chosen": "one", "models": {}}',
        '{"passed": true, "chosen": "one", "models": {"one": {}}}',
        '{"passed": false, "chosen": null, "models": {"one": null}}',
    ],
)
def test_a_damaged_receipt_is_one_clear_sentence(registered, text):
    before = RECEIPT.read_bytes()
    try:
        RECEIPT.write_text(text)
        for command in (check, compare):
            with pytest.raises(RegistryError, match=r"registration.json is damaged: run visionpipe register"):
                command(registered.params)
    finally:
        RECEIPT.write_bytes(before)


def test_lineage_of_a_version_whose_run_was_deleted_for_good_says_so(registry, registered, capsys):
    with sqlite3.connect(os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///")) as store:
        run_id = all_versions(registry)["1"].run_id
        store.execute("DELETE FROM runs WHERE run_uuid = ?", (run_id,))
    lineage("1", registered.params)
    said = capsys.readouterr().out
    assert f"{run_id}: deleted" in said
    assert all_versions(registry)["1"].tags["model_sha256"] in said


def test_a_tag_that_is_no_entry_of_the_log_is_one_clear_sentence(registry, registered):
    registry.client.set_registered_model_tag(registry.model_name, "promotion.0001", "by hand")
    with pytest.raises(RegistryError, match=r"tag promotion.0001 of .* delete the tag"):
        rollback(registered.params)


def test_check_fails_after_the_registered_model_was_deleted_and_register_makes_it_anew(
    registry, registered, capsys
):
    write_model("one", registered.params)
    register(registered.params)
    check(registered.params)
    registry.client.delete_registered_model(registry.model_name)
    with pytest.raises(RegistryError, match=r"has no version of .* made from it: run visionpipe register"):
        check(registered.params)
    register(registered.params)
    check(registered.params)
    assert len(all_versions(registry)) == 1


def test_prune_keeps_what_params_yaml_starts_from_or_learns_from(registry, registered, capsys):
    set_alias(registry, "champion", "2")
    write_model("one", registered.params, mistaken=3)
    models = {
        "one": dataclasses.replace(registered.params.models["one"], init=f"models:/{registry.model_name}/1")
    }
    distill = {"distill": {"teacher": f"models:/{registry.model_name}/3"}}
    prune(dataclasses.replace(registered.params, models=models, train=distill), delete=True)
    assert sorted(all_versions(registry)) == ["1", "2", "3"]
    prune(registered.params, delete=True)
    assert sorted(all_versions(registry)) == ["2"]
    logged = registry.client.search_logged_models([registry.experiment_id])
    assert {model.model_id for model in logged} == {logged_model_id(all_versions(registry)["2"])}
    assert "mlflow gc --backend-store-uri sqlite:///" in capsys.readouterr().out
