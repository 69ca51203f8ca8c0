"""The list with which Runs begins: all active runs, and the finished ones that ended last.

The file client/list.js of the page does the same for JavaScript.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, TypeAlias
from urllib.parse import quote

from pydantic import BaseModel

from brain.client.api import API, Unanswered
from brain.client.endings import Ending
from brain.client.store import Filter
from brain.contract.messages import ACTIVE, STATUSES, Moment, RunData
from brain.contract.subscription import MAX_VALUES

Order: TypeAlias = Literal["id", "changed"]

LIMIT: Final = 1000
"""Runs of a page, the most that Brain gives."""

MAX_QUERY: Final = 6 * 1024
"""Bytes of the run ids in one URL. Brain takes a URL of 8 KiB."""


class Page(BaseModel):
    """An answer of GET /api/runs."""

    runs: list[RunData]
    next_cursor: str | None
    timestamp: Moment | None


@dataclass(frozen=True, slots=True)
class Listed:
    runs: list[RunData]
    """Those that ended last are at the end, as far as it is known."""
    complete: bool
    """Every run that matches is there."""
    timestamp: datetime
    """`since` brings every change that the list may lack."""


async def load(api: API, wanted: Filter, max_finished: int, before: Collection[str] = ()) -> Listed:
    """Raises Unanswered and WatchError.

    `before`: the active runs that the client holds. Those that have ended since may be beyond
    the finished ones of the list, and are asked for. What two requests show differently comes once
    more, with `since` the first answer.
    """
    statuses = wanted["status"] or STATUSES
    active = [each for each in statuses if each in ACTIVE]
    ended = [each for each in statuses if each not in ACTIVE]
    reader = _Reader(api)
    runs: dict[str, RunData] = {}
    if active:
        found, _ = await reader.read({**wanted, "status": active}, "changed")
        runs |= {run.id: run for run in found}
    missed: list[RunData] = []
    room = MAX_VALUES - sum(map(len, {**wanted, "run_id": ()}.values()))
    for group in portions([each for each in before if each not in runs], max(1, room)):
        missed += (await reader.read({**wanted, "run_id": group}, "id"))[0]
    latest: list[RunData] = []
    rest: list[RunData] = []
    complete = True
    if ended:
        latest, rest, complete = await reader.finished({**wanted, "status": ended}, max_finished)
    for run in [*reversed(rest), *missed, *reversed(latest)]:
        runs.pop(run.id, None)  # to the end
        runs[run.id] = run
    if reader.since is None:
        raise Unanswered(Ending("Brain has not read the table yet"))
    return Listed(list(runs.values()), complete, reader.since)


@dataclass(slots=True)
class _Reader:
    api: API
    since: datetime | None = field(default=None, init=False)
    """The time of the first answer."""

    async def finished(
        self, wanted: Filter, most: int
    ) -> tuple[list[RunData], list[RunData], bool]:
        """At most `most`: those that ended last, the latest first, as far as Brain remembers; and
        others. And whether these are all.
        """
        # One more than is wanted tells that there are more.
        latest, _ = await self.read(wanted, "changed", most + 1)
        if len(latest) > most:
            return latest[:most], [], False
        met = {run.id for run in latest}
        there = set()

        def is_new(run: RunData) -> bool:
            there.add(run.id)
            return run.id not in met

        rest, complete = await self.read(wanted, "id", most + 1 - len(latest), is_new)
        if complete:
            # While Brain polls, it does not notice that a finished run was deleted: the table does.
            latest = [run for run in latest if run.id in there]
        room = most - len(latest)
        return latest, rest[:room], complete and len(rest) <= room

    async def read(
        self,
        wanted: Filter,
        order: Order,
        most: int | None = None,
        passes: Callable[[RunData], bool] = lambda _: True,
    ) -> tuple[list[RunData], bool]:
        """Read pages until there are no more, or `most` runs. And whether that was all."""
        query = [(name, value) for name, values in wanted.items() for value in values]
        query.append(("order", order))
        found: list[RunData] = []
        cursor: list[tuple[str, str]] = []
        while most is None or len(found) < most:
            limit = LIMIT if most is None or order == "id" else min(LIMIT, most - len(found))
            page = await self.api.get("/api/runs", [*query, ("limit", str(limit)), *cursor], Page)
            self.since = self.since or page.timestamp
            found += filter(passes, page.runs)
            if page.next_cursor is None:
                return found, True
            cursor = [("cursor", page.next_cursor)]
        return found, False


def portions(run_ids: Sequence[str], most: int = MAX_VALUES) -> Iterator[list[str]]:
    """Ids in portions of at most `most` that fit into one URL. Only long ids need more than one."""
    portion: list[str] = []
    size = 0
    for run_id in run_ids:
        needs = len(quote(run_id, safe="")) + len("run_id=&")
        if portion and (size + needs > MAX_QUERY or len(portion) >= most):
            yield portion
            portion, size = [], 0
        portion.append(run_id)
        size += needs
    if portion:
        yield portion
