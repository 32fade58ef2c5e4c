"""Tables of test accuracies: the default models, the experiments, fine-tuning, and uneven classes."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.facts import ROOT
from benchmarks.markdown import Answer, machine, table
from benchmarks.results import read

HERE = Path(__file__).parent
PIPELINE, TRANSFER = HERE / "pipeline.json", HERE / "transfer.json"
DOCTOR, IMBALANCE = HERE / "doctor.json", HERE / "imbalance.json"
HEAD, TAIL = 1000, 200  # training images: a class of the head has more, one of the tail fewer
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.json"))
TEACHER = ROOT / "experiments" / "distillation.json"


def answers() -> list[Answer]:
    default, tuned, taught, doctor = read(PIPELINE), read(TRANSFER), read(TEACHER), read(DOCTOR)
    wrong = doctor["labels"]["confused"]["features"]
    means = {name: mean_accuracy(default, name) for name in default["runs"][0]["test"]}
    minutes = statistics.mean(run["seconds"] for run in default["runs"]) / 60
    gains = [
        f"{mean_of(tuned, 'finetuned', epochs) - mean_of(tuned, 'scratch', epochs):+.1f} points in {epochs} epochs"
        for epochs in tuned["runs"][0]["epochs"]
    ]
    gain = 100 * (mean_accuracy(taught, "vit-taught") - mean_accuracy(taught, "vit"))
    return [
        Answer(
            "accuracy.md",
            "How accurate are the default models on the sample?",
            ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
            + f" on 10,000 test images, after {minutes:.1f} minutes of `dvc repro` for all three ({machine(default)}).",
        ),
        Answer(
            "accuracy.md",
            "What does fine-tuning gain over training from scratch?",
            f"{' and '.join(gains)}, with 100 training images ({machine(tuned)}).",
        ),
        Answer(
            "accuracy.md",
            "What does a teacher give a ViT?",
            f"{gain:+.1f} points of test accuracy on the sample ({machine(taught)}).",
            detail=True,
        ),
        Answer(
            "accuracy.md",
            "How many wrong labels does the doctor find?",
            f"Of 225 confused labels among 4,500, {wrong['recall at 2k']:.0%} are among its first 450, and "
            f"{100 * wrong['right of the first 100']:.0f} of its first 100 are wrong ({machine(doctor)}).",
        ),
    ]


def mean_accuracy(result: dict[str, Any], name: str) -> float:
    return statistics.mean(run["test"][name] for run in result["runs"])


def mean_of(result: dict[str, Any], kind: str, epochs: str) -> float:
    """Returns the mean test accuracy of the best setting, in points."""
    name = best(result["runs"], kind, epochs)
    return 100 * statistics.mean(run["epochs"][epochs]["test"][name] for run in result["runs"])


def default_models() -> str:
    return seeds_table(read(PIPELINE))


def seeds_table(result: dict[str, Any]) -> str:
    """Returns mean and worst test accuracy of each model, and the time of the whole pipeline."""
    rows = []
    for name in result["runs"][0]["test"]:
        test = [run["test"][name] for run in result["runs"]]
        validation = [run["validation"][name] for run in result["runs"]]
        rows.append(
            [name, f"{statistics.mean(test):.4f}", f"{min(test):.4f}", f"{statistics.mean(validation):.4f}"]
        )
    training, whole = ([run[key] / 60 for run in result["runs"]] for key in ("training_seconds", "seconds"))
    seeds = ", ".join(str(run["seed"]) for run in result["runs"])
    return "\n".join(
        [
            *table(["model", "test accuracy, mean", "worst seed", "validation accuracy, mean"], rows),
            "",
            f"Seeds {seeds}, {result['backend']}, {result['hardware']}; training all models took "
            f"{statistics.mean(training):.1f} minutes on average and {max(training):.1f} at most, `dvc repro` "
            f"{statistics.mean(whole):.1f} and {max(whole):.1f}.",
        ]
    )


def experiments() -> str:
    """Returns one row for each model of each file in experiments/, the mean of its seeds."""
    rows = []
    for file in EXPERIMENTS:
        result = read(file)
        runs = result["runs"]
        minutes = statistics.mean(run["seconds"] for run in runs) / 60
        for name in runs[0]["test"]:
            test = [run["test"][name] for run in runs]
            cells = [f"{statistics.mean(test):.4f}", f"{min(test):.4f}", str(len(runs)), f"{minutes:.0f}"]
            rows.append([f"`{file.stem}.yaml`", name, *cells, f"{result['backend']}, {result['hardware']}"])
    header = ["experiment", "model", "test accuracy, mean", "worst seed", "seeds", "minutes", "measured on"]
    return "\n".join(table(header, rows, left=(0, 1, 6)))


def transfer() -> str:
    return transfer_table(read(TRANSFER))


def transfer_table(result: dict[str, Any]) -> str:
    """Returns the accuracies of both ways in each budget, each with the setting that is best on validation."""
    runs = result["runs"]
    rows = []
    for epochs in runs[0]["epochs"]:
        for kind, title in (("scratch", "from scratch"), ("finetuned", "fine-tuned")):
            name = best(runs, kind, epochs)
            rate, _, layerwise = name.partition("-")[2].partition("-l")
            setting = f"rate {float(rate):g}" + (", layer-wise decay" if layerwise else "")
            test, validation = (
                [run["epochs"][epochs][split][name] for run in runs] for split in ("test", "validation")
            )
            each = ", ".join(f"{accuracy:.3f}" for accuracy in test)
            cells = [
                f"{statistics.mean(test):.3f}",
                f"{min(test):.3f}",
                each,
                f"{statistics.mean(validation):.3f}",
            ]
            rows.append([epochs, title, setting, *cells])
    header = [
        "epochs",
        "training",
        "setting",
        "test accuracy, mean",
        "worst seed",
        "each seed",
        "validation, mean",
    ]
    halves = "; ".join(f"{run['seed']}: {', '.join(run['known'])}" for run in runs)
    lines = [
        *table(header, rows, left=(1, 2, 5)),
        "",
        f"Pretrained on, by seed: {halves}. {result['hardware']}.",
    ]
    return "\n".join(lines)


def best(runs: list[dict[str, Any]], kind: str, epochs: str) -> str:
    """Returns the setting with the highest accuracy on validation, over all seeds."""

    def accuracy(name: str) -> float:
        return statistics.mean(run["epochs"][epochs]["validation"][name] for run in runs)

    return max(
        (name for name in runs[0]["epochs"][epochs]["validation"] if name.startswith(kind)), key=accuracy
    )


def doctor_table() -> str:
    found = read(DOCTOR)
    labels = [
        [f"{kind} labels changed", by, *(f"{value:.3f}" for value in rates.values())]
        for kind in ("random", "confused")
        for by, rates in found["labels"][kind].items()
    ]
    head = ["wrong labels", "predictions", *next(iter(found["labels"]["random"].values()))]
    small, large = found["copies"], found["larger_copies"]
    edits = [
        [name, f"{small['edits'][name]:.3f}" if name in small["edits"] else "", f"{share:.3f}"]
        for name, share in large["edits"].items()
    ]
    shortcuts = [
        ["none" if share == "0.0" else f"{float(share):.0%} of the class", "; ".join(notes) or "nothing"]
        for share, notes in found["patches"].items()
    ]
    clipart = found["clipart"]
    return "\n".join(
        [
            *table(head, labels, left=(0, 1)),
            "",
            f"Of the unmodified labels {found['labels']['unmodified']['flagged']:.1%} are shown.",
            "",
            *table(["edited copies that are found", "sample, 28 pixels", "clip art, 256 pixels"], edits),
            "",
            f"Without edits: {small['natural images']:,} of {small['images']:,} pictures of the sample are in "
            f"{small['natural groups']:,} groups, {large['natural images']:,} of {large['images']:,} of the clip art "
            f"in {large['natural groups']:,}. One search takes {small['seconds']:.0f} and {large['seconds']:.0f} "
            "seconds.",
            "",
            *table(
                ["patch in the lower right corner of `pullover`", "shortcuts that are named"],
                shortcuts,
                left=(0, 1),
            ),
            "",
            f"Clip art at 64 pixels: {clipart['found']:,} of {clipart['in two classes']:,} pictures that lie in two "
            f"classes are found, among {clipart['images']:,} files; prepare takes {clipart['prepare seconds']:.0f} "
            f"seconds, the doctor {clipart['doctor seconds']:.0f}. {machine(found)}.",
        ]
    )


def imbalance() -> str:
    return imbalance_table(read(IMBALANCE))


def imbalance_table(result: dict[str, Any]) -> str:
    """Returns accuracies of each way, the mean of its seeds. The test images are balanced, so accuracy is both."""
    ways: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        ways.setdefault(run["way"], []).append(run)
    rows = []
    for way, runs in ways.items():
        means = [statistics.mean(run["recall"]) for run in runs]
        natural = [
            sum(recall * count for recall, count in zip(run["recall"], run["counts"], strict=True))
            / sum(run["counts"])
            for run in runs
        ]
        numbers = [
            statistics.mean(natural),
            statistics.mean(means),
            statistics.mean(min(run["recall"]) for run in runs),
            *(statistics.mean(part) for part in zip(*map(by_frequency, runs), strict=True)),
        ]
        cells = [f"{value:.3f}" for value in numbers]
        each = ", ".join(f"{mean:.3f}" for mean in means)
        rows.append([f"`{way}`" if ":" in way else way, *cells, each])
    header = [
        "way",
        "accuracy",
        "balanced accuracy",
        "worst recall",
        "head",
        "medium",
        "tail",
        "balanced, each seed",
    ]
    seeds = sorted({run["seed"] for run in result["runs"]})
    named = f"Seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    seconds = statistics.mean(run["seconds"] for run in result["runs"])
    return "\n".join(
        [
            *table(header, rows, left=(0, 7)),
            "",
            f"{named}, tensorflow, {result['epochs']} epochs, {seconds:.0f} seconds each; {machine(result)}.",
        ]
    )


def by_frequency(run: dict[str, Any]) -> list[float]:
    """Returns the mean recall of the classes of the head, of the middle and of the tail."""
    parts: tuple[list[float], ...] = ([], [], [])
    for recall, count in zip(run["recall"], run["counts"], strict=True):
        parts[0 if count > HEAD else 2 if count < TAIL else 1].append(recall)
    return [statistics.mean(part) for part in parts]
