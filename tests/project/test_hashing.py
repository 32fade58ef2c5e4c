"""What stops `dvc repro` before `prepare`: it is named beforehand, and the line for .dvcignore helps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from visionpipe.project.hashing import unhashable

ODD = {
    "dangling.png": lambda file: file.symlink_to("gone.png"),
    "pipe.png": os.mkfifo,
    "itself.png": lambda file: file.symlink_to(file.name),
}


@pytest.fixture
def images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("imgs/cat").mkdir(parents=True)
    Path("imgs/cat/1.png").write_bytes(b"x")
    Path("imgs/cat/.hidden").write_bytes(b"x")
    (tmp_path / "outside.png").write_bytes(b"x")
    Path("imgs/cat/link.png").symlink_to(tmp_path / "outside.png")
    return Path("imgs")


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_dvc_cannot_hash_is_named_with_what_to_do(images, name):
    assert unhashable(images) is None
    ODD[name](images / "cat" / name)
    assert unhashable(images) == (
        f"dvc repro stops at 1 file or folder that DVC cannot read: 'imgs/cat/{name}' (neither a file nor a folder): "
        f"remove or repair it, or add the line /imgs/cat/{name} to .dvcignore"
    )


def test_names_that_are_no_text_and_several_files_are_counted(images):
    Path(os.fsdecode(os.fsencode(images / "cat") + b"/\xff.png")).write_bytes(b"")
    os.mkfifo(images / "pipe")
    found = unhashable(images)
    assert found.startswith("dvc repro stops at 2 files and folders that DVC cannot read: ")
    assert "'imgs/pipe' and 1 more (neither a file nor a folder): remove or repair them, or add" in found


@pytest.mark.slow
def test_the_line_in_dvcignore_lets_dvc_go_on(images):
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], check=True)
    Path("dvc.yaml").write_text("stages: {s: {cmd: echo > out, deps: [imgs], outs: [out]}}")
    (images / "cat/gone.png").symlink_to("nothing")
    found = unhashable(images)
    assert subprocess.run([*dvc, "repro", "-q"], capture_output=True, check=False).returncode
    Path(".dvcignore").write_text(found.split("add the line ")[1].split(" to .dvcignore")[0])
    subprocess.run([*dvc, "repro", "-q"], check=True)
