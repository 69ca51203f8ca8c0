"""The nats-server of the workers, without workers."""

import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from structlog.testing import capture_logs

from brain.contract.back_off import BackOff
from brain.workers import nats_server as module
from brain.workers.nats_server import nats_server
from brain.workers.restarts import Restarts
from tests.support.patience import LIFETIME, eventually


async def test_a_nats_server_that_cannot_be_started_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the machine is out of processes."""
    failures = 0

    def refused(*_: Any, **__: Any) -> Any:
        nonlocal failures
        failures += 1
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    def guards() -> list[psutil.Process]:
        return [
            each for each in psutil.Process().children() if each.cmdline()[-1].startswith(folder)
        ]

    def left() -> list[Path]:
        return list(tmp_path.iterdir())

    folder = str(tmp_path)
    restarts = Restarts(BackOff(first=0.01, longest=0.01))
    with capture_logs() as logs:
        async with nats_server(tmp_path, restarts):
            (guard,) = guards()
            with monkeypatch.context() as patch:
                patch.setattr(subprocess, "Popen", refused)
                guard.children()[0].kill()
                await eventually(lambda: failures > 1)
                assert not left()
            await eventually(lambda: len(guards()) == 1)
            await eventually(lambda: logs[-1]["event"] == "nats-server started")
    assert restarts.count == 1
    assert "did not start (Resource temporarily unavailable)" in next(
        line["detail"] for line in logs if line["event"] == "nats-server not started"
    )
    assert not left()


async def test_a_nats_server_whose_guard_is_suspended_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_DEADLINE", 0.1)
    async with nats_server(tmp_path, Restarts()):
        folder = str(tmp_path)
        (guard,) = (each for each in psutil.Process().children() if folder in each.cmdline()[-1])
        family = [guard, *guard.children(recursive=True)]
        assert any(each.name() == "nats-server" for each in family)
        for each in family:
            each.suspend()
    _, left = psutil.wait_procs(family, LIFETIME)
    assert not left
