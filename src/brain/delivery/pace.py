"""The pace of flushes: how soon one may follow the last.

Each flush costs a write for every client, so few flushes are cheap; but a change that waits for a
flush is late. The gap from the beginning of a flush to that of the next is what flushes have cost
lately. So a change that comes alone is sent at once, and changes that come during a flush are sent
together by the next.

Each rule names a test that fails without it. In addition, tests/unit/delivery/mutants.py removes
every rule, and a random history then goes wrong.

P1   A flush begins when the last one began longer ago than the gap, or when 128 KiB are pending.
     The gap is REST times the cost of a flush, at most the interval and at least LEAST.
     test_a_change_waits_for_as_long_as_flushes_cost,
     test_a_change_waits_no_longer_than_the_interval
P2   The cost is the time from the plan of a flush to the first turn of the event loop after its
     last write. uvloop only queues what `write` receives; it sends it when the turn ends.
     test_a_flush_costs_what_the_turn_of_the_loop_takes
P3   It is an exponential mean, of which one flush counts at most twice what they cost so far. With
     the newest flush alone, a single turn in which the process did not run sent the gap to its
     maximum, and p99 from 9 to 28 ms.
     test_one_slow_flush_changes_the_pace_little
"""

from collections.abc import Callable
from typing import Final

REST: Final = 1.0
"""The gap, in costs of a flush. A prototype with 1 000 clients and 100 changes/s had these p50, p99
and CPU per delivery: with 1, 3.6 and 8.6 ms and 7 µs; with 2, 12 and 25 ms and 5.3 µs; with 25 ms
always, 18 and 34 ms and 3 µs."""

LEAST: Final = 0.001
"""Seconds: the resolution of uvloop's timers. A source that reads one transaction at a time would
otherwise pay for a flush with each."""

EARLY: Final = 0.0005
"""Seconds: a flush is not put off for less, because the timer may fire this much too early."""

NEWEST: Final = 0.2
"""The share of the last flush in the mean."""


class Pace:
    """`interval`: the longest gap, in seconds of `clock`."""

    def __init__(self, interval: float, clock: Callable[[], float], *, rest: float = REST) -> None:
        self.cost = 0.0
        """Seconds that flushes have cost lately."""
        self.began = float("-inf")
        """When the last flush began."""
        self._interval = interval
        self._clock = clock
        self._rest = rest
        self._gap = min(interval, LEAST)

    def begin(self) -> None:
        """A flush begins."""
        self.began = self._clock()

    def wait(self) -> float:
        """Seconds until the next flush may begin; 0 or less: now."""
        return self.began + self._gap - self._clock()

    def ended(self, began: float) -> None:
        """The bytes of the flush that began then have been given to the kernel (P2)."""
        sample = min(self._clock() - began, max(2 * self.cost, LEAST))  # (P3)
        self.cost += NEWEST * (sample - self.cost)
        self._gap = min(self._interval, max(LEAST, self._rest * self.cost))  # (P1)
