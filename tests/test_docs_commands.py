"""The Quickstart and the guides, followed to the letter: every fenced block of commands and of Python is run.

All pages share one project: three small models on pictures of flowers, trained once. Each page runs in a copy of it,
which also shows that a project can be copied with its store. A block that cannot run here is marked in the page with
`<!-- not run: REASON -->`; a command that serves runs in the background until the end of its page.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from flowers import write_photos
from repository import environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[1]
PAGES = ["quickstart.md", *sorted(f"guides/{page.name}" for page in (ROOT / "docs" / "guides").glob("*.md"))]
BLOCK = re.compile(r"(<!-- not run: .+ -->\n)?^```(sh|python)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SERVERS = {"visionpipe serve": 8000, "mlflow ui": 5000}
SMALL = {
    "resnet": {"blocks_per_stage": [1], "filters": 4},
    "vit": {"hidden_dim": 16, "depth": 4, "num_heads": 2, "mlp_dim": 32, "patch_size": 8},
    "hybrid": {"hidden_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32, "filters": 4},
}


def commands(page):
    """The blocks of a page that are run, with their languages."""
    text = (ROOT / "docs" / page).read_text()
    return [(language, block) for mark, language, block in BLOCK.findall(text) if not mark]


def variables(folder):
    """The environment of a newcomer, in which `visionpipe`, `dvc` and `mlflow` are those of this checkout."""
    scripts = folder / "bin"
    if not scripts.exists():
        scripts.mkdir()
        for name in ("dvc", "mlflow"):
            (scripts / name).symlink_to(Path(sys.executable).with_name(name))
        (scripts / "visionpipe").write_text(f'#!/bin/sh\nexec {sys.executable} -m visionpipe "$@"\n')
        (scripts / "visionpipe").chmod(0o755)
    path = f"{scripts}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    person = {
        f"GIT_{role}_{what}": "newcomer" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    return environment(PATH=path, PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1", **person)


class Newcomer:
    """Runs the blocks of one page in a folder, and remembers what `cd` and `export` did, as a terminal does."""

    def __init__(self, folder, variables):
        self.folder, self.variables, self.servers, self.ports = folder, variables, [], {}

    def run(self, block, language="sh"):
        for command, port in SERVERS.items():
            if block.startswith(command):
                return self.serve(block.strip(), port)
        for port, other in self.ports.items():
            block = block.replace(f"127.0.0.1:{port}", f"127.0.0.1:{other}")
        if language == "python":
            return self.execute([sys.executable, "-c", block])
        state = self.folder.parent / f"{self.folder.name}.state"
        output = self.execute(["bash", "-euo", "pipefail", "-c", f"{block}\n{{ pwd; env -0; }} > '{state}'"])
        where, _, after = state.read_text().partition("\n")
        self.folder = Path(where)
        self.variables |= dict(line.split("=", 1) for line in after.split("\0") if "=" in line)
        return output

    def execute(self, command):
        result = subprocess.run(
            command, cwd=self.folder, env=self.variables, text=True, timeout=900, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert result.returncode == 0, f"{command[-1]}\n{result.stdout}"
        return result.stdout

    def serve(self, command, port):
        """Starts a server on a free port, for others may use the usual one now."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.ports[port] = probe.getsockname()[1]
        log = self.folder.parent / "server.log"
        with log.open("w") as output:
            process = subprocess.Popen(
                [*command.split(), "--port", str(self.ports[port])], cwd=self.folder, env=self.variables,
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.servers.append(process)
        for _ in range(600):
            assert process.poll() is None, f"{command} ended by itself:\n{log.read_text()}"
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.ports[port])) == 0:
                    return log.read_text()
            time.sleep(0.2)
        raise AssertionError(f"{command} never listened:\n{log.read_text()}")

    def stop(self):
        for process in self.servers:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(timeout=30)


def make_cheap(project):
    """Trains the models that `init` has chosen for one epoch, and much smaller."""
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    assert set(params["models"]) == set(SMALL)
    for name, entry in params["models"].items():
        entry["overrides"] = entry.get("overrides", {}) | SMALL[name]
        entry["train"] = {}
    params["train"] = {"epochs": 1, "batch_size": 16, "augmentation": [{"name": "flip"}]}
    params["threads"] = 1
    params["register"]["gate"] = {"accuracy": 0.0, "worst_recall": 0.0}
    path.write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `photos` and the project `flowers`, as the Quickstart makes it but for its size."""
    home = tmp_path_factory.mktemp("home")
    write_photos(home / "photos", 120)
    newcomer = Newcomer(home, variables(home))
    newcomer.run("visionpipe init flowers --images photos")
    make_cheap(home / "flowers")
    newcomer.run("cd flowers && dvc repro && git add --all && git commit -qm 'The first models'")
    return home


def furnish(project):
    """Puts beside the project's files what the pages speak of as the reader's."""
    photos = project.parent / "photos"
    shutil.copy(photos / "daisy" / "000.png", project / "photo.jpg")
    shutil.copytree(photos, project / "photos")


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_works(page, trained, tmp_path):
    home = tmp_path / "home"
    shutil.copytree(trained, home, symlinks=True)
    if (
        page == "quickstart.md"
    ):  # begins before the first commit, and before dvc.lock, which DVC's cache gives back
        (home / "flowers" / "dvc.lock").unlink()
        subprocess.run(["git", "update-ref", "-d", "HEAD"], cwd=home / "flowers", check=True)
    else:
        furnish(home / "flowers")
    newcomer = Newcomer(home / "flowers", variables(home))
    outputs = []
    try:
        for language, block in commands(page):
            if not block.startswith("visionpipe init"):  # that was run when the project was made
                outputs.append(newcomer.run(block, language))
    finally:
        newcomer.stop()
    if page == "guides/share.md":
        assert "Running stage 'train" not in "".join(outputs)


def test_every_page_has_commands():
    assert [page for page in PAGES if not commands(page)] == []
