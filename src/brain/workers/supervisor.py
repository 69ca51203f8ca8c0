"""Starts the workers, restarts those that die, replaces them one by one, and ends them.

It serves no client and reads no database, so that nothing else can make it fail. Each
worker has a slot, which is a number and, at a time, one process. While a slot is replaced it has
two: the old one serves until the new one is ready.
"""

import asyncio
import contextlib
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from brain.contract.families import Family
from brain.server.sockets import share
from brain.workers.channel import Message
from brain.workers.process import STATES, WorkerProcess
from brain.workers.readiness import merged
from brain.workers.restarts import Restarts
from brain.workers.totals import Totals

if TYPE_CHECKING:
    from brain.workers.worker import Report

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds."""

    ready: float = 60.0
    """In which a new worker follows the database, or the rolling restart is given up."""
    look: float = 0.1
    """Between two looks at whether it does."""
    stop: float = 6.0
    """In which a worker ends by itself: its own shutdown takes at most 3.5, and a moment more to
    leave the log and to write its records. With the embedded PostgreSQL's 5 it is less than what a
    service manager gives."""
    force: float = 1.0
    """The same, after a second signal."""


@dataclass(eq=False)
class Slot:
    number: int
    process: WorkerProcess
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the process is replaced."""


class Supervisor:
    def __init__(
        self,
        count: int,
        held: Sequence[socket.socket],
        environ: Mapping[str, str],
        nats: Restarts | None = None,
        timing: Timing | None = None,
    ) -> None:
        """The workers share the port of the sockets that are `held`. `nats` are the restarts of the
        nats-server, if it is a child of this process.
        """
        self._count = count
        self._held = held
        self._environ = environ
        self._nats_restarts = nats
        self._timing = timing or Timing()
        self._restarts = Restarts()
        self._silences = 0
        self._totals = Totals()
        self._slots: list[Slot] = []
        self._processes: set[WorkerProcess] = set()
        """All that have not ended."""
        self._collecting: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._forced = asyncio.Event()
        self._replace_requested = asyncio.Event()

    # What signals ask for

    def stop(self) -> None:
        """End all workers; a second time, at once."""
        if self._stopping.is_set():
            self._forced.set()
        self._stopping.set()

    def replace(self) -> None:
        """Replace all workers, one by one."""
        self._replace_requested.set()

    # The life of the workers

    async def begin(self) -> Message | int:
        """Start the first worker, alone, so that an error in the settings is reported once.

        Returns what it said when it accepted connections, or the exit status of this command.
        """
        process = await self._start(1)
        stopping = asyncio.create_task(self._stopping.wait())
        starting = asyncio.create_task(process.wait_started())
        await asyncio.wait([stopping, starting], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if self._stopping.is_set():
            starting.cancel()
            return 0
        started = await starting
        if started is None:
            status = await process.wait_ended()
            self._forget(process)
            if status != 2:
                log.error("worker did not start", worker=1, status=status)
            return 2
        self._slots.append(Slot(1, process))
        return started

    async def run(self) -> None:
        """Keep the workers running until `stop`."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(2, self._count + 1):
                self._slots.append(Slot(number, await self._start(number)))
            keeping = [
                *(tasks.create_task(self._keep_running(slot), name="keep") for slot in self._slots),
                tasks.create_task(self._restart_rolling(), name="roll"),
            ]
            await self._stopping.wait()
            for task in keeping:
                task.cancel()

    async def end(self) -> None:
        """End all workers, and wait until they have ended."""
        if self._processes:
            log.info("stopping", workers=len(self._processes))
        for process in self._processes:
            process.stop()
        forcing = asyncio.create_task(self._force_when_asked())
        await asyncio.gather(
            *(self._wait_ended(process, self._timing.stop) for process in list(self._processes))
        )
        forcing.cancel()

    async def _force_when_asked(self) -> None:
        await self._forced.wait()
        for process in self._processes:
            process.force()
        await asyncio.sleep(self._timing.force)
        for process in self._processes:
            process.kill()

    async def _start(self, number: int) -> WorkerProcess:
        """Raises OSError: out of processes or descriptors, or Python is being upgraded."""
        sockets = share(self._held)
        try:
            process = await WorkerProcess.start(
                number, sockets, self._environ, note=self._note, collect=self._on_collect
            )
        finally:
            for each in sockets:
                each.close()
        self._processes.add(process)
        log.info("worker started", worker=number, pid=process.pid)
        return process

    def _forget(self, process: WorkerProcess) -> None:
        if process in self._processes:
            self._processes.remove(process)
            self._totals.end(process.key)

    async def _wait_ended(self, process: WorkerProcess, seconds: float) -> None:
        """Wait until a process that was asked to stop has ended; kill it after this time."""
        ending = asyncio.ensure_future(process.wait_ended())
        await asyncio.wait([ending], timeout=seconds)
        if not ending.done():
            log.error("worker killed", worker=process.number, detail="it did not stop in time")
            process.kill()
        elif (status := await ending) != 0:
            # Its clients come back all the same, but nobody has told them to.
            log.warning(
                "worker died",
                worker=process.number,
                pid=process.pid,
                status=status,
                detail="while it stopped",
            )
        await ending
        self._forget(process)

    async def _keep_running(self, slot: Slot) -> None:
        """Start the slot's process again whenever it dies."""
        while True:
            process = slot.process
            await process.wait_started()
            status = await process.wait_ended()
            self._forget(process)
            async with slot.lock:
                if slot.process is not process:  # it was replaced
                    continue
                delay = self._restarts.delay(process.began)
                log.warning(
                    "worker died",
                    worker=slot.number,
                    pid=process.pid,
                    status=status,
                    restart_in=round(delay, 2),
                )
                await asyncio.sleep(delay)
                slot.process = await self._start_at_last(slot.number)

    async def _start_at_last(self, number: int) -> WorkerProcess:
        """Try until it starts: meanwhile the other workers serve."""
        while True:
            try:
                return await self._start(number)
            except OSError as error:
                delay = self._restarts.again()
                log.error(  # noqa: TRY400 - no bug
                    "worker not started",
                    worker=number,
                    detail=str(error),
                    restart_in=round(delay, 2),
                )
                await asyncio.sleep(delay)

    async def _restart_rolling(self) -> None:
        while True:
            await self._replace_requested.wait()
            # A request during the round may come with a change that its first workers do not have:
            # another round follows.
            self._replace_requested.clear()
            log.info("rolling restart", workers=self._count)
            for slot in await self._leader_last():
                if not await self._replace_process(slot):
                    break
            else:
                log.info("rolling restart done", workers=self._count)

    async def _leader_last(self) -> list[Slot]:
        """All slots, the leader's last: each change of leader is a pause of all clients."""
        await self._ask(self._processes)
        documents = ((slot, slot.process.document or {}) for slot in self._slots)
        return [slot for slot, _ in sorted(documents, key=lambda each: _leads(each[1]))]

    async def _replace_process(self, slot: Slot) -> bool:
        async with slot.lock:
            try:
                new = await self._start(slot.number)
            except OSError as error:
                _given_up(slot, str(error))
                return False
            if (detail := await self._wait_ready(new)) is not None:
                _given_up(slot, detail)
                new.stop()
                await self._wait_ended(new, self._timing.stop)
                return False
            # While both have counted up to now: see Totals.
            await self._collect()
            old, slot.process = slot.process, new
            old.stop()
            await self._wait_ended(old, self._timing.stop)
            return True

    async def _wait_ready(self, process: WorkerProcess) -> str | None:
        """Wait until the process is ready. Returns why it is not, in the end."""
        if await process.wait_started() is None:
            return "it ended while it started"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timing.ready):
                while not (await process.ask() and process.state == "ready"):
                    if process.state == "ended":
                        return "it ended before it was ready"
                    await asyncio.sleep(self._timing.look)
                return None
        document = process.document or {}
        return f"not ready after {self._timing.ready:g} s ({document.get('detail') or 'silent'})"

    # The report of all workers

    def _note(self, process: WorkerProcess, metrics: list[Any]) -> None:
        if process in self._processes:
            self._totals.note(process.key, metrics)

    def _on_collect(self, process: WorkerProcess, number: int) -> None:
        task = asyncio.create_task(self._answer(process, number), name="collect")
        self._collecting.add(task)
        task.add_done_callback(self._collecting.discard)

    async def _answer(self, process: WorkerProcess, number: int) -> None:
        process.tell("collected", id=number, answer=await self._collect())

    async def _ask(self, processes: set[WorkerProcess]) -> set[WorkerProcess]:
        """Those that answer in time."""
        asked = [each for each in processes if each.started.done()]
        answers = await asyncio.gather(*(each.ask() for each in asked))
        return {each for each, answered in zip(asked, answers, strict=True) if answered}

    async def _collect(self) -> "Report":
        """The report of all workers: `readiness` and `metrics`."""
        asked = {each for each in self._processes if each.started.done()}
        answered = await self._ask(asked)
        silent = {each for each in asked - answered if not each.hung_up}
        self._silences += len(silent)
        entries: list[tuple[dict[str, Any], Mapping[str, Any] | None]] = []
        for slot in self._slots:
            of_slot = {slot.process} | {p for p in self._processes if p.number == slot.number}
            for process in sorted(of_slot, key=lambda process: process.key):
                entry = {
                    "worker": slot.number,
                    "pid": process.pid,
                    "state": "silent" if process in silent else process.state,
                }
                entries.append((entry, process.document if process in answered else None))
        families = self._totals.merged([process.key for process in answered])
        return {
            "readiness": merged(entries),
            "metrics": [
                *families,
                *self._own_metrics(Counter(entry["state"] for entry, _ in entries)),
            ],
        }

    def _own_metrics(self, states: Mapping[str, int]) -> list[Family]:
        restarts = {"worker": self._restarts.count}
        if self._nats_restarts is not None:
            restarts["nats"] = self._nats_restarts.count
        return [
            {
                "name": "brain_workers",
                "type": "gauge",
                "help": "Workers, by what they do.",
                "merge": "sum",
                "samples": [
                    ("brain_workers", {"state": state}, states.get(state, 0)) for state in STATES
                ],
            },
            {
                "name": "brain_restarts",
                "type": "counter",
                "help": "Processes that died and were started again.",
                "merge": "sum",
                "samples": [
                    ("brain_restarts_total", {"process": process}, count)
                    for process, count in restarts.items()
                ],
            },
            {
                "name": "brain_worker_silences",
                "type": "counter",
                "help": "Times that a worker did not report within a second.",
                "merge": "sum",
                "samples": [("brain_worker_silences_total", {}, self._silences)],
            },
        ]


def _given_up(slot: Slot, detail: str) -> None:
    log.error(
        "rolling restart given up",
        worker=slot.number,
        detail=f"{detail}: the worker before it stays",
    )


def _leads(document: Mapping[str, Any]) -> bool:
    return document.get("role") == "leader"
