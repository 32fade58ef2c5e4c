"""Fine-tuning against training from scratch, on the sample, through the real pipeline.

    python benchmarks/transfer.py --seeds 0 1 2

For each seed: five of the ten classes, drawn with the seed, train the hybrid of params.yaml, long and with strong
augmentation. 20 images of each of the other five train it again, with `init:` and `preset: finetune` or without, for as
many steps and with the same augmentation; for a few, and for so many that training from scratch gains no more. Either
way has four settings: four learning rates from scratch, two with and two without the preset's layer-wise decay. The
table shows the one that is best on validation: nothing is chosen on the test images.

Raw numbers go to benchmarks/transfer.json; docs/weights.md has the table, from this script. With --folder the
repositories stay, and an interrupted run goes on in them.
"""

import argparse
import itertools
import json
import random
import statistics
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from accuracy import ROOT, run

from visionpipe.tracking.runs import hardware

RESULT = ROOT / "benchmarks" / "transfer.json"
PAGE = ROOT / "docs" / "weights.md"
BEGIN, END = "<!-- begin: benchmarks/transfer.py -->\n", "<!-- end: benchmarks/transfer.py -->\n"
SAMPLE = ROOT / "data" / "fashion-mini.zip"
PER_CLASS = {"train": 20, "validation": 50}
FRESH = "data/prepared/manifest.json"
RATES = {"scratch": (0.001, 0.002, 0.006, 0.012), "finetuned": (0.002, 0.006)}
BUDGETS = (10, 60)  # epochs
BATCH = 16
SHARED = {
    "weight_decay": 0.05,
    "augmentation": [{"name": "flip"}, {"name": "crop", "padding": 1}],
}  # as from scratch
PRETRAINING = {
    "epochs": 40,
    "ema_decay": 0.995,
    "augmentation": [
        {"name": "flip"},
        {"name": "crop", "padding": 2},
        {"name": "rand_augment"},
        {"name": "erasing", "probability": 0.25},
        {"name": "mixup", "alpha": 0.4},
        {"name": "cutmix", "alpha": 1.0},
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        runs: list[dict[str, Any]] = []
        result = {"hardware": hardware(), "runs": runs}
        for seed in options.seeds:
            runs.append(transfer(seed, folder / str(seed)))
            RESULT.write_text(json.dumps(result, indent=2) + "\n")
            write_page(result)
    print(table(result))


def transfer(seed: int, folder: Path) -> dict[str, Any]:
    """The pretraining of one seed and every fine-tuning; classes and accuracies of both."""
    folder.mkdir(parents=True, exist_ok=True)
    files = sample()
    known = sorted(random.Random(seed).sample(sorted(files["train"]), 5))
    write_zip(
        folder / "known.zip", {name: name for split in files.values() for c in known for name in split[c]}
    )
    write_zip(folder / "new.zip", few(files, known, seed))
    params = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"seed": seed}
    hybrid = params["models"]["hybrid"]

    params["prepare"]["path"] = str(folder / "known.zip")
    pretrained = hybrid | {"train": PRETRAINING}
    before = accuracies(params | {"models": {"hybrid": pretrained}}, folder / "pretraining")
    start = str(folder / "pretraining" / "models" / "hybrid" / "model.keras")
    params["prepare"]["path"] = str(folder / "new.zip")
    after = {
        str(epochs): accuracies(
            params | {"models": entries(hybrid, start, epochs)}, folder / f"{epochs}-epochs"
        )
        for epochs in BUDGETS
    }
    return {"seed": seed, "known": known, "pretraining": before, "epochs": after}


def accuracies(params: dict[str, Any], folder: Path) -> dict[str, dict[str, float]]:
    """On validation and test, by model. Not the seconds: in a run that goes on they are not those of the whole."""
    result = run(params, folder)
    return {split: result[split] for split in ("validation", "test")}


def entries(hybrid: dict[str, Any], start: str, epochs: int) -> dict[str, Any]:
    """One of `models:` for each way and setting; a sixth of the epochs trains the head first, as the preset has it."""
    found = {}
    for rate in RATES["scratch"]:
        budget = {"epochs": epochs, "batch_size": BATCH, "learning_rate": rate}
        found[entry("scratch", rate)] = hybrid | {"needs": FRESH, "train": SHARED | budget}
    for rate, even in itertools.product(RATES["finetuned"], (True, False)):
        budget = {"epochs": epochs, "batch_size": BATCH, "learning_rate": rate}
        freeze = [{"epochs": epochs // 6, "train": ["logits"]}]
        finetune = {"preset": "finetune", "freeze": freeze} | ({"layer_decay": 1.0} if even else {})
        found[entry("finetuned", rate, layerwise=not even)] = hybrid | {
            "needs": start,
            "init": start,
            "train": finetune | SHARED | budget,
        }
    return found


def entry(kind: str, rate: float, layerwise: bool = False) -> str:
    return f"{kind}-{rate * 1e4:g}e-4" + ("-layerwise" if layerwise else "")


def sample() -> dict[str, dict[str, list[str]]]:
    """The sample's files by split and class."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    with zipfile.ZipFile(SAMPLE) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".png"):
                split, class_name, _ = name.split("/")
                found[split][class_name].append(name)
    return found


def few(files: dict[str, dict[str, list[str]]], known: list[str], seed: int) -> dict[str, str]:
    """Of the classes that are not known: file of the sample → its name in the new set."""
    chosen = {}
    for class_name in sorted(files["train"].keys() - set(known)):
        drawn = random.Random(f"{seed} {class_name}").sample(
            files["train"][class_name], sum(PER_CLASS.values())
        )
        for place, name in enumerate(drawn):
            split = "train" if place < PER_CLASS["train"] else "validation"
            chosen[name] = f"{split}/{name.partition('/')[2]}"
        chosen |= {name: name for name in files["test"][class_name]}
    return chosen


def write_zip(path: Path, chosen: dict[str, str]) -> None:
    """The same bytes every time, so that an interrupted run finds what it has done."""
    with zipfile.ZipFile(SAMPLE) as archive, zipfile.ZipFile(path, "w") as target:
        for name, renamed in sorted(chosen.items()):
            target.writestr(zipfile.ZipInfo(renamed), archive.read(name))


def best(runs: list[dict[str, Any]], kind: str, epochs: str) -> str:
    """The setting with the highest accuracy on validation, over all seeds."""

    def accuracy(name: str) -> float:
        return statistics.mean(run["epochs"][epochs]["validation"][name] for run in runs)

    return max(
        (name for name in runs[0]["epochs"][epochs]["validation"] if name.startswith(kind)), key=accuracy
    )


def table(result: dict[str, Any]) -> str:
    runs = result["runs"]
    lines = [
        "| epochs | training | setting | test accuracy, mean | worst seed | each seed | validation, mean |",
        "| ---: | --- | --- | ---: | ---: | --- | ---: |",
    ]
    for epochs in runs[0]["epochs"]:
        for kind, title in (("scratch", "from scratch"), ("finetuned", "fine-tuned")):
            name = best(runs, kind, epochs)
            rate, _, layerwise = name.partition("-")[2].partition("-l")
            setting = f"rate {float(rate):g}" + (", layer-wise decay" if layerwise else "")
            test, validation = (
                [run["epochs"][epochs][split][name] for run in runs] for split in ("test", "validation")
            )
            each = ", ".join(f"{accuracy:.3f}" for accuracy in test)
            lines.append(
                f"| {epochs} | {title} | {setting} | {statistics.mean(test):.3f} | {min(test):.3f} | {each} | "
                f"{statistics.mean(validation):.3f} |"
            )
    halves = "; ".join(f"{run['seed']}: {', '.join(run['known'])}" for run in runs)
    return "\n".join([*lines, "", f"Pretrained on, by seed: {halves}. {result['hardware']}."])


def write_page(result: dict[str, Any]) -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + "\n" + table(result) + "\n\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
