"""What the supervisor and a worker hear of each other, over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from structlog.testing import capture_logs

from brain.workers.channel import Channel
from brain.workers.process import WorkerProcess
from brain.workers.worker import Worker
from tests.support.patience import PATIENCE, eventually

CUT = b'{"kind":"report","id":'
"""What arrives of a message whose sender is killed."""


@asynccontextmanager
async def attached(report: Callable[[], Any] | None = None) -> AsyncIterator[Any]:
    """A worker, the supervisor's end of its channel, and whether the worker was stopped."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    stopped: list[bool] = []
    with ours:
        worker = Worker(1, [], theirs, stop=lambda: stopped.append(True), report=report)
        async with worker.attached():
            yield ours, stopped


async def test_a_message_that_was_cut_off_is_none() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(b'{"kind":"stop"}\n' + CUT)
    channel = await Channel.open(ours)
    assert [message["kind"] async for message in channel.messages()] == ["stop"]
    channel.close()


async def test_a_worker_ends_when_its_supervisor_is_killed_in_the_middle_of_a_message() -> None:
    async with attached() as (ours, stopped):
        ours.sendall(CUT)
        ours.shutdown(socket.SHUT_RDWR)
        await eventually(lambda: stopped == [True])


async def test_a_worker_that_cannot_report_still_hears_that_it_is_to_stop() -> None:
    def fails() -> Any:
        raise RuntimeError("a bug in a report")

    with capture_logs() as logs:
        async with attached(fails) as (ours, stopped):
            ours.sendall(b'{"kind":"report","id":1}\n{"kind":"stop"}\n')
            await eventually(lambda: stopped == [True])
    assert [line["event"] for line in logs if line["log_level"] == "error"] == ["no report"] * 2


async def test_a_worker_that_nobody_understands_is_killed() -> None:
    """Otherwise nobody would know that it has started, or wait for its end."""
    process = await asyncio.create_subprocess_exec("sleep", "600")
    ours, theirs = socket.socketpair()
    theirs.sendall(b"rubbish\n")
    channel = await Channel.open(ours)
    worker = WorkerProcess(1, process, channel, note=lambda *_: None, collect=lambda *_: None)
    with capture_logs() as logs:
        assert await worker.wait_started(PATIENCE) is None
        assert await worker.wait_ended() == -9
    assert [line["event"] for line in logs] == ["worker killed"]
    theirs.close()
