"""docs/performance.md's measured parts, from the raw samples of benchmarks/models_*.json, gpu.json,
input.json, fit.json and modes.json.

python benchmarks/tables.py
"""

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = [*sorted((ROOT / "benchmarks").glob("models_*.json")), ROOT / "benchmarks" / "gpu.json"]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- begin: benchmarks/tables.py -->\n", "<!-- end: benchmarks/tables.py -->\n"
INPUT = ROOT / "benchmarks" / "input.json"
INPUT_BEGIN, INPUT_END = "<!-- begin: benchmarks/input.py -->\n", "<!-- end: benchmarks/input.py -->\n"
FIT = ROOT / "benchmarks" / "fit.json"
FIT_BEGIN, FIT_END = "<!-- begin: benchmarks/fit.py -->\n", "<!-- end: benchmarks/fit.py -->\n"
MODES = ROOT / "benchmarks" / "modes.json"
MODES_BEGIN, MODES_END = "<!-- begin: benchmarks/modes.py -->\n", "<!-- end: benchmarks/modes.py -->\n"
TASKS = ("training", "inference")
FASTEST, OURS_ON_TORCH = "torch, its fastest", "visionpipe, torch, its faster"
OURS_ON_TENSORFLOW = "visionpipe, TensorFlow, its faster"
MODES_OF = {
    FASTEST: tuple(
        f"torch, {mode}{layout}" for mode in ("eager", "compiled") for layout in ("", ", channels_last")
    ),
    OURS_ON_TORCH: (
        "visionpipe, torch",
        "visionpipe, torch, compiled",
        "visionpipe, torch, inference compiled",
    ),
    OURS_ON_TENSORFLOW: ("visionpipe, TensorFlow", "visionpipe, TensorFlow, compiled"),
}
PAIRS = [
    ("visionpipe, TensorFlow, again", "visionpipe, TensorFlow"),
    ("visionpipe, JAX, again", "visionpipe, JAX"),
    (OURS_ON_TENSORFLOW, FASTEST),
    ("visionpipe, TensorFlow", "stock Keras, TensorFlow"),
    ("visionpipe, TensorFlow, compiled", "stock Keras, TensorFlow, compiled"),
    (OURS_ON_TORCH, FASTEST),
    ("visionpipe, torch", "stock Keras, torch"),
    ("visionpipe, JAX", FASTEST),
    ("visionpipe, JAX", "stock Keras, JAX"),
]


GOALS = [  # at least this ratio, in training and in inference
    ((OURS_ON_TENSORFLOW, FASTEST), 1.0, ("ResNet-20", "ViT 6×96", "ResNet-50", "ViT-S/16")),
    (("visionpipe, TensorFlow", "stock Keras, TensorFlow"), 1.5, ("ResNet-20", "ViT 6×96")),
    ((OURS_ON_TORCH, FASTEST), 0.85, ("ResNet-20", "ViT 6×96", "ResNet-50", "ViT-S/16")),
    (("visionpipe, JAX", "stock Keras, JAX"), 1.2, ("ResNet-20", "ViT 6×96", "ResNet-50", "ViT-S/16")),
]


def median(samples: list[dict], key: str) -> float:
    return statistics.median(sample[key] for sample in samples)


def ratio(samples: list[dict], task: str, pair: tuple[str, str]) -> float:
    """The median over rounds of the ratio within a round."""
    above, below = (rates(samples, task, name) for name in pair)
    return statistics.median(above[number] / below[number] for number in above.keys() & below.keys())


def rates(samples: list[dict], task: str, name: str) -> dict[int, float]:
    """By round. Of several modes those of the one with the highest median: the highest of each round would be
    the luckiest of so many samples, not the fastest mode.
    """
    modes = MODES_OF.get(name, (name,))
    if task == "training":  # a mode of inference alone would be a second throw of the same die
        modes = tuple(mode for mode in modes if not mode.endswith("inference compiled"))
    own: dict[str, dict[int, float]] = {}
    for sample in samples:
        if sample["contender"] in modes:
            own.setdefault(sample["contender"], {})[sample["round"]] = sample[task]
    rounds = max(map(len, own.values()))  # a mode left out after the first round has fewer
    return max(
        (values for values in own.values() if len(values) == rounds),
        key=lambda values: statistics.median(values.values()),
    )


