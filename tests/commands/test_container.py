"""`visionpipe container`: its build context holds all that the image needs, and no more."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from servers import CHECKOUT, artifact_folder, picture

from visionpipe.artifact.versions import load, version_in
from visionpipe.commands.container import COMMAND, REQUIREMENTS, container, pinned
from visionpipe.errors import ConfigError
from visionpipe.files import temporary_name


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    folder = tmp_path_factory.mktemp("container")
    container(str(artifact_folder(folder / "linear")), folder / "context")
    return folder / "context"


def test_the_image_is_not_root_needs_no_writing_and_checks_its_health(context):
    lines = (context / "Dockerfile").read_text().splitlines()
    assert "FROM python:3.11-slim" in lines
    assert "USER 10001" in lines
    assert any(line.startswith("HEALTHCHECK") and "/readyz" in line for line in lines)
    copied = {line.split()[1] for line in lines if line.startswith("COPY")}
    assert all((context / name).exists() for name in copied)
    command = json.loads(next(line for line in lines if line.startswith("CMD")).removeprefix("CMD "))
    assert command == list(COMMAND)


def test_the_model_inside_is_the_verified_one_with_its_name(context):
    version = version_in(context / "model")
    assert version.name == "linear"
    assert load(version).labels


def test_every_requirement_is_pinned_and_no_framework_is_among_them(context):
    lines = (context / "requirements.txt").read_text().split()
    assert all(re.fullmatch(r"[a-z0-9.-]+==\S+", line) for line in lines)
    names = {line.split("==")[0] for line in lines}
    assert set(REQUIREMENTS) <= names
    assert {"starlette", "pydantic-core", "h11", "click"} <= names  # what the direct ones require
    assert not names & {
        "keras",
        "tensorflow",
        "torch",
        "jax",
        "mlflow",
        "onnx",
        "pandas",
        "matplotlib",
        "dvc",
    }
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    declared = {Requirement(text).name for text in project["dependencies"]}
    assert set(REQUIREMENTS) <= declared


def test_a_folder_that_is_there_is_left_alone(context):
    with pytest.raises(ConfigError, match="exists already"):
        container(str(context / "model"), context)


IMPORT_WITHOUT = """
import sys

class Absent:
    def find_spec(name, path=None, target=None):
        if name in {absent}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent)
import visionpipe.serving.server, visionpipe.serving.service, visionpipe.tracking.lookup
"""


def test_the_server_imports_nothing_that_the_image_lacks(context):
    lines = (context / "requirements.txt").read_text().split()
    present = {line.split("==")[0] for line in lines} | {"visionpipe"}
    providers = packages_distributions().items()
    absent = {module for module, names in providers if not present & set(map(canonicalize_name, names))}
    assert {"psutil", "mlflow", "keras"} <= absent
    script = IMPORT_WITHOUT.format(absent=sorted(absent))
    subprocess.run([sys.executable, "-c", script], cwd=context, check=True)


def run_as_the_image_does(context, python, tmp_path):
    """The command and the health check of the Dockerfile, in a copy that cannot be written to."""
    import signal
    import time

    app = tmp_path / "app"
    shutil.copytree(context, app)
    for path in (*app.rglob("*"), app):
        path.chmod(0o555 if path.is_dir() else 0o444)
    words = [python if word == "python" else word for word in COMMAND]
    words[words.index("8000")] = "8017"
    check = re.search(r'CMD \["python", "-c", "(.*)"\]', (context / "Dockerfile").read_text())[1]
    environment = {"PATH": "/nowhere", "PYTHONDONTWRITEBYTECODE": "1"}
    server = subprocess.Popen(words, cwd=app, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert "answers on http://0.0.0.0:8017" in server.stdout.readline()
        healthy = [python, "-c", check.replace("8000", "8017")]
        deadline = time.monotonic() + 20
        while subprocess.run(healthy, env=environment, capture_output=True).returncode:
            assert time.monotonic() < deadline
        ask = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], sys.stdin.buffer.read()).read())"
        url = "http://127.0.0.1:8017/predict"
        answer = subprocess.run([python, "-c", ask, url], input=picture(), capture_output=True, check=True)
        assert b'"name":"linear"' in answer.stdout
        assert not list(app.rglob("__pycache__"))
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        server.stdout.close()


def test_the_command_of_the_image_answers_from_a_read_only_folder(context, tmp_path):
    run_as_the_image_does(context, sys.executable, tmp_path)


@pytest.mark.slow
def test_the_pinned_requirements_alone_are_enough(context, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--no-deps", "-r", context / "requirements.txt"]
    subprocess.run(install, check=True, env=os.environ | {"PYTHONPATH": ""})
    subprocess.run([python, "-m", "pip", "check"], check=True)
    run_as_the_image_does(context, python, tmp_path)


def test_pins_follow_requirements_of_requirements():
    assert {line.split("==")[0] for line in pinned(("uvicorn",))} == {"uvicorn", "click", "h11"}


def test_everybody_may_read_the_context_whatever_the_umask(tmp_path):
    """The image's user is another one; and what a killed process has left beside the folder goes away."""
    left = tmp_path / temporary_name(
        Path("a context"), 2**22 + 1
    )  # of a process that cannot be: numbers end at 2**22
    (left / "model").mkdir(parents=True)
    before = os.umask(0o077)
    try:
        container(str(artifact_folder(tmp_path / "linear")), tmp_path / "a context")
    finally:
        os.umask(before)
    context = tmp_path / "a context"
    assert {path.stat().st_mode & 0o777 for path in context.rglob("*") if path.is_file()} == {0o644}
    folders = [context, *(path for path in context.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o755}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a context", "linear"]


def test_without_room_nothing_is_left_of_the_context(tmp_path):
    artifact = str(artifact_folder(tmp_path / "linear"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            container(artifact, tmp_path / "context")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["linear"]
