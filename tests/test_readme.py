"""A newcomer follows the README to the letter, in an empty folder and in a fresh clone.

In CI the trainings are of two epochs, and the clone borrows the packages of this environment, which CI has just
installed from the same files by `make`. `make test-all` runs `make repro` as it stands, with its installation. The
commands of the Quickstart and the guides are run by test_docs_commands.py.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from flowers import write_photos
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
SERVERS = {"make ui": 5000, "make serve": 8000}
# What the Quickstart has too, where it is run: beside `make serve` these would be the same servers once more.
OF_THE_QUICKSTART = ("mlflow ui", "visionpipe serve")
INSTALLED = "pip install visionpipe"  # by `make`, from the same files
ACTIVATE = "source .venv/bin/activate"


def newcomer() -> dict[str, str]:
    """The environment without what this suite's own `make` and pytest put there."""
    ours = {"DVC_ROOT", "MLFLOW_TRACKING_URI", "KERAS_BACKEND", "VIRTUAL_ENV"}
    ours |= {"MAKEFLAGS", "MFLAGS", "MAKELEVEL"}
    variables = {key: value for key, value in os.environ.items() if key not in ours}
    places = variables["PATH"].split(os.pathsep)
    return variables | {"PATH": os.pathsep.join(place for place in places if ".venv" not in place)}


def shell(command, cwd, timeout=1200):
    """Runs a command as a newcomer does: in the project's environment once `make` has made it."""
    if (Path(cwd) / ".venv" / "bin" / "activate").exists():
        command = f"{ACTIVATE}\n{command}"
    process = subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=cwd,
        env=newcomer(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, f"{command}\n{output}"
    return output


def cloned(folder):
    """What a newcomer gets: a clone of what is committed, with the identity that git asks for."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    shell("git config user.email newcomer@example.com && git config user.name Newcomer", folder)
    return folder


def lend_packages(clone):
    """Makes the clone's .venv, in which all but the project itself is that of this environment."""
    subprocess.run([sys.executable, "-m", "venv", clone / ".venv"], check=True)
    (packages,) = (clone / ".venv" / "lib").glob("python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    for command in ("dvc", "mlflow"):
        (clone / ".venv" / "bin" / command).symlink_to(Path(sys.executable).with_name(command))


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone with short trainings and without a demand on their accuracy."""
    clone = cloned(tmp_path_factory.mktemp("newcomer") / "visionpipe")
    lend_packages(clone)
    params = yaml.safe_load((clone / "params.yaml").read_text())
    for entry in [params, *params["models"].values()]:
        entry["train"] = entry.get("train", {}) | {"epochs": 2}
    params["register"]["gate"] = {"accuracy": 0.0, "worst_recall": 0.0}
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shell("git commit -qam 'Short trainings'", clone)
    return clone


@pytest.fixture(scope="module")
def repro(clone):
    return shell("make repro", clone)


@pytest.fixture
def server(clone, tmp_path):
    """Starts a `make` target that serves, waits until it listens, and stops it afterwards."""
    started = []

    def start(command):
        port, log = SERVERS[command], tmp_path / "server.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                command.split(),
                cwd=clone,
                env=newcomer(),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        started.append(process)
        for _ in range(600):
            assert process.poll() is None, f"{command} ended by itself:\n{log.read_text()}"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.2)
        pytest.fail(f"nothing listens on port {port}:\n{log.read_text()}")

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)


def block(start):
    """The one block of the README that begins with these words."""
    found = [text for text in BLOCKS if text.startswith(start)]
    assert len(found) == 1
    return found[0]


def example(guide):
    """The first piece of params.yaml in a guide."""
    text = (ROOT / "docs" / "guides" / guide).read_text()
    return yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])


@pytest.mark.rare
def test_make_installs_all_and_trains_models_that_pass_the_gate(tmp_path):
    clone = cloned(tmp_path / "visionpipe")
    start = time.perf_counter()
    output = shell("make repro", clone)
    print(f"make repro, with the installation: {(time.perf_counter() - start) / 60:.1f} minutes")
    assert re.search(r"\| (resnet|vit|hybrid) ★ \|", output)
    shell("visionpipe check", clone)


def test_make_repro_ends_with_the_table_and_what_to_do_next(repro):
    assert re.search(r"\| (resnet|vit|hybrid) ★ \|", repro)
    assert "make ui" in repro
    assert "make serve" in repro


def test_the_working_tree_stays_clean_but_for_the_lock_file(clone, repro):
    assert shell("git status --porcelain", clone).split() in (["??", "dvc.lock"], [])


def test_the_mlflow_ui_answers_and_has_three_named_runs(clone, repro, server):
    url = server("make ui")
    query = """{"experiment_ids": ["1"], "max_results": 10}"""
    answer = shell(
        f"curl -sS -H 'Content-Type: application/json' -d '{query}' {url}/api/2.0/mlflow/runs/search", clone
    )
    names = re.findall(r'"run_name": ?"([^"]+)"', answer.encode().decode("unicode_escape"))
    assert sorted(name.split()[0] for name in names) == ["hybrid", "resnet", "vit"]


def test_the_served_champion_names_an_image_of_the_test_set(clone, repro, server):
    server("make serve")
    answer = shell(block("unzip"), clone)
    assert re.search(r'"label":"[a-z -]+"', answer, re.IGNORECASE)
    assert "predictions.csv" in answer


def test_the_first_commands_make_a_project_on_a_folder_of_photographs(tmp_path):
    """As far as the prepared images: the trainings would take a quarter of an hour, and the Quickstart has smaller
    ones.
    """
    write_photos(tmp_path / "photos", 60)
    scripts = tmp_path / "bin"
    scripts.mkdir()
    (scripts / "visionpipe").write_text(f'#!/bin/sh\nexec {sys.executable} -m visionpipe "$@"\n')
    (scripts / "visionpipe").chmod(0o755)
    place = f"export HOME={tmp_path} PYTHONPATH={ROOT} PATH={scripts}:{Path(sys.executable).parent}:$PATH\n"
    commands = block("visionpipe init")
    assert commands.endswith("dvc repro\n")
    output = shell(place + commands.replace("dvc repro\n", "dvc repro prepare\n"), tmp_path)
    assert "60 images in 3 classes" in output
    assert (tmp_path / "flowers" / "data" / "prepared" / "manifest.json").exists()


def test_own_images(clone, repro):
    random = np.random.default_rng(0)
    for name, colour in (("cat", 60), ("dog", 180)):
        (clone / "my-images" / name).mkdir(parents=True)
        for index in range(20):
            noise = random.normal(colour, 30, (70, 90, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(clone / "my-images" / name / f"{index}.jpg")
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["prepare"] |= {"source": "folder", "path": "my-images", "size": [64, 64]}
    params["models"] |= example("models.md")["models"]
    params["models"]["resnet-wide"]["train"]["epochs"] = 1
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    output = shell("make repro", clone)
    assert "resnet-wide" in output
    assert "the champion was trained on other data: visionpipe promote compares both" in output
    assert "champion: version " in shell("visionpipe promote --new-data", clone)


def test_every_command_of_the_readme_is_run_here():
    run = re.findall(r'block\("(.*?)"\)', Path(__file__).read_text())
    starts = ("make repro", *SERVERS, *OF_THE_QUICKSTART, INSTALLED, *run)
    unknown = [text for text in BLOCKS if not text.startswith(starts)]
    assert not unknown
