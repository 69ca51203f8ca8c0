"""`brain demo`: runs that begin, progress and end, so that there is something to watch."""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import psycopg

from brain.cli.console import database_url, fail, note
from brain.config import Settings
from brain.contract.errors import BrainError
from brain.contract.messages import ID, Status
from brain.postgres.connection import connect, error_line, redact
from brain.postgres.decoder import Decoder
from brain.postgres.table import describe

if TYPE_CHECKING:
    from brain.api.repository import RunRepository, Version


async def play(settings: Settings, count: int, seconds: float) -> None:
    """Play `count` runs at a time, each for about `seconds`, until cancelled."""
    # As for `serve`: importing FastAPI takes half of the time of every other command.
    from brain.api.repository import open_repository  # noqa: PLC0415
    from brain.delivery.board import Board  # noqa: PLC0415

    url = database_url(settings)
    async with await connect(url, "brain-demo") as conn:
        columns = frozenset((await describe(conn, settings.table)).columns)
    decoder = Decoder(settings.status_map, settings.max_text, settings.timezone)
    print(
        f"playing {count} runs at a time in {settings.table} of {redact(url)}; "
        "press Ctrl-C to end them"
    )
    async with open_repository(url, settings.table, decoder, Board(0)) as runs:
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(count):
                    tasks.create_task(_play(runs, columns, number, seconds))
        except* (BrainError, psycopg.Error) as group:
            fail(group.exceptions[0])


async def _play(
    runs: "RunRepository", columns: frozenset[str], number: int, seconds: float
) -> None:
    """Play one run after the other. The table may lack any column except id and status."""

    async def change(status: Status | None, **values: str | None) -> None:
        present = {name: value for name, value in values.items() if name in columns}
        if status or present:
            await _retry(lambda: runs.change(run_id, status, present))

    while True:
        given = {"agent": f"agent-{number % 3 + 1}", "task_id": f"task-{number}"}
        present = {name: value for name, value in given.items() if name in columns}
        run_id = (await _retry(partial(runs.create, "queued", present))).run[ID]
        try:
            await asyncio.sleep(random.uniform(0, seconds / 5))
            await change("running")
            for progress in range(10, 100, 10):
                await asyncio.sleep(random.uniform(0, seconds / 5))
                await change(None, progress=str(progress))
            if random.random() < 0.2:
                await change("failed", error="bad luck")
            else:
                await change("completed", progress="100")
        except asyncio.CancelledError:
            # Best effort: the database may be unreachable, or the run may just have ended.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(5):
                    await change("failed", error="the demo was stopped")
            raise


async def _retry(query: Callable[[], Awaitable["Version"]]) -> "Version":
    """Try every second until the database answers."""
    while True:
        try:
            return await query()
        except psycopg.OperationalError as error:
            note(f"trying again: {error_line(error)}")
            await asyncio.sleep(1)
