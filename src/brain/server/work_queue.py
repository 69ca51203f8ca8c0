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

BUDGET: Final = 0.005
"""Seconds of each turn. To take a connection down costs 15 to 30 µs, to answer a close frame twice
as much, and to read a hundred small frames 1.5 ms: a number of calls would bound nothing."""


class WorkQueue:
    """`clock`: not the loop's, which stands still during a turn."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._waiting: deque[Callable[[], object]] = deque()
        self._due = False
        """Whether the next turn works on them."""

    def add(self, call: Callable[[], object]) -> None:
        """Call it soon, after those that were added before."""
        self._waiting.append(call)
        self._arrange()

    def _arrange(self) -> None:
        if not self._due:
            self._due = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        deadline = self._clock() + BUDGET
        # Only what waits now: a call may add others.
        for _ in range(len(self._waiting)):
            call = self._waiting.popleft()
            try:
                call()
            except Exception as error:  # noqa: BLE001 - one client's failure must not keep the others
                self._loop.call_exception_handler(
                    {"message": "a client could not be served", "exception": error}
                )
            if self._clock() > deadline:
                break
        self._due = False
        if self._waiting:
            self._arrange()
