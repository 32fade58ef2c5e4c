"""Tables of the server beside others: latency, load, overload, changes of version, memory, int8."""

import statistics
from pathlib import Path
from typing import Any

from benchmarks.markdown import Answer, listed, machine, median, number, table
from benchmarks.results import read

RESULT = Path(__file__).parent / "compare.json"
MODELS = SMALL, LARGE = ("ResNet-14, 28 px", "ResNet-50, 224 px")
OURS = "visionpipe serve"
OTHERS = {"mlflow, pyfunc": "MLflow's pyfunc server", "LitServe": "LitServe", "BentoML": "BentoML"}
COLUMNS = {
    "latency": {"p50 ms": "p50_ms", "p99 ms": "p99_ms", "client's share": "client_share"},
    "load": {
        "images/s": "per_second",
        "p50 ms": "p50_ms",
        "p99 ms": "p99_ms",
        "failed": "failed",
        "client's share": "client_share",
    },
}
TITLES = {"latency": "one connection", "load": "32 connections"}


def answers() -> list[Answer]:
    result = read(RESULT)
    throughput = "; ".join(f"{model}: {text}" for model in MODELS if (text := beside(result, "load", model)))
    slower = beside(result, "latency", SMALL)
    fast, busy, int8 = (
        select(result, "latency", SMALL),
        select(result, "load", LARGE),
        select(result, "int8", LARGE),
    )
    on = f"({machine(result)})."
    details = {
        "How long does one request take?": fast
        and f"{number(median(fast, 'p50_ms'))} ms with {SMALL} (median); it takes {slower} {on}",
        "How much of the processor goes to the model?": busy
        and f"Under load {LARGE} runs at {share_of_offline(busy):.0%} of what decoding and ONNX Runtime allow {on}",
        "What does int8 gain?": int8 and f"{LARGE} runs {int8_gain(int8):.1f} times as fast as in fp32 {on}",
    }
    return [
        Answer(
            "serving.md",
            "How fast does the server answer under load, beside other servers?",
            f"Images/s with 32 connections, {throughput} {on}" if throughput else "",
        ),
        *(Answer("serving.md", question, text or "", detail=True) for question, text in details.items()),
    ]


def beside(result: dict[str, Any], task: str, model: str) -> str:
    """Returns the ratios to the other servers that run the same ONNX file."""
    texts = []
    for name, title in OTHERS.items():
        ours, theirs = select(result, task, model), select(result, task, model, name)
        if not (ours and theirs):
            continue
        if task == "load":
            factor = median(ours, "per_second") / median(theirs, "per_second")
            texts.append(f"{factor:.1f} × {title}")
        else:
            factor = median(theirs, "p50_ms") / median(ours, "p50_ms")
            texts.append(f"{factor:.1f} × as long on {title}")
    return ", ".join(texts)


def select(result: dict[str, Any], task: str, model: str, contender: str = OURS) -> list[dict[str, Any]]:
    wanted = {"task": task, "model": model, "contender": contender}
    return [s for s in result["samples"] if all(s[key] == value for key, value in wanted.items())]


def measured_with(result: dict[str, Any], task: str, model: str) -> list[str]:
    measured = (s["contender"] for s in result["samples"] if (s["task"], s["model"]) == (task, model))
    return list(dict.fromkeys(measured))


def offline_rate(bare: dict[str, Any], client_cpu_ms: float) -> float:
    """Returns images per second if the cores do nothing but decoding, the best batches, and the client's work."""
    return 1000 / (bare["offline_ms"] + client_cpu_ms / bare["cores"])


def share_of_offline(samples: list[dict[str, Any]]) -> float:
    """Returns the median of the samples' rates, each as a share of what the cores could do just before and after it."""
    return statistics.median(
        sample["per_second"]
        / statistics.mean(offline_rate(bare, sample.get("client_cpu_ms", 0.0)) for bare in sample["bare"])
        for sample in samples
    )


def contenders_table(result: dict[str, Any], task: str, model: str) -> list[str]:
    """Returns a row for each server, ours first; nothing where the task was not measured with this model."""
    contenders = measured_with(result, task, model)
    if not contenders:
        return []
    columns = COLUMNS[task]
    ours = select(result, task, model)
    key = "per_second" if task == "load" else "p50_ms"
    ratio = "images/s, ours / theirs" if task == "load" else "p50, theirs / ours"
    rows = []
    for contender in sorted(contenders, key=lambda name: name != OURS):
        samples = select(result, task, model, contender)
        cells = [cell(median(samples, name), name) for name in columns.values()]
        own, other = median(ours, key), median(samples, key)
        compared = "" if contender == OURS else f"{own / other if task == 'load' else other / own:.2f}"
        rows.append([contender, *cells, compared, str(len(samples))])
    return [*table([f"{model}, {TITLES[task]}", *columns, ratio, "samples"], rows), ""]


def cell(value: float, name: str) -> str:
    if name == "client_share":
        return f"{value:.0%}"
    return f"{value:g}" if name == "failed" else number(value)


def facts(result: dict[str, Any], model: str) -> list[str]:
    """Returns the sentences below a model's tables, one for each task that was measured with this model."""
    lines = []
    for task, sentence in SENTENCES.items():
        # The searched settings are of others; all else is told of ours, and compared in the tables.
        contenders = measured_with(result, task, model)
        told = contenders if task == "tune" else [OURS] * (OURS in contenders)
        lines += [f"- {sentence(select(result, task, model, contender))}" for contender in told]
    return [*lines, ""] if lines else []


