"""Programs that measure Brain: `python -m benchmarks.NAME [--quick]`, or all of them by `make bench`."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))
"""Where the programs are that start a PostgreSQL and a Brain: postgres.py and served.py."""
