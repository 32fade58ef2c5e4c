"""`visionpipe init`: a folder becomes a project, nothing is overwritten, and `dvc repro` passes on it unedited."""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from dvc.repo import Repo
from PIL import Image
from repository import CHECKOUT, Project

from visionpipe.cli import main
from visionpipe.commands import init as command
from visionpipe.project.machine import Machine
from visionpipe.project.params import load_params

FILES = {"params.yaml", "dvc.yaml", "decisions.csv", "code.lock", ".gitignore", ".dvcignore", "README.md"}
TEMPLATE = CHECKOUT / "visionpipe" / "project" / "template"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    """No test depends on how fast this machine is, or on where git keeps a user's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(command, "this_machine", lambda backend: Machine(2, 16 * 2**30, 200.0))


def write_photos(folder: Path, count: int = 4, size: int = 12) -> Path:
    random = np.random.default_rng(0)
    for name, colour in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(np.array(colour) + random.integers(-30, 30, (size, size, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file but git's own."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in files
        if not {".git", "tmp"} & set(path.relative_to(folder).parts)
    }


def made(*arguments: str) -> None:
    assert main(["init", *arguments]) == 0


def one_line(capsys, *arguments: str) -> str:
    assert main(["init", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("visionpipe: ")
    return line


# What a project is -------------------------------------------------------------------------------------


def test_a_project_is_a_folder_without_code(tmp_path):
    made("flowers", "--images", str(write_photos(tmp_path / "photos")))
    files = content(tmp_path / "flowers")
    assert {name for name in files if not name.startswith(".dvc/")} == FILES
    assert files["dvc.yaml"] == (CHECKOUT / "dvc.yaml").read_bytes()
    params = load_params(tmp_path / "flowers" / "params.yaml")
    assert Path(params.prepare.path) == tmp_path / "photos"
    assert list(params.models) == ["resnet", "vit", "hybrid"]
    assert b"# flowers\n" in files["README.md"]


def test_without_images_a_project_is_the_one_of_this_repository(tmp_path):
    made("sample")
    files = content(tmp_path / "sample")
    assert files["params.yaml"] == (CHECKOUT / "params.yaml").read_bytes()
    assert files["data/fashion-mini.zip"] == (CHECKOUT / "data" / "fashion-mini.zip").read_bytes()
    assert {name for name in files if not name.startswith(".dvc/")} == FILES | {"data/fashion-mini.zip"}


def test_another_backend_is_all_that_differs(tmp_path):
    made("sample", "--backend", "jax")
    ours, theirs = (
        (folder / "params.yaml").read_text().splitlines() for folder in (tmp_path / "sample", CHECKOUT)
    )
    assert [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]] == [
        ("backend: jax # tensorflow | jax | torch", "backend: tensorflow # tensorflow | jax | torch")
    ]


@pytest.mark.parametrize("name", ["dvc.yaml", "params.yaml", "data/fashion-mini.zip"])
def test_a_template_is_the_file_of_the_repository_root(name):
    assert (TEMPLATE / Path(name).name).read_bytes() == (CHECKOUT / name).read_bytes()


def test_git_ignores_what_the_stages_make(tmp_path):
    made("sample")
    for name in ("mlflow.db", "models/vit/model.keras", ".visionpipe/locks/x", "data/prepared/manifest.json"):
        subprocess.run(["git", "check-ignore", "--quiet", name], cwd=tmp_path / "sample", check=True)


def test_it_says_what_it_understood_chose_and_what_comes_next(tmp_path, capsys):
    made("flowers", "--images", str(write_photos(tmp_path / "photos")))
    said = capsys.readouterr().out
    for words in (
        "8 images in 2 classes", "red 4", "all 12 × 12 pixels", "PNG 8", "image size    32 × 32", "ResNet-14", "gate  ",
        "cd flowers && dvc repro && mlflow ui", "visionpipe serve", "git add params.yaml",
    ):  # fmt: skip
        assert words in said
    assert "DVC repository" not in said


def test_the_command_that_it_prints_commits_the_project(tmp_path, capsys):
    made("sample")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "git commit" in line]
    identity = "git config user.name A && git config user.email a@example.org && "
    subprocess.run(identity + line, shell=True, cwd=tmp_path / "sample", check=True, capture_output=True)
    untracked = ["git", "status", "--porcelain"]
    assert subprocess.run(untracked, cwd=tmp_path / "sample", capture_output=True, check=True).stdout == b""


def test_published_weights_to_start_from_fit(tmp_path):
    made("flowers", "--images", str(write_photos(tmp_path / "photos", size=100)), "--pretrained")
    params = load_params(tmp_path / "flowers" / "params.yaml")
    assert all(model.init for model in params.models.values())
    assert params.train["preset"] == "finetune"


def test_the_network_is_never_asked(tmp_path, monkeypatch):
    def refuse(*_):
        pytest.fail("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    made("flowers", "--images", str(write_photos(tmp_path / "photos")), "--pretrained")


# Where the images are ----------------------------------------------------------------------------------


def test_images_within_the_project_have_a_relative_path(tmp_path):
    write_photos(tmp_path / "flowers" / "my photos")
    made("flowers", "--images", "flowers/my photos")
    assert load_params(tmp_path / "flowers" / "params.yaml").prepare.path == "my photos"


@pytest.mark.parametrize(
    "name", ["with space", "it's", 'say "hi"', "cost$5", "${prepare.size}", "#1", "ümläut-日本", "{x}"]
)
def test_dvc_depends_on_the_images_whatever_their_folder_is_called(tmp_path, name):
    photos = write_photos(tmp_path / name)
    made("flowers", "--images", str(photos))
    with Repo(str(tmp_path / "flowers")) as repo:
        dependencies = [dep.fs_path for stage in repo.index.stages for dep in stage.deps]
    assert str(photos) in dependencies


def test_a_copy_lies_in_the_project(tmp_path):
    photos = write_photos(tmp_path / "photos")
    (photos / ".DS_Store").write_text("no image")
    made("flowers", "--images", str(photos), "--copy")
    copied = content(tmp_path / "flowers" / "data" / "images")
    assert copied == {name: data for name, data in content(photos).items() if name != ".DS_Store"}
    assert load_params(tmp_path / "flowers" / "params.yaml").prepare.path == "data/images"


def test_a_copy_of_an_archive_keeps_its_name(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos")
    archive = Path(shutil.make_archive(str(tmp_path / "photos"), "zip", photos))
    made("flowers", "--images", str(archive), "--copy")
    assert (tmp_path / "flowers" / "data" / "photos.zip").read_bytes() == archive.read_bytes()
    assert load_params(tmp_path / "flowers" / "params.yaml").prepare.path == "data/photos.zip"
    assert "dvc add data/photos.zip " in capsys.readouterr().out
    Project(tmp_path / "flowers").dvc("add", "data/photos.zip")
    Project(tmp_path / "flowers").dvc("status")


def test_an_interrupted_copy_goes_on_where_it_ended(tmp_path, monkeypatch):
    photos = write_photos(tmp_path / "photos", size=64)
    monkeypatch.setattr(command, "CHUNK", 1000)
    written: list[int] = []

    def interrupted(bar, size):
        written.append(size)
        if len(written) == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(command.tqdm, "update", interrupted)
    assert main(["init", "flowers", "--images", str(photos), "--copy"]) == 130
    parts = [path for path in (tmp_path / "flowers").rglob("*.part") if path.stat().st_size]
    assert len(parts) == 1
    assert not (tmp_path / "flowers" / "params.yaml").exists()
    made("flowers", "--images", str(photos), "--copy")
    assert content(tmp_path / "flowers" / "data" / "images") == content(photos)


def test_a_copy_never_takes_the_place_of_another_file(tmp_path, capsys):
    photos = write_photos(tmp_path / "photos")
    other = tmp_path / "flowers" / "data" / "images" / "red" / "0.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"another picture")
    line = one_line(capsys, "flowers", "--images", str(photos), "--copy")
    assert "red/0.png exists with another content" in line
    assert other.read_bytes() == b"another picture"


# Again, and half-way -----------------------------------------------------------------------------------


def test_a_second_call_changes_nothing(tmp_path, capsys):
    arguments = ["flowers", "--images", str(write_photos(tmp_path / "photos"))]
    made(*arguments)
    before = content(tmp_path / "flowers")
    capsys.readouterr()
    made(*arguments)
    said = capsys.readouterr().out
    assert content(tmp_path / "flowers") == before
    assert "left as it was: params.yaml, dvc.yaml, .gitignore, .dvcignore, decisions.csv, README.md" in said
    assert "made in" not in said
    assert "--images had no effect" in said


def test_files_that_exist_stay_and_missing_ones_come(tmp_path, capsys):
    folder = tmp_path / "flowers"
    folder.mkdir()
    own = {"README.md": b"my words", ".gitignore": b"*.secret\n", "dvc.yaml": b"stages: {}\n"}
    for name, text in own.items():
        (folder / name).write_bytes(text)
    shutil.copy(CHECKOUT / "params.yaml", folder)
    made("flowers")
    said = capsys.readouterr().out
    assert {name: content(folder)[name] for name in own} == own
    assert "left as it was: params.yaml, dvc.yaml, .gitignore, README.md" in said
    assert "dvc.yaml is not that of this version" in said
    assert (folder / "code.lock").exists()


@pytest.mark.parametrize("files", range(8))
def test_a_call_that_was_killed_is_completed_by_the_next_one(tmp_path, monkeypatch, files):
    """`files`: those that were written before."""

    class Killed(BaseException):
        pass

    def write(file: Path, data: bytes, write=command.write_bytes) -> None:
        if len(done) == files:
            raise Killed
        done.append(file)
        write(file, data)

    done: list[Path] = []
    with monkeypatch.context() as patch:
        patch.setattr(command, "write_bytes", write)
        patch.setattr(command, "write_lock", lambda folder: write(folder / "code.lock", b"never"))
        with pytest.raises(Killed):
            main(["init", "half"])
    if files == 7:
        (tmp_path / "half" / ".dvc").rename(tmp_path / "away")
        (tmp_path / "half" / ".dvc").mkdir()  # as a kill leaves it at once
    made("half")
    made("whole")
    half, whole = content(tmp_path / "half"), content(tmp_path / "whole")
    assert half.pop("README.md").replace(b"half", b"whole") == whole.pop("README.md")
    assert half == whole


# Git and DVC -------------------------------------------------------------------------------------------


def test_within_a_repository_the_project_is_a_subfolder(tmp_path):
    subprocess.run(["git", "init", "--quiet"], check=True)
    made("flowers", "--images", str(write_photos(tmp_path / "photos")))
    assert not (tmp_path / "flowers" / ".git").exists()
    assert not (tmp_path / ".dvc").exists()
    assert (tmp_path / "flowers" / ".dvc" / "config").exists()
    made("other")
    assert (tmp_path / "other" / ".dvc" / "config").exists()


def test_nothing_is_committed(tmp_path):
    made("sample")
    commits = subprocess.run(
        ["git", "rev-list", "--all"], cwd=tmp_path / "sample", capture_output=True, check=True
    )
    assert commits.stdout == b""


def test_a_folder_that_git_ignores_is_refused_by_dvc_in_one_line(tmp_path, capsys):
    subprocess.run(["git", "init", "--quiet"], check=True)
    (tmp_path / ".gitignore").write_text("sample/\n")
    assert "is ignored by your SCM tool" in one_line(capsys, "sample")


# Mistakes ----------------------------------------------------------------------------------------------


def test_a_mistake_is_one_line_and_makes_nothing(tmp_path, capsys):
    write_photos(tmp_path / "photos")
    write_photos(tmp_path / "data")
    write_photos(tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / "red")
    (tmp_path / "loose").mkdir()
    shutil.copy(tmp_path / "photos" / "red" / "0.png", tmp_path / "loose")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, message in [
        (["x", "--images", "nowhere"], "nowhere: there is no such file or folder"),
        (["x", "--images", "empty"], "empty holds no images"),
        (["x", "--images", "file"], "file is neither a folder nor a zip archive"),
        (["x", "--images", "one"], "one holds only the class 'blue'"),
        (["x", "--images", "loose"], "loose holds 1 file that lies in no folder of a class"),
        (["file", "--images", "photos"], "file is a file: give the name of a folder"),
        (["file/x", "--images", "photos"], "file cannot be written to"),
        (["photos/x", "--images", "photos"], "photos/x is in the folder of the images"),
        (["photos", "--images", "photos"], "photos is in the folder of the images"),
        ([".", "--images", "data"], "data is where the project writes data/prepared"),
        (["x", "--copy"], "--copy copies the images that --images names"),
    ]:
        assert message in one_line(capsys, *arguments), arguments
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command.os, "access", lambda path, mode: not mode & os.W_OK)  # the superuser may
    assert "cannot be written to: choose another folder" in one_line(capsys, "x")


def test_git_must_be_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "git is not installed" in one_line(capsys, "x")
    assert list(tmp_path.iterdir()) == []


# The whole way -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_dvc_repro_passes_unedited(tmp_path):
    write_photos(tmp_path / "my photos", count=20)
    project = Project(tmp_path / "flowers")
    made("flowers", "--images", "my photos")
    project.repro()
    receipt = json.loads((project.root / "registration.json").read_text())
    assert receipt["passed"], receipt
