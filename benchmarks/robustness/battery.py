"""Tries to break the server and `prepare`: the long versions of attacks that the tests make in short.

    python -m benchmarks.robustness.battery            # about ten minutes
    python -m benchmarks.robustness.battery --tasks fuzz slow

Every task starts a server with its default limits. Results go to benchmarks/robustness/battery.json as they come, the
tables to docs/results/robustness.md. The attacks themselves are in tests/shared, where the tests use them too.
"""

import argparse
import base64
import functools
import io
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attacks
import linear_models
import numpy as np
from hostile import every_case
from hostile_requests import PNG, heavy, malformed
from hostile_sets import is_right, judge, measure_bombs, watched_prepare, write_folder, write_zip
from PIL import Image
from servers import artifact_folder, form, running

from benchmarks import results
from benchmarks.facts import ROOT, versions
from benchmarks.robustness.tables import BATTERY
from visionpipe.artifact.classifier import Classifier
from visionpipe.artifact.hardware import hardware
from visionpipe.serving.service import STATUS
from visionpipe.stages.register import register
from visionpipe.tracking.lookup import artifact_in
from visionpipe.tracking.store import connect

REGISTERED = "hardened"


def images(folder: Path) -> dict[str, Any]:
    """Sends every file alone, in forms and in JSON; returns by kind how many were asked and answered rightly."""
    artifact, cases = artifact_folder(folder / "linear"), every_case()
    classifier = Classifier(artifact)
    asked, right, errors = Counter[str](), Counter[str](), 0
    with running(artifact) as server:
        for case in cases:
            answer = server.predict(case.data)
            errors += answer.status >= 500
            if isinstance(case.expected, str):
                good = (answer.status, answer.json["code"]) == (STATUS[case.expected], case.expected)
            else:
                good = answer.status == 200 and is_right(answer.json["predictions"][0], case, classifier)
            asked[case.kind] += 1
            right[case.kind] += good
        for start in range(0, len(cases), 40):
            part = cases[start : start + 40]
            texts = [base64.b64encode(case.data).decode() for case in part]
            body, kind = form(*[case.data for case in part])
            for content, content_type in (
                (body, kind),
                (json.dumps({"images": texts}).encode(), "application/json"),
            ):
                answer = server.predict(content, content_type=content_type)
                errors += answer.status >= 500
                for entry, case in zip(answer.json["predictions"], part, strict=True):
                    asked[case.kind] += 1
                    right[case.kind] += is_right(entry, case, classifier)
        alive = server.stop() == 0
    kinds = {kind: {"asked": asked[kind], "right": right[kind]} for kind in asked}
    return {"files": len(cases), "kinds": kinds, "5xx": errors, "crashes": int(not alive)}


def bombs(folder: Path) -> dict[str, Any]:
    """Returns what decoding each bomb costs, in a fresh process, and what all of them cost a server."""
    rows = [dict(zip(("name", "bytes", "seconds", "MiB"), row, strict=True)) for row in measure_bombs()]
    with running(artifact_folder(folder / "linear")) as server:
        server.predict(PNG)
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak begins anew
        before = attacks.memory(server, "VmRSS")
        for case in every_case():
            if case.kind == "bomb":
                server.predict(case.data)
        extra = attacks.memory(server, "VmHWM") - before
    return {"rows": rows, "extra memory of the server, MiB": extra}


def prepare(folder: Path) -> dict[str, Any]:
    outcomes = {}
    for source, write in (("folder", write_folder), ("zip", write_zip)):
        work, outside = folder / source / "work", folder / source / "outside"
        (work / "data").mkdir(parents=True)
        written = write(work / "data" / "hostile", outside)
        result = watched_prepare(work, source, work / "data" / "hostile")
        manifest = result["manifest"]
        outcomes[source] = {
            "found": written,
            "kept": manifest["kept"],
            "quarantined": len(manifest["quarantined"]),
            **judge(result, written, work, outside),
        }
    return outcomes


def requests(folder: Path) -> dict[str, Any]:
    with running(artifact_folder(folder / "linear")) as server:
        statuses = Counter(
            attacks.status_of(attacks.send(server.port, data)) for data in malformed().values()
        )
        return {"requests": len(malformed()), "statuses": dict(sorted(statuses.items()))}


def fuzz(folder: Path) -> dict[str, Any]:
    """Sends damaged requests; returns the number of open files and threads before and after them too."""
    with running(artifact_folder(folder / "linear")) as server:
        attacks.fuzz(server, 500, seed=1)
        time.sleep(2)
        before = attacks.open_files_and_threads(server)
        result = attacks.fuzz(server, 10_000, seed=2)
        time.sleep(2)
        after = attacks.open_files_and_threads(server)
        server.stop()
    named = {"files, threads before": before, "files, threads after": after, "lines of log": len(server.log)}
    return result | named


