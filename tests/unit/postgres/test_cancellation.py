"""A task inside psycopg ends at the second cancellation, and no library loses one."""

import asyncio
import contextlib
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

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


async def test_says_which_task_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cancellation, "GRACE", 0.01)
    ending = asyncio.Event()
    task = asyncio.create_task(cancellation.outlast(asyncio.create_task(ending.wait())), name="t")
    await asyncio.sleep(0)
    with capture_logs() as logs:
        await cancellation.cancel(task)
    assert [(each["event"], each["task"]) for each in logs] == [("a task does not end", "t")]
    ending.set()
    await asyncio.wait([task])


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


async def test_who_is_cancelled_while_he_cancels_leaves_no_task_behind() -> None:
    """Otherwise the second cancellation would not come, and nobody would wait for the task."""
    stubborn = Stubborn()
    task = await started(stubborn)
    cancelling = asyncio.create_task(cancellation.cancel(task))
    await asyncio.sleep(0)
    cancelling.cancel()
    await asyncio.wait([cancelling])
    assert cancelling.cancelled()
    assert task.cancelled()
    assert stubborn.cancellations == 2


async def test_what_has_a_bound_is_waited_for_by_a_task_that_is_cancelled() -> None:
    ending = asyncio.Event()
    task = asyncio.create_task(ending.wait())
    waiting = asyncio.create_task(cancellation.outlast(task))
    for _ in range(2):
        await asyncio.sleep(0)
        waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    ending.set()
    await asyncio.wait([waiting])
    assert waiting.cancelled()
    assert task.result()


class Forgetful:
    """As asyncio.wait_for of Python 3.11: a task that is cancelled with its answer gets that."""

    def __init__(self, end: Callable[[], str]) -> None:
        self._end = end

    async def ask(self) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return self._end()


def answer() -> str:
    return "the answer"


def fail() -> str:
    raise OSError


@pytest.mark.parametrize("end", [answer, fail])
async def test_a_cancellation_that_meets_an_answer_counts(end: Callable[[], str]) -> None:
    task = asyncio.create_task(cancellation.heeded(Forgetful(end).ask()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_deadline_that_meets_an_answer_ends_the_wait() -> None:
    async def ask_for_ever() -> None:
        async with asyncio.timeout(0.01):
            while True:
                await cancellation.heeded(Forgetful(answer).ask())

    with pytest.raises(TimeoutError):
        await ask_for_ever()


async def test_without_a_cancellation_the_call_says_what_it_says() -> None:
    async def call(end: Callable[[], str]) -> str:
        return end()

    assert await cancellation.heeded(call(answer)) == "the answer"
    with pytest.raises(OSError):  # noqa: PT011
        await cancellation.heeded(call(fail))
