"""What clients cause: a little of it is done in each turn of the event loop.

The loop hands over everything that has arrived in one turn. When thousands of clients send
something, close or vanish at once (a proxy dies, a network fails, every page asks whether its
connection is alive), that turn held up everybody else: for 120 to 200 ms when 10 000 connections
ended, for 140 ms when 3 000 clients sent a close frame, and for 290 ms when they sent a request
(`python -m benchmarks.turns`, `leaving_ms` and `closing_ms`).

The calls are made in the order in which they were added. So what a client sent, its end of stream
and its loss keep their order.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

BUDGET: Final = 0.004
"""Seconds of each turn. To take a connection down costs 15 to 30 µs, to answer an upgrade or a
close frame twice as much, and to read a hundred small frames 1.5 ms: a number of calls would bound
nothing. With twice as much, 10 000 clients that leave take turns of 47 ms instead of 34: more of
them arrive in each."""


class WorkQueue:
    """`clock`: not the loop's, which stands still during a turn."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._waiting: deque[Callable[[], object]] = deque()
        self._deadline: float | None = None
        """Of the work of this turn. None if there was none, and the next turn need not look."""
        self._busy = False

    def add(self, call: Callable[[], object]) -> None:
        """Call it after those that were added before: now, if this turn has time left for it."""
        if not (self._waiting or self._busy):
            now = self._clock()
            if self._deadline is None:
                self._deadline = now + BUDGET
                self._loop.call_soon(self._begin_turn)
            if now < self._deadline:
                self._make(call)
                return
        self._waiting.append(call)

    def _begin_turn(self) -> None:
        if not self._waiting:
            self._deadline = None
            return
        self._deadline = self._clock() + BUDGET
        self._loop.call_soon(self._begin_turn)
        # Only what waits now: a call may add others.
        for _ in range(len(self._waiting)):
            self._make(self._waiting.popleft())
            if self._clock() > self._deadline:
                break

    def _make(self, call: Callable[[], object]) -> None:
        self._busy = True
        try:
            call()
        except Exception as error:  # noqa: BLE001 - one client's failure must not keep the others
            self._loop.call_exception_handler(
                {"message": "a client could not be served", "exception": error}
            )
        finally:
            self._busy = False