def document(folder: Path) -> dict[str, Any]:
    with running(artifact_folder(folder / "linear")) as server:
        generated, failures = attacks.schemathesis(server, 10_000, folder)
        text = server.get("/metrics").body.decode()
        server.stop()
    rows = [
        line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("visionpipe_requests_total{")
    ]
    statuses: Counter[str] = Counter()
    for name, value in rows:
        statuses[name.split('status="')[1][:3]] += int(float(value))
    return {
        "cases": generated,
        "runs that found a 5xx": len(failures),
        "statuses": dict(sorted(statuses.items())),
    }


def oversize(folder: Path) -> dict[str, Any]:
    with running(artifact_folder(folder / "linear")) as server:
        server.predict(PNG)
        return attacks.send_too_much(server, mebibytes=1024) | {"limit MiB": 20}


def pipelined(folder: Path) -> dict[str, Any]:
    with running(artifact_folder(folder / "linear")) as server:
        server.predict(PNG)
        return attacks.pipeline(server, connections=20, seconds=15)


def stalls(folder: Path) -> dict[str, Any]:
    """Returns how fast /healthz answers beside bodies of 19 MiB."""
    with running(artifact_folder(folder / "linear")) as server:
        return {"rows": attacks.beside(server, heavy(19 * 2**20))}


def slow(folder: Path) -> dict[str, Any]:
    with running(artifact_folder(folder / "linear")) as server:
        return attacks.slow_clients(server.port, count=200, quiet_seconds=20)


def ends(folder: Path) -> dict[str, Any]:
    outcomes = [attacks.end_under_load(artifact_folder(folder / "linear")) for _ in range(20)]
    return {
        "ends": len(outcomes),
        "answered": sum(outcome["answered"] for outcome in outcomes),
        "lost": sum(len(outcome["lost"]) for outcome in outcomes),
        "exit codes": sorted({outcome["exit code"] for outcome in outcomes}),
    }


def moves(folder: Path) -> dict[str, Any]:
    with registered(folder) as (move, folders):
        pictures = linear_models.split_data("test")[0][:8]
        bodies = [png(image) for image in pictures]
        tables = {number: Classifier(path).probabilities(pictures) for number, path in folders.items()}
        numbers = [str(1 + (number + 1) % 3) for number in range(50)]
        with running(f"models:/{REGISTERED}@champion", "--follow-seconds", "1") as server:
            attacks.move_under_load(server, move, numbers[:3], bodies, tables)  # what opens once is open now
            time.sleep(2)
            before = attacks.open_files_and_threads(server)
            result = attacks.move_under_load(server, move, numbers, bodies, tables)
            time.sleep(2)
            after = attacks.open_files_and_threads(server)
    return result | {"files, threads before": before, "files, threads after": after}


def corrupt(folder: Path) -> dict[str, Any]:
    """Moves the alias, under load, to a candidate with one flipped bit."""
    with registered(folder) as (move, folders):
        model = folders["2"] / "model.onnx"
        whole = model.read_bytes()
        model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        body = png(linear_models.split_data("test")[0][0])
        with running(f"models:/{REGISTERED}@champion") as server, attacks.Load(server.port, [body]) as load:
            move("2")
            time.sleep(5)
            refused = server.metric('visionpipe_model_refused_total{version="2"}')
    versions = {json.loads(answer)["model"]["version"] for _, answer in load.answered}
    return {
        "answered": len(load.answered),
        "lost": len(load.lost),
        "versions": sorted(versions),
        "refusals in /metrics": refused,
    }


class registered:
    """Makes a registry with three versions of a model; gives what moves the champion, and each version's folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __enter__(self) -> tuple[Callable[[str], None], dict[str, Path]]:
        self.before = Path.cwd()
        (self.folder / ".dvc").mkdir()
        for name in ("dvc.yaml", "visionpipe"):
            (self.folder / name).symlink_to(ROOT / name)
        linear_models.write_prepared(self.folder / linear_models.PREPARED)
        os.chdir(self.folder)
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow leaves the last store there
        params = linear_models.make_params(REGISTERED, ["one"])
        for mistaken in (4, 2, 0):
            linear_models.write_model("one", params, mistaken=mistaken)
            register(params)
        store = connect(params.tracking)
        linear_models.set_alias(store, "champion", "1")
        versions_made = linear_models.state(params).versions
        folders = {str(one.version): artifact_in(linear_models.downloaded(one)) for one in versions_made}
        return functools.partial(linear_models.set_alias, store, "champion"), folders

    def __exit__(self, *_: Any) -> None:
        os.chdir(self.before)


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


TASKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    task.__name__: task
    for task in (
        *(images, bombs, prepare, requests, fuzz, document, oversize, pipelined, stalls, slow),
        *(ends, moves, corrupt),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    result = results.read(BATTERY) if BATTERY.exists() else {"tasks": {}}
    libraries = versions("fastapi", "uvicorn", "pillow", "onnxruntime", "schemathesis")
    result |= {"hardware": hardware(), "versions": libraries}
    for name in options.tasks:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            measured = TASKS[name](Path(folder).resolve())
        result["tasks"][name] = measured | {"task seconds": round(time.perf_counter() - start, 1)}
        print(name, result["tasks"][name], flush=True)
        results.write(BATTERY, result)
    from benchmarks.tables import write_pages

    write_pages()


if __name__ == "__main__":
    main()
