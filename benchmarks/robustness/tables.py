"""Tables of the attacks that were tried, and of trainings that were killed."""

from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.markdown import Answer, listed, machine, table
from benchmarks.results import read

HERE = Path(__file__).parent
BATTERY, KILLS = HERE / "battery.json", HERE / "kills.json"
COLUMNS = {  # of the table of `prepare`: the names in the results, and what the page calls them
    "found": "files",
    "kept": "accepted",
    "quarantined": "quarantined",
    "lost": "lost",
    "wrong pixels": "wrong pixels",
    "kept, but bad": "accepted, but bad",
    "refused, but valid": "quarantined, but valid",
    "secret pictures": "pictures from outside",
    "read outside": "read outside",
    "written outside": "written outside",
}


def answers() -> list[Answer]:
    result, killed = read(BATTERY), read(KILLS)
    tasks = result["tasks"]
    counts = Counter[str]()
    for kind in tasks["images"]["kinds"].values():
        counts.update(kind)
    requests = tasks["fuzz"]["requests"] + tasks["document"]["cases"]
    errors = tasks["images"]["5xx"] + sum(
        count
        for task in ("fuzz", "document")
        for status, count in tasks[task]["statuses"].items()
        if status.startswith("5")
    )
    answered = tasks["moves"]["answered"] + tasks["ends"]["answered"]
    lost = len(tasks["moves"]["lost"]) + tasks["ends"]["lost"]
    kills_count = sum(len(entry["kills"]) for entry in killed["backends"])
    trainings = sum(entry["trainings"] for entry in killed["backends"])
    return [
        Answer(
            "robustness.md",
            "Do hostile files and requests break the server?",
            f"{counts['right']} of {counts['asked']} answers to hostile files are right, and {errors or 'none'} of "
            f"{requests:,} damaged or generated requests ended in a server error ({machine(result)}).",
        ),
        Answer(
            "robustness.md",
            "Are answers lost while the served version changes or the server stops?",
            f"{answered:,} of {answered + lost:,} requests were answered during "
            f"{tasks['moves']['moves']} changes of version and {tasks['ends']['ends']} stops ({machine(result)}).",
            detail=True,
        ),
        Answer(
            "robustness.md",
            "Does a killed training end with the same model?",
            f"{trainings} of {trainings} trainings, killed {kills_count} times in all, ended with the same bytes "
            f"({machine(killed)}).",
        ),
    ]


def images(task: dict[str, Any]) -> list[str]:
    rows = [[kind, str(counts["asked"]), str(counts["right"])] for kind, counts in task["kinds"].items()]
    remark = f"{task['files']} files, each alone, in a form and in JSON. Answers with 5xx: {task['5xx']}; crashes: "
    return [*table(["files", "asked", "right code or right pixels"], rows), "", f"{remark}{task['crashes']}."]


def bombs(task: dict[str, Any]) -> list[str]:
    rows = [
        [row["name"], f"{row['bytes']:,}", f"{1000 * row['seconds']:.2f}", f"{row['MiB']:.1f}"]
        for row in task["rows"]
    ]
    extra = task["extra memory of the server, MiB"]
    return [
        *table(["bomb", "bytes", "ms to refuse or decode", "extra MiB"], rows),
        "",
        f"A server that was sent all of them, one after the other, used at most {extra:.1f} MiB more.",
    ]


def prepare(task: dict[str, Any]) -> list[str]:
    rows = [[source, *(str(task[source][name]) for name in COLUMNS)] for source in ("folder", "zip")]
    return table(["`prepare` of a", *COLUMNS.values()], rows)


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
        f"A body of chunks without end, where {task['limit MiB']} MiB are allowed: the server closed the connection "
        f"after {task['taken MiB']:.0f} MiB and used at most {task['extra memory MiB']:.0f} MiB more memory."
    ]


def pipelined(task: dict[str, Any]) -> list[str]:
    return [
        f"Requests without end on {task['connections']} connections whose clients read no answer: at most "
        f"{task['extra memory MiB']:.0f} MiB more memory; the slowest `/healthz` meanwhile took "
        f"{task['slowest ms']:.0f} ms."
    ]


def stalls(task: dict[str, Any]) -> list[str]:
    rows = [
        [name, str(row["status"]), f"{row['p99 ms']:.1f}", f"{row['slowest ms']:.1f}"]
        for name, row in task["rows"].items()
    ]
    return table(["19 MiB of", "status", "p99 of `/healthz` meanwhile, ms", "slowest, ms"], rows)


def slow(task: dict[str, Any]) -> list[str]:
    return [
        f"{task['slow headers']} clients with slow headers and {task['slow bodies']} with slow bodies at once: closed "
        f"within {task['headers closed after, at most']:.1f} s and {task['bodies closed after, at most']:.1f} s. All "
        f"{task['good requests']:,} requests of good clients were answered: p99 {task['p99 ms, alone']:.1f} ms alone, "
        f"{task['p99 ms, beside them']:.1f} ms beside the slow ones."
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
        f"{', '.join(task['versions'])}, {task['lost']} failed; refused candidates in `/metrics`: "
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


def battery() -> str:
    result = read(BATTERY)
    lines = [f"{result['hardware']}. {listed(result['versions'])}.", ""]
    for title, makers in TABLES.items():
        lines += [f"### {title}", ""]
        for make in makers:
            if make.__name__ in result["tasks"]:
                lines += [*make(result["tasks"][make.__name__]), ""]
    return "\n".join(lines)


def kills() -> str:
    """Returns how often each backend's trainer was killed when; every one of these trainings ended at the same bytes.

    benchmarks/robustness/kills.py stops without a result where a byte differs.
    """
    result = read(KILLS)
    moments = sorted({kill["moment"] for entry in result["backends"] for kill in entry["kills"]})
    rows = []
    for entry in result["backends"]:
        counts = [sum(kill["moment"] == moment for kill in entry["kills"]) for moment in moments]
        rows.append([entry["backend"], *map(str, counts), str(entry["trainings"]), f"{entry['seconds']:.0f}"])
    header = ["backend", *moments, "trainings ended at the same bytes", "seconds without a kill"]
    return "\n".join([*table(header, rows), "", f"Seed {result['seed']}. {result['hardware']}."])
