"""The sign of freshness, and what it stops."""

from datetime import UTC, datetime

import pytest
from rich.console import Console

from brain.cli.clock import DatabaseClock
from brain.cli.runs import Runs
from brain.cli.table import View
from brain.client.events import Source
from brain.contract.include import SourceName

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


def view(**state: object) -> View:
    return View("ws://here/ws", Runs(), DatabaseClock(lambda: 0.0), 300, 100.0, **state)  # type: ignore[arg-type]


def source(name: SourceName, lag: float | None, detail: str | None = None) -> Source:
    return Source(name, None, detail, lag, NOON, "")


@pytest.mark.parametrize(
    ("shown", "at", "says"),
    [
        (view(), 105, "connecting for 5s"),
        (view(away="refused\x1b"), 160, "disconnected for 1m 00s (refused\\x1b); trying again"),
        (view(connected=True), 100, "live"),
        (view(connected=True, source=source("replication", 0.4), heard=100), 109, "live"),
        (view(connected=True, source=source("poll", 0.4), heard=100), 100, "live, polled"),
        (
            view(connected=True, source=source("replication", 6.2), heard=100),
            101,
            "behind the database by 7s",
        ),
        (
            view(connected=True, source=source("replication", 0.4), heard=100),
            111,
            "behind the database by 11s",
        ),
        (
            view(connected=True, source=source("none", 9.0, "it is away"), heard=100),
            100,
            "Brain cannot read the database (it is away)",
        ),
        (
            view(connected=True, source=source("poll", None), heard=100),
            100,
            "Brain has not read the table yet",
        ),
        (view(away="it broke", source=source("replication", 0.0)), 101, "disconnected for 1s ("),
    ],
)
def test_the_first_line_is_the_worse_of_the_two_hops(shown: View, at: float, says: str) -> None:
    line = shown.freshness(at).plain
    assert line.startswith(says)
    assert line.endswith("  ws://here/ws")
    shown.clock.received(NOON, pushed=True)
    shown.tick(at)
    assert shown.clock.frozen is not says.startswith("live")


@pytest.mark.parametrize("columns", [1, 7, 40, 80, 300])
@pytest.mark.parametrize("lines", [1, 2, 3, 4, 24])
def test_it_has_exactly_the_size_of_the_screen(columns: int, lines: int) -> None:
    console = Console(force_terminal=True, width=80)
    drawn = view(away="任" * 500).render(console, columns, lines)
    assert len(drawn) == lines
    assert {sum(segment.cell_length for segment in line) for line in drawn} == {columns}
