"""Runs: the runs of a Brain, held current: the list, and each change of it, without a gap.

    from brain import Runs

    async with Runs("ws://localhost:5221/ws", agent="agent-1") as runs:
        for run in runs:
            print(run.id, run.status)
        async for change in runs.changes():
            print(change.id, change.run.status if change.run else "gone")

First the list, then `since` its timestamp: that brings every change which the list may lack. The
other order would leave it open which of two states of a run is newer.
"""

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal, Self, TypeAlias, assert_never

from websockets.datastructures import HeadersLike

from brain.client.api import API, Unanswered
from brain.client.endings import WatchError
from brain.client.events import Away, Connected, Deleted, Message, Ready, Source
from brain.client.pages import load
from brain.client.watch import TIMING, Timing, Token, watch
from brain.contract.include import Include
from brain.contract.messages import ACTIVE, RunData, Status

State: TypeAlias = Literal["connecting", "live", "polled", "behind", "away", "ended"]

INCLUDE: Final[tuple[Include, ...]] = ("deleted", "ready", "source")

BEHIND: Final = 8.0
"""Seconds that Brain may be behind the database, or may have said nothing about it, before the
store is no longer live. Brain reports it every 5 s."""

MAX_FINISHED: Final = 10_000
"""Finished runs that a store holds, by default."""


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of one run in the store."""

    id: str
    run: RunData | None
    """None: the run has left the store. Its row was deleted, or it no longer matches, or it has
    finished and others have finished since."""
    previous: RunData | None
    """What the store held before."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old the runs of a store may be."""

    state: State
    """`connecting`: what has changed since the list is on its way. `live`: each change arrives at
    once. `polled`: as `live`, a moment later, because Brain polls. `behind`: connected, and Brain
    cannot say whether it knows the latest changes. `away`: disconnected, and trying again. `ended`:
    Brain refuses, and the store stays as it is."""
    at: datetime | None = None
    """When the last change was committed that was received, by the database's clock."""
    reason: str = ""
    """Why it is not live."""


