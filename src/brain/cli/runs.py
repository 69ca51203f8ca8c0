"""The runs that `brain watch` shows: what is known of each, and which come first. Pure."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from brain.client.events import Message
from brain.contract.messages import ACTIVE, RunData

MAX_FINISHED: Final = 1000
"""Finished runs that are kept; the one that changed first goes first."""

MAX_FAILURES: Final = 10
"""Failures that the summary names."""


@dataclass(frozen=True, slots=True)
class Row:
    run: RunData
    changed: float
    """When, in seconds since 1970 by the database."""

    def is_quiet(self, now: float | None, quiet: float) -> bool:
        return self.run.status == "running" and now is not None and now - self.changed >= quiet

    def started(self) -> float:
        """Runs that do not say when they started come last."""
        return self.run.started_at.timestamp() if self.run.started_at else 0.0


class Runs:
    """`statuses`: only these are shown. A message about another one says that a run has left."""

    def __init__(self, statuses: Collection[str] = ()) -> None:
        self._statuses = frozenset(statuses)
        self._rows: dict[str, Row] = {}
        self._finished: dict[str, str] = {}
        """Of the runs that ended last, shown or not: id → status, in the order of change."""
        self.ended: Counter[str] = Counter()
        """Ends that were seen, of each status."""
        self.failures: dict[str, RunData] = {}
        """The latest of them."""

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, message: Message) -> None:
        run = message.data
        before = self._finished.pop(run.id, None)
        self._rows.pop(run.id, None)
        if not self._statuses or run.status in self._statuses:
            self._rows[run.id] = Row(run, message.timestamp.timestamp())
        if run.status in ACTIVE:
            return
        self._finished[run.id] = run.status
        if before != run.status:  # else it is sent once more, after an outage
            self._count(run)
        if len(self._finished) > MAX_FINISHED:
            oldest = next(iter(self._finished))
            del self._finished[oldest]
            self._rows.pop(oldest, None)

    def _count(self, run: RunData) -> None:
        self.ended[run.status] += 1
        if run.status == "failed":
            self.failures.pop(run.id, None)
            self.failures[run.id] = run
            if len(self.failures) > MAX_FAILURES:
                del self.failures[next(iter(self.failures))]

    def clear(self) -> None:
        """Brain cannot say what changed. What was seen stays counted."""
        self._rows.clear()

    def counts(self) -> Counter[str]:
        return Counter(row.run.status for row in self._rows.values())

    def ordered(self, now: float | None, quiet: float) -> tuple[list[Row], list[Row]]:
        """Who needs somebody: failed, the latest first, then quiet, for longest first. The others:
        running, queued, completed. Only a new run, or a run's own change of status, moves rows.
        """
        failed: list[Row] = []
        silent: list[Row] = []
        others: dict[str, list[Row]] = {"running": [], "queued": [], "completed": []}
        for row in self._rows.values():
            if row.run.status == "failed":
                failed.append(row)
            elif row.is_quiet(now, quiet):
                silent.append(row)
            else:
                others[row.run.status].append(row)
        failed.sort(key=lambda row: (-row.changed, row.run.id))
        silent.sort(key=lambda row: (row.changed, row.run.id))
        others["running"].sort(key=lambda row: (-row.started(), row.run.id))
        others["queued"].sort(key=lambda row: row.run.id)
        others["completed"].sort(key=lambda row: (-row.changed, row.run.id))
        return failed + silent, [row for group in others.values() for row in group]


def fitting(urgent: list[Row], others: list[Row], lines: int) -> list[Row]:
    """The rows that fit into so many lines. Old failures do not hide what runs: they get half."""
    reserved = min(lines // 2, len(others))
    shown: list[Row] = []
    left = lines - reserved
    for row in urgent:
        left -= height(row)
        if left < 0:
            break
        shown.append(row)
    used = sum(map(height, shown))
    return [*shown, *others[: max(0, lines - used)]]


def height(row: Row) -> int:
    """Lines: a failed run has its error below it."""
    return 2 if row.run.status == "failed" and row.run.error else 1
