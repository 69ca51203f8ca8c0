"""One of several workers, in its own process: its sockets, and its channel to the supervisor."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final, TypeAlias

import structlog

from brain.started import Started
from brain.workers.channel import Channel, Message, assigned

log = structlog.get_logger()

COLLECT_DEADLINE: Final = 2.0
"""Seconds to wait for the supervisor, which waits one for the workers."""

MAX_COLLECTS: Final = 8
"""Questions to the supervisor at a time."""

LAST_REPORT_DEADLINE: Final = 1.0
"""Seconds in which the supervisor takes the last report."""

Report: TypeAlias = dict[str, Any]
"""`readiness`, the document of /readyz, and `metrics`, a list of families."""


def _nothing() -> object:
    return None


@dataclass(eq=False)
class Worker:
    number: int
    sockets: list[socket.socket]
    """They are bound, and listen once the worker accepts connections."""
    end: socket.socket
    """The worker's end of the channel."""
    stop: Callable[[], object] = _nothing
    """Ends this process. app.py sets it, to another function in each phase of start and stop."""
    force: Callable[[], object] = _nothing
    """Ends it at once, after `stop`."""
    report: Callable[[], Report] | None = None
    """None until there is something to report."""
    _channel: Channel | None = None
    _stopped: bool = False
    _collects: dict[int, asyncio.Future[Report]] = field(default_factory=dict)
    _collecting: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_COLLECTS))
    _asked: int = 0

    @classmethod
    def join(cls, number: int) -> "Worker":
        """Take the place that the supervisor gives to this process. Raises ChannelError."""
        # It is meant for the supervisor, and would end a worker without a close frame to its
        # clients.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        end, sockets = assigned()
        return cls(number, sockets, end)

    @contextlib.asynccontextmanager
    async def attached(self) -> AsyncIterator[None]:
        """Carry out the supervisor's messages, and stop when the supervisor has ended."""
        self._channel = await Channel.open(self.end)
        following = asyncio.create_task(self._follow(self._channel), name="supervisor")
        try:
            yield
            if self.report is not None:
                # Otherwise what was counted since the last scrape would be lost.
                self._send_report(0)
                await self._channel.flush(LAST_REPORT_DEADLINE)
        finally:
            following.cancel()
            self._channel.close()

    async def _follow(self, channel: Channel) -> None:
        async for message in channel.messages():
            self._take(message)
        if not self._stopped:
            log.error("supervisor ended", detail="this worker stops")
        self.request_stop()

    def _take(self, message: Message) -> None:
        match message["kind"]:
            case "report":
                self._send_report(message["id"])
            case "collected":
                waiting = self._collects.get(message["id"])
                if waiting is not None and not waiting.done():
                    waiting.set_result(message["answer"])
            case "stop":
                self.request_stop()
            case "force":
                self.request_stop()
                self.force()

    def request_stop(self) -> None:
        """Stop, however often this is asked for.

        A service manager may signal all processes, besides what the supervisor says: two signals do
        not mean, as they do to a single process, that somebody is in a hurry.
        """
        if not self._stopped:
            self._stopped = True
            self.stop()

    def started(self, started: Started) -> None:
        """Connections are accepted."""
        assert self._channel is not None
        example = None if started.example is None else asdict(started.example)
        self._channel.send("started", detail=started.detail, example=example)

    def _send_report(self, number: int) -> None:
        assert self._channel is not None
        try:
            report = None if self.report is None else self.report()
            self._channel.send("report", id=number, report=report)
        except Exception:
            # A bug in a report makes this worker silent. It must not end `_follow`, which hears
            # that the worker is to stop.
            log.exception("no report")

    async def collect(self) -> Report | None:
        """The report of all workers. None if the supervisor does not answer."""
        assert self._channel is not None
        try:
            async with asyncio.timeout(COLLECT_DEADLINE), self._collecting:
                self._asked += 1
                number = self._asked
                waiting: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
                self._collects[number] = waiting
                try:
                    self._channel.send("collect", id=number)
                    return await waiting
                finally:
                    del self._collects[number]
        except TimeoutError:
            return None
