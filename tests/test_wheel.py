"""The wheel holds the whole package: a project can be made from it where there is no clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from repository import CHECKOUT, copy_checkout

PACKAGE = {
    path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "visionpipe").rglob("*") if path.is_file()
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The content of the wheel, as pip puts it into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    copy_checkout(folder / "source")  # the build writes beside the source
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        folder / "source",
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("visionpipe-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site-packages")
    return folder / "site-packages"


@pytest.mark.slow
def test_every_file_of_the_package_is_in_the_wheel(installed):
    inside = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {name for name in PACKAGE if "__pycache__" not in name} <= inside


@pytest.mark.slow
def test_a_project_is_made_from_the_wheel_alone(installed, tmp_path):
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "GIT_", "KERAS_", "MLFLOW_"))
    }
    environment |= {
        "PYTHONPATH": str(installed),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def run(*command: str, folder: Path) -> str:
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, check=True
        ).stdout

    python = (sys.executable, "-P", "-m", "visionpipe")  # -P: not the package of the current folder
    run(*python, "init", "clothes", folder=tmp_path)
    project = tmp_path / "clothes"
    assert {path.name for path in project.iterdir()} == {
        ".dvc", ".dvcignore", ".git", ".gitignore", "README.md", "code.lock", "data", "decisions.csv", "dvc.yaml",
        "params.yaml",
    }  # fmt: skip
    assert "code.lock is up to date" in run(*python, "lock", folder=project)
    assert "resnet: ResNet-14 on tensorflow" in run(*python, "params", folder=project)
    status = run(sys.executable, "-P", "-m", "dvc", "status", folder=project)
    assert "prepare:" in status
    shutil.move(project, tmp_path / "moved")
    assert "prepared 6,000 of 6,000" in run(*python, "prepare", folder=tmp_path / "moved")
