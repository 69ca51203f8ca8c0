"""The report of the benchmarks, from results as their programs write them."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import readmes, report
from benchmarks.plan import LIMIT_MINUTES, PLAN
from tests.support import ROOT

MACHINE = {"cpu": "Some CPU, 2596 MHz", "cores": 2, "memory_gb": 24, "load_average": 0.1}


def spread(value: float) -> dict[str, float]:
    return {"min": value, "median": value, "max": value}


def result(jobs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "command": "python -m benchmarks.latency",
        "day": "2026-11-27",
        "machine": MACHINE,
        "jobs": jobs,
        **more,
    }


def test_a_table_names_the_server_that_cannot_be_built_and_the_one_that_fell_behind(
    tmp_path: Path,
) -> None:
    rows = {"brain": {"figures": {"p99": spread(8.5)}}}
    latency = result(
        {"some load": rows, "another": rows},
        skipped={"socketify": "no libuv"},
        absent={"some load": {"fastapi": "fell behind at a smaller one"}},
    )
    lines = report.section("latency", latency, tmp_path)
    heads = [line for line in lines if line.startswith("**")]
    assert heads == [
        (
            "**some load**: without socketify (uWebSockets, C++) + LISTEN, which cannot be built "
            "here (no libuv); FastAPI + LISTEN, which fell behind at a smaller one"
        ),
        (
            "**another**: without socketify (uWebSockets, C++) + LISTEN, which cannot be built "
            "here (no libuv)"
        ),
    ]


def test_a_table_names_the_server_that_failed_and_the_run_that_did(tmp_path: Path) -> None:
    rows = {"brain": {"figures": {"p99": spread(8.5)}}}
    failed = {
        "socketify: 200 clients": "it did not start",
        "node_ws: another": "it ended",
        "brain: a third": "no answer",
        "the run of 2026-11-28": "it ended with 1",
    }
    latency = result({"some load": rows, "another": rows}, failed=failed)
    lines = report.section("latency", latency, tmp_path)
    without = (
        "without socketify (uWebSockets, C++) + LISTEN, which failed (it did not start); "
        "Node.js ws + pg LISTEN, which failed (it ended)"
    )
    assert [line for line in lines if line.startswith("**")] == [
        f"**some load**: {without}",
        f"**another**: {without}",
    ]
    assert "Failed: the run of 2026-11-28: it ended with 1" in lines


def test_a_figure_that_was_not_measured_is_said_to_be_so() -> None:
    target = {"what": "p99 ms", "reached": None, "rule": "at most 70", "met": False}
    lines = report.reached({"latency": result({}, targets=[target])})
    assert (
        "| p99 ms | at most 70 | not measured | **no** | [latency](#latency) | 2026-11-27 |"
    ) in lines


@pytest.mark.parametrize("readme", readmes.READMES)
def test_a_readme_names_the_days_and_the_machine(readme: str, tmp_path: Path) -> None:
    named = MACHINE | {"postgresql": "postgres (PostgreSQL) 18.4", "kernel": "6.18.44-fc"}
    older = result({}, machine=named) | {"day": "2026-11-21"}
    results = {"latency": result({}, machine=named), "fanout": older}
    for name in readmes.READMES:
        (tmp_path / name).write_text((ROOT / name).read_text())
    for _ in range(2):  # a second report replaces the first
        readmes.write(results, tmp_path)
    text = (tmp_path / readme).read_text()
    line = next(line for line in text.splitlines() if "2026-11-21, 2026-11-27" in line)
    assert text.count(line) == 1
    for part in ("Some CPU", "2", "24 GB", "PostgreSQL 18.4", "Linux 6.18.44"):
        assert part in line


def test_each_result_names_its_day_and_its_machine(tmp_path: Path) -> None:
    text = "\n".join(report.section("latency", result({}), tmp_path))
    assert "2026-11-27, Some CPU, 2 cores, 24 GB" in text
    machines = "\n".join(report.machines({"latency": result({}), "fanout": result({})}))
    assert "Some CPU" in machines
    assert machines.count("2026-11-27, load average before 0.1") == 2


@pytest.mark.parametrize("readme", readmes.READMES)
def test_a_readme_gets_the_figures_that_decide(readme: str) -> None:
    behind = {"p99": spread(9000.0), "behind": spread(1.0)}
    steady = {
        "brain": {"figures": {"p99": spread(8.512)}},
        "node_ws": {"figures": behind},
    }
    latency = result(
        {readmes.ROWS[1].job: steady},
        absent={readmes.ROWS[1].job: {"fastapi": "fell behind at a smaller one"}},
    )
    table = readmes.short_table({"latency": latency}, readme)
    _, fell_behind, absent = readmes.READMES[readme]
    cells = [cell.strip() for cell in table.splitlines()[3].split("|")[2:-1]]
    assert cells == ["8.51 ms", absent, absent, fell_behind, fell_behind]


@pytest.mark.parametrize("readme", readmes.READMES)
def test_a_readme_has_one_table_to_replace(readme: str) -> None:
    assert len(readmes.TABLE.findall((ROOT / readme).read_text())) == 1


def test_the_plan_fits_its_limit() -> None:
    assert sum(step.minutes for step in PLAN) <= LIMIT_MINUTES


@pytest.mark.parametrize("step", PLAN, ids=lambda step: step.name)
def test_each_program_of_the_plan_has_a_title_and_a_quick_run(step: Any) -> None:
    module = importlib.import_module(f"benchmarks.{step.name}")
    title, what, _ = report.described(step.name)
    assert title
    assert what
    assert re.search(rf"`python -m benchmarks\.{step.name} \[--quick\]", module.__doc__ or "")
