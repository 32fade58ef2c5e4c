"""Measures accuracy and time of an experiment, over seeds, through the real pipeline.

    python -m benchmarks.accuracy.pipeline --seeds 0 1 2
    python -m benchmarks.accuracy.pipeline --params experiments/fashion-mnist-vit.yaml

For each seed: a fresh copy of the checkout, `dvc repro`, its wall time and that of the trainings, and each model's
accuracies from reports/. Models that train on the sample are measured on all 10,000 official test images. Recipes are
chosen on validation images, never on those. Needs Debian's package dataset-fashion-mnist.

Raw numbers go to benchmarks/accuracy/pipeline.json, or beside the given file, into whose first lines they are written
too; the tables go to docs/results/accuracy.md. With --folder the copies stay, and an interrupted run continues in them.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from benchmarks import results
from benchmarks.accuracy.tables import PIPELINE, seeds_table
from benchmarks.facts import ROOT
from visionpipe.artifact.hardware import hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--backend", default="tensorflow")
    parser.add_argument("--params", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        params = yaml.safe_load((options.params or ROOT / "params.yaml").read_text())
        params["backend"] = options.backend
        if params["prepare"]["path"] == "data/fashion-mini.zip":
            images = folder.resolve() / "official.zip"
            builder = [sys.executable, ROOT / "data" / "make_fashion_mini.py", "--official-test", images]
            subprocess.run(builder, check=True)
            params["prepare"]["path"] = str(images)
        runs = [run(params | {"seed": seed}, folder / str(seed)) for seed in options.seeds]
    machine = ", ".join([hardware(), *sorted(set().union(*(run.pop("devices") for run in runs)) - {"CPU"})])
    result = {"hardware": machine, "backend": options.backend, "runs": runs}
    results.write(options.params.with_suffix(".json") if options.params else PIPELINE, result)
    if options.params:
        write_header(options.params, result)
    from benchmarks.tables import write_pages

    write_pages()
    print(seeds_table(result))


def run(params: dict[str, Any], project: Path) -> dict[str, Any]:
    """Runs `dvc repro` in a copy of the checkout; returns seconds and accuracies."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "MLFLOW_TRACKING_URI")
    }
    # The stages run `python`, which shall be this one even where its environment is not active.
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    if not project.exists():
        files = ["git", "ls-files", "-co", "--exclude-standard"]
        listed = subprocess.run(files, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for file in filter(os.path.exists, (ROOT / line for line in listed.splitlines())):
            file = file.relative_to(ROOT)
            (project / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, project / file)
        subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=project, env=environment, check=True)
    seconds = time.perf_counter() - start
    metrics = {
        name: json.loads((project / "reports" / name / "metrics.json").read_text())
        for name in params["models"]
    }
    measurements = [
        json.loads(file.read_text())
        for file in (project / ".visionpipe" / "measurements").glob("train-*.json")
    ]
    return {
        "seed": params["seed"],
        "devices": {measurement["device"] for measurement in measurements},
        "training_seconds": round(60 * sum(measurement["minutes"] for measurement in measurements), 1),
        "seconds": round(seconds, 1),
        "validation": {name: values["validation"]["accuracy"] for name, values in metrics.items()},
        "test": {name: values["test"]["accuracy"] for name, values in metrics.items()},
    }


def header(result: dict[str, Any]) -> str:
    """Returns the first lines of an experiment's file, from its result."""
    lines = [
        f"# seed {run['seed']}: test accuracy "
        + ", ".join(f"{accuracy:.4f} ({name})" for name, accuracy in run["test"].items())
        + f"; {run['seconds'] / 60:.0f} minutes, {result['backend']}, {result['hardware']}\n"
        for run in result["runs"]
    ]
    return "".join(lines)


def write_header(file: Path, result: dict[str, Any]) -> None:
    """Writes these lines into the file, in place of those of an earlier result."""
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(header(result) + "".join(line for line in lines if not line.startswith("# seed ")))


if __name__ == "__main__":
    main()
