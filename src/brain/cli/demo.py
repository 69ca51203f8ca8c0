"""`brain demo`: runs that begin, progress and end, so that there is something to watch."""

import asyncio
import contextlib
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import psycopg

from brain.cli.console import database_url, fail, note
from brain.config import Settings
from brain.contract.errors import BrainError
from brain.contract.messages import ID, Status
from brain.following import decoder_of
from brain.postgres.canonical import canonical
from brain.postgres.connection import connect, error_line, redact
from brain.postgres.decoder import Decoder
from brain.postgres.example import ExampleRun, look
from brain.postgres.table import Description, describe

if TYPE_CHECKING:
    from brain.api.repository import RunRepository


T = TypeVar("T")

END_DEADLINE = 5.0
"""Seconds for the database to end the runs at Ctrl-C."""


async def play(settings: Settings, count: int, seconds: float) -> None:
    """Play `count` runs at a time, each for about `seconds`, until cancelled."""
    # As for `serve`: importing FastAPI takes half of the time of every other command.
    from brain.api.repository import open_repository  # noqa: PLC0415
    from brain.delivery.board import Board  # noqa: PLC0415

    url = database_url(settings)
    decoder = decoder_of(settings)
    async with await connect(url, "brain-demo") as conn:
        description = await describe(conn, settings.table)
    example = await look(url, settings.table, decoder)
    if example.body is None and not example.insert:
        fail(f"no run can be created: {example.lacks}")
    print(
        f"playing {count} runs at a time in {settings.table} of {redact(url)}; "
        "press Ctrl-C to end them",
        flush=True,  # a pipe would show it at the end
    )
    async with open_repository(url, settings.table, decoder, Board(0)) as runs:
        writer = _Writer(settings, url, decoder, description, runs, example)
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(count):
                    tasks.create_task(_play(writer, number, seconds))
        except* (BrainError, psycopg.Error) as group:
            fail(group.exceptions[0])


@dataclass(frozen=True)
class _Writer:
    """Creates and changes runs. The table may lack columns, or have others that need values."""

    settings: Settings
    url: str
    decoder: Decoder
    description: Description
    runs: "RunRepository"
    example: ExampleRun
    """What the API can create, or an INSERT."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held from looking for a free id until it is used."""

    def storable(self, values: Mapping[str, str | None]) -> dict[str, str | None]:
        """Those of the values that the table can store."""
        columns = self.description.columns
        return {
            name: value
            for name, value in values.items()
            if name in columns
            and not columns[name].generated
            and (value is None or canonical(columns[name], value) is not None)
        }

    async def create(self, values: Mapping[str, str | None]) -> str:
        """The id of a new queued run."""
        run_id = self.description.columns["id"]
        made = run_id.default or canonical(run_id, str(uuid.uuid4())) is not None
        if self.example.body is not None and made:
            given = {name: str(value) for name, value in self.example.body.items() if name != "id"}
            given |= {name: str(value) for name, value in self.storable(values).items()}
            return (await self.runs.create("queued", _without_status(given))).run[ID]
        async with self.lock:
            example = await look(self.url, self.settings.table, self.decoder)
            if example.body is not None:
                given = {name: str(value) for name, value in example.body.items()}
                return (await self.runs.create("queued", _without_status(given))).run[ID]
            printed = self.description.unpadded("", "id").as_string().replace("%%", "%")
            async with await connect(self.url, "brain-demo") as conn:
                insert = f"{example.insert} RETURNING {printed}".encode()
                row = await (await conn.execute(insert)).fetchone()
        if row is None or row[0] is None:
            raise BrainError("the table has stored no row")
        return row[0]

    async def change(
        self, run_id: str, status: Status | None, values: Mapping[str, str | None]
    ) -> None:
        held = self.storable(values)
        if status or held:
            await self.runs.change(run_id, status, held)


def _without_status(values: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if name != "status"}


async def _play(writer: _Writer, number: int, seconds: float) -> None:
    """Play one run after the other."""

    async def change(status: Status | None, **values: str | None) -> None:
        await _retry(lambda: writer.change(run_id, status, values))
        _end_if_cancelled()

    while True:
        given = {"agent": f"agent-{number % 3 + 1}", "task_id": f"task-{number}"}
        # A cancelled INSERT may have created the run, and nobody would know its id.
        creating = asyncio.ensure_future(_retry(partial(writer.create, given)))
        try:
            run_id = await asyncio.shield(creating)
            _end_if_cancelled()
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
                async with asyncio.timeout(END_DEADLINE):
                    run_id = await creating
                    await writer.change(run_id, "failed", {"error": "the demo was stopped"})
            raise


async def _retry(query: Callable[[], Awaitable[T]]) -> T:
    """Try every second until the database answers."""
    while True:
        try:
            return await query()
        except psycopg.OperationalError as error:
            _end_if_cancelled()
            note(f"trying again: {error_line(error)}")
            await asyncio.sleep(1)


def _end_if_cancelled() -> None:
    """psycopg_pool swallows a cancellation that comes together with a connection. asyncio cancels
    only once, so the demo would play on after Ctrl-C. Raises CancelledError.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
