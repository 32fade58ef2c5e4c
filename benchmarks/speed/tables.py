"""Tables of training and inference speed, of the input path and of what the trainer adds to a step."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.markdown import Answer, listed, machine, median, rounds_of, span, table
from benchmarks.results import read

HERE = Path(__file__).parent
CPUS = sorted(HERE.glob("models_*.json"))
GPU, INPUT, TRAINER, MODES, AUGMENTATION, PREPARE = (
    HERE / f"{name}.json" for name in ("gpu", "input", "trainer", "modes", "augmentation", "prepare")
)
TASKS = ("training", "inference")
FASTEST, OURS_ON_TORCH = "torch, fastest mode", "visionpipe, torch, faster mode"
OURS_ON_TENSORFLOW = "visionpipe, TensorFlow, faster mode"
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
TENSORFLOW_TO_TORCH = (OURS_ON_TENSORFLOW, FASTEST)
TENSORFLOW_TO_STOCK = ("visionpipe, TensorFlow", "stock Keras, TensorFlow")
TORCH_TO_TORCH = (OURS_ON_TORCH, FASTEST)
JAX_TO_TORCH = ("visionpipe, JAX", FASTEST)
JAX_TO_STOCK = ("visionpipe, JAX", "stock Keras, JAX")
PAIRS = [
    ("visionpipe, TensorFlow, again", "visionpipe, TensorFlow"),
    ("visionpipe, JAX, again", "visionpipe, JAX"),
    TENSORFLOW_TO_TORCH,
    TENSORFLOW_TO_STOCK,
    ("visionpipe, TensorFlow, compiled", "stock Keras, TensorFlow, compiled"),
    TORCH_TO_TORCH,
    ("visionpipe, torch", "stock Keras, torch"),
    JAX_TO_TORCH,
    JAX_TO_STOCK,
]
SMALL, ALL = ("ResNet-20", "ViT 6×96"), ("ResNet-20", "ViT 6×96", "ResNet-50", "ViT-S/16")
GOALS = [  # at least this ratio, in training and in inference
    (TENSORFLOW_TO_TORCH, 1.0, ALL),
    (TENSORFLOW_TO_STOCK, 1.5, SMALL),
    (TORCH_TO_TORCH, 0.85, ALL),
    (JAX_TO_STOCK, 1.2, ALL),
]


def answers() -> list[Answer]:
    trainer, loader = read(TRAINER), read(INPUT)
    clocks = [share for backend, loop in loops(trainer) if (share := clock_share(trainer, backend, loop))]
    costs = (
        f"{min(clocks):.1%} to {max(clocks):.1%} of an epoch of 140 steps ({machine(trainer)})."
        if clocks
        else ""
    )
    batches = (
        f"No: the loader makes {statistics.median(loader_factors(loader['samples'])):.0f} times the batches that the "
        f"fastest of the default models consumes ({machine(loader)})."
    )
    page = "training.md"
    return [
        Answer(page, "How fast is TensorFlow beside torch's fastest mode?", on_cpus(TENSORFLOW_TO_TORCH)),
        Answer(page, "How fast is the torch backend beside torch without Keras?", on_cpus(TORCH_TO_TORCH)),
        Answer(page, "How fast is JAX beside stock Keras on JAX?", on_cpus(JAX_TO_STOCK)),
        Answer(page, "And TensorFlow beside stock Keras?", on_cpus(TENSORFLOW_TO_STOCK, SMALL), detail=True),
        Answer(page, "How fast are the models on a GPU?", on_gpu(read(GPU))),
        Answer(page, "What do progress, checkpoints and tracking cost?", costs, detail=True),
        Answer("input.md", "Does training wait for its batches?", batches),
    ]


def on_cpus(pair: tuple[str, str], models: tuple[str, ...] = ALL) -> str:
    """Returns the span of a pair's ratios over models, in training and in inference, on each processor."""
    texts = []
    for result in map(read, reversed(CPUS)):
        names = [model for model in models if measured_both(pair, contenders_of(result, model))]
        if not names:
            continue
        training, inference = (
            span([ratio(samples_of(result, name), task, pair) for name in names]) for task in TASKS
        )
        processor = machine(result).split(",")[0]
        texts.append(f"{training} and {inference} ({processor})")
    return f"Ratio of images/s in training and in inference, on 2 cores: {'; '.join(texts)}." if texts else ""


