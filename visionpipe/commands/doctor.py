"""`visionpipe doctor`: looks for what is wrong with the prepared images, and writes a page of findings."""

from collections import Counter

from threadpoolctl import threadpool_limits

from visionpipe.data.config import DECISIONS
from visionpipe.data.decisions import append_undecided, written_decisions
from visionpipe.data.prepared import PREPARED, open_prepared
from visionpipe.doctor.diagnosis import as_json, diagnose
from visionpipe.doctor.findings import Finding, Images
from visionpipe.doctor.page import page
from visionpipe.files import write_bytes, write_json
from visionpipe.project.backend import thread_count
from visionpipe.project.params import Params
from visionpipe.project.paths import state_folder

MOST_ROWS = 500  # that one finding adds to decisions.csv


def doctor(params: Params) -> None:
    """Writes .visionpipe/doctor/index.html and doctor.json, appends undecided rows to decisions.csv, and prints counts.

    Raises:
        DataError: the prepared data are missing, damaged, or have no measures.
    """
    folder = state_folder() / "doctor"
    threads = thread_count(params)
    with threadpool_limits(threads):
        diagnosis = diagnose(
            open_prepared(PREPARED), folder, list(params.models), threads, params.prepare.group
        )
    rows = [row for finding in diagnosis.findings for row in suggested(diagnosis.images, finding)]
    added = append_undecided(rows)
    write_json(folder / "doctor.json", as_json(diagnosis))
    decisions = written_decisions()
    write_bytes(folder / "index.html", page(diagnosis, decisions).encode())
    decided = Counter(finding for file, finding, _ in rows if decisions.get((file, finding)))
    for finding in diagnosis.findings:
        done = f", {decided[finding.key]:,} decided" if decided[finding.key] else ""
        print(f"{finding.count:>7,} {finding.unit}: {finding.kind.title.lower()}{done}")
    if not diagnosis.findings:
        print("nothing was found")
    print(f"rows added to {DECISIONS}, without a decision: {added:,}")
    print(folder / "index.html")


def suggested(images: Images, finding: Finding) -> list[tuple[str, str, str]]:
    """Returns (file, finding, suggestion) for the first MOST_ROWS images that a finding asks a decision for."""
    rows = [
        (images.files[row], finding.key, suggestion)
        for item in finding.items
        for row, suggestion in item.suggestions.items()
    ]
    return rows[:MOST_ROWS]
