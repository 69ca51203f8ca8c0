"""`source` messages, which say how far behind the database Brain may be.

A client that includes `source` receives one when it is up to date, at each change of the source,
and every 5 s. Clients that are served in one turn, and have been sent the same changes, receive the
same frame. The turns of a round are spread over the interval, as pings are. The cost is the write
to each client (6 to 8 of 9 µs are the kernel's), so one write carries the frame and the client's
next ping.

I2   A frame's timestamp is the time up to which its client has been sent everything, so that
     nothing is lost when it resumes from it. It is sent to live clients only, because a client that
     lags is sent what is older. That one receives it when it has caught up. Before the first
     Snapshot nothing can be lost, and all receive it.
     test_source_is_sent_at_once_and_every_five_seconds,
     test_source_is_not_sent_to_a_full_transport,
     test_source_has_the_time_of_what_its_client_was_sent,
     test_a_client_that_lags_hears_of_the_source_when_it_has_caught_up
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from brain.contract.include import NO_SOURCE, SourceReport, source_message
from brain.contract.messages import PING, Micros
from brain.delivery.alarm import Timer
from brain.delivery.cohorts import Client

EVERY: Final = 5.0
"""Seconds of a round."""

TICK: Final = 0.05
"""Seconds between two turns: each serves a hundredth of the clients."""

STRIDE: Final = 100
"""Clients of a turn at most. If as many more wait for a frame, the next turn follows at once."""


class Sender(Protocol):
    """The hub."""

    def position_time(self, client: Client) -> Micros: ...

    @property
    def begun(self) -> bool: ...

    def send(self, client: Client, data: bytes) -> None: ...


class SourceMessages:
    def __init__(
        self,
        sender: Sender,
        report: Callable[[], SourceReport],
        *,
        clock: Callable[[], float],
        call_later: Callable[[float, Callable[[], None]], Timer],
    ) -> None:
        self._sender = sender
        self._report = report
        self._clock = clock
        self._call_later = call_later
        self._round: deque[Client] = deque()
        """In the order of their turns; with some that have left. No dictionary: what costs, next to
        the write, is memory that is in no cache."""
        self._count = 0
        """Clients that have not left."""
        self._timer: Timer | None = None
        self._key = NO_SOURCE.key
        """What the last frames said of the source."""
        self._due = 0.0
        """How many clients should have had a frame by now, at the pace of the round."""
        self._urgent = 0
        """Clients that have not received a frame since the last change."""
        self._ticked = 0.0

    def add(self, client: Client) -> None:
        self._round.append(client)
        self._count += 1
        if self._timer is None:
            self._ticked, self._key = self._clock(), self._report().key
            self._arm(TICK)

    def forget_one(self) -> None:
        """A client has left. It is dropped at its turn."""
        self._count -= 1
        if not self._count:
            self._round.clear()

    def greet(self, client: Client) -> None:
        """The client has just received all that was flushed."""
        time = self._sender.position_time(client)
        self._sender.send(client, source_message(self._report(), time))

    def _arm(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._call_later(delay, self._tick) if self._count else None

    def _tick(self) -> None:
        now = self._clock()
        report = self._report()
        everyone = self._count
        if report.key != self._key:
            self._key = report.key
            self._urgent = everyone
        self._due = min(self._due + everyone * (now - self._ticked) / EVERY, everyone)
        self._ticked = now
        count = min(max(int(self._due), self._urgent), STRIDE, everyone)
        if not count:
            self._arm(TICK)
        else:
            self._due, self._urgent = max(0.0, self._due - count), max(0, self._urgent - count)
            self._arm(0 if self._urgent or self._due >= STRIDE else TICK)
            self._turn(count, report)

    def _turn(self, count: int, report: SourceReport) -> None:
        frames: dict[Micros, tuple[bytes, bytes]] = {}  # without and with a ping
        clients, waiting = self._round, not self._sender.begun
        while count and self._count:  # a client whose write fails leaves
            client = clients.popleft()
            if client.cohort is None:
                continue
            count -= 1
            clients.append(client)
            if (client.seq is None or waiting) and not client.paused:
                time = self._sender.position_time(client)
                if time not in frames:
                    frame = source_message(report, time)
                    frames[time] = frame, frame + PING
                alone, both = frames[time]
                if client.pinged:
                    self._sender.send(client, alone)
                else:
                    client.pinged = True
                    self._sender.send(client, both)
