"""The list that Runs begins with: all active runs, and as many finished ones as are to be held."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

from pydantic import BaseModel

from brain.client.api import API, Unanswered
from brain.client.endings import Ending
from brain.contract.messages import ACTIVE, STATUSES, Moment, RunData

Filter: TypeAlias = Mapping[str, Sequence[str]]
Query: TypeAlias = list[tuple[str, str]]

LIMIT: Final = 1000
"""Runs of a page, the most that Brain gives."""


class Page(BaseModel):
    """An answer of GET /api/runs."""

    runs: list[RunData]
    next_cursor: str | None
    timestamp: Moment | None
    complete: bool = False
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    runs: list[RunData]
    """Those that changed last are at the end, as far as it is known."""
    complete: bool
    """Every run that matches is there."""
    timestamp: datetime
    """`since` brings every change that the list may lack."""


async def load(api: API, wanted: Filter, max_finished: int) -> Listed:
    """Raises Unanswered and WatchError.

    What a later request shows is at least as new, so it counts. A run that is in none, because it
    moved from one status to another meanwhile, comes with `since` the first answer.
    """
    statuses = wanted["status"] or STATUSES
    active = [each for each in statuses if each in ACTIVE]
    ended = [each for each in statuses if each not in ACTIVE]
    runs: dict[str, RunData] = {}
    first: Page | None = None
    complete = True
    if active:
        first, _ = await _all(api, _query(wanted, active), runs, None)
    if ended:
        # What changed last, and how many there are: a table may have millions.
        latest = await _page(api, [*_query(wanted, ended), ("order", "changed")])
        first = first or latest
        newest = list(reversed(latest.runs[:max_finished]))
        if max_finished and (latest.total is None or latest.total <= max_finished):
            _, complete = await _all(api, _query(wanted, ended), runs, max_finished + len(runs))
            newest = [runs.get(run.id, run) for run in newest]
        else:
            complete = latest.total == 0
        for run in newest:
            runs.pop(run.id, None)  # to the end
            runs[run.id] = run
    assert first is not None, "a status is active or ended"
    if first.timestamp is None:
        raise Unanswered(Ending("Brain has not read the table yet"))
    return Listed(list(runs.values()), complete, first.timestamp)


def _query(wanted: Filter, statuses: Sequence[str]) -> Query:
    given = {**wanted, "status": statuses}
    query = [(name, value) for name, values in given.items() for value in values]
    return [*query, ("limit", str(LIMIT))]


async def _all(
    api: API, query: Query, runs: dict[str, RunData], most: int | None
) -> tuple[Page, bool]:
    """Read pages into `runs`, until it has `most`: the first page, and whether these are all."""
    first = page = await _page(api, query)
    while True:
        runs |= {run.id: run for run in page.runs}
        if page.next_cursor is None:
            return first, most is None or len(runs) <= most
        if most is not None and len(runs) >= most:
            return first, False
        page = await _page(api, [*query, ("cursor", page.next_cursor)])


async def _page(api: API, query: Query) -> Page:
    return await api.get("/api/runs", query, Page)
