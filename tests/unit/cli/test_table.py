"""The sign of freshness, and what it stops."""

from datetime import UTC, datetime

import pytest
from rich.console import Console

from brain.cli.runs import Overview
from brain.cli.table import View
from brain.client.clock import DatabaseClock
from brain.client.events import Source
from brain.client.freshness import Evidence
from brain.contract.include import SourceName

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


class Watched:
    """A view, whose clock a test moves. Everything began at 100 s."""

    def __init__(self, *, ready: bool = True, away: str | None = None) -> None:
        self.now = 100.0
        clock = DatabaseClock(lambda: self.now, lambda: self.now)
        evidence = Evidence(clock, lambda: self.now)
        self.view = View("ws://here/ws", Overview(), clock, evidence, 300, 100.0, away)
        clock.hear(NOON, pushed=True)
        if ready:
            evidence.ready()

    def told(self, name: SourceName, lag: float | None, detail: str | None = None) -> "Watched":
        self.view.evidence.report(Source(name, None, detail, lag, NOON, ""))
        return self


@pytest.mark.parametrize(
    ("shown", "at", "says"),
    [
        (Watched(ready=False), 105, "connecting for 5s"),
        (Watched(ready=False).told("replication", 0.4), 105, "connecting for 5s"),
        (Watched(away="refused\x1b"), 160, "disconnected for 1m 00s (refused\\x1b); trying again"),
        (Watched().told("replication", 0.4), 108, "live"),
        (Watched().told("poll", 0.4), 100, "live, polled"),
        (Watched().told("replication", 6.2), 101, "behind the database by 7s"),
        (Watched().told("replication", 0.4), 111, "behind the database by 11s"),
        (
            Watched().told("none", 9, "it is away"),
            100,
            "Brain cannot read the database (it is away)",
        ),
        (Watched().told("poll", None), 100, "Brain has not read the table yet"),
    ],
)
def test_the_first_line_is_the_worse_of_the_two_hops(shown: Watched, at: float, says: str) -> None:
    shown.now = at
    line = shown.view.freshness(at).plain
    assert line.startswith(says)
    assert line.endswith("  ws://here/ws")


def test_nothing_elapses_while_it_is_not_live() -> None:
    shown = Watched().told("replication", 0.5)
    shown.now = 108
    assert shown.view.known == NOON.timestamp() + 8
    shown.now = 160
    assert shown.view.known == NOON.timestamp() - 0.5, "until then all changes have come"


@pytest.mark.parametrize("columns", [1, 7, 40, 80, 300])
@pytest.mark.parametrize("lines", [1, 2, 3, 4, 24])
def test_it_has_exactly_the_size_of_the_screen(columns: int, lines: int) -> None:
    console = Console(force_terminal=True, width=80)
    drawn = Watched(away="任" * 500).view.render(console, columns, lines)
    assert len(drawn) == lines
    assert {sum(segment.cell_length for segment in line) for line in drawn} == {columns}
