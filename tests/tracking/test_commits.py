"""Tests which commit a lineage names: the one whose checkout makes the model, or none, with the reason."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from repository import CHECKOUT, write_params

from visionpipe.commands.prune import addresses_in, locked_models
from visionpipe.errors import RegistryError
from visionpipe.project.lineage import training_params
from visionpipe.project.params import load_params
from visionpipe.tracking.commits import Made, commit_that_makes, content, files_at, params_at
from visionpipe.tracking.tags import locked_outputs


def git(*arguments: str) -> str:
    settings = ("-c", "user.name=A Tester", "-c", "user.email=tester@example.org")
    result = subprocess.run(["git", *settings, *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def commit(message: str) -> str:
    git("add", "--all")
    git("commit", "--quiet", "--allow-empty", "--message", message)
    return git("rev-parse", "HEAD")


def change(key: str, value: object) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["train"][key] = value
    Path("params.yaml").write_text(yaml.safe_dump(params))


def identity() -> dict:
    """Returns the identity that a training in this folder would record."""
    params, lock = load_params(), yaml.safe_load(Path("code.lock").read_text())
    made = training_params("vit", params, params.train_config("vit"), params.model_spec("vit"))
    identity = {
        "code": lock["stages"]["train"],
        "versions": lock["libraries"]["tensorflow"],
        "params": made,
    }
    return json.loads(json.dumps(identity))


@pytest.fixture
def repository(tmp_path, monkeypatch) -> Path:
    """Makes a repository without a commit."""
    for cached in (content, files_at, params_at):
        cached.cache_clear()
    monkeypatch.chdir(tmp_path)
    for name in ("GIT_DIR", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    write_params(tmp_path / "params.yaml", "tensorflow")
    for name in ("dvc.yaml", "code.lock"):
        shutil.copy(CHECKOUT / name, name)
    Path("data").mkdir()
    Path("data/tiny.zip").write_bytes(b"images")
    git("init", "--quiet", "--initial-branch", "main")
    return tmp_path


def test_head_makes_what_was_trained_from_it_also_detached_and_in_a_shallow_clone(
    repository, tmp_path_factory, monkeypatch
):
    commit("earlier")
    change("epochs", 2)
    head, made = commit("later"), identity()
    assert commit_that_makes("vit", made) == Made(head)
    git("checkout", "--quiet", "--detach")
    Path("README.md").write_text("This file is not an input of a training.\n")
    assert commit_that_makes("vit", made) == Made(head)
    clone = tmp_path_factory.mktemp("clone") / "shallow"
    git("clone", "--quiet", "--depth", "1", repository.as_uri(), str(clone))
    monkeypatch.chdir(clone)
    assert commit_that_makes("vit", made) == Made(head)
    change("epochs", 3)
    assert "no commit of this shallow clone" in commit_that_makes("vit", identity()).note


def test_an_older_commit_is_named_where_it_makes_the_model_and_head_does_not(repository):
    made, older = identity(), commit("older")
    change("epochs", 2)
    newer = commit("newer")
    assert commit_that_makes("vit", made) == Made(older)
    assert commit_that_makes("vit", identity()) == Made(newer)


@pytest.mark.parametrize("what", ["parameters", "code", "libraries", "images", "decisions"])
def test_no_commit_makes_what_was_trained_with_uncommitted_changes(repository, what):
    commit("first")
    if what == "parameters":
        change("epochs", 2)
    elif what in ("code", "libraries"):
        lock = yaml.safe_load(Path("code.lock").read_text())
        lock["stages"]["train"] = "c0de" if what == "code" else lock["stages"]["train"]
        lock["libraries"]["tensorflow"]["keras"] += "" if what == "code" else ".1"
        Path("code.lock").write_text(yaml.safe_dump(lock))
    elif what == "decisions":
        Path("decisions.csv").write_text("file,finding,suggestion,decision\na.png,dark,,drop\n")
    else:
        Path("data/tiny.zip").write_bytes(b"other images")
    made = commit_that_makes("vit", identity())
    assert (made.commit, "uncommitted" in made.note) == ("none", True)
    assert commit_that_makes("vit", identity()).tags()["git_dirty"] == "true"


def test_rows_without_a_decision_make_no_other_model(repository):
    made, head = identity(), commit("first")
    Path("decisions.csv").write_text("file,finding,suggestion,decision\na.png,dark,,\nb.png,dark,,keep\n")
    assert commit_that_makes("vit", made) == Made(head)


def test_uncommitted_changes_are_named_beside_head(repository):
    made, head = identity(), commit("first")
    Path("dvc.yaml").write_text(Path("dvc.yaml").read_text() + "# a comment\n")
    assert commit_that_makes("vit", made) == Made(head, "with uncommitted changes of dvc.yaml")


def test_without_a_commit_the_reason_is_named(repository, monkeypatch):
    assert commit_that_makes("vit", identity()) == Made("none", "nothing is committed yet")
    shutil.rmtree(".git")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(repository.parent))
    assert commit_that_makes("vit", identity()) == Made("none", "this folder is not in a git repository")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    git_init = subprocess.run(["git", "init", "--quiet"], check=False, capture_output=True)
    assert git_init.returncode == 0
    assert "safe.directory" in commit_that_makes("vit", identity()).note
    monkeypatch.setenv("PATH", "")
    assert commit_that_makes("vit", identity()) == Made("none", "git is not installed")


@pytest.mark.parametrize(
    "lock", ["<<<<<<< ours\nstages:\n=======\n", "stages: {prepare: null}", "stages: [prepare]", "- 1", "\0"]
)
def test_a_damaged_dvc_lock_is_the_reason_why_no_commit_is_named(repository, lock):
    head, made = commit("good"), identity()
    assert commit_that_makes("vit", made) == Made(head)
    Path("dvc.lock").write_text(lock)
    assert commit_that_makes("vit", made).commit == "none"
    assert commit_that_makes("vit", made).note.startswith("dvc.lock is damaged")
    assert locked_models(repository) == set()
    with pytest.raises(RegistryError, match=r"dvc.lock is damaged.* run dvc repro"):
        locked_outputs("vit")
    git("rm", "--quiet", "data/tiny.zip")
    commit("damaged")
    Path("dvc.lock").unlink()
    Path("data").mkdir(exist_ok=True)
    Path("data/tiny.zip").write_bytes(b"images")
    assert commit_that_makes("vit", made) == Made(head)


def test_a_damaged_pointer_to_the_images_is_the_reason_why_no_commit_is_named(repository):
    commit("good")
    Path("data/tiny.zip.dvc").write_text("outs: []")
    assert ".dvc file of the images is damaged" in commit_that_makes("vit", identity()).note


def test_a_broken_branch_is_the_reason_why_no_commit_is_named(repository):
    head, made = commit("good"), identity()
    Path(".git/refs/heads/broken").write_text("1" * 40 + "\n")
    assert commit_that_makes("vit", made) == Made(head)
    change("epochs", 7)
    assert commit_that_makes("vit", identity()) == Made(
        "none", "a branch or tag of this repository is broken: see git fsck"
    )
    Path(".git/refs/heads/main").write_text("2" * 40 + "\n")
    assert "broken" in commit_that_makes("vit", made).note


def test_prune_reads_what_the_working_tree_and_the_tips_of_other_branches_name(repository):
    lock = {"stages": {"train@vit": {"outs": [{"path": "models/vit/lineage.json", "md5": "theirs"}]}}}
    commit("main")
    git("checkout", "--quiet", "-b", "other")
    Path("dvc.lock").write_text(yaml.safe_dump(lock))
    change("distill", {"teacher": "models:/visionpipe/7"})
    commit("another branch")
    git("checkout", "--quiet", "main")
    change("init", "models:/visionpipe@champion")
    assert locked_models(repository) == {"theirs"}
    assert addresses_in(repository) == {"models:/visionpipe/7", "models:/visionpipe@champion"}
