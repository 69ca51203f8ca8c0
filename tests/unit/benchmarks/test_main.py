"""`make bench`: what becomes of a program that fails or hangs."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.__main__ import within
from tests.support.patience import wait_until

HANGING = 'sleep 600 & echo $! > "$0"; wait'


def test_a_program_that_ends_well_has_not_failed() -> None:
    assert within(1, [sys.executable, "-c", ""]) == ""
    assert within(1, [sys.executable, "-c", "exit(3)"]) == "it ended with 3"


def test_a_program_that_hangs_is_ended_with_all_that_it_has_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert within(0.01, ["sh", "-c", HANGING, str(file)]).startswith("it was ended")
    child = int(file.read_text())

    def is_over() -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().split()[2] == "Z"
        except OSError:
            return True

    wait_until(is_over)


def test_a_program_that_failed_leaves_its_last_figures_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    machine.missed("latency", "it ended with 1")
    document = json.loads((tmp_path / "latency.json").read_text())
    assert document["failed"] == {f"the run of {machine.today()}": "it ended with 1"}
    assert document["jobs"] == {}

    older = document | {"day": "2026-11-21", "jobs": {"some": 1}, "failed": {}}
    (tmp_path / "latency.json").write_text(json.dumps(older))
    machine.missed("latency", "it hung")
    document = json.loads((tmp_path / "latency.json").read_text())
    assert document["day"] == "2026-11-21"
    assert document["jobs"] == {"some": 1}
    assert list(document["failed"].values()) == ["it hung"]
