"""Makes temporary repositories from the files of this checkout, with 200 tiny images and two tiny models."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from visionpipe.project.lock import write_lock

CHECKOUT = Path(__file__).parents[2]
CLASSES = ("blue", "green", "red", "stripes")
MODELS = ("resnet", "vit")
NEEDS = "data/prepared/manifest.json"
TIMEOUT = 300  # seconds for one command
LEFT_OUT = ("dvc.lock", "data/fashion-mini.zip", "tests/")


def environment(**changes: str | None) -> dict[str, str]:
    """Returns this process's environment with its Python first in PATH, without variables that affect projects."""
    variables: dict[str, str | None] = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DVC_", "GIT_", "KERAS_", "MLFLOW_", "PYTEST_", "PYTHON"))
    }
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # DVC runs a stage with SHELL. Of the shells, sh remains as a process between the two, which is harder to interrupt.
    variables |= {"SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"} | changes
    return {name: value for name, value in variables.items() if value is not None}


@dataclass(frozen=True)
class Project:
    """A git and DVC repository in `root`. A command that fails also fails the test, unless `check` is false."""

    root: Path

    def run(
        self, *command: str, check: bool = True, **variables: str | None
    ) -> subprocess.CompletedProcess[str]:
        # The output goes to files: the workers that `dvc queue start` leaves running would keep pipes open.
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, cwd=self.root, env=environment(**variables), start_new_session=True,
                stdout=output, stderr=errors,
            )  # fmt: skip
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            errors.seek(0)
            result = subprocess.CompletedProcess(command, process.returncode, output.read(), errors.read())
        if check and result.returncode != 0:
            said = f"{result.stdout}\n{result.stderr}"
            pytest.fail(f"{' '.join(command)} exited with {result.returncode}\n{said}", pytrace=False)
        return result

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout.strip()

    def dvc(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "dvc", *arguments, **options)

    def visionpipe(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "visionpipe", *arguments, **options)

    def repro(self, *arguments: str, **options: Any) -> list[str]:
        """Runs `dvc repro`; returns the stages that it executed."""
        return executed(self.dvc("repro", *arguments, **options).stdout)

    def params(self) -> dict[str, Any]:
        return yaml.safe_load((self.root / "params.yaml").read_text())

    def change(self, key: str, value: Any) -> None:
        """Sets one value of params.yaml, named by its path with dots."""
        params = self.params()
        *sections, name = key.split(".")
        section = params
        for part in sections:
            section = section[part]
        section[name] = value
        self.write_params(params)

    def write_params(self, params: dict[str, Any]) -> None:
        (self.root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def commit(self, message: str) -> None:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", message)

    def checkpoints(self) -> list[Path]:
        return list((self.root / ".visionpipe" / "checkpoints").glob("*/step-*.checkpoint"))


def executed(output: str) -> list[str]:
    """Returns the stages whose commands ran, from the output of `dvc repro`."""
    lines = [line for line in output.splitlines() if line.startswith("Running stage '")]
    return [line.split("'")[1] for line in lines]


def make_project(root: Path, backend: str = "tensorflow") -> Project:
    """Makes a committed repository, ready for `dvc repro`."""
    project = copy_checkout(root)
    write_images(root / "data" / "tiny.zip")
    write_params(root / "params.yaml", backend)
    project.git("init", "--quiet", "--initial-branch", "main")
    project.git("config", "user.name", "A Tester")
    project.git("config", "user.email", "tester@example.org")
    shutil.rmtree(root / ".dvc", ignore_errors=True)
    project.dvc("init", "--quiet")
    shutil.copytree(CHECKOUT / ".dvc", root / ".dvc", dirs_exist_ok=True, ignore=not_in_git)
    project.commit("a tiny experiment")
    return project


def copy_checkout(root: Path) -> Project:
    """Copies the files that git tracks or would add, without the sample's images and results."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=CHECKOUT, capture_output=True, text=True, check=True,
    ).stdout.rstrip("\0")  # fmt: skip
    for name in listed.split("\0"):
        if (CHECKOUT / name).is_file() and not name.startswith(LEFT_OUT):
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, target)
    write_lock(root)
    return Project(root)


def not_in_git(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("cache", "tmp", "config.local")]


def write_params(path: Path, backend: str) -> None:
    """Writes the checkout's params.yaml with small images and models, and a gate that all models pass."""
    params = yaml.safe_load((CHECKOUT / "params.yaml").read_text())
    params["backend"] = backend
    params["threads"] = 1  # as fast as two for these models, and other processes do not slow it down
    params["prepare"] |= {"source": "zip", "path": "data/tiny.zip", "name": None, "size": [8, 8]}
    params["prepare"] |= {
        "interpolation": "bilinear",
        "crop_ratio": 0.9,
    }  # not the defaults, to test that they are used
    resnet, vit = (
        {"blocks_per_stage": [1], "filters": 4},
        {"hidden_dim": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32},
    )
    params["models"] = {
        "resnet": {"needs": NEEDS, "variant": "ResNet-8", "overrides": resnet, "train": {}},
        "vit": {"needs": NEEDS, "variant": "ViT-Mi/4", "overrides": vit, "train": {}},
    }
    params["train"] |= {"epochs": 1, "batch_size": 16, "learning_rate": 0.01}
    params["register"]["gate"] = {"accuracy": 0.0, "worst_recall": 0.0}
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def write_images(path: Path) -> None:
    """Writes 200 images in class folders. Every tenth is in a wrong folder, so that no model is perfect."""
    random = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(200):
            shown, said = index % 4, (index + (index % 10 == 0)) % 4
            buffer = io.BytesIO()
            Image.fromarray(pattern(shown, random)).save(buffer, "PNG")
            archive.writestr(f"tiny/{CLASSES[said]}/{index:03d}.png", buffer.getvalue())


def pattern(kind: int, random: np.random.Generator) -> np.ndarray:
    """Makes a noisy image uint8 (8, 8, 3) with one bright channel, or with dark and bright rows."""
    image = np.full((8, 8, 3), 60.0)
    if kind < 3:
        image[:, :, 2 - kind] += 120
    else:
        image[::2] += 120
    return np.clip(image + random.normal(0, 40, image.shape), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Tracked:
    """The content of a tracking store. `points`: run name → metric → steps, in the order in which they were logged."""

    runs: list[Any]
    versions: list[Any]
    aliases: dict[str, str]
    points: dict[str, dict[str, list[int]]] = field(repr=False)
    artifacts: Callable[[str], set[str]] = field(repr=False)

    @property
    def finished(self) -> list[str]:
        """The names of the models of all finished runs, sorted."""
        return sorted(run.data.tags["model"] for run in self.runs if run.info.status == "FINISHED")

    def run(self, model: str) -> Any:
        """Returns the newest run of a model."""
        return next(run for run in self.runs if run.data.tags["model"] == model)

    def doubled(self) -> list[tuple[str, str, list[int]]]:
        """Returns the curves that have two points at one step."""
        return [
            (run, metric, steps)
            for run, metrics in self.points.items()
            for metric, steps in metrics.items()
            if len(set(steps)) < len(steps)
        ]


def tracked(database: Path, model: str = "visionpipe", experiment: str = "visionpipe") -> Tracked:
    """Reads a tracking store from a copy of its SQLite file.

    MLflow never closes its connections to a file, and tests delete the original.
    """
    import sqlite3

    import mlflow
    from mlflow.exceptions import MlflowException

    copy = Path(tempfile.mkdtemp()) / "mlflow.db"
    with sqlite3.connect(database) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    client = mlflow.MlflowClient(f"sqlite:///{copy}", f"sqlite:///{copy}")
    try:
        aliases = client.get_registered_model(model).aliases
    except MlflowException:
        aliases = {}
    of_name = client.get_experiment_by_name(experiment)
    runs = list(client.search_runs([of_name.experiment_id])) if of_name else []
    return Tracked(
        runs=runs,
        versions=sorted(
            client.search_model_versions(f"name = '{model}'"), key=lambda version: int(version.version)
        ),
        aliases={alias: str(version) for alias, version in aliases.items()},
        points={
            f"{run.info.run_name} {run.info.run_id}": {
                metric: [point.step for point in client.get_metric_history(run.info.run_id, metric)]
                for metric in run.data.metrics
            }
            for run in runs
        },
        artifacts=lambda run_id: {
            file.path
            for folder in ("", "evaluation")
            for file in client.list_artifacts(run_id, folder or None)
            if not file.is_dir
        },
    )
