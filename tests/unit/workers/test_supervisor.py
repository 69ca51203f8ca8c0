"""The supervisor and worker processes of a few lines, which start in no time."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from brain.workers.supervisor import Supervisor, Timing
from tests.support.patience import eventually

WORKER = """
import json, socket
channel = socket.socket(fileno=0)
def send(**message):
    channel.sendall(json.dumps(message).encode() + b"\\n")
send(kind="started", detail=None, example=None)
for line in channel.makefile("rb"):
    message = json.loads(line)
    if message["kind"] == "report":
        {report}
    elif message["kind"] == "stop":
        break
"""
REPORTS = (
    'send(kind="report", id=message["id"], report=dict(readiness=dict(ready=True), metrics=[]))'
)


class Program:
    """What starts a worker."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "python"
        self._away = folder / "away"
        self._worker = folder / "worker.py"
        self.path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -SE "{self._worker}"\n')
        self.path.chmod(0o700)
        self.writes(REPORTS)

    def writes(self, report: str) -> None:
        """What a worker does when it is asked for a report."""
        self._worker.write_text(WORKER.format(report=report))

    def remove(self) -> None:
        self.path.rename(self._away)

    def restore(self) -> None:
        self._away.rename(self.path)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    found = Program(tmp_path)
    monkeypatch.setattr(sys, "executable", str(found.path))
    return found


@asynccontextmanager
async def supervised(count: int = 2) -> AsyncIterator[Supervisor]:
    """It runs so many workers."""
    supervisor = Supervisor(count, [], os.environ, timing=Timing(look=0.01))
    assert not isinstance(await supervisor.begin(), int)
    running = asyncio.create_task(supervisor.run())
    try:
        await eventually(lambda: running.done() or len(pids(supervisor)) == count)
        yield supervisor
        supervisor.stop()
        await running
    finally:
        await supervisor.end()


def pids(supervisor: Supervisor) -> dict[int, int]:
    """Of the workers that have started, by their numbers."""
    return {
        slot.number: slot.process.pid
        for slot in supervisor._slots
        if slot.process.started.done() and slot.process.state != "ended"
    }


def counted(report: dict[str, Any], name: str) -> float:
    """The only sample of a metric."""
    (found,) = [value for each in report["metrics"] for n, _, value in each["samples"] if n == name]
    return float(found)


async def test_a_worker_that_cannot_be_started_ends_nobody_else(program: Program) -> None:
    """As while Python is upgraded, or when the machine is out of processes."""
    async with supervised() as supervisor:
        before = pids(supervisor)
        program.remove()
        with capture_logs() as logs:

            def count(event: str) -> int:
                return sum(line["event"] == event for line in logs)

            supervisor.replace()
            await eventually(lambda: count("rolling restart given up") == 1)
            assert pids(supervisor) == before
            os.kill(before[1], signal.SIGKILL)
            await eventually(lambda: count("worker not started") > 1)
            assert pids(supervisor) == {2: before[2]}
            program.restore()
            await eventually(lambda: len(pids(supervisor)) == 2)
        assert pids(supervisor)[2] == before[2]
        assert counted(await supervisor._collect(), "brain_restarts_total") == 1


async def test_a_rolling_restart_ends_with_the_first_worker_that_is_not_replaced(
    program: Program,
) -> None:
    async with supervised() as supervisor:
        before = pids(supervisor)
        program.writes("break")
        with capture_logs() as logs:
            supervisor.replace()
            await eventually(lambda: any("given up" in line["event"] for line in logs))
            program.writes(REPORTS)
            supervisor.replace()
            await eventually(lambda: logs[-1]["event"] == "rolling restart done")
            events = [line["event"] for line in logs if line["event"].startswith("rolling")]
        assert events == [
            "rolling restart",
            "rolling restart given up",
            "rolling restart",
            "rolling restart done",
        ]
        assert not set(pids(supervisor).values()) & set(before.values())


async def test_a_worker_that_ends_while_it_is_asked_is_not_silent(program: Program) -> None:
    program.writes("break")
    async with supervised(1) as supervisor:
        report = await supervisor._collect()
        assert counted(report, "brain_worker_silences_total") == 0
        assert [each["state"] for each in report["readiness"]["workers"]] != ["silent"]
