"""`brain demo` leaves no run behind that goes on for ever."""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, cast

import pytest

from brain.cli import demo
from brain.contract.messages import Status


class Writer:
    """A database that has created the run a moment before it answers."""

    def __init__(self) -> None:
        self.created = asyncio.Event()
        self.answer = asyncio.Event()
        self.changes: list[tuple[str, Status | None]] = []

    async def create(self, _: Mapping[str, str | None]) -> str:
        self.created.set()
        await self.answer.wait()
        return "run"

    async def change(self, run_id: str, status: Status | None, _: Mapping[str, str | None]) -> None:
        self.changes.append((run_id, status))


async def test_a_run_that_is_being_created_when_the_demo_ends_is_ended_too() -> None:
    writer = Writer()
    playing = asyncio.create_task(demo._play(cast("Any", writer), 0, 10))
    await writer.created.wait()
    playing.cancel()
    await asyncio.sleep(0)
    writer.answer.set()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert writer.changes == [("run", "failed")]


async def test_a_database_that_does_not_answer_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "END_DEADLINE", 0.01)
    playing = asyncio.create_task(demo._play(cast("Any", writer := Writer()), 0, 10))
    await writer.created.wait()
    playing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await playing
    assert writer.changes == []
