"""Training and inference speed of the small-image models against stock Keras and plain torch.

    python benchmarks/models.py --rounds 5

Every measurement runs in a fresh process with two threads; contenders take turns, round after round, so that
a slow minute of the machine hits all of them. The same code appears twice under two names (the A/A pair):
how far those two lie apart is what a difference must exceed. Raw samples go to benchmarks/models.json, the
table of their medians into docs/performance.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "models.json"
PAGE = ROOT / "docs" / "performance.md"
THREADS, BATCH, CLASSES, SIZE, SECONDS = 2, 64, 10, 28, 4.0
VIT = {"patch": 4, "width": 96, "depth": 6, "heads": 3, "mlp": 192}
MODELS = ("ResNet-20", "ViT 6×96")
# name: (library, backend or mode). The first two are the A/A pair.
CONTENDERS = {
    "visionpipe tensorflow": ("visionpipe", "tensorflow"),
    "visionpipe tensorflow, again": ("visionpipe", "tensorflow"),
    "stock Keras tensorflow": ("keras", "tensorflow"),
    "visionpipe torch": ("visionpipe", "torch"),
    "stock Keras torch": ("keras", "torch"),
    "plain torch, eager": ("torch", "contiguous"),
    "plain torch, eager, channels_last": ("torch", "channels_last"),
    "visionpipe jax": ("visionpipe", "jax"),
    "stock Keras jax": ("keras", "jax"),
}
PAIRS = [
    ("visionpipe tensorflow, again", "visionpipe tensorflow"),
    ("visionpipe tensorflow", "stock Keras tensorflow"),
    ("visionpipe tensorflow", "fastest plain torch"),
    ("visionpipe torch", "stock Keras torch"),
    ("visionpipe torch", "fastest plain torch"),
    ("visionpipe jax", "stock Keras jax"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("CONTENDER", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(*options.measure)))
        return
    samples: list[dict] = []
    for number in range(options.rounds):
        for model in MODELS:
            for contender in CONTENDERS:
                command = [sys.executable, __file__, "--measure", contender, model]
                output = subprocess.run(command, env=environment(contender), capture_output=True, text=True)
                if output.returncode:
                    sys.exit(f"{contender}, {model}:\n{output.stderr}")
                sample = json.loads(output.stdout.splitlines()[-1])
                samples.append({"round": number, "contender": contender, "model": model, **sample})
                print(f"{number} {model} {contender}: {sample}", flush=True)
    versions = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True
    ).stdout
    kept = {"keras", "tensorflow", "jax", "torch", "numpy"}
    result = {
        "hardware": hardware(),
        "threads": THREADS,
        "batch_size": BATCH,
        "image_size": SIZE,
        "versions": {p["name"]: p["version"] for p in json.loads(versions) if p["name"] in kept},
        "samples": samples,
    }
    RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_page(result)


def hardware() -> str:
    from visionpipe.tracking.runs import hardware

    return hardware()


def environment(contender: str) -> dict[str, str]:
    library, backend = CONTENDERS[contender]
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")}
    variables = {**os.environ, **threads, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    if library != "torch":
        variables["KERAS_BACKEND"] = backend
    return variables


def measure(contender: str, model: str) -> dict[str, float]:
    """Images per second in training and inference after warm-up, GFLOP/s of a matrix product right after."""
    library, backend = CONTENDERS[contender]
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (BATCH * 20, SIZE, SIZE, 3)).astype(np.float32)
    labels = random.integers(0, CLASSES, BATCH * 20)
    run = measure_torch if library == "torch" else measure_keras
    training, inference = run(library, backend, model, images, labels)
    return {
        "training": round(training, 1),
        "inference": round(inference, 1),
        "gemm_gflops": round(gemm_gflops(), 1),
        "peak_memory_mib": round(peak_memory_mib()),
    }


def measure_keras(
    library: str, backend: str, model_name: str, images: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
    import keras

    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(THREADS)
        tf.config.threading.set_inter_op_parallelism_threads(THREADS)
    elif backend == "torch":
        import torch

        torch.set_num_threads(THREADS)
    model = keras_model(library, model_name)
    model.compile(keras.optimizers.AdamW(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))

    def train() -> None:
        model.fit(images, labels, batch_size=BATCH, shuffle=False, verbose=0)

    def predict() -> None:
        model.predict(images, batch_size=BATCH, verbose=0)

    return rate(train, len(images)), rate(predict, len(images))


def keras_model(library: str, name: str):
    if library == "visionpipe":
        from visionpipe.models import build_model

        if name == "ResNet-20":
            return build_model(name, CLASSES, SIZE, shortcut="projection")
        return build_model("ViT-Sm/4", CLASSES, SIZE)
    import peers

    if name == "ResNet-20":
        return peers.keras_resnet20(CLASSES, SIZE)
    return peers.keras_vit(CLASSES, SIZE, **VIT)


def measure_torch(
    library: str, mode: str, model_name: str, images: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
    import peers
    import torch

    torch.set_num_threads(THREADS)
    is_resnet = model_name == "ResNet-20"
    model = peers.torch_resnet20(CLASSES) if is_resnet else peers.torch_vit(CLASSES, SIZE, **VIT)
    memory_format = torch.channels_last if mode == "channels_last" else torch.contiguous_format
    model = model.to(memory_format=memory_format)
    x = (torch.tensor(images).permute(0, 3, 1, 2) / 127.5 - 1).to(memory_format=memory_format).split(BATCH)
    y = torch.tensor(labels).split(BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    loss_function = torch.nn.CrossEntropyLoss()

    def train() -> None:
        model.train()
        for batch, targets in zip(x, y, strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss_function(model(batch), targets).backward()
            optimizer.step()

    def predict() -> None:
        model.eval()
        with torch.inference_mode():
            for batch in x:
                model(batch)

    return rate(train, len(images)), rate(predict, len(images))


def rate(step, images: int) -> float:
    """Images per second: the median of passes over at least SECONDS, after one that compiles."""
    step()
    passes, start = [], time.perf_counter()
    while time.perf_counter() - start < SECONDS or len(passes) < 3:
        begin = time.perf_counter()
        step()
        passes.append(images / (time.perf_counter() - begin))
    return statistics.median(passes)


def gemm_gflops(side: int = 2048) -> float:
    """Float32, in NumPy, two threads: what the machine gives at this minute."""
    a = np.ones((side, side), np.float32)
    best = min(timed(lambda: a @ a) for _ in range(5))
    return 2 * side**3 / best / 1e9


def timed(function) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def peak_memory_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def medians(result: dict, model: str, task: str) -> dict[str, float]:
    return {
        contender: statistics.median(
            sample[task]
            for sample in result["samples"]
            if sample["contender"] == contender and sample["model"] == model
        )
        for contender in CONTENDERS
    }


def ratios(result: dict, model: str, task: str) -> dict[str, float]:
    """The median over rounds of the ratio within a round."""
    by_round: dict[int, dict[str, float]] = {}
    for sample in result["samples"]:
        if sample["model"] == model:
            by_round.setdefault(sample["round"], {})[sample["contender"]] = sample[task]
    for values in by_round.values():
        values["fastest plain torch"] = max(v for name, v in values.items() if name.startswith("plain torch"))
    return {
        f"{a} / {b}": statistics.median(values[a] / values[b] for values in by_round.values())
        for a, b in PAIRS
    }


def tables(result: dict) -> str:
    """All tables of docs/performance.md, from the raw samples."""
    lines = []
    for model in MODELS:
        lines += [f"### {model}, {result['image_size']} px, batch {result['batch_size']}", ""]
        lines += [
            "| contender | training images/s | inference images/s | peak memory MiB |",
            "| --- | ---: | ---: | ---: |",
        ]
        columns = [medians(result, model, task) for task in ("training", "inference", "peak_memory_mib")]
        for contender in CONTENDERS:
            cells = " | ".join(f"{column[contender]:,.0f}" for column in columns)
            lines.append(f"| {contender} | {cells} |")
        lines += ["", "| ratio, median over rounds | training | inference |", "| --- | ---: | ---: |"]
        columns = [ratios(result, model, task) for task in ("training", "inference")]
        for pair in columns[0]:
            lines.append(f"| {pair} | {columns[0][pair]:.2f} | {columns[1][pair]:.2f} |")
        lines.append("")
    return "\n".join(lines)


def write_page(result: dict) -> None:
    """docs/performance.md, whole."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    rounds = 1 + max(sample["round"] for sample in result["samples"])
    gemm = statistics.median(sample["gemm_gflops"] for sample in result["samples"])
    PAGE.write_text(
        "# Performance\n\n"
        "Made by `python benchmarks/models.py` from the raw samples in `benchmarks/models.json`. The first\n"
        "ratio compares the same code with itself: what lies within its distance from 1.00 is noise.\n\n"
        f"{result['hardware']}, {result['threads']} threads; {versions}; {rounds} rounds; a float32 matrix "
        f"product ran at {gemm:.0f} GFLOP/s.\n\n{tables(result)}"
    )


if __name__ == "__main__":
    main()
