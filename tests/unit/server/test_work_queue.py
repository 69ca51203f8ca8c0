"""Of what clients cause at once, a little is done in each turn of the event loop."""

import asyncio
from functools import partial
from typing import Any

from brain.server.work_queue import BUDGET, WorkQueue


class Clock:
    """Each call takes 0.3 of a turn's budget."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def work(self, done: list[int], number: int) -> None:
        self.now += BUDGET * 0.3
        done.append(number)


async def test_a_turn_does_what_its_budget_allows_in_order() -> None:
    clock, done = Clock(), list[int]()
    queue = WorkQueue(asyncio.get_running_loop(), clock)
    for number in range(10):
        queue.add(partial(clock.work, done, number))
    seen = []
    for _ in range(4):
        seen.append(len(done))
        await asyncio.sleep(0)
    assert seen == [4, 8, 10, 10]
    assert done == sorted(done)


async def test_what_a_call_adds_is_done_in_a_later_turn() -> None:
    done: list[int] = []
    queue = WorkQueue(asyncio.get_running_loop())

    def again() -> None:
        done.append(len(done))
        queue.add(again)

    queue.add(again)
    for turn in range(3):
        assert len(done) == turn + 1
        await asyncio.sleep(0)


async def test_what_comes_later_waits_behind_what_waits() -> None:
    done: list[str] = []
    queue = WorkQueue(asyncio.get_running_loop())
    queue.add(lambda: queue.add(partial(done.append, "added")))
    queue.add(partial(done.append, "later"))
    await asyncio.sleep(0)
    assert done == ["added", "later"]


async def test_a_turn_without_work_ends_the_look_at_turns() -> None:
    done: list[int] = []
    clock = Clock()
    queue = WorkQueue(asyncio.get_running_loop(), clock)
    for turn in range(3):
        clock.now = turn * BUDGET
        queue.add(partial(done.append, turn))
        assert len(done) == turn + 1, "each begins a turn of its own"
        for _ in range(2):
            await asyncio.sleep(0)
        assert queue._deadline is None


async def test_one_that_fails_keeps_no_other() -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    done: list[str] = []

    def fail() -> None:
        raise RuntimeError("it fails")

    queue = WorkQueue(loop)
    for call in (fail, partial(done.append, "other")):
        queue.add(call)
    await asyncio.sleep(0)
    queue.add(partial(done.append, "later"))
    await asyncio.sleep(0)
    assert done == ["other", "later"]
    assert [str(context["exception"]) for context in reported] == ["it fails"]
