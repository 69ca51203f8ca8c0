"""The tables that hold the clients for Python and for JavaScript to one rule.

A case is a list of steps. `at` is the monotonic time of a step in ms, `wall` what the clock of this
machine says (as `at`, unless it is given). Then comes what happens: `ask` (the Date of an answer),
`hear` (a message that was sent to catch up) and `push` (one that was pushed), each with a time;
`report` (the source: its name, its lag in seconds, a code and a detail), `ready`, `leave` and
`end`. The other names are what must be true afterwards.
"""

import json
from pathlib import Path
from typing import Any, TypeAlias

Step: TypeAlias = dict[str, Any]

FOLDER = Path(__file__).parent


def cases(name: str) -> dict[str, list[Step]]:
    """Fact → steps."""
    return {case["fact"]: case["steps"] for case in json.loads((FOLDER / name).read_text())}