def floor(samples: list[dict[str, Any]]) -> str:
    decode, single, offline = (median(samples, key) for key in ("decode_ms", "single_ms", "offline_ms"))
    return (
        f"Floor: decoding takes {number(decode)} ms in one thread, ONNX Runtime {number(single)} ms for one image; "
        f"both together {number(offline)} ms per image with all cores busy, in batches of {samples[-1]['best_batch']}."
    )


def latency(samples: list[dict[str, Any]]) -> str:
    # The faster one of two measurements: threads that wait actively may find a core's other half busy for a second.
    over = statistics.median(
        sample["p50_ms"] - min(bare["decode_ms"] + bare["single_ms"] for bare in sample["bare"])
        for sample in samples
    )
    return (
        f"One connection: p50 is decoding + ONNX Runtime {over:+.2f} ms, the median of {len(samples)} samples, each "
        f"with the faster of two measurements of the floor beside it."
    )


def load(samples: list[dict[str, Any]]) -> str:
    share = share_of_offline(samples)
    if failed := sum(sample["failed"] for sample in samples):
        return f"32 connections: {share:.0%}; {failed} answers failed."
    wait = statistics.median(s["p99_ms"] - s["p50_ms"] for s in samples)
    times = statistics.median((s["p99_ms"] - s["p50_ms"]) / s["batch_run_ms"] for s in samples)
    return (
        f"32 connections: {share:.0%} of the images that the cores could decode and run beside the client; p99 is "
        f"{number(wait)} ms above p50, {times:.1f} times what one of its batches takes; nothing failed."
    )


def predict(samples: list[dict[str, Any]]) -> str:
    return (
        f"`visionpipe predict`, {samples[0]['files']:,} files: {number(median(samples, 'per_second'))} images/s, "
        f"{share_of_offline(samples):.0%} of what decoding and the best batches allow."
    )


def tune(samples: list[dict[str, Any]]) -> str:
    [sample] = samples
    settings = ", ".join(f"{name} {value}" for name, value in sample["fastest"].items())
    rates = [attempt["per_second"] for attempt in sample["tried"]]
    return (
        f"{sample['contender']}, the fastest of {len(rates)} settings: {settings}. "
        f"The slowest: {number(min(rates))} images/s of {number(max(rates))}."
    )


def int8(samples: list[dict[str, Any]]) -> str:
    return (
        f"int8: {number(median(samples, 'int8_ms'))} ms per image in batches of 8, fp32: "
        f"{number(median(samples, 'fp32_ms'))} ms; {int8_gain(samples):.2f} times as fast. Logits of random weights "
        f"differ by {median(samples, 'logit_difference'):.1%} of the largest."
    )


def int8_gain(samples: list[dict[str, Any]]) -> float:
    return statistics.median(sample["fp32_ms"] / sample["int8_ms"] for sample in samples)


def overload(samples: list[dict[str, Any]]) -> str:
    normal = max(sample["normal_after_seconds"] or 99 for sample in samples)
    offered, peak = median(samples, "offered_per_second"), median(samples, "peak_per_second")
    others = sum(sample["other_answers"] for sample in samples)
    return (
        f"Overload, {number(offered)} requests/s where {number(peak)} are possible: it still answers "
        f"{median(samples, 'goodput'):.0%} of its peak rate, {others} answers are neither 200 nor 503; half of the "
        f"refusals come within {number(median(samples, 'refused_p50_ms'))} ms, 99 % within "
        f"{number(median(samples, 'refused_p99_ms'))} ms; latency is normal again after {normal} s."
    )


def swap(samples: list[dict[str, Any]]) -> str:
    return (
        f"The alias moves, one connection: the new version answers after {number(median(samples, 'seconds'))} s; "
        f"the slowest answer until then takes {number(median(samples, 'slowest_during_ms'))} ms (median "
        f"{number(median(samples, 'during_p50_ms'))}), in the three seconds before "
        f"{number(median(samples, 'slowest_before_ms'))} ms (median {number(median(samples, 'p50_ms'))}); "
        f"{sum(sample['failed'] for sample in samples)} failed."
    )


def start(samples: list[dict[str, Any]]) -> str:
    return (
        f"From the command to the first answer: {number(median(samples, 'folder_seconds'))} s with a folder, "
        f"{number(median(samples, 'alias_seconds'))} s with an alias."
    )


def memory(samples: list[dict[str, Any]]) -> str:
    return (
        f"Anonymous memory after {samples[0]['requests']:,} requests, a third of them bad: "
        f"{median(samples, 'grown_mib'):+.1f} MiB since the first twentieth, "
        f"{median(samples, 'last_mib'):.0f} MiB in all."
    )


SENTENCES = {
    "bare": floor,
    "latency": latency,
    "load": load,
    "predict": predict,
    "tune": tune,
    "int8": int8,
    "overload": overload,
    "swap": swap,
    "start": start,
    "memory": memory,
}


def comparison() -> str:
    result = read(RESULT)
    lines = [f"{result['hardware']}. {listed(result['versions'])}.", ""]
    for model in dict.fromkeys(sample["model"] for sample in result["samples"]):
        lines += [f"### {model}", ""]
        for task in COLUMNS:
            lines += contenders_table(result, task, model)
        lines += facts(result, model)
    return "\n".join(lines)
