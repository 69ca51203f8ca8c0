"""wait(): the end of a run, which no outage hides."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

from websockets.datastructures import HeadersLike

from brain.client.api import API, Unanswered
from brain.client.endings import WatchError
from brain.client.events import Away, Connected, Deleted, Message
from brain.client.events import Event as Watched
from brain.client.pages import portions
from brain.client.watch import TIMING, Timing, Token, watch
from brain.contract.messages import ACTIVE, RunData, Status


@dataclass(frozen=True, slots=True)
class Ended:
    """A run has ended, or has one of the statuses that are waited for."""

    run_id: str
    """As it was given: the table may print it in another form."""
    run: RunData


@dataclass(frozen=True, slots=True)
class Gone:
    """A run was deleted. Or it does not exist, and must."""

    run_id: str
    existed: bool
    detail: str = ""
    """Why its row is no run, if there still is one."""

    def __str__(self) -> str:
        if self.detail:
            return f"run {self.run_id!r} is not shown{' any more' * self.existed}: {self.detail}"
        return f"run {self.run_id!r} {'was deleted' if self.existed else 'does not exist'}"


@dataclass(frozen=True, slots=True)
class Hidden:
    """There is a row with this id, but it is no run. Reported once: it may become one."""

    run_id: str
    detail: str


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no run with this id, yet. Reported once: nobody sees otherwise that it is wrong."""

    run_id: str


@dataclass(frozen=True, slots=True)
class Silent:
    """The API gives no answer now, so an end may be noticed late. Reported once per outage."""

    reason: str


Outcome: TypeAlias = Ended | Gone
Event: TypeAlias = Outcome | Connected | Away | Silent | Hidden | Absent


async def wait(
    url: str,
    run_id: str,
    *,
    until: Status | Iterable[Status] = (),
    timeout: float | None = None,  # noqa: ASYNC109 - asyncio.timeout() is what it becomes
    must_exist: bool = False,
    token: Token | None = None,
    additional_headers: HeadersLike | None = None,
    timing: Timing = TIMING,
    **options: Any,
) -> RunData:
    """Wait until a run has ended or has one of the statuses `until`, and return it.

    An end always counts, because no other status follows: check the `status` of the result.
    A run that does not exist yet is waited for, unless it `must_exist`. The other arguments are
    those of watch(). `url` ends in /ws; the API is expected beside it, at /api.

    Raises TimeoutError after `timeout` seconds, and WatchError if no retry can succeed or if there
    is no such run, or no more (its `code` is 404).
    """
    events = outcomes(
        url,
        [run_id],
        until=until,
        must_exist=must_exist,
        token=token,
        additional_headers=additional_headers,
        timing=timing,
        **options,
    )
    async with asyncio.timeout(timeout), contextlib.aclosing(events):
        async for event in events:
            match event:
                case Ended(run=run):
                    return run
                case Gone():
                    raise WatchError(str(event), 404)
                case _:
                    continue
    raise AssertionError("there is an outcome for each run")


