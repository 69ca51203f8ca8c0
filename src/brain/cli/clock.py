"""The database's clock, as a client can know it: elapsed times are right whatever this one says."""

from collections.abc import Callable
from datetime import datetime


class DatabaseClock:
    """Seconds since 1970 by the database.

    A message arrives after its change was committed, so the database's clock is at its timestamp or
    later: the latest such bound counts. A change that has just been pushed makes a tight bound. One
    that was sent to catch up is older, so until there is a tight one, the server's own clock
    counts, which an HTTP answer has in its Date.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._bound: float | None = None
        self._guess: float | None = None
        self._tight = False
        self._frozen: float | None = None

    def received(self, timestamp: datetime, *, pushed: bool) -> None:
        """The time of a message. `pushed`: it is of a change that was made just now."""
        offset = timestamp.timestamp() - self._monotonic()
        self._bound = offset if self._bound is None else max(self._bound, offset)
        self._tight = self._tight or pushed

    def guess(self, date: datetime) -> None:
        self._guess = date.timestamp() - self._monotonic()

    def now(self) -> float | None:
        """None before anything is known."""
        if self._frozen is not None:
            return self._frozen
        known = [self._bound]
        if not self._tight:
            known.append(self._guess)
        offsets = [each for each in known if each is not None]
        return max(offsets) + self._monotonic() if offsets else None

    @property
    def frozen(self) -> bool:
        return self._frozen is not None

    def freeze(self) -> None:
        """While there is no connection: nobody knows whether a run still runs."""
        if self._frozen is None:
            self._frozen = self.now()

    def thaw(self) -> None:
        self._frozen = None


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
