"""How fast, accurate and robust visionpipe is: the scripts that measure it, each beside its results.

Every script runs as a module from the root of the repository, for example `python -m benchmarks.speed.models --help`.
"""

import sys
from pathlib import Path

# Attacks, throw-away repositories and running servers are in the tests' shared modules. Scripts import them by the
# same names as the tests do.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "shared"))