def on_gpu(result: dict[str, Any]) -> str:
    contenders = {sample["contender"] for sample in result["samples"]}
    if not all(measured_both(pair, contenders) for pair in (JAX_TO_TORCH, TORCH_TO_TORCH)):
        return ""
    model, samples = result["samples"][0]["model"], samples_of(result, result["samples"][0]["model"])
    jax, torch = (ratio(samples, "training", pair) for pair in (JAX_TO_TORCH, TORCH_TO_TORCH))
    return (
        f"In training {model} in bfloat16, JAX reaches {jax:.2f} times the speed of compiled timm, the torch backend "
        f"{torch:.2f} times ({machine(result)})."
    )


def samples_of(result: dict[str, Any], model: str) -> list[dict]:
    return [sample for sample in result["samples"] if sample["model"] == model]


def contenders_of(result: dict[str, Any], model: str) -> set[str]:
    return {sample["contender"] for sample in samples_of(result, model)}


def ratio(samples: list[dict], task: str, pair: tuple[str, str]) -> float:
    """Returns the median over rounds of the ratio within a round."""
    above, below = (rates(samples, task, name) for name in pair)
    return statistics.median(above[number] / below[number] for number in above.keys() & below.keys())


def rates(samples: list[dict], task: str, name: str) -> dict[int, float]:
    """Returns the rate of each round. Of several modes the one with the highest median counts.

    The highest rate of each round would be that of the luckiest of so many samples, not of the fastest mode.
    """
    modes = MODES_OF.get(name, (name,))
    if task == "training":  # training is the same with a mode of inference: it would be drawn twice
        modes = tuple(mode for mode in modes if not mode.endswith("inference compiled"))
    by_mode: dict[str, dict[int, float]] = {}
    for sample in samples:
        if sample["contender"] in modes:
            by_mode.setdefault(sample["contender"], {})[sample["round"]] = sample[task]
    rounds = max(map(len, by_mode.values()))  # a mode that was dropped after the first round has fewer
    return max(
        (values for values in by_mode.values() if len(values) == rounds),
        key=lambda values: statistics.median(values.values()),
    )


def of_ceiling(samples: list[dict], task: str, gmac: float) -> float:
    """Returns the rate of the model's own products, as a share of a matrix product's rate in the same process.

    A training step counts as three forward passes.
    """
    flop = 2 * gmac * (3 if task == "training" else 1)
    return statistics.median(sample[task] * flop / sample["gemm_gflops"] for sample in samples)


def measured_models(result: dict[str, Any]) -> list[dict[str, Any]]:
    names = {sample["model"] for sample in result["samples"]}
    return [model for model in result["models"] if model["name"] in names]


def measured_both(pair: tuple[str, str], contenders: set[str]) -> bool:
    return all(contenders & set(MODES_OF.get(name, (name,))) for name in pair)


def models() -> str:
    """Returns the tables of every processor, the most complete and newest one first."""
    return "\n".join(models_of(read(file)) for file in reversed(CPUS))


def gpu() -> str:
    return models_of(read(GPU))


def models_of(result: dict[str, Any]) -> str:
    lines = [
        f"**{result['hardware']}**, {result['threads']} threads, {result['precision']}, a matrix product at "
        f"{median(result['samples'], 'gemm_gflops'):,.0f} GFLOP/s. {listed(result['versions'])}.",
        "",
    ]
    if result["precision"] == "float32":  # the goals are for CPUs
        lines += goals_table(result)
    for model in measured_models(result):
        lines += model_tables(result, model)
    return "\n".join(lines)


def goals_table(result: dict[str, Any]) -> list[str]:
    """Returns the ratios in training / inference of each model; a ratio that reaches its goal is bold."""
    names = [model["name"] for model in measured_models(result)]
    rows = []
    for pair, goal, goal_models in GOALS:
        cells = []
        for name in names:
            complete = name in goal_models and measured_both(pair, contenders_of(result, name))
            ratios = [ratio(samples_of(result, name), task, pair) for task in TASKS] if complete else []
            cells.append(" / ".join(f"**{r:.2f}**" if round(r, 2) >= goal else f"{r:.2f}" for r in ratios))
        rows.append([f"{pair[0]} / {pair[1]}", f"{goal:.2f}", *cells])
    return [*table(["training / inference, bold: reached", "goal", *names], rows), ""]