class Runs:
    """Entering it waits until the list is there, and what changed since, over every outage. Raises
    WatchError if no retry can succeed.

    The filters are those of watch(): write their values as Brain sends them. Of the runs that have
    ended it holds at most `finished`, the latest that are known; then `complete` is false. The
    other arguments are those of watch().
    """

    def __init__(
        self,
        url: str,
        *,
        run_id: str | Iterable[str] = (),
        task_id: str | Iterable[str] = (),
        agent: str | Iterable[str] = (),
        status: Status | Iterable[Status] = (),
        finished: int = MAX_FINISHED,
        token: Token | None = None,
        additional_headers: HeadersLike | None = None,
        timing: Timing = TIMING,
        **options: Any,
    ) -> None:
        if finished < 0:
            raise ValueError(f"finished is a number of runs, 0 or more, not {finished}")
        self._url = url
        self._filter = {
            name: (values,) if isinstance(values, str) else tuple(values)
            for name, values in (
                ("run_id", run_id),
                ("task_id", task_id),
                ("agent", agent),
                ("status", status),
            )
        }
        self._max_finished = finished
        self._token = token
        self._headers = additional_headers
        self._timing = timing
        self._options = options
        self._runs: dict[str, RunData] = {}
        self._done: OrderedDict[str, None] = OrderedDict()
        """Ids of finished runs, the one that changed last at the end."""
        self._complete = False
        self._freshness = Freshness("connecting")
        self._ready = False
        """What changed since the list has been received, on this connection."""
        self._source: Source | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._loaded = asyncio.Event()
        self._listeners: dict[object, Callable[[Sequence[Change]], None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._follow(), name="brain runs")
        loaded = asyncio.create_task(self._loaded.wait())
        try:
            await asyncio.wait({self._task, loaded}, return_when=asyncio.FIRST_COMPLETED)
            if self._task.done():
                self._task.result()
        except BaseException:
            await self._stop()
            raise
        finally:
            loaded.cancel()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _stop(self) -> None:
        assert self._task is not None
        self._cancel_overdue()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, WatchError):
            await self._task

    # What it holds

    def get(self, run_id: str) -> RunData | None:
        return self._runs.get(run_id)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[RunData]:
        """In no order. The runs of this moment: the store may change meanwhile."""
        return iter(list(self._runs.values()))

    @property
    def freshness(self) -> Freshness:
        return self._freshness

    @property
    def complete(self) -> bool:
        """Every run that matches is there. If not, finished ones may be missing."""
        return self._complete

    # What becomes of it

    def subscribe(self, listener: Callable[[Sequence[Change]], None]) -> Callable[[], None]:
        """Call `listener` after each change, with what changed: nothing, if only `freshness` did.

        Returns a function that ends it. What the listener raises ends the store.
        """
        key = object()
        self._listeners[key] = listener

        def end() -> None:
            self._listeners.pop(key, None)

        return end

    async def changes(self) -> AsyncGenerator[Change]:
        """Each change from now on. If you are slower than they come, only the latest of each run.

        It ends with the store. Raises WatchError if Brain has refused.
        """
        task = self._task
        if task is None:
            raise RuntimeError("enter it first: async with Runs(…) as runs")
        pending: OrderedDict[str, Change] = OrderedDict()
        woken = asyncio.Event()

        def note(changes: Sequence[Change]) -> None:
            for each in changes:
                earlier = pending.pop(each.id, None)
                previous = each.previous if earlier is None else earlier.previous
                pending[each.id] = Change(each.id, each.run, previous)
            woken.set()

        def wake(_: object) -> None:
            woken.set()

        end = self.subscribe(note)
        task.add_done_callback(wake)
        try:
            while True:
                while pending:
                    _, change = pending.popitem(last=False)
                    if change.run != change.previous:
                        yield change
                if task.done():
                    if not task.cancelled():
                        task.result()
                    return
                woken.clear()
                await woken.wait()
        finally:
            task.remove_done_callback(wake)
            end()

    # How it is kept

    async def _follow(self) -> None:
        api = API(
            self._url,
            token=self._token,
            additional_headers=self._headers,
            options=self._options,
        )
        failures = 0
        clock = asyncio.get_running_loop().time
        try:
            while True:
                try:
                    found = await load(api, self._filter, self._max_finished)
                except Unanswered as error:
                    error.ending.raise_if_final(self._url, new_token=callable(self._token))
                    self._tell(Freshness("away", self._freshness.at, error.ending.reason))
                    failures += 1
                    await asyncio.sleep(error.ending.at_least + self._timing.delay(failures))
                    continue
                loaded_at = clock()
                self._complete = found.complete
                self._cancel_overdue()
                self._freshness = Freshness("connecting", found.timestamp)
                self._replace(found.runs)
                await self._watch(found.timestamp)
                # Brain's memory does not reach back to the list: a busy server evicts quickly.
                failures = 0 if clock() - loaded_at > self._timing.steady else failures + 1
                if failures:
                    await asyncio.sleep(self._timing.delay(failures))
        except WatchError as error:
            self._tell(Freshness("ended", self._freshness.at, str(error)))
            raise

    async def _watch(self, since: datetime) -> None:
        """Apply what happens, until Brain cannot say what has changed."""
        events = watch(
            self._url,
            since=since,
            include=INCLUDE,
            token=self._token,
            additional_headers=self._headers,
            timing=self._timing,
            **self._filter,  # type: ignore[arg-type]
            **self._options,
        )
        async with contextlib.aclosing(events):
            async for event in events:
                match event:
                    case Connected(reset=True):
                        return
                    case Connected():
                        self._ready, self._source = False, None
                        self._judge()
                    case Ready():
                        self._ready = True
                        self._judge()
                        self._loaded.set()
                    case Source():
                        self._source = event
                        self._judge()
                    case Message(data=run, timestamp=at):
                        self._freshness = replace(self._freshness, at=at)
                        self._apply(self._put(run) if self._matches(run) else self._drop(run.id))
                    case Deleted(id=run_id, timestamp=at):
                        self._freshness = replace(self._freshness, at=at)
                        self._apply(self._drop(run_id))
                    case Away(reason=reason):
                        self._cancel_overdue()
                        self._tell(Freshness("away", self._freshness.at, reason))
                    case _:
                        assert_never(event)

    def _judge(self) -> None:
        """How fresh a connected store is: by what Brain last said about its source."""
        self._cancel_overdue()
        state: State = "connecting"
        source, reason = self._source, ""
        if source is not None and self._ready:
            state, reason = "live", source.detail or ""
            if source.source == "poll":
                state = "polled"
            lag = source.lag_seconds or 0.0
            if source.source == "none" or lag > BEHIND:
                state, reason = "behind", reason or f"the database has been silent for {lag:.0f} s"
        if source is not None:
            later = asyncio.get_running_loop().call_later
            self._overdue = later(BEHIND, self._fall_behind)
        self._tell(Freshness(state, self._freshness.at, reason))

    def _fall_behind(self) -> None:
        reason = f"Brain has said nothing about its source for {BEHIND:g} s"
        self._tell(Freshness("behind", self._freshness.at, reason))

    def _cancel_overdue(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()

    def _tell(self, freshness: Freshness, changes: Sequence[Change] = ()) -> None:
        known, self._freshness = self._freshness, freshness
        if changes or known.state != freshness.state:
            for listener in list(self._listeners.values()):
                listener(changes)

    def _apply(self, *changes: Change | None) -> None:
        made = (*changes, *self._evict())
        self._tell(self._freshness, [each for each in made if each is not None])

    def _replace(self, runs: Iterable[RunData]) -> None:
        """Hold these and no others. `runs`: those that changed last at the end."""
        listed = {run.id: run for run in runs}
        dropped = [self._drop(run_id) for run_id in list(self._runs) if run_id not in listed]
        self._apply(*dropped, *map(self._put, listed.values()))

    def _put(self, run: RunData) -> Change | None:
        known = self._runs.get(run.id)
        self._runs[run.id] = run
        self._done.pop(run.id, None)
        if run.status not in ACTIVE:
            self._done[run.id] = None
        return None if known == run else Change(run.id, run, known)

    def _drop(self, run_id: str) -> Change | None:
        self._done.pop(run_id, None)
        known = self._runs.pop(run_id, None)
        return None if known is None else Change(run_id, None, known)

    def _evict(self) -> list[Change | None]:
        dropped = []
        while len(self._done) > self._max_finished:
            self._complete = False
            dropped.append(self._drop(next(iter(self._done))))
        return dropped

    def _matches(self, run: RunData) -> bool:
        """A filter of /ws also passes what a run was just before."""
        values = {"run_id": run.id, "task_id": run.task_id, "agent": run.agent}
        values["status"] = run.status
        return all(not wanted or values[name] in wanted for name, wanted in self._filter.items())
