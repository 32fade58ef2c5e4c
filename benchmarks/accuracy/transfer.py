"""Compares fine-tuning with training from scratch, on the sample, through the real pipeline.

    python -m benchmarks.accuracy.transfer --seeds 0 1 2

For each seed: five of the ten classes, drawn with the seed, train the hybrid of params.yaml, long and with strong
augmentation. Then 20 images of each of the other five classes train it, starting from those weights (`init:` and
`preset: finetune`) or from scratch, for as many steps and with the same augmentation. There are two budgets: a few
epochs, and so many that training from scratch gains no more. Either way has four settings: four learning rates from
scratch, two with and without the preset's layer-wise decay. The table shows the setting that is best on validation:
nothing is chosen on the test images.

Raw numbers go to benchmarks/accuracy/transfer.json, the table to docs/results/accuracy.md. With --folder the
repositories stay, and an interrupted run continues in them.
"""

import argparse
import itertools
import random
import tempfile
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks import results
from benchmarks.accuracy.pipeline import run
from benchmarks.accuracy.tables import TRANSFER, transfer_table
from benchmarks.facts import ROOT
from visionpipe.artifact.hardware import hardware

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
    from benchmarks.tables import write_pages

    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        runs: list[dict[str, Any]] = []
        result = {"hardware": hardware(), "runs": runs}
        for seed in options.seeds:
            runs.append(transfer(seed, folder / str(seed)))
            results.write(TRANSFER, result)
            write_pages()
    print(transfer_table(result))


def transfer(seed: int, folder: Path) -> dict[str, Any]:
    """Runs the pretraining of one seed and every fine-tuning; returns classes and accuracies of both."""
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
    """Returns those on validation and test, by model, without seconds, which a continued run does not know."""
    result = run(params, folder)
    return {split: result[split] for split in ("validation", "test")}


def entries(hybrid: dict[str, Any], start: str, epochs: int) -> dict[str, Any]:
    """Returns an entry of `models:` for each way and setting.

    Fine-tuning trains the head alone for a sixth of the epochs, as the preset does.
    """
    models = {}
    for rate in RATES["scratch"]:
        budget = {"epochs": epochs, "batch_size": BATCH, "learning_rate": rate}
        models[entry("scratch", rate)] = hybrid | {"needs": FRESH, "train": SHARED | budget}
    for rate, even in itertools.product(RATES["finetuned"], (True, False)):
        budget = {"epochs": epochs, "batch_size": BATCH, "learning_rate": rate}
        freeze = [{"epochs": epochs // 6, "train": ["logits"]}]
        finetune = {"preset": "finetune", "freeze": freeze} | ({"layer_decay": 1.0} if even else {})
        models[entry("finetuned", rate, layerwise=not even)] = hybrid | {
            "needs": start,
            "init": start,
            "train": finetune | SHARED | budget,
        }
    return models


def entry(kind: str, rate: float, layerwise: bool = False) -> str:
    return f"{kind}-{rate * 1e4:g}e-4" + ("-layerwise" if layerwise else "")


def sample() -> dict[str, dict[str, list[str]]]:
    """Returns the sample's files by split and class."""
    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    with zipfile.ZipFile(SAMPLE) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".png"):
                split, class_name, _ = name.split("/")
                files[split][class_name].append(name)
    return files


def few(files: dict[str, dict[str, list[str]]], known: list[str], seed: int) -> dict[str, str]:
    """Draws images of the classes that are not known; returns file of the sample → its name in the new set."""
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
    """Writes the same bytes every time, so that a continued run repeats nothing."""
    with zipfile.ZipFile(SAMPLE) as archive, zipfile.ZipFile(path, "w") as target:
        for name, renamed in sorted(chosen.items()):
            target.writestr(zipfile.ZipInfo(renamed), archive.read(name))


if __name__ == "__main__":
    main()
