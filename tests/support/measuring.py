"""What coverage measures: as little as shows which lines and branches the tests reach.

To measure a process takes as much time again as it does.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

_UNIT = ROOT / "tests" / "unit"

_cases: set[tuple[Path, str, str, str]] = set()


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Coverage measures nothing in this process meanwhile."""
    import coverage

    measuring = coverage.Coverage.current()
    if measuring is None:
        yield
        return
    measuring.stop()
    try:
        yield
    finally:
        measuring.start()


def is_measured(item: pytest.Item) -> bool:
    """Of a test that has cases, the first of each source of changes: the others take the same path,
    but in unit tests, whose cases are often the branches of one function.
    """
    callspec = getattr(item, "callspec", None)
    if callspec is None or item.path.is_relative_to(_UNIT):
        return True
    given = callspec.params
    name = getattr(item, "originalname", item.name)
    case = (item.path, name, str(given.get("mode")), str(given.get("source")))
    known = case in _cases
    _cases.add(case)
    return not known