async def outcomes(
    url: str,
    run_ids: Iterable[str],
    *,
    until: Status | Iterable[Status] = (),
    must_exist: bool = False,
    token: Token | None = None,
    additional_headers: HeadersLike | None = None,
    timing: Timing = TIMING,
    **options: Any,
) -> AsyncGenerator[Event]:
    """Yield an Outcome for each run, once, and until then what happens to the connection.

    The arguments are those of wait(). Raises WatchError. Use contextlib.aclosing().
    """
    statuses = {until} if isinstance(until, str) else set(until)
    waiter = _Waiter(run_ids, statuses, timing, must_exist=must_exist)
    api = API(url, token=token, additional_headers=additional_headers, options=options)
    groups = list(portions(list(waiter.pending)))
    work: list[Awaitable[None]] = [waiter.ask(api, new_token=callable(token))]
    for number, group in enumerate(groups):
        events = watch(
            url,
            run_id=group,
            include="deleted",
            token=token,
            additional_headers=additional_headers,
            timing=timing,
            **options,
        )
        work.append(waiter.listen(events, number, len(groups)))
    tasks = [asyncio.create_task(waiter.guarded(each)) for each in work]
    try:
        while waiter.pending or not waiter.events.empty():
            event = await waiter.events.get()
            if isinstance(event, Exception):
                raise event
            yield event
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Waiter:
    """Subscribes, then asks.

    No message reports an end that came before the subscription; the answer to the GET does. An end
    that comes after the GET is in a message.
    """

    def __init__(
        self, run_ids: Iterable[str], statuses: set[Status], timing: Timing, *, must_exist: bool
    ) -> None:
        self.pending = dict.fromkeys(run_ids, False)
        """The runs without an outcome → whether each is known to exist."""
        self.events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._names = {run_id: run_id for run_id in self.pending}
        """An id as the table prints it → as it was given: a uuid may have been in capitals."""
        self._statuses = statuses
        self._timing = timing
        self._must_exist = must_exist
        self._wake = asyncio.Event()
        self._connected: set[int] = set()
        self._away = False
        self._hidden: set[str] = set()
        """Those that were reported as Hidden."""
        self._absent: set[str] = set()
        """Those that were reported as Absent."""

    async def guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - outcomes() raises it
            self.events.put_nowait(error)

    async def listen(self, events: AsyncGenerator[Watched], number: int, count: int) -> None:
        """Subscription `number` of `count`: to the caller of wait(), all are one connection."""
        async with contextlib.aclosing(events):
            async for event in events:
                match event:
                    case Connected():
                        self._wake.set()
                        self._connected.add(number)
                        if len(self._connected) == count:
                            self._away = False
                            self.events.put_nowait(event)
                    case Away():
                        self._connected.discard(number)
                        if not self._away:
                            self._away = True
                            self.events.put_nowait(event)
                    case Deleted(id=run_id):
                        name = self._names.get(run_id)
                        if name in self.pending:
                            self.pending[name] = True
                        if name is None or name in self.pending:
                            # It may have been inserted again; or the table prints an id that was
                            # given in another form.
                            self._wake.set()
                    case Message(data=run):
                        if (name := self._names.get(run.id)) is None:
                            self._wake.set()  # the answer to a GET tells whose id this is
                        elif name in self.pending:
                            self._look(name, run)
                    case _:
                        continue

    async def ask(self, api: API, *, new_token: bool) -> None:
        """Ask after each connect and deletion, and every `ask_every` seconds: while Brain does not
        stream, no message reports the deletion of every run.
        """
        failures, pause = 0, self._timing.ask_every
        while self.pending:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()
            try:
                for run_id in list(self.pending):
                    await self._ask_for(api, run_id)
            except Unanswered as error:
                # `run_id` is the one that was asked for.
                error.ending.raise_if_final(f"run {run_id!r}", new_token=new_token)
                if not failures and not self._away:
                    self.events.put_nowait(Silent(error.ending.reason))
                failures += 1
                pause = error.ending.at_least + self._timing.delay(failures)
            else:
                failures, pause = 0, self._timing.ask_every

    async def _ask_for(self, api: API, run_id: str) -> None:
        # Before the request: a message may announce a new run while a 404 is on its way.
        existed = self.pending.get(run_id)
        if existed is None:
            return
        found = await api.get_run(run_id)
        if run_id not in self.pending:
            return
        if isinstance(found, RunData):
            self._names[found.id] = run_id
            self._look(run_id, found)
        elif existed or self._must_exist:
            self._settle(Gone(run_id, existed, found.detail))
        elif found.detail and run_id not in self._hidden:
            self._hidden.add(run_id)
            self.events.put_nowait(Hidden(run_id, found.detail))
        elif not (found.detail or self.pending[run_id] or run_id in self._absent):
            self._absent.add(run_id)
            self.events.put_nowait(Absent(run_id))

    def _look(self, run_id: str, run: RunData) -> None:
        self.pending[run_id] = True
        if run.status in self._statuses or run.status not in ACTIVE:
            self._settle(Ended(run_id, run))

    def _settle(self, outcome: Outcome) -> None:
        del self.pending[outcome.run_id]
        self.events.put_nowait(outcome)
