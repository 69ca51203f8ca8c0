"""Connections that end at once are taken down a few in each turn of the loop."""

import asyncio
from functools import partial
from typing import Any

from brain.server.departures import MAX_A_TURN, Departures


async def test_a_turn_takes_down_a_few_in_their_order() -> None:
    taken: list[int] = []
    departures = Departures(asyncio.get_running_loop())
    for number in range(2 * MAX_A_TURN + 1):
        departures.add(partial(taken.append, number))
    seen = []
    for _ in range(4):
        seen.append(len(taken))
        await asyncio.sleep(0)
    assert seen == [0, MAX_A_TURN, 2 * MAX_A_TURN, 2 * MAX_A_TURN + 1]
    assert taken == sorted(taken)


async def test_one_that_fails_keeps_no_other() -> None:
    loop = asyncio.get_running_loop()
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    taken: list[str] = []

    def fail() -> None:
        raise RuntimeError("it fails")

    departures = Departures(loop)
    for take_down in (fail, partial(taken.append, "other")):
        departures.add(take_down)
    await asyncio.sleep(0)
    departures.add(partial(taken.append, "later"))
    await asyncio.sleep(0)
    assert taken == ["other", "later"]
    assert [str(context["exception"]) for context in reported] == ["it fails"]
