"""The runs that `brain watch` shows: what is known of each, and which come first. Pure."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from brain.client.events import Message
from brain.client.store import Change, Store
from brain.contract.messages import ACTIVE, CUT, RunData

MAX_FINISHED: Final = 1000
"""Finished runs that are kept; the one that changed first goes first."""

MAX_FAILURES: Final = 10
"""Failures that the summary names."""


@dataclass(frozen=True, slots=True)
class Row:
    run: RunData
    changed: float
    """When, in seconds since 1970 by the database."""

    def is_quiet(self, now: float, quiet: float) -> bool:
        return self.run.status == "running" and now - self.changed >= quiet

    def started(self) -> float:
        """Runs that do not say when they started come last."""
        return self.run.started_at.timestamp() if self.run.started_at else 0.0


class Overview:
    """`statuses`: only these are shown. A message about another one says that a run has left.

    Not the other filters: their values may be written in another form than messages have.
    """

    def __init__(self, statuses: Collection[str] = ()) -> None:
        self._store = Store({"status": tuple(statuses)}, MAX_FINISHED)
        self._changed: dict[str, float] = {}
        """When each run that is shown changed last."""
        self._ends: OrderedDict[str, str] = OrderedDict()
        """The runs that ended last, shown or not: id → status, in the order of change."""
        self.ended: Counter[str] = Counter()
        """Ends that were seen, of each status."""
        self.failures: dict[str, RunData] = {}
        """The latest of them."""

    def __len__(self) -> int:
        return len(self._store)

    def take(self, message: Message) -> None:
        run = message.data
        self._changed[run.id] = message.timestamp.timestamp()
        self._forget(self._store.take(run))
        if run.id not in self._store:
            self._changed.pop(run.id, None)
        before = self._ends.pop(run.id, None)
        if run.status in ACTIVE:
            return
        self._ends[run.id] = run.status
        if len(self._ends) > MAX_FINISHED:
            self._ends.popitem(last=False)
        if before != run.status:  # else it is sent once more, after an outage
            self._count(run)

    def _count(self, run: RunData) -> None:
        self.ended[run.status] += 1
        if run.status == "failed":
            self.failures.pop(run.id, None)
            self.failures[run.id] = run
            if len(self.failures) > MAX_FAILURES:
                del self.failures[next(iter(self.failures))]

    def remove(self, run_id: str) -> None:
        """The run was deleted."""
        self._forget(self._store.remove(run_id))
        self._ends.pop(run_id, None)

    def clear(self) -> None:
        """Brain cannot say what changed. What was seen stays counted."""
        self._forget(self._store.replace([], complete=False))

    def _forget(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.run is None:
                self._changed.pop(change.id, None)

    def _rows(self) -> Iterator[Row]:
        return (Row(run, self._changed[run.id]) for run in self._store)

    def counts(self) -> Counter[str]:
        return Counter(run.status for run in self._store)

    def ordered(self, now: float, quiet: float) -> tuple[list[Row], list[Row]]:
        """The runs that need attention, and the others. First: failed, the latest failure on top;
        then quiet, the longest on top. Second: running, queued, completed. Only a new run, or a
        run's own change of status, moves rows.
        """
        failed: list[Row] = []
        silent: list[Row] = []
        others: dict[str, list[Row]] = {"running": [], "queued": [], "completed": []}
        for row in self._rows():
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


def gist(error: str) -> str:
    """The last line of a Python traceback, which says what went wrong. The page does the same, in
    page/row.js.
    """
    if error.startswith("Traceback (most recent call last)") and not error.endswith(CUT):
        return error.rstrip().rpartition("\n")[2]
    return error


def height(row: Row) -> int:
    """Lines: a failed run has its error below it."""
    return 2 if row.run.status == "failed" and row.run.error else 1