def model_tables(result: dict[str, Any], model: dict[str, Any]) -> list[str]:
    samples = samples_of(result, model["name"])
    contenders = list(dict.fromkeys(sample["contender"] for sample in samples if sample["round"] == 0))
    speeds = []
    for contender in contenders:
        own = [sample for sample in samples if sample["contender"] == contender]
        cells = []
        for task in TASKS:
            cells += [f"{median(own, task):,.1f}", f"{of_ceiling(own, task, model['gmac']):.0%}"]
        speeds.append([contender, *cells, f"{median(own, 'peak_memory_mib'):,.0f}", str(len(own))])
    ratios = [
        [f"{pair[0]} / {pair[1]}", *(f"{ratio(samples, task, pair):.2f}" for task in TASKS)]
        for pair in PAIRS
        if measured_both(pair, set(contenders))
    ]
    header = [
        "",
        "training images/s",
        "of GEMM",
        "inference images/s",
        "of GEMM",
        "peak memory MiB",
        "samples",
    ]
    return [
        f"### {model['name']}, {model['size']} px, batch {model['batch']}",
        "",
        *table(header, speeds),
        "",
        *table(["ratio, median over rounds", *TASKS], ratios),
        "",
    ]


def loader() -> str:
    return loader_tables(read(INPUT))


def loader_tables(result: dict[str, Any]) -> str:
    """Returns the rates of the loader, of what the models consume, and of others; memory by the number of images."""
    samples = result["samples"]
    names = list(dict.fromkeys(sample["contender"] for sample in samples if sample["round"] == 0))
    own = {name: [sample for sample in samples if sample["contender"] == name] for name in names}
    small = [name for name in names if name.startswith(("loader", "training"))]
    stored = [name for name in names if name.endswith("stored images")]
    large = [name for name in names if name not in small + stored]
    lines = [f"{result['hardware']}, {result['threads']} threads. {listed(result['versions'])}.", ""]
    for title, group in (("28 px", small), ("224 px, batch 64, random crop and flip", large)):
        rows = [
            [
                name,
                *(f"{median(own[name], key):,.1f}" for key in ("batches", "images", "cpu_us")),
                str(len(own[name])),
            ]
            for name in group
        ]
        lines += [*table([title, "batches/s", "images/s", "CPU µs per image", "samples"], rows), ""]
    memory = [[name, f"{median(own[name], 'anonymous_mib'):,.1f}", str(len(own[name]))] for name in stored]
    factor = statistics.median(loader_factors(samples))
    return "\n".join(
        [
            *lines,
            *table(["memory", "anonymous MiB", "samples"], memory),
            "",
            f"The loader alone makes {factor:.0f} times the batches that the fastest of the models consumes.",
        ]
    )


def loader_factors(samples: list[dict]) -> list[float]:
    """Returns for each round the slower of the loader's rates, in batches of what the hungriest model takes."""
    rounds: dict[int, list[tuple[str, float]]] = {}
    for sample in samples:
        rounds.setdefault(sample["round"], []).append((sample["contender"], sample.get("batches", 0)))
    return [
        min(rate for name, rate in values if "flip and crop" in name)
        / max(rate for name, rate in values if name.startswith("training"))
        for values in rounds.values()
    ]


def trainer() -> str:
    return trainer_table(read(TRAINER))


def trainer_table(result: dict[str, Any]) -> str:
    """Returns the milliseconds per step of each loop and of the bare loop between its epochs, and their ratio.

    The ratio is that of an epoch to the mean of the two bare epochs beside it: the median, and the middle half.
    """
    header = [
        "backend",
        "loop",
        "ms per step",
        "bare loop beside",
        "over it",
        "half of them in",
        "epochs",
        "by the clock",
    ]
    rows = []
    for backend, loop in loops(result):
        own = samples_of_loop(result, backend, loop)
        over = [ratio - 1 for sample in own for ratio in over_bare(sample)]
        low, middle, high = statistics.quantiles(over, n=4, method="inclusive")
        times, bare = all_of(own, "milliseconds_per_step"), all_of(own, "bare")
        share = clock_share(result, backend, loop)
        cells = [f"{statistics.median(times):.1f}", f"{statistics.median(bare):.1f}", f"{middle:+.1%}"]
        cells += [f"{low:+.1%} to {high:+.1%}", str(len(over)), f"{share:.1%}" if share else ""]
        rows.append([backend, loop, *cells])
    lines = [f"{result['hardware']}, {rounds_of(result['samples'])}.", "", *table(header, rows, left=(0, 1))]
    return "\n".join(lines)


