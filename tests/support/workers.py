"""What tests ask `brain serve` with several workers."""

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import psutil

from tests.support.patience import LIFETIME
from tests.support.served import Brain

Entry: TypeAlias = Mapping[str, Any]
"""Of a worker, in /readyz."""


def entries(brain: Brain) -> list[Entry]:
    """Of all workers; none if the one that was asked has just ended."""
    try:
        _, document = brain.get("/readyz")
    except OSError:
        return []
    found: list[Entry] = document.get("workers", [])
    return found


def settle(brain: Brain, *gone: int) -> dict[int, Entry]:
    """Wait until each worker is ready, and none of these processes is left. Returns the entries by
    the worker's number.
    """
    deadline = time.monotonic() + LIFETIME
    while True:
        found = entries(brain)
        if (
            len(found) > 1
            and all(each["state"] == "ready" for each in found)
            and not {each["pid"] for each in found} & set(gone)
        ):
            return {each["worker"]: each for each in found}
        assert time.monotonic() < deadline, f"{found}\n{brain.log()}"
        assert brain.process.poll() is None, brain.log()
        time.sleep(0.05)


def family(brain: Brain) -> list[psutil.Process]:
    """Brain and all its child processes."""
    supervisor = psutil.Process(brain.process.pid)
    return [supervisor, *supervisor.children(recursive=True)]


def named(processes: list[psutil.Process], name: str) -> psutil.Process:
    (found,) = [each for each in processes if each.name() == name]
    return found


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
