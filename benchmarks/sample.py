"""Accuracy and time of the default experiment, over seeds, through the real pipeline.

Trains on the sample's training images and measures on all 10,000 official test images. The search for the
defaults compared validation accuracies, but printed those of one seed on the test images beside them: take
the results as slightly optimistic. Needs Debian's package dataset-fashion-mnist.

    python benchmarks/sample.py --seeds 0 1 2

For each seed: a fresh copy of the checkout, `dvc repro`, the wall time of it, and each model's accuracies
from reports/. Raw numbers go to benchmarks/sample.json, which the README's table is written from.
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

import yaml

from visionpipe.tracking.runs import hardware

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "sample.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--backend", default="tensorflow")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "official.zip"
        builder = [sys.executable, ROOT / "data" / "make_fashion_mini.py", "--official-test", images]
        subprocess.run(builder, check=True)
        runs = [run(seed, options.backend, images, Path(folder) / str(seed)) for seed in options.seeds]
    RESULT.write_text(
        json.dumps({"hardware": hardware(), "backend": options.backend, "runs": runs}, indent=2) + "\n"
    )
    print(table(json.loads(RESULT.read_text())))


def run(seed: int, backend: str, images: Path, project: Path) -> dict:
    """One `dvc repro` in a fresh copy; returns seconds and accuracies."""
    files = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for file in files:
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, project / file)
    shutil.copy(images, project / "data" / "official.zip")
    params = yaml.safe_load((project / "params.yaml").read_text())
    params |= {"seed": seed, "backend": backend}
    params["prepare"]["path"] = "data/official.zip"
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("DVC_ROOT", "MLFLOW_TRACKING_URI")
    }
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "dvc", "repro"], cwd=project, env=environment, check=True)
    seconds = time.perf_counter() - start
    metrics = {
        name: json.loads((project / "reports" / name / "metrics.json").read_text())
        for name in params["models"]
    }
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "validation": {name: values["validation"]["accuracy"] for name, values in metrics.items()},
        "test": {name: values["test"]["accuracy"] for name, values in metrics.items()},
    }


def table(result: dict) -> str:
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
    minutes = [run["seconds"] / 60 for run in result["runs"]]
    seeds = ", ".join(str(run["seed"]) for run in result["runs"])
    lines.append("")
    lines.append(
        f"Seeds {seeds}, {result['backend']}, {result['hardware']}; `dvc repro` for all models took "
        f"{statistics.mean(minutes):.1f} minutes on average, {max(minutes):.1f} at most."
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
