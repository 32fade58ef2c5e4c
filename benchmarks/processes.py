"""Runs one measurement in a fresh process, so that nothing that an earlier one left behind changes it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.facts import ROOT


def in_new_process(
    module: str, *arguments: str, folder: Path | None = None, **variables: str
) -> dict[str, Any]:
    """Runs a module with these arguments; returns the JSON of its last line. Ends the benchmark where it fails.

    folder: where the process works, the current folder by default. variables: added to the environment.
    """
    command = [sys.executable, "-m", module, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    output = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if output.returncode:
        sys.exit(f"{' '.join(arguments)}:\n{output.stderr}")
    return dict(json.loads(output.stdout.splitlines()[-1]))


def thread_variables(count: int) -> dict[str, str]:
    """Returns environment variables that keep every library to so many threads."""
    return {name: str(count) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NPROC")}
