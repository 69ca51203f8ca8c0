"""How a node waits for what a client has seen elsewhere (nodes/barrier.py)."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from brain.contract.events import Snapshot
from brain.nodes.barrier import Barrier
from brain.nodes.messages import decode, encode
from brain.nodes.timing import NODE_TIMING
from tests.unit.nodes.test_relay import relay as made

QUICK = replace(NODE_TIMING, barrier=0.05)
MESSAGE = decode(encode("events", 1, 1))


class Stream:
    """What JetStream answers."""

    def __init__(self, created: str, last: int | None) -> None:
        self._created, self.end = created, last

    async def created(self) -> str:
        return self._created

    async def last(self, _: str) -> Any:
        return None if self.end is None else (self.end, MESSAGE)


def barrier(stream: Stream, *, looked: bool = True, loads: str = "") -> tuple[Barrier, Any]:
    """Of a node that has read message 50 of the stream that was created on monday."""
    relay = made()
    relay._board.apply(Snapshot([], 1000))
    relay._applied, relay.loads, relay.track.looked = 50, loads, looked
    return Barrier(stream, relay._board, relay, QUICK), relay  # type: ignore[arg-type]


async def test_what_this_node_has_read_is_not_asked_for() -> None:
    found, _ = barrier(Stream("tuesday", None))
    assert await found.reached(1000)
    assert not found.is_behind(1000)
    assert found.is_behind(1001)


async def test_a_client_that_has_seen_the_future_is_not_waited_for() -> None:
    found, _ = barrier(Stream("monday", 50))
    assert await found.reached(2000)


@pytest.mark.parametrize(("created", "last"), [("tuesday", 3), ("monday", None), ("monday", 51)])
async def test_a_place_in_a_lost_stream_says_nothing_of_the_new_one(
    created: str, last: int | None
) -> None:
    """Nor does an empty stream; and in the same one, this node has to read on."""
    found, _ = barrier(Stream(created, last))
    assert not await found.reached(2000)


async def test_while_this_node_loads_the_log_nobody_is_served() -> None:
    found, relay = barrier(Stream("monday", 50), loads="the log went back")
    waiting = asyncio.create_task(found.reached(2000))
    await asyncio.sleep(0)
    relay.loads = ""
    relay._moved.set()
    assert await waiting


async def test_more_than_the_log_contains_waits_for_the_leader_to_look() -> None:
    """(N11)"""
    found, relay = barrier(Stream("monday", 50), looked=False)
    assert not await found.reached(2000)
    waiting = asyncio.create_task(found.reached(2000))
    for _ in range(5):
        await asyncio.sleep(0)
    relay._board.apply(Snapshot([], 2000))
    relay._moved.set()
    assert await waiting
