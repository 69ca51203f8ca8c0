"""A pace: so many at once, so many a second in the long run. It bounds frames, handshakes and log lines.

It is a token bucket of which one number is kept, the moment when it will be full again (the generic cell rate algorithm of
ITU-T I.371, annex A): nothing is refilled, and who is long gone needs no more memory.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RateLimit:
    burst: float
    rate: float
    """Per second."""

    def after(self, full: float, now: float) -> float:
        """When the bucket will be full again if one more is taken now; `full` is when it would have been."""
        return max(full, now) + 1 / self.rate

    def wait(self, full: float, now: float) -> float:
        """Seconds from now to the turn of the one whose taking gave `full`. 0: it is at once."""
        wait = full - now - self.burst / self.rate
        return wait if wait > 1e-9 else 0.0  # sums of fractions are not exact


LINES = RateLimit(burst=200, rate=20)
"""Log lines of one kind. A crowd that comes back, or a flood, is a few lines and a number."""


class RateLimitedLogger:
    """A log of which nobody outside can make more lines than LINES: what is left out is counted, and said in `left_out`.

    `kinds` are the program's own words, so they are few.
    """

    def __init__(self, log: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._full: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def info(self, event: str, code: str = "", /, **fields: object) -> None:
        key, now = (event, code), self._clock()
        full = LINES.after(self._full.get(key, now), now)
        if LINES.wait(full, now):
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return
        self._full[key] = full
        if count := self._left_out.pop(key, 0):
            fields["left_out"] = count
        if code:
            fields["code"] = code
        self._log.info(event, **fields)

    def settle(self) -> None:
        """To be called now and then: no line may follow that could say how many were left out before it."""
        for event, code in list(self._left_out):
            now = self._clock()
            if not LINES.wait(LINES.after(self._full[event, code], now), now):
                self.info(event, code)
