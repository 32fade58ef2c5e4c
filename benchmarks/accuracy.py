"""Accuracy and time of an experiment, over seeds, through the real pipeline.

    python benchmarks/accuracy.py --seeds 0 1 2
    python benchmarks/accuracy.py --params experiments/fashion-mnist-vit.yaml

For each seed: a fresh copy of the checkout, `dvc repro`, the wall time of it and of the trainings, and each
model's accuracies from reports/. What trains on the sample is measured on all 10,000 official test images;
recipes are chosen on validation images, never on those. Needs Debian's package dataset-fashion-mnist.

Raw numbers go to benchmarks/accuracy.json, which the README's table is written from, or beside the given file, into
whose first lines they are written too. With --folder the copies stay, and an interrupted run goes on in them.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from visionpipe.tracking.runs import hardware

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "accuracy.json"


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
    file = options.params.with_suffix(".json") if options.params else RESULT
    file.write_text(json.dumps(result, indent=2) + "\n")
    if options.params:
        write_header(options.params, result)
    print(table(result))


def run(params: dict[str, Any], project: Path) -> dict[str, Any]:
    """One `dvc repro` in a copy of the checkout; returns seconds and accuracies."""
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "MLFLOW_TRACKING_URI")
    }
    # The stages run `python`: this one, whether its environment is active or not.
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


def table(result: dict[str, Any]) -> str:
    """Mean and worst test accuracy of each model, and the time of the whole pipeline."""
    lines = [
        "| model | test accuracy, mean | worst seed | validation accuracy, mean |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in result["runs"][0]["test"]:
        test = [run["test"][name] for run in result["runs"]]
        validation = [run["validation"][name] for run in result["runs"]]
        lines.append(
            f"| {name} | {statistics.mean(test):.4f} | {min(test):.4f} | {statistics.mean(validation):.4f} |"
        )
    training, whole = ([run[key] / 60 for run in result["runs"]] for key in ("training_seconds", "seconds"))
    seeds = ", ".join(str(run["seed"]) for run in result["runs"])
    lines.append("")
    lines.append(
        f"Seeds {seeds}, {result['backend']}, {result['hardware']}; training all models took "
        f"{statistics.mean(training):.1f} minutes on average and {max(training):.1f} at most, `dvc repro` "
        f"{statistics.mean(whole):.1f} and {max(whole):.1f}."
    )
    return "\n".join(lines)


def header(result: dict[str, Any]) -> str:
    """The first lines of an experiment's file, from its result."""
    lines = [
        f"# seed {run['seed']}: test accuracy "
        + ", ".join(f"{accuracy:.4f} ({name})" for name, accuracy in run["test"].items())
        + f"; {run['seconds'] / 60:.0f} minutes, {result['backend']}, {result['hardware']}\n"
        for run in result["runs"]
    ]
    return "".join(lines)


def write_header(file: Path, result: dict[str, Any]) -> None:
    """In place of the one that an earlier result left there."""
    lines = file.read_text().splitlines(keepends=True)
    file.write_text(header(result) + "".join(line for line in lines if not line.startswith("# seed ")))


if __name__ == "__main__":
    main()
