"""Which timestamps may have been sent, so that a clock that was far ahead does not hold Brain in
the future for ever.

Timestamps never decrease on a connection, and a client may come back with any of them. So while the
database's clock is behind the last timestamp by a few minutes, that timestamp is sent until the
clock has reached it. But a clock may have been a year ahead. When Brain starts and the difference
is more than MAX_LEAD, it returns to the clock instead, and *refuses* the timestamps that were sent
from the future: a `since` among them is a gap, and Brain never sends one of them again, so that no
`since` has two meanings. When the clock reaches them, time skips them.

What was sent is known as a few spans, each without a pause of more than MAX_LEAD. Timestamps of the
future are therefore a span of their own, unless the clock went ahead in small steps: then Brain
cannot tell them from others, and waits for the clock.
"""

from itertools import pairwise
from typing import Final, NamedTuple

from brain.contract.events import first_allowed
from brain.contract.messages import Micros
from brain.postgres.record_file import NUMBERS

MAX_LEAD: Final[Micros] = 300_000_000
"""How far timestamps may be ahead of the database's clock when Brain starts: 5 minutes."""

_SENT, _REFUSED = 3, 2
"""How many spans are kept. NUMBERS of the file has room for them."""


class Span(NamedTuple):
    """From the first to the last of some timestamps."""

    first: Micros
    last: Micros


class SentTimes:
    """`numbers`: as `numbers` returned them, None if they are not known."""

    def __init__(self, numbers: list[int] | None, high: Micros) -> None:
        if numbers is None:
            numbers = [0] * NUMBERS  # all of the times up to `high` are one span
        self._first = numbers[0]
        """Of the current span."""
        self._sent = _spans(numbers[1 : 1 + 2 * _SENT])
        """The other spans, in the order of time."""
        self.refused = tuple(_spans(numbers[1 + 2 * _SENT :]))
        """Times that no message may bear, and at which every `since` is a gap."""
        # Brain was killed while it returned to the clock.
        self.high = self._first if self.allowed(high) != high else high
        """The highest time that may have been sent, but for those that are refused."""

    def allowed(self, time: Micros) -> Micros:
        """The first time from this one on that is not refused."""
        return first_allowed(time, self.refused)

    def before_refused(self, time: Micros, ahead: Micros) -> Micros:
        """The last time up to `ahead` before which none since `time` is refused."""
        return min([ahead, *(first - 1 for first, _ in self.refused if first > time)])

    def numbers(self) -> list[int]:
        spans = [*_padded(self._sent, _SENT), *_padded(list(self.refused), _REFUSED)]
        return [self._first, *(time for span in spans for time in span)]

    def leap(self, high: Micros, time: Micros) -> bool:
        """Whether a new span begins with this time, which follows `high`."""
        if time - high <= MAX_LEAD:
            return False
        if high:
            self._sent = _merged([*self._sent, Span(self._first, high)], _SENT)
        self._first = time
        return True

    def refuse(self, high: Micros, now: Micros) -> bool:
        """Refuse what was sent of the time after `now`, and continue at `now`. False if these times
        cannot be distinguished from others.
        """
        spans = [*self._sent, Span(self._first, high)]
        ahead = [span for span in spans if span.last > now]
        if not ahead or ahead[0].first <= now:
            return False
        self.refused = tuple(
            _merged([*self.refused, Span(ahead[0].first, ahead[-1].last)], _REFUSED)
        )
        self._sent, self._first = [span for span in spans if span.last <= now], now
        return True

    def forget(self, floor: Micros) -> bool:
        """Every `since` up to this time is a gap anyway. Returns whether that changes anything."""
        before = self.refused
        self.refused = tuple(span for span in before if span.last > floor)
        return self.refused != before


def _spans(numbers: list[int]) -> list[Span]:
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    return [Span(first, last) for first, last in pairs if last]


def _padded(spans: list[Span], count: int) -> list[Span]:
    return spans + [Span(0, 0)] * (count - len(spans))


def _merged(spans: list[Span], count: int) -> list[Span]:
    """At most `count`, in the order of time. Those with the least time between them become one."""
    spans = sorted(spans)
    while len(spans) > count:
        between = [later.first - earlier.last for earlier, later in pairwise(spans)]
        at = between.index(min(between))
        joined = Span(spans[at].first, max(spans[at].last, spans[at + 1].last))
        spans[at : at + 2] = [joined]
    return spans
