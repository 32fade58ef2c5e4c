"""docs/hardening.md's measured part, from benchmarks/hardening.json.

python benchmarks/hardening_tables.py
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "hardening.json"
PAGE = ROOT / "docs" / "hardening.md"
BEGIN, END = (
    "<!-- begin: benchmarks/hardening_tables.py -->\n",
    "<!-- end: benchmarks/hardening_tables.py -->\n",
)


def images(task: dict[str, Any]) -> list[str]:
    lines = ["| files | asked | right code or right pixels |", "| --- | ---: | ---: |"]
    for kind, counts in task["kinds"].items():
        lines.append(f"| {kind} | {counts['asked']} | {counts['right']} |")
    remark = f"{task['files']} files, each alone, in a form and in JSON. Answers with 5xx: {task['5xx']}; crashes: "
    return [*lines, "", f"{remark}{task['crashes']}."]


def bombs(task: dict[str, Any]) -> list[str]:
    lines = ["| bomb | bytes | ms to refuse or decode | extra MiB |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {row['name']} | {row['bytes']:,} | {1000 * row['seconds']:.2f} | {row['MiB']:.1f} |"
        for row in task["rows"]
    ]
    extra = task["extra memory of the server, MiB"]
    return [*lines, "", f"All of them, one after the other, to a server: {extra:.1f} MiB more at its peak."]


def prepare(task: dict[str, Any]) -> list[str]:
    names = list(task["folder"])
    lines = [f"| `prepare` of a | {' | '.join(names)} |", "| --- |" + " ---: |" * len(names)]
    rows = {source: [str(task[source][name]) for name in names] for source in ("folder", "zip")}
    return lines + [f"| {source} | {' | '.join(cells)} |" for source, cells in rows.items()]


def requests(task: dict[str, Any]) -> list[str]:
    return [f"{task['requests']} malformed requests: {statuses(task)}."]


def fuzz(task: dict[str, Any]) -> list[str]:
    return [
        f"{task['requests']:,} damaged requests over raw sockets, made from {task['seeds']} that cover every route: "
        f"{statuses(task)}. {unchanged(task)}, {task['lines of log']} lines in the server's log."
    ]


def document(task: dict[str, Any]) -> list[str]:
    return [f"schemathesis, {task['cases']:,} cases from the OpenAPI document: {statuses(task)}."]


def oversize(task: dict[str, Any]) -> list[str]:
    return [
        f"A body of chunks without end, where {task['limit MiB']} MiB are allowed: cut off after "
        f"{task['taken MiB']:.0f} MiB, {task['extra memory MiB']:.0f} MiB more memory at the peak."
    ]


def pipelined(task: dict[str, Any]) -> list[str]:
    return [
        f"Requests without end on {task['connections']} connections, whose answers nobody reads: "
        f"{task['extra memory MiB']:.0f} MiB more memory at the peak, the slowest `/healthz` beside them "
        f"{task['slowest ms']:.0f} ms."
    ]


def stalls(task: dict[str, Any]) -> list[str]:
    lines = [
        "| 19 MiB of | status | p99 of `/healthz` beside it, ms | slowest |",
        "| --- | ---: | ---: | ---: |",
    ]
    return lines + [
        f"| {name} | {row['status']} | {row['p99 ms']:.1f} | {row['slowest ms']:.1f} |"
        for name, row in task["rows"].items()
    ]


def slow(task: dict[str, Any]) -> list[str]:
    return [
        f"{task['slow headers']} slow headers and {task['slow bodies']} slow bodies at once: closed within "
        f"{task['headers closed after, at most']:.1f} s and {task['bodies closed after, at most']:.1f} s. Good "
        f"clients, "
        f"all {task['good requests']:,} requests answered: p99 {task['p99 ms, alone']:.1f} ms alone, "
        f"{task['p99 ms, beside them']:.1f} ms beside them."
    ]


def ends(task: dict[str, Any]) -> list[str]:
    codes = ", ".join(map(str, task["exit codes"]))
    return [
        f"{task['ends']} times SIGTERM under load: {task['answered']:,} requests answered, {task['lost']} lost, exit "
        f"code {codes}."
    ]


def moves(task: dict[str, Any]) -> list[str]:
    return [
        f"{task['moves']} moves of the alias under load: {task['answered']:,} requests answered, {len(task['lost'])} "
        f"failed, {task['wrong']} answers that are not of the version they name; the slowest move took "
        f"{task['slowest move, seconds']:.1f} s. {unchanged(task)}."
    ]


def corrupt(task: dict[str, Any]) -> list[str]:
    return [
        f"A candidate with one flipped bit, under load: {task['answered']:,} requests answered by version "
        f"{', '.join(task['versions'])}, {task['lost']} failed; refused in `/metrics`: "
        f"{task['refusals in /metrics']:g}."
    ]


def statuses(task: dict[str, Any]) -> str:
    names = {"0": "closed without an answer"}
    return ", ".join(f"{count:,} × {names.get(status, status)}" for status, count in task["statuses"].items())


def unchanged(task: dict[str, Any]) -> str:
    (files, threads), (files_after, threads_after) = (
        task[f"files, threads {when}"] for when in ("before", "after")
    )
    return f"Open files {files} before and {files_after} after, threads {threads} and {threads_after}"


TABLES = {
    "Files": (images, bombs, prepare),
    "Requests": (requests, fuzz, document, oversize, pipelined, stalls, slow),
    "Changes under load": (ends, moves, corrupt),
}


def measured() -> str:
    """What belongs between the two marks."""
    result = json.loads(RESULT.read_text())
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [f"{result['hardware']}. {versions}.", ""]
    for title, makers in TABLES.items():
        lines += [f"### {title}", ""]
        for make in makers:
            if make.__name__ in result["tasks"]:
                lines += [*make(result["tasks"][make.__name__]), ""]
    return "\n".join(lines)


def write_page() -> None:
    before, rest = PAGE.read_text().split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(before + BEGIN + "\n" + measured() + "\n" + END + after)


if __name__ == "__main__":
    write_page()
