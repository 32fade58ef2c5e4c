"""docs/serving.md's measured part, from the raw samples of benchmarks/serving.json.

python benchmarks/serving_tables.py
"""

import json
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "serving.json"
PAGE = ROOT / "docs" / "serving.md"
BEGIN, END = "<!-- begin: benchmarks/serving_tables.py -->\n", "<!-- end: benchmarks/serving_tables.py -->\n"
OURS = "visionpipe serve"
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


def median(samples: list[dict[str, Any]], key: str) -> float:
    return statistics.median(sample[key] for sample in samples if sample[key] is not None)


def select(result: dict[str, Any], task: str, model: str, contender: str = OURS) -> list[dict[str, Any]]:
    wanted = {"task": task, "model": model, "contender": contender}
    return [s for s in result["samples"] if all(s[key] == value for key, value in wanted.items())]


def offline_rate(bare: dict[str, Any], client_cpu_ms: float) -> float:
    """Images per second where the cores do nothing but decoding, the best batches, and the client's work."""
    return 1000 / (bare["offline_ms"] + client_cpu_ms / bare["cores"])


def share_of_offline(samples: list[dict[str, Any]]) -> float:
    """The median of the samples' rates, each as a share of what the cores could do just before and after it."""
    return statistics.median(
        sample["per_second"]
        / statistics.mean(offline_rate(bare, sample.get("client_cpu_ms", 0.0)) for bare in sample["bare"])
        for sample in samples
    )


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:,.2f}"


def table(result: dict[str, Any], task: str, model: str) -> list[str]:
    contenders = list(
        dict.fromkeys(s["contender"] for s in result["samples"] if (s["task"], s["model"]) == (task, model))
    )
    if not contenders:
        return []
    columns = COLUMNS[task]
    ours = select(result, task, model)
    key = "per_second" if task == "load" else "p50_ms"
    ratio = "images/s, ours / theirs" if task == "load" else "p50, theirs / ours"
    lines = [
        f"| {model}, {TITLES[task]} | {' | '.join(columns)} | {ratio} | samples |",
        "| --- |" + " ---: |" * (len(columns) + 2),
    ]
    for contender in sorted(contenders, key=lambda name: name != OURS):
        samples = select(result, task, model, contender)
        cells = [
            f"{median(samples, name):.0%}"
            if name == "client_share"
            else f"{median(samples, name):g}"
            if name == "failed"
            else number(median(samples, name))
            for name in columns.values()
        ]
        own, other = median(ours, key), median(samples, key)
        compared = "" if contender == OURS else f"{own / other if task == 'load' else other / own:.2f}"
        lines.append(f"| {contender} | {' | '.join(cells)} | {compared} | {len(samples)} |")
    return [*lines, ""]


