"""Reads and writes the JSON files that hold raw results."""

import json
from pathlib import Path
from typing import Any


def read(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_text()))


def write(file: Path, result: dict[str, Any]) -> None:
    file.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