def of_ceiling(samples: list[dict], task: str, gmac: float) -> float:
    """The share of a matrix product's rate in the same process that the model's own products made up; a
    training step is counted as three forward passes.
    """
    flop = 2 * gmac * (3 if task == "training" else 1)
    return statistics.median(sample[task] * flop / sample["gemm_gflops"] for sample in samples)


def measured_models(result: dict[str, Any]) -> list[dict[str, Any]]:
    names = {sample["model"] for sample in result["samples"]}
    return [model for model in result["models"] if model["name"] in names]


def model_tables(result: dict[str, Any], model: dict[str, Any]) -> list[str]:
    samples = [sample for sample in result["samples"] if sample["model"] == model["name"]]
    contenders = list(dict.fromkeys(sample["contender"] for sample in samples if sample["round"] == 0))
    lines = [
        f"### {model['name']}, {model['size']} px, batch {model['batch']}",
        "",
        "| | training images/s | of GEMM | inference images/s | of GEMM | peak memory MiB | samples |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for contender in contenders:
        own = [sample for sample in samples if sample["contender"] == contender]
        cells = []
        for task in TASKS:
            cells += [f"{median(own, task):,.1f}", f"{of_ceiling(own, task, model['gmac']):.0%}"]
        lines.append(
            f"| {contender} | {' | '.join(cells)} | {median(own, 'peak_memory_mib'):,.0f} | {len(own)} |"
        )
    lines += ["", "| ratio, median over rounds | training | inference |", "| --- | ---: | ---: |"]
    for pair in PAIRS:
        if measured_both(pair, set(contenders)):
            cells = [f"{ratio(samples, task, pair):.2f}" for task in TASKS]
            lines.append(f"| {pair[0]} / {pair[1]} | {' | '.join(cells)} |")
    return [*lines, ""]


def measured_both(pair: tuple[str, str], contenders: set[str]) -> bool:
    return all(contenders & set(MODES_OF.get(name, (name,))) for name in pair)


def goals_table(result: dict[str, Any]) -> list[str]:
    """Training / inference of each model; what reaches its goal is bold."""
    names = [model["name"] for model in measured_models(result)]
    lines = [
        f"| training / inference, bold: reached | goal | {' | '.join(names)} |",
        f"| --- | ---: |{' ---: |' * len(names)}",
    ]
    for pair, goal, models in GOALS:
        cells = []
        for name in names:
            samples = [sample for sample in result["samples"] if sample["model"] == name]
            complete = name in models and measured_both(pair, {sample["contender"] for sample in samples})
            ratios = [ratio(samples, task, pair) for task in TASKS] if complete else []
            cells.append(" / ".join(f"**{r:.2f}**" if round(r, 2) >= goal else f"{r:.2f}" for r in ratios))
        lines.append(f"| {pair[0]} / {pair[1]} | {goal:.2f} | {' | '.join(cells)} |")
    return [*lines, ""]


def tables(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    lines = [
        f"{result['hardware']}, {result['threads']} threads, {result['precision']}, a matrix product at "
        f"{median(result['samples'], 'gemm_gflops'):.0f} GFLOP/s. {versions}.",
        "",
    ]
    if result["precision"] == "float32":  # the goals are for CPUs
        lines += goals_table(result)
    for model in measured_models(result):
        lines += model_tables(result, model)
    return "\n".join(lines)


def measured() -> str:
    """What belongs between the two marks."""
    return "\n".join(tables(json.loads(file.read_text())) for file in RESULTS if file.exists())


def input_tables(result: dict[str, Any]) -> str:
    """Rates of the loader, of what the models consume, and of peers; memory by the number of images."""
    samples = result["samples"]
    names = list(dict.fromkeys(sample["contender"] for sample in samples if sample["round"] == 0))
    own = {name: [sample for sample in samples if sample["contender"] == name] for name in names}
    small = [name for name in names if name.startswith(("loader", "training"))]
    stored = [name for name in names if name.endswith("stored images")]
    large = [name for name in names if name not in small + stored]
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    lines = [f"{result['hardware']}, {result['threads']} threads. {versions}.", ""]
    for title, group in (("28 px", small), ("224 px, batch 64, random crop and flip", large)):
        lines += [
            f"| {title} | batches/s | images/s | CPU µs per image | samples |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        for name in group:
            cells = [f"{median(own[name], key):,.1f}" for key in ("batches", "images", "cpu_us")]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(own[name])} |")
        lines.append("")
    lines += ["| memory | anonymous MiB | samples |", "| --- | ---: | ---: |"]
    for name in stored:
        lines.append(f"| {name} | {median(own[name], 'anonymous_mib'):,.1f} | {len(own[name])} |")
    factor = statistics.median(loader_factors(samples))
    lines += [
        "",
        f"The loader alone makes {factor:.0f} times the batches that the fastest of the models consumes.",
    ]
    return "\n".join(lines)


def loader_factors(samples: list[dict]) -> list[float]:
    """For each round the slower of the loader's rates, in batches of what the hungriest model takes."""
    rounds: dict[int, list[tuple[str, float]]] = {}
    for sample in samples:
        rounds.setdefault(sample["round"], []).append((sample["contender"], sample.get("batches", 0)))
    return [
        min(rate for name, rate in values if "flip and crop" in name)
        / max(rate for name, rate in values if name.startswith("training"))
        for values in rounds.values()
    ]


def fit_table(result: dict[str, Any]) -> str:
    """Milliseconds per step of each loop and of the bare loop between its epochs, medians, and over the latter: each
    epoch over the mean of the two beside it, the median and the middle half of these.
    """
    samples = result["samples"]
    lines = [
        f"{result['hardware']}, {rounds_of(samples)}.",
        "",
        "| backend | loop | ms per step | bare loop beside | over it | half of them in | epochs | by the clock |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for backend, loop in dict.fromkeys((sample["backend"], sample["loop"]) for sample in samples):
        own = [sample for sample in samples if (sample["backend"], sample["loop"]) == (backend, loop)]
        times = [time for sample in own for time in sample["milliseconds_per_step"]]
        bare = [time for sample in own for time in sample["bare"]]
        over = [ratio - 1 for sample in own for ratio in over_bare(sample)]
        low, middle, high = statistics.quantiles(over, n=4, method="inclusive")
        spent = [time for sample in own for time in sample.get("spent", [])]
        share = f"{statistics.median(spent) / statistics.median(bare):.1%}" if spent else ""
        lines.append(
            f"| {backend} | {loop} | {statistics.median(times):.1f} | {statistics.median(bare):.1f} | "
            f"{middle:+.1%} | {low:+.1%} to {high:+.1%} | {len(over)} | {share} |"
        )
    return "\n".join(lines)


def rounds_of(samples: list[dict]) -> str:
    count = len({sample["round"] for sample in samples})
    return "1 round" if count == 1 else f"{count} rounds"


def over_bare(sample: dict[str, Any]) -> list[float]:
    bare = sample["bare"]
    return [
        2 * time / (before + after)
        for time, before, after in zip(sample["milliseconds_per_step"], bare, bare[1:], strict=False)
    ]


def modes_table(result: dict[str, Any]) -> str:
    """Milliseconds per step, the median over rounds: a row for each model and backend, a column for each mode."""
    times: dict[tuple[str, str], dict[str, list[float]]] = {}
    for sample in result["samples"]:
        row = times.setdefault((sample["model"], sample["backend"]), {})
        row.setdefault(sample["mode"], []).append(sample["milliseconds_per_step"])
    modes = list(dict.fromkeys(sample["mode"] for sample in result["samples"]))
    lines = [
        f"{result['hardware']}; milliseconds per step, {rounds_of(result['samples'])}.",
        "",
        f"| model | backend | {' | '.join(modes)} |",
        f"| --- | --- |{' ---: |' * len(modes)}",
    ]
    for (model, backend), row in times.items():
        cells = [f"{statistics.median(row[mode]):.1f}" if mode in row else "" for mode in modes]
        lines.append(f"| {model} | {backend} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_page() -> None:
    """Each part of the page whose samples and marks are there; the others stay as they are."""
    parts = [(BEGIN, END, measured())] + [
        (begin, end, table(json.loads(file.read_text())))
        for file, begin, end, table in (
            (INPUT, INPUT_BEGIN, INPUT_END, input_tables),
            (FIT, FIT_BEGIN, FIT_END, fit_table),
            (MODES, MODES_BEGIN, MODES_END, modes_table),
        )
        if file.exists() and begin in PAGE.read_text()
    ]
    page = PAGE.read_text()
    for begin, end, text in parts:
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = before + begin + "\n" + text + "\n" + end + after
    PAGE.write_text(page)


if __name__ == "__main__":
    write_page()
