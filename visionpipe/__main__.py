"""`python -m visionpipe`: the same as the console script, but always this checkout's code."""

import sys

from visionpipe.cli import main

sys.exit(main())
