"""Facts that belong to every result: where the repository is, and which versions of the libraries were measured."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PRINT_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
installed = {}
for name in sys.argv[1:]:
    try:
        installed[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(installed))
"""


def versions(*names: str, python: str = sys.executable) -> dict[str, str]:
    """Returns the versions of those of these distributions that are installed for this Python."""
    command = [python, "-c", PRINT_VERSIONS, *sorted(names)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(json.loads(output))
