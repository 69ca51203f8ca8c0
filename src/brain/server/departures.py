"""Connections that end: a few in each turn of the event loop.

When a proxy dies or a network fails, thousands end at once, and the loop hands all of them over in
one turn. To take one down costs 15 to 30 µs: without a bound, 10 000 of them held up everybody else
for 120 to 200 ms (`python -m benchmarks.turns`, `leaving_ms`).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

MAX_A_TURN: Final = 200


class Departures:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], object]] = deque()

    def add(self, take_down: Callable[[], object]) -> None:
        """Call it in this turn or a later one, after those that were added before."""
        if not self._waiting:
            self._loop.call_soon(self._take)
        self._waiting.append(take_down)

    def _take(self) -> None:
        for _ in range(min(len(self._waiting), MAX_A_TURN)):
            take_down = self._waiting.popleft()
            try:
                take_down()
            except Exception as error:  # noqa: BLE001 - one client's failure must not keep the others
                self._loop.call_exception_handler(
                    {"message": "a connection could not be taken down", "exception": error}
                )
        if self._waiting:
            self._loop.call_soon(self._take)
