"""Rate limits of frames, handshakes and log lines: a burst at once, and a rate in the long run.

Each is a token bucket of which one number is stored: when it will be full again (the generic cell
rate algorithm of ITU-T I.371, annex A). Nothing is refilled, and a full bucket needs no memory.
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

    def after(self, full: float, now: float, cost: float = 1) -> float:
        """When the bucket will be full again after taking `cost`; `full` is when it would have
        been.
        """
        return max(full, now) + cost / self.rate

    def wait(self, full: float, now: float) -> float:
        """Seconds until what was taken by the `after` that returned `full` is allowed; 0: now."""
        wait = full - now - self.burst / self.rate
        return wait if wait > 1e-9 else 0.0  # sums of fractions are not exact


LINES = RateLimit(burst=200, rate=20)
"""Log lines of one kind. A flood, or a crowd that reconnects, becomes a few lines and a number."""


class RateLimitedLogger:
    """Logs at most LINES of each event and code. The next line gives the number dropped as
    `left_out`.

    Events and codes are constants of Brain, never text from outside, so their number is bounded.
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
        """Log the numbers that no later line has given. Call it regularly."""
        for event, code in list(self._left_out):
            now = self._clock()
            if not LINES.wait(LINES.after(self._full[event, code], now), now):
                self.info(event, code)