def facts(result: dict[str, Any], model: str) -> list[str]:
    """The sentences below a model's tables: what the floor is, and everything but the comparison."""
    lines = []
    for bare in select(result, "bare", model)[-1:]:
        bare = {key: median(select(result, "bare", model), key) for key in bare if key.endswith("_ms")} | {
            "best_batch": bare["best_batch"],
            "cores": bare["cores"],
        }
        lines.append(
            f"- Floor: decoding {number(bare['decode_ms'])} ms in one thread, ONNX Runtime "
            f"{number(bare['single_ms'])} ms for one image; both {number(bare['offline_ms'])} ms per image with all "
            f"cores busy, in batches of {bare['best_batch']}."
        )
        if latency := select(result, "latency", model):
            # The faster one: threads that wait actively may find a core's other half busy for a second.
            over = statistics.median(
                s["p50_ms"] - min(bare["decode_ms"] + bare["single_ms"] for bare in s["bare"])
                for s in latency
            )
            lines.append(
                f"- One connection: p50 is decoding + ONNX Runtime {over:+.2f} ms, the median of "
                f"{len(latency)} samples, each with the faster of two measurements beside it."
            )
        if load := select(result, "load", model):
            share = share_of_offline(load)
            wait = statistics.median(s["p99_ms"] - s["p50_ms"] for s in load)
            times = statistics.median((s["p99_ms"] - s["p50_ms"]) / s["batch_run_ms"] for s in load)
            lines.append(
                f"- 32 connections: {share:.0%} of what decoding and the best batches leave room for beside the "
                f"client; p99 is {number(wait)} ms above p50, {times:.1f} times what one of its batches takes, and "
                f"nothing failed."
                if not sum(sample["failed"] for sample in load)
                else f"- 32 connections: {share:.0%}; {sum(s['failed'] for s in load)} answers failed."
            )
        if predict := select(result, "predict", model):
            rate = median(predict, "per_second")
            lines.append(
                f"- `visionpipe predict`, {predict[0]['files']:,} files: {number(rate)} images/s, "
                f"{share_of_offline(predict):.0%} of what decoding and the best batches allow."
            )
    for sample in (s for s in result["samples"] if (s["task"], s["model"]) == ("tune", model)):
        settings = ", ".join(f"{name} {value}" for name, value in sample["fastest"].items())
        rates = [attempt["per_second"] for attempt in sample["tried"]]
        lines.append(
            f"- {sample['contender']}, the fastest of {len(rates)} settings: {settings}. "
            f"The slowest: {number(min(rates))} images/s of {number(max(rates))}."
        )
    if int8 := select(result, "int8", model):
        times = [median(int8, "fp32_ms"), median(int8, "int8_ms")]
        gain = statistics.median(sample["fp32_ms"] / sample["int8_ms"] for sample in int8)
        lines.append(
            f"- int8: {number(times[1])} ms per image in batches of 8, fp32: {number(times[0])} ms; "
            f"{gain:.2f} times as fast. Logits of random weights differ by "
            f"{median(int8, 'logit_difference'):.1%} of the largest."
        )
    if overload := select(result, "overload", model):
        normal = max(s["normal_after_seconds"] or 99 for s in overload)
        offered, peak = median(overload, "offered_per_second"), median(overload, "peak_per_second")
        others = sum(sample["other_answers"] for sample in overload)
        lines.append(
            f"- {number(offered)} requests/s where {number(peak)} are possible: goodput "
            f"{median(overload, 'goodput'):.0%} of the peak, {others} answers neither 200 nor 503; half "
            f"of the refusals within "
            f"{number(median(overload, 'refused_p50_ms'))} ms, 99 % within "
            f"{number(median(overload, 'refused_p99_ms'))} ms; normal again after {normal} s."
        )
    if swap := select(result, "swap", model):
        lines.append(
            f"- The alias moves, one connection: the new version answers after {number(median(swap, 'seconds'))} s; "
            f"the slowest answer until then takes {number(median(swap, 'slowest_during_ms'))} ms (median "
            f"{number(median(swap, 'during_p50_ms'))}), in the three seconds before "
            f"{number(median(swap, 'slowest_before_ms'))} ms (median {number(median(swap, 'p50_ms'))}); "
            f"{sum(sample['failed'] for sample in swap)} failed."
        )
    if start := select(result, "start", model):
        lines.append(
            f"- From the command to the first answer: {number(median(start, 'folder_seconds'))} s with a folder, "
            f"{number(median(start, 'alias_seconds'))} s with an alias."
        )
    if memory := select(result, "memory", model):
        lines.append(
            f"- Anonymous memory after {memory[0]['requests']:,} requests, a third of them bad: "
            f"{median(memory, 'grown_mib'):+.1f} MiB since the first twentieth, "
            f"{median(memory, 'last_mib'):.0f} MiB in all."
        )
    return [*lines, ""] if lines else []


def measured() -> str:
    """What belongs between the two marks."""
    result = json.loads(RESULT.read_text())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"{result['hardware']}. {versions}.", ""]
    for model in dict.fromkeys(sample["model"] for sample in result["samples"]):
        lines += [f"### {model}", ""]
        for task in COLUMNS:
            lines += table(result, task, model)
        lines += facts(result, model)
    return "\n".join(lines)


def write_page() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + "\n" + measured() + "\n" + END + after)


if __name__ == "__main__":
    write_page()
