"""docs/limits.md says what the code does."""

import re
from functools import reduce
from importlib import import_module
from pathlib import Path

import pytest

from brain.config import variables

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"
ROWS = re.findall(r"^\| `(\w+(?:\.\w+)*)` \| (\d+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("name", "value", "what", "why"), ROWS, ids=[row[0] for row in ROWS])
def test_a_limit_is_what_the_page_says(name: str, value: str, what: str, why: str) -> None:
    if name.startswith("BRAIN_"):
        found = variables()[name].default
    else:
        module, *path = name.split(".")
        found = reduce(getattr, path, import_module(f"brain.{module}"))
    assert float(found) == float(value)
    assert what
    assert why


def test_no_limit_is_left_out() -> None:
    assert len(ROWS) == PAGE.read_text().count("\n| `")
    named = {name for name, *_ in ROWS}
    for module in ("guard", "seam", "websocket", "admission", "tokens"):
        for name in vars(import_module(f"brain.{module}")):
            if re.match("MOST_|BURST$|RATE$", name) and name not in ("MOST_VALUES", "MOST_CHARACTERS"):
                assert f"{module}.{name}" in named | INTERNAL, f"{module}.{name}"


INTERNAL = {
    "seam.MOST_BEHIND",  # problems.MAX_BODY, and how it is cut into chunks
    "guard.MOST_REMEMBERED",  # nobody meets it
}
