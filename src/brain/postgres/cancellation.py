"""Cancelling a wait inside psycopg takes two cancellations.

After the first, psycopg asks the server to cancel the statement, which closes nothing and leaves no
orphaned walsender (a healthy server does it in 3 to 6 ms). A server that is silent is waited for up
to 10 s, unless the task is cancelled again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

GRACE = 1.0
"""Seconds between the first cancellation and the second."""


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel the task. Returns when it has ended, or GRACE after the second cancellation."""
    for _ in range(2):
        task.cancel()
        await asyncio.wait([task], timeout=GRACE)
    if task.done() and not task.cancelled():
        task.exception()  # retrieved: asyncio would log an exception that nobody has read


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[None]:
    """As asyncio.timeout, with the second cancellation. Raises TimeoutError."""
    async with asyncio.timeout(seconds + GRACE), asyncio.timeout(seconds):
        yield
