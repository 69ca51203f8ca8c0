"""What coverage measures: as little as shows which lines and branches the tests reach.

To measure a process takes as much time again as it does.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import ROOT
from tests.support.postgres import CLUSTERS

if TYPE_CHECKING:
    import pytest
    from coverage import Coverage

QUIET = ["module-not-measured", "module-not-imported", "no-data-collected"]
"""What coverage warns of where Brain is imported, or used, only in other processes."""

VARIABLE = "COVERAGE_OF_TESTS"
asked = {name: text for name, text in os.environ.items() if name == VARIABLE}
"""The variable by which `make test` asks for coverage. No process that a test starts has it."""

variables = (
    {
        "COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml"),
        "COVERAGE_FILE": str(ROOT / ".coverage"),
    }
    if asked
    else {}
)
"""Those by which a new interpreter measures itself from its start. Only forks of Brain have them,
and so the workers that they start: every other new interpreter would run the same lines again.
"""


def begin() -> None:
    """Measure this process from here on. To measure what runs as Brain's modules are imported takes
    as long again as to import them, so only one process of a run does so.
    """
    if asked:
        import coverage

        os.environ.pop(VARIABLE, None)
        measuring = coverage.Coverage(
            config_file=variables["COVERAGE_PROCESS_START"],
            data_file=variables["COVERAGE_FILE"],
        )
        measuring.set_option("run:patch", [])
        measuring.set_option("run:disable_warnings", QUIET)
        measuring.start()


def end() -> None:
    """Write what was measured."""
    if measuring := current():
        measuring.stop()
        measuring.save()


def is_first(*kind: str) -> bool:
    """Whether no process of this run has asked for this kind before."""
    folder = os.environ.get(CLUSTERS)
    if not asked or folder is None:
        return False
    name = hashlib.sha256("\0".join(kind).encode()).hexdigest()
    try:
        (Path(folder) / f"measured-{name}").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def current() -> "Coverage | None":
    """What measures this process. Imports no coverage where nothing does."""
    module = sys.modules.get("coverage")
    return module.Coverage.current() if module else None


_UNIT = ROOT / "tests" / "unit"

_OF_PROCESSES = tuple(
    ROOT / "tests" / each
    for each in ("acceptance", "containers", "docs", "release", "integration/page")
)
"""Tests that run Brain in other processes, which are measured, and hardly a line of it here."""

_cases: set[tuple[Path, str, str, str]] = set()


@contextlib.contextmanager
def unmeasured() -> Iterator[None]:
    """Coverage measures nothing in this process meanwhile."""
    measuring = current()
    if measuring is None:
        yield
        return
    measuring.stop()
    try:
        yield
    finally:
        measuring.start()


@cache
def _is_of_processes(path: Path) -> bool:
    return any(map(path.is_relative_to, _OF_PROCESSES))


def is_measured(item: "pytest.Item") -> bool:
    """Of a test that has cases, the first of each source of changes: the others take the same path,
    but in unit tests, whose cases are often the branches of one function. No test whose Brain is
    another process.
    """
    if _is_of_processes(item.path):
        return False
    callspec = getattr(item, "callspec", None)
    if callspec is None or item.path.is_relative_to(_UNIT):
        return True
    given = callspec.params
    name = getattr(item, "originalname", item.name)
    case = (item.path, name, str(given.get("mode")), str(given.get("source")))
    known = case in _cases
    _cases.add(case)
    return not known
