"""A task inside psycopg ends at the second cancellation."""

import asyncio

import pytest

from brain.postgres import cancellation


class Stubborn:
    """As psycopg, which waits for a silent server after the first cancellation."""

    def __init__(self) -> None:
        self.cancellations = 0

    async def wait(self) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancellations += 1
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancellations += 1
                raise


async def started(stubborn: Stubborn) -> asyncio.Task[None]:
    task = asyncio.create_task(stubborn.wait())
    await asyncio.sleep(0)
    return task


async def test_cancels_a_stubborn_task_twice() -> None:
    stubborn = Stubborn()
    task = await started(stubborn)
    await cancellation.cancel(task)
    assert task.cancelled()
    assert stubborn.cancellations == 2


async def test_returns_at_once_when_a_task_ends_at_the_first() -> None:
    task = asyncio.create_task(asyncio.sleep(3600))
    await cancellation.cancel(task)
    assert task.cancelled()
    await cancellation.cancel(task)


async def test_takes_the_exception_of_a_task_that_has_failed() -> None:
    async def fail() -> None:
        raise OSError

    task = asyncio.create_task(fail())
    await asyncio.sleep(0)
    await cancellation.cancel(task)
    assert isinstance(task.exception(), OSError)


async def test_a_timeout_cancels_a_stubborn_wait_twice() -> None:
    stubborn = Stubborn()
    with pytest.raises(TimeoutError):
        async with cancellation.timeout(0.01):
            await stubborn.wait()
    assert stubborn.cancellations == 2
