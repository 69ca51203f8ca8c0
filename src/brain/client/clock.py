"""The database's clock, as a client can estimate it: elapsed times are right even if the clock of
the client's machine is wrong.

The rule is stated in client.md, "The database's clock". The file client/database_clock.js of
the page has it for JavaScript, and one table of cases holds both: tests/unit/client/clock.json.
"""

import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

SLEPT: Final = 2.0
"""Seconds by which the two clocks of the machine differ after it slept or was set."""

WINDOW: Final = 60.0
"""Seconds for which the best estimate of the database's clock counts."""


class DatabaseClock:
    """In seconds since 1970 by the database.

    A message arrives after its change was committed, so the database's clock is at its timestamp or
    later: the latest such bound counts. A change that has just been pushed makes a tight bound. One
    that was sent to catch up is older, so until there is a tight one, the server's own clock
    counts, which an HTTP answer has in its Date; and before that, the clock of this machine.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._guess: float | None = None
        """Each of these is a number of seconds to add to the monotonic clock."""
        self._bound = -math.inf
        """By the messages of this window."""
        self._earlier = -math.inf
        """By those of the one before."""
        self._begun = -math.inf
        self._tight = False
        self._apart = self._difference()

    def ask(self, date: datetime) -> None:
        """The Date of an answer: whole seconds."""
        if self.is_doubtful:
            self._bound = self._earlier = self._begun = -math.inf
            self._tight = False
            self._apart = self._difference()
        self._guess = date.timestamp() + 0.5 - self._monotonic()

    def hear(self, timestamp: datetime, *, pushed: bool) -> None:
        """The time of a message. `pushed`: it is about a change that was made just now."""
        now = self._monotonic()
        if now - self._begun > WINDOW:
            self._begun, self._earlier, self._bound = now, self._bound, -math.inf
        # The message that took the least time says it best.
        self._bound = max(self._bound, timestamp.timestamp() - now)
        self._tight = self._tight or pushed

    def now(self) -> float:
        return self.at(self._monotonic())

    def at(self, monotonic: float) -> float:
        """What time it was in the database at a time of this machine's monotonic clock."""
        bound = max(self._bound, self._earlier)
        if self._tight:
            return monotonic + bound
        return monotonic + max(bound, self._difference() if self._guess is None else self._guess)

    @property
    def is_doubtful(self) -> bool:
        """Whether the machine slept or its clock was set, so that the estimate may be wrong."""
        return abs(self._difference() - self._apart) > SLEPT

    def _difference(self) -> float:
        return self._wall() - self._monotonic()


def duration(seconds: float) -> str:
    """`7s`, `3m 12s`, `2h 05m`, `3d 04h`. Never negative."""
    whole = max(0, int(seconds))
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}h"
    if hours:
        return f"{hours}h {minute:02}m"
    return f"{minutes}m {second:02}s" if minutes else f"{second}s"
