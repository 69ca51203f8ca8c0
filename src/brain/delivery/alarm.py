"""An alarm: one timer, set to the earliest moment that anybody has asked for."""

from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    def cancel(self) -> object: ...


class Alarm:
    """Calls `ring` once at the moment for which it is set."""

    def __init__(
        self,
        ring: Callable[[], None],
        *,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._ring = ring
        self._clock = clock
        self._call_later = call_later
        self._timer: Timer | None = None
        self._due = float("inf")

    def set(self, delay: float) -> None:
        """Ring in `delay` seconds, unless it is already set to ring earlier."""
        delay = max(delay, 0.0)
        due = self._clock() + delay
        if due < self._due:
            self.clear()
            self._due = due
            self._timer = self._call_later(delay, self._ring)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._due = None, float("inf")
