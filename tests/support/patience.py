"""How long a test waits. The factor BRAIN_TEST_PATIENCE makes every wait longer or shorter.

No test asserts how quickly something happens: benchmarks/ measures that. A deadline only ends the
wait for something that never happens, so it is far longer than a busy machine needs.
"""

import asyncio
import os
import time
from collections.abc import Callable

FACTOR = float(os.environ.get("BRAIN_TEST_PATIENCE", "1"))


def within(seconds: float = 60) -> float:
    """A deadline, in seconds from now."""
    return seconds * FACTOR


PATIENCE = within()

LIFETIME = within(300)
"""For what a process of our own is sure to do, if it does not end first."""


def _nothing() -> object:
    return "it did not come in time"


def wait_until(
    condition: Callable[[], object],
    what: Callable[[], object] = _nothing,
    *,
    seconds: float = PATIENCE,
    pause: float = 0.01,
) -> None:
    """Block until the condition holds. `what` says what is there instead."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(pause)


async def eventually(
    condition: Callable[[], object],
    what: Callable[[], object] = _nothing,
    *,
    seconds: float = PATIENCE,
    pause: float = 0.01,
) -> None:
    """Wait until the condition holds, while the loop turns."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(pause)