def loops(result: dict[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((sample["backend"], sample["loop"]) for sample in result["samples"]))


def samples_of_loop(result: dict[str, Any], backend: str, loop: str) -> list[dict]:
    return [s for s in result["samples"] if (s["backend"], s["loop"]) == (backend, loop)]


def all_of(samples: list[dict], key: str) -> list[float]:
    return [value for sample in samples for value in sample.get(key, [])]


def clock_share(result: dict[str, Any], backend: str, loop: str) -> float | None:
    """Returns the time in progress, checkpoints and tracking, as a share of a bare epoch; None where not measured."""
    own = samples_of_loop(result, backend, loop)
    spent = all_of(own, "spent")
    return statistics.median(spent) / statistics.median(all_of(own, "bare")) if spent else None


def over_bare(sample: dict[str, Any]) -> list[float]:
    bare = sample["bare"]
    return [
        2 * time / (before + after)
        for time, before, after in zip(sample["milliseconds_per_step"], bare, bare[1:], strict=False)
    ]


def modes() -> str:
    return modes_table(read(MODES))


def modes_table(result: dict[str, Any]) -> str:
    """Returns the milliseconds per step, medians over rounds: a row per model and backend, a column per mode."""
    times: dict[tuple[str, str], dict[str, list[float]]] = {}
    for sample in result["samples"]:
        row = times.setdefault((sample["model"], sample["backend"]), {})
        row.setdefault(sample["mode"], []).append(sample["milliseconds_per_step"])
    names = list(dict.fromkeys(sample["mode"] for sample in result["samples"]))
    rows = [
        [model, backend, *(f"{statistics.median(row[name]):.1f}" if name in row else "" for name in names)]
        for (model, backend), row in times.items()
    ]
    first = f"{result['hardware']}; milliseconds per step, {rounds_of(result['samples'])}."
    return "\n".join([first, "", *table(["model", "backend", *names], rows, left=(0, 1))])


def augmentation() -> str:
    return augmentation_table(read(AUGMENTATION))


def augmentation_table(result: dict[str, Any]) -> str:
    """Returns the CPU microseconds per image, medians over rounds: a row per contender, a column per task."""
    tasks, contenders = (
        list(dict.fromkeys(sample[key] for sample in result["samples"])) for key in ("task", "contender")
    )
    rows = []
    for contender in contenders:
        own = [sample for sample in result["samples"] if sample["contender"] == contender]
        medians = [median([sample for sample in own if sample["task"] == task], "cpu_us") for task in tasks]
        rows.append([contender, *(f"{value:,.0f}" for value in medians)])
    first = f"{result['hardware']}, 1 thread, {rounds_of(result['samples'])}. {listed(result['versions'])}."
    return "\n".join([first, "", *table(["224 px, CPU µs per image", *tasks], rows)])


def prepare() -> str:
    return prepare_tables(read(PREPARE))


def prepare_tables(result: dict[str, Any]) -> str:
    """Returns the rate, the CPU time and the memory of each contender, medians over rounds, for each kind of photo."""
    lines = [
        f"{result['hardware']}, {result['threads']} threads, {rounds_of(result['samples'])}. "
        f"{listed(result['versions'])}."
    ]
    kinds, contenders = (
        list(dict.fromkeys(sample[key] for sample in result["samples"])) for key in ("photos", "contender")
    )
    for photos in kinds:
        rows = []
        for contender in contenders:
            own = [s for s in result["samples"] if (s["photos"], s["contender"]) == (photos, contender)]
            rate, cpu, peak = (median(own, key) for key in ("images", "cpu_ms", "peak_mib"))
            rows.append([contender, f"{rate:,.1f}", f"{cpu:,.1f}", f"{1000 / cpu:,.1f}", f"{peak:,.0f}"])
        header = [photos, "images/s", "CPU ms per image", "images/s per core", "peak memory MiB"]
        lines += ["", *table(header, rows)]
    return "\n".join(lines)
