"""Cancelling what does not end at once, or keeps a cancellation to itself.

psycopg takes two cancellations. After the first, it asks the server to cancel the statement, which
closes nothing and leaves no orphaned walsender (a healthy server does it in 3 to 6 ms). A server
that is silent is waited for up to 10 s, unless the task is cancelled again.

nats-py loses one: before Python 3.12, `asyncio.wait_for` returns an answer that arrives in the same
turn of the loop, and forgets that the task was cancelled.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import structlog

log = structlog.get_logger()

GRACE = 1.0
"""Seconds between the first cancellation and the second."""

T = TypeVar("T")


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel the task. Returns when it has ended, or GRACE after the second cancellation.

    If this one is cancelled meanwhile, the second cancellation follows at once: otherwise a task
    that nobody waits for would keep its connection.
    """
    interrupted: asyncio.CancelledError | None = None
    for _ in range(2):
        task.cancel()
        try:
            await asyncio.wait([task], timeout=GRACE)
        except asyncio.CancelledError as error:
            interrupted = error
    if not task.done():
        log.warning("a task does not end", task=task.get_name(), effect="nobody waits for it")
    elif not task.cancelled():
        task.exception()  # retrieved: asyncio would log an exception that nobody has read
    if interrupted is not None:
        raise interrupted


async def outlast(task: asyncio.Task[Any]) -> None:
    """Wait until the task has ended, which has a bound of its own, also if this one is cancelled
    meanwhile.
    """
    interrupted: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


async def heeded(call: Awaitable[T]) -> T:
    """What the call returns or raises; CancelledError, if this task was cancelled meanwhile and the
    call has kept that to itself.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        found = await call
    except Exception:
        if task.cancelling() > before:
            raise asyncio.CancelledError from None
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return found


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """As asyncio.timeout, with the second cancellation. Raises TimeoutError."""
    async with asyncio.timeout(seconds + GRACE), asyncio.timeout(seconds):
        yield
