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
from datetime import datetime
from typing import Any, Final, Self, assert_never

from websockets.datastructures import HeadersLike

from brain.client.api import API, Unanswered
from brain.client.clock import DatabaseClock
from brain.client.endings import WatchError
from brain.client.events import Away, Connected, Deleted, Message, Ready, Source
from brain.client.freshness import Evidence, Freshness
from brain.client.pages import load
from brain.client.store import Change, Store
from brain.client.watch import TIMING, Timing, Token, watch
from brain.contract.include import Include
from brain.contract.messages import ACTIVE, RunData, Status

INCLUDE: Final[tuple[Include, ...]] = ("deleted", "ready", "source")

MAX_FINISHED: Final = 10_000
"""Finished runs that a store holds, by default."""


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
        self._store = Store(self._filter, finished)
        self._clock = DatabaseClock()
        self._evidence = Evidence(self._clock)
        self._told = "connecting"
        """The state that the listeners know."""
        self._doubting: asyncio.TimerHandle | None = None
        """What is current becomes old by itself."""
        self._asking: asyncio.Task[None] | None = None
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
        if self._doubting is not None:
            self._doubting.cancel()
        for task in (self._task, self._asking):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, WatchError):
                    await task

    # What it holds

    def get(self, run_id: str) -> RunData | None:
        return self._store.get(run_id)

    def __contains__(self, run_id: object) -> bool:
        return run_id in self._store

    def __len__(self) -> int:
        return len(self._store)

    def __iter__(self) -> Iterator[RunData]:
        """The runs of this moment, in no order: the store may change during the iteration."""
        return iter(list(self._store))

    @property
    def freshness(self) -> Freshness:
        return self._evidence.freshness

    @property
    def complete(self) -> bool:
        """Every run that matches is there. If not, finished ones may be missing."""
        return self._store.complete

    def now(self) -> float:
        """What time it is in the database, in seconds since 1970, to compare with `started_at`."""
        return self._clock.now()

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
            clock=self._clock,
        )
        failures = 0
        monotonic = asyncio.get_running_loop().time
        try:
            while True:
                before = [run.id for run in self._store if run.status in ACTIVE]
                try:
                    found = await load(api, self._filter, self._max_finished, before)
                except Unanswered as error:
                    error.ending.raise_if_final(self._url, new_token=callable(self._token))
                    self._evidence.leave(error.ending.reason)
                    self._tell()
                    failures += 1
                    await asyncio.sleep(error.ending.at_least + self._timing.delay(failures))
                    continue
                loaded_at = monotonic()
                self._tell(self._store.replace(found.runs, complete=found.complete))
                await self._watch(api, found.timestamp)
                # Brain's memory does not reach back to the list: a busy server evicts quickly.
                failures = 0 if monotonic() - loaded_at > self._timing.steady else failures + 1
                if failures:
                    await asyncio.sleep(self._timing.delay(failures))
        except WatchError as error:
            self._evidence.end(error.code, str(error))
            self._tell()
            raise

    async def _watch(self, api: API, since: datetime) -> None:
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
        evidence = self._evidence
        async with contextlib.aclosing(events):
            async for event in events:
                changes: Sequence[Change] = ()
                match event:
                    case Connected(reset=True):
                        evidence.leave()
                        return
                    case Connected():
                        self._ask_time(api)
                    case Ready():
                        evidence.ready()
                        self._loaded.set()
                    case Source():
                        evidence.report(event)
                        self._ask_time(api)
                    case Message(data=run, timestamp=timestamp):
                        self._clock.hear(timestamp, pushed=evidence.is_ready)
                        changes = self._store.take(run)
                    case Deleted(id=run_id):
                        changes = self._store.remove(run_id)
                    case Away(reason=reason):
                        evidence.leave(reason)
                    case _:
                        assert_never(event)
                self._tell(changes)

    def _ask_time(self, api: API) -> None:
        """The machine has slept, or its clock was set: ask somebody what time it is."""
        if self._clock.is_doubtful and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(api.ask_time(), name="brain runs: time")

    def _tell(self, changes: Sequence[Change] = ()) -> None:
        state = self._evidence.freshness.state
        if changes or state != self._told:
            self._told = state
            for listener in list(self._listeners.values()):
                listener(changes)
        if not changes:
            self._doubt_later()

    def _doubt_later(self) -> None:
        """Tell the listeners when the runs are no longer current because nothing has arrived."""
        if self._doubting is not None:
            self._doubting.cancel()
            self._doubting = None
        if (seconds := self._evidence.doubted_in) is not None:
            later = asyncio.get_running_loop().call_later
            self._doubting = later(seconds + 0.001, self._tell)
