"""Kills trainings at random moments, through the real `dvc repro`: they must end at the same bytes.

    python -m benchmarks.robustness.kills --kills 20 --seed 1

For each backend it makes a throw-away repository with a hybrid that uses everything whose state could be lost: dropout,
stochastic depth, mixup, a moving average, and a checkpoint every few steps. First it trains without interruption. Then
it kills (`kill -9`) trainings several times each: after a random time, as soon as a checkpoint is being written, or as
soon as the model's file is. Every `dvc repro` after the last kill must give the model and the history of the first
training, byte for byte, and leave no process, no temporary file and no checkpoint. Results go to
benchmarks/robustness/kills.json, the table to docs/results/robustness.md.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from repository import NEEDS, Project, environment, make_project

from benchmarks import results
from benchmarks.robustness.tables import KILLS
from visionpipe.artifact.hardware import hardware

# Of twenty kills.
MOMENTS = {"a random time": 14, "while a checkpoint is written": 4, "while the model is written": 2}
KILLS_PER_TRAINING = 4
STAGE = "train@hybrid"
OUTPUTS = ("models/hybrid/model.keras", "models/hybrid/history.csv", "models/hybrid/lineage.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="for each backend")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--backends", nargs="+", default=["tensorflow", "jax", "torch"])
    options = parser.parse_args()
    from benchmarks.tables import write_pages

    print(f"seed {options.seed}", flush=True)
    result: dict[str, Any] = {"seed": options.seed, "hardware": hardware(), "backends": []}
    for backend in options.backends:
        result["backends"].append(try_backend(backend, options.kills, options.seed))
        results.write(KILLS, result)
    write_pages()


def try_backend(backend: str, kills: int, seed: int) -> dict[str, Any]:
    """Kills trainings on one backend; raises AssertionError where a byte differs."""
    with tempfile.TemporaryDirectory() as folder:
        project = make_killable(Path(folder) / "project", backend)
        project.dvc("repro", "prepare")
        start = time.perf_counter()
        project.dvc("repro", "--single-item", STAGE)
        seconds = time.perf_counter() - start
        expected, dice = outputs(project), random.Random(f"{seed} {backend}")
        moments = [moment for moment, count in MOMENTS.items() for _ in range(count * -(-kills // 20))]
        dice.shuffle(moments)
        killed: list[dict[str, Any]] = []
        trainings = 0
        while len(killed) < kills:
            for moment in moments[len(killed) : min(len(killed) + KILLS_PER_TRAINING, kills)]:
                # A training may end before its moment comes. Then nothing was killed, and it is tried again.
                while (after := kill(project, moment, dice.uniform(0.1, 1.0) * seconds)) is None:
                    check_outputs(project, expected)
                killed.append({"moment": moment, "after": after})
                print(backend, killed[-1], flush=True)
            project.dvc("repro", "--single-item", "--force", STAGE)
            check_outputs(project, expected)
            trainings += 1
        return {"backend": backend, "seconds": round(seconds, 1), "trainings": trainings, "kills": killed}


def make_killable(root: Path, backend: str) -> Project:
    project = make_project(root, backend)
    params = project.params()
    overrides = {
        "filters": 4,
        "hidden_dim": 16,
        "mlp_dim": 32,
        "dropout_rate": 0.1,
        "stochastic_depth_rate": 0.1,
    }
    params["models"] = {
        "hybrid": {"needs": NEEDS, "variant": "R14+ViT-Mi", "overrides": overrides, "train": {}}
    }
    params["prepare"]["size"] = [16, 16]
    params["train"] |= {"epochs": 12, "ema_decay": 0.9, "checkpoint_steps": 3}
    params["train"]["augmentation"] = [{"name": "flip"}, {"name": "mixup", "off_epoch": 9}]
    project.write_params(params)
    project.commit("a training to be killed")
    return project


def outputs(project: Project) -> dict[str, str]:
    return {name: hashlib.sha256((project.root / name).read_bytes()).hexdigest() for name in OUTPUTS}


def check_outputs(project: Project, expected: dict[str, str]) -> None:
    assert outputs(project) == expected, "other bytes than those of the training that was not killed"
    left = [str(path) for path in project.root.rglob("*.tmp") if ".dvc" not in path.parts]
    assert not left, left
    assert not project.checkpoints()


def kill(project: Project, moment: str, seconds: float) -> float | None:
    """Starts `dvc repro` and kills the trainer in it; returns after how many seconds, or None if it ended before."""
    watched = watched_folder(project, moment)
    before = temporary_files(watched)  # what an earlier kill has left
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", "--force", STAGE]
    dvc = subprocess.Popen(
        command, cwd=project.root, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    start = time.perf_counter()
    while dvc.poll() is None:
        if watched is None and time.perf_counter() - start > seconds:
            break
        if temporary_files(watched) - before:
            break
        time.sleep(0.0005)
    after = round(time.perf_counter() - start, 2)
    trainers = psutil.Process(dvc.pid).children(recursive=True) if dvc.poll() is None else []
    for process in trainers:
        if process.is_running() and "visionpipe" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
    status = dvc.wait(60)
    assert not [p for p in trainers if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], "an orphan"
    return after if status else None


def temporary_files(folder: Path | None) -> set[tuple[str, int]]:
    """Returns path and time of change of each."""
    files = set()
    for path in folder.rglob("*.tmp") if folder else ():
        with suppress(FileNotFoundError):
            files.add((str(path), path.stat().st_mtime_ns))
    return files


def watched_folder(project: Project, moment: str) -> Path | None:
    if moment == "a random time":
        return None
    return project.root / (".visionpipe/checkpoints" if "checkpoint" in moment else "models/hybrid")


if __name__ == "__main__":
    main()
