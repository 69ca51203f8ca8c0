"""What SIGHUP means: the terminal was closed, or the workers are to be replaced."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from brain import signals
from brain.signals import HangUp
from tests.support.patience import PATIENCE


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


class Brain:
    """What it did, and whether it has a terminal."""

    def __init__(self, patched: pytest.MonkeyPatch, *, workers: bool, terminal: bool) -> None:
        self.did: list[str] = []
        self.terminal = terminal
        patched.setattr(signals, "_has_terminal", lambda: self.terminal)
        made = HangUp()
        made.stop = lambda: self.did.append("stop")
        if workers:
            made.replace = lambda: self.did.append("replace")
        made.listen()

    async def hang_up(self) -> list[str]:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.02)
        return self.did


@pytest.mark.parametrize("terminal", [True, False])
async def test_a_single_brain_stops_once_however_often_the_signal_comes(
    monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    brain = Brain(monkeypatch, workers=False, terminal=terminal)
    brain.terminal = False
    assert await brain.hang_up() == ["stop"]
    assert await brain.hang_up() == ["stop"]


async def test_workers_are_replaced_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    brain = Brain(monkeypatch, workers=True, terminal=True)
    assert await brain.hang_up() == ["replace"]
    assert await brain.hang_up() == ["replace"] * 2


async def test_a_terminal_that_is_closed_ends_its_workers_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    brain = Brain(monkeypatch, workers=True, terminal=True)
    brain.terminal = False
    assert await brain.hang_up() == ["stop"]
    assert await brain.hang_up() == ["stop"]


async def test_under_nohup_a_single_brain_outlives_its_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    brain = Brain(monkeypatch, workers=False, terminal=True)
    brain.terminal = False
    assert await brain.hang_up() == []


async def test_under_nohup_workers_outlive_their_terminal_and_are_replaced_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    brain = Brain(monkeypatch, workers=True, terminal=True)
    brain.terminal = False
    assert await brain.hang_up() == []
    assert await brain.hang_up() == ["replace"]


async def test_what_came_during_the_imports_counts_when_it_is_listened_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    signal.raise_signal(signal.SIGHUP)
    brain = Brain(monkeypatch, workers=False, terminal=False)
    await asyncio.sleep(0.02)
    assert brain.did == ["stop"]


ENDING = """
import asyncio, threading
from brain.signals import end_soon

async def main():
    threading.Thread(target=threading.Event().wait).start()
    end_soon(3)

asyncio.run(main())
"""
"""A process that something keeps from ending, as a look-up of a host that no server answers."""


def test_what_hangs_at_the_very_end_is_not_waited_for() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], timeout=PATIENCE, check=False)
    assert done.returncode == 3
