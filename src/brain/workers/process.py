"""One worker as its supervisor sees it: a child process and a channel."""

import asyncio
import contextlib
import itertools
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, get_args

import structlog

from brain.workers.channel import Channel, Message, assign

log = structlog.get_logger()

START_DEADLINE: Final = 60.0
"""Seconds until a worker accepts connections, which takes one on a quiet machine. It does so after
3 seconds at the latest, also without its database."""

REPORT_DEADLINE: Final = 1.0
"""Seconds. A worker that has not answered by then is silent."""

MAX_QUESTIONS: Final = 16
"""Questions without an answer, above which a silent worker is asked nothing more."""

Note: TypeAlias = Callable[["WorkerProcess", list[Any]], None]
"""Called with the metrics that a worker has reported."""

Collect: TypeAlias = Callable[["WorkerProcess", int], None]
"""Called when a worker asks for the report of all, with the number of its question."""

State: TypeAlias = Literal["starting", "ready", "unready", "silent", "stopping", "ended"]
"""Unready: it serves clients, and does not follow the database. Silent: see REPORT_DEADLINE."""

STATES: Final[tuple[State, ...]] = get_args(State)

_keys = itertools.count(1)


class WorkerProcess:
    def __init__(
        self,
        number: int,
        process: asyncio.subprocess.Process,
        channel: Channel,
        *,
        note: Note,
        collect: Collect,
    ) -> None:
        self.number = number
        self.key = next(_keys)
        """No other process ever has it."""
        self.began = time.monotonic()
        self.stopping = False
        self.started: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        """What the worker said when it accepted connections; None if it ended before."""
        self.document: Mapping[str, Any] | None = None
        """Its last /readyz."""
        self._process = process
        self._channel = channel
        self._note = note
        self._collect = collect
        self._asked = self._answered = 0
        self._answers: list[tuple[int, asyncio.Future[None]]] = []
        self._reading = asyncio.create_task(self._read(), name=f"worker {number}")

    @classmethod
    async def start(
        cls,
        number: int,
        sockets: Sequence[socket.socket],
        environ: Mapping[str, str],
        *,
        note: Note,
        collect: Collect,
    ) -> "WorkerProcess":
        """Start a process that listens on these sockets. Raises OSError."""
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as on_error, theirs:
            on_error.callback(ours.close)
            assign(ours, sockets)
            # In a session of its own: Ctrl-C in a terminal reaches the supervisor alone, which
            # stops the workers. -P: not another `brain` that is in this folder.
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "brain", "worker", str(number)),
                stdin=theirs.fileno(),
                env=dict(environ),
                start_new_session=True,
            )
            channel = await Channel.open(ours)
            on_error.pop_all()
        return cls(number, process, channel, note=note, collect=collect)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def hung_up(self) -> bool:
        """Nothing comes from it any more: it has ended, or is about to."""
        return self._reading.done()

    @property
    def state(self) -> State:
        if self._process.returncode is not None:
            return "ended"
        if self.stopping:
            return "stopping"
        if not self.started.done():
            return "starting"
        return "ready" if self.document is not None and self.document["ready"] else "unready"

    async def _read(self) -> None:
        try:
            async for message in self._channel.messages():
                self._take(message)
        except Exception:
            # Whatever it says next, nobody would hear it.
            log.exception("worker killed", worker=self.number, pid=self.pid)
            self.kill()
        if not self.started.done():
            self.started.set_result(None)
        for _, waiting in self._answers:
            waiting.cancel()

    def _take(self, message: Message) -> None:
        match message["kind"]:
            case "started":
                if not self.started.done():
                    self.started.set_result(message)
            case "report":
                self._take_report(message)
            case "collect":
                self._collect(self, message["id"])

    def _take_report(self, message: Message) -> None:
        if (report := message["report"]) is not None:
            self.document = report["readiness"]
            self._note(self, report["metrics"])
        self._answered = max(self._answered, message["id"])
        for number, waiting in self._answers:
            if number <= self._answered and not waiting.done():
                waiting.set_result(None)

    async def ask(self, seconds: float = REPORT_DEADLINE) -> bool:
        """Ask for a report. False if the worker is silent, or has ended."""
        if self.hung_up:
            return False
        if self._asked - self._answered < MAX_QUESTIONS:
            self._asked += 1
            self._channel.send("report", id=self._asked)
        answer = (self._asked, asyncio.get_running_loop().create_future())
        self._answers.append(answer)
        try:
            await asyncio.wait([answer[1]], timeout=seconds)
        finally:
            self._answers.remove(answer)
        return answer[1].done() and not answer[1].cancelled()

    def tell(self, kind: str, **message: Any) -> None:
        self._channel.send(kind, **message)

    def stop(self) -> None:
        """Ask the worker to end: it closes its clients, and tells them to come back."""
        self.stopping = True
        if self.started.done():
            self._channel.send("stop")
        else:
            self._signal(signal.SIGTERM)

    def force(self) -> None:
        self._channel.send("force")

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def wait_started(self, seconds: float = START_DEADLINE) -> Message | None:
        """What the worker said when it accepted connections. None: it ended, or was killed."""
        await asyncio.wait([self.started], timeout=seconds)
        if not self.started.done():
            log.error("worker killed", worker=self.number, pid=self.pid, detail="it did not start")
            self.kill()
        return await asyncio.shield(self.started)

    async def wait_ended(self) -> int:
        """Its exit status, or the negative number of the signal that killed it."""
        status = await self._process.wait()
        # What it said last is still being read.
        await asyncio.wait([self._reading], timeout=REPORT_DEADLINE)
        self._channel.close()
        return status
