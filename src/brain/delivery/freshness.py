"""Freshness: clients that include `source` are told how far behind the database Brain may be.

Once when they are up to date, at each change of the source, and every 5 s. All clients of a turn
share one frame, and the turns of a round are spread over the interval, as pings are.

A frame's timestamp is the time of the last flush, so that nothing is lost to a client that resumes
from it. It is therefore sent only to clients that have received that flush: to live ones, while no
sweep is under way. One that lags is told when it has caught up. Before the first Snapshot there is
nothing to lose, and all are told.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from brain.contract.include import SourceReport, source_message
from brain.contract.messages import Micros
from brain.delivery.cohorts import Client

EVERY: Final = 5.0
"""Seconds of a round."""

TICK: Final = 0.05
"""Seconds between two turns: a hundredth of the clients is told in each."""

STRIDE: Final = 100
"""Clients of a turn when the source has changed; the next turn follows at once."""


class Timer(Protocol):
    def cancel(self) -> object: ...


class Sender(Protocol):
    """The hub."""

    @property
    def flushed_time(self) -> Micros: ...

    @property
    def sweeping(self) -> bool: ...

    @property
    def begun(self) -> bool: ...

    def send(self, client: Client, data: bytes) -> None: ...


class Freshness:
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
        self._clients: OrderedDict[Client, None] = OrderedDict()
        """In the order in which they were last told."""
        self._timer: Timer | None = None
        self._key = report().key
        """What the last frames said of the source."""
        self._due = 0.0
        """Clients that the pace of the round owes a frame."""
        self._urgent = 0
        """Clients that have not been told of the last change."""
        self._ticked = 0.0
        self._held = False
        """A turn waits for the end of a sweep."""

    def add(self, client: Client) -> None:
        self._clients[client] = None
        if self._timer is None:
            self._ticked = self._clock()
            self._key = self._report().key
            self._timer = self._call_later(TICK, self._tick)

    def discard(self, client: Client) -> None:
        self._clients.pop(client, None)

    def greet(self, client: Client) -> None:
        """The client has just received all that was flushed."""
        self._clients.move_to_end(client)
        self._sender.send(client, source_message(self._report(), self._sender.flushed_time))

    def swept(self) -> None:
        """A sweep has ended."""
        if self._held:
            self._turn(self._report())

    def _tick(self) -> None:
        self._timer = None
        now = self._clock()
        report = self._report()
        if report.key != self._key:
            self._key = report.key
            self._urgent = len(self._clients)
        owed = len(self._clients) * (now - self._ticked) / EVERY
        self._due = min(self._due + owed, len(self._clients))
        self._ticked = now
        self._turn(report)
        if self._clients:
            soon = self._urgent and not self._held
            self._timer = self._call_later(0 if soon else TICK, self._tick)

    def _turn(self, report: SourceReport) -> None:
        count = max(int(self._due), min(self._urgent, STRIDE))
        self._held = bool(count) and self._sender.sweeping
        if not count or self._held:
            return
        self._due = max(0.0, self._due - count)
        self._urgent = max(0, self._urgent - count)
        frame = source_message(report, self._sender.flushed_time)
        waiting = not self._sender.begun
        clients = self._clients
        for _ in range(min(count, len(clients))):
            if not clients:
                return
            client = next(iter(clients))
            clients.move_to_end(client)
            if (client.seq is None or waiting) and not client.paused:
                self._sender.send(client, frame)
