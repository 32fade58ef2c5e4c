"""decisions.csv: what the user has decided about single images, in the project's root.

The columns are file, finding, suggestion and decision. `visionpipe doctor` appends rows without a decision, which
change nothing.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from visionpipe.escape import csv_line
from visionpipe.files import write_bytes

DECISIONS = Path("decisions.csv")
DECISIONS_HEADER = b"file,finding,suggestion,decision\n"


def append_undecided(rows: Iterable[Sequence[str]], path: Path = DECISIONS) -> int:
    """Appends rows of (file, finding, suggestion) without a decision, and returns their number.

    Rows of the same file and finding are left out. The rows of the file do not change.
    """
    old = path.read_bytes() if path.exists() else DECISIONS_HEADER
    known = {tuple(cells[:2]) for cells in csv.reader(io.StringIO(old.decode()))}
    lines = []
    for file, finding, suggestion in rows:
        if (file, finding) not in known:
            known.add((file, finding))
            lines.append(csv_line([file, finding, suggestion, ""]))
    if lines or not path.exists():
        write_bytes(path, old + b"".join(lines))
    return len(lines)
