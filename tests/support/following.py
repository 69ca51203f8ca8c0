"""A Follow and its Board: what it yields, what is pushed, and whether that equals the table."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Self, TypeAlias

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from brain.contract.back_off import BackOff
from brain.contract.events import Changes, Event, Snapshot
from brain.contract.messages import ACTIVE, FIELDS, ID, STATUS, Run, Status
from brain.delivery.board import ENTRY, Board
from brain.delivery.log import RUN, Entry, is_tombstone
from brain.postgres.decoder import Decoder
from brain.postgres.follow import Follow
from brain.postgres.polling import Mode
from brain.postgres.table import Table
from brain.postgres.time_zone import DEFAULT, TimeZone
from brain.postgres.timing import PollTiming, StreamTiming, Timing
from tests.support.patience import PATIENCE

RUNS = Table("public", "runs")
Plain: TypeAlias = tuple[Any, ...]


def held(board: Board) -> dict[str, Entry]:
    """The runs on the board, without the tombstones."""
    return {run_id: entry for run_id, entry in board._runs.items() if not is_tombstone(entry)}


class WithoutJitter(BackOff):
    def delay(self, failures: int) -> float:
        return min(self.longest, self.first * 2.0 ** (failures - 1))


QUICK = Timing(
    poll=PollTiming(share=1),
    stream=StreamTiming(idle=0.02),
    back_off=WithoutJitter(first=0.1, longest=0.75),
    promote_every=0.1,
    rejoin_within=0,
    check_every=0.1,
    watch_every=0.1,
)
"""What takes ten seconds in production."""


class Following:
    """Follows `url` inside `async with`. Writes to `writer`, or `url`, over its own connection."""

    def __init__(
        self,
        url: str,
        mode: Mode = "replication",
        *,
        writer: str = "",
        table: Table = RUNS,
        statuses: Mapping[str, Status] | None = None,
        max_text: int = 2_000_000,
        zone: TimeZone = DEFAULT,
        application: str = "brain",
        interval: float = 0.01,
        timing: Timing = QUICK,
    ) -> None:
        self.board = Board(1 << 30)
        self.table = table
        self.decoder = Decoder(statuses or {}, max_text, zone)
        self.follow = Follow(
            url,
            table,
            self.decoder,
            self.board,
            mode=mode,
            interval=interval,
            application=application,
            timing=timing,
        )
        self.mode = mode
        self.events: list[Event] = []
        self.pushes: list[Run] = []
        self.buried: list[Run] = []
        """What was told of deletes."""
        self._writer = writer or url
        self._task: asyncio.Task[None]
        self._sql: AsyncConnection[TupleRow] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="following")
        return self

    async def _run(self) -> None:
        async with contextlib.aclosing(self.follow.events()) as events:
            async for several in events:
                self.events += several
                for push in self.board.apply(*several):
                    told = self.buried if is_tombstone(push[ENTRY]) else self.pushes
                    told.append(push[ENTRY][RUN])

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        try:
            with contextlib.suppress(psycopg.OperationalError):
                await self._slots_gone()
        finally:
            await self.hang_up()

    async def _slots_gone(self) -> None:
        """Over the connection that there is, if it can still be used."""
        with contextlib.suppress(psycopg.Error):
            if self._sql is not None:
                await no_slot(self._sql)
                return
        await slots_gone(self._writer)

    async def stop(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    # Writing.

    async def sql(self, *statements: str) -> list[TupleRow]:
        """Run them one by one, in autocommit. Returns the rows of the last."""
        if self._sql is None or self._sql.broken or self._sql.closed:
            self._sql = await AsyncConnection.connect(
                self._writer, autocommit=True, client_encoding="UTF8"
            )
        for statement in statements:
            cursor = await self._sql.execute(statement.encode())
        return await cursor.fetchall() if cursor.description else []

    async def hang_up(self) -> None:
        """The next `sql` opens a new connection."""
        if self._sql:
            await self._sql.close()

    # Waiting.

    async def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            if self._task.done():
                self._task.result()
            assert time.monotonic() < deadline, f"it did not come: {self.follow.state}"
            await asyncio.sleep(0.003)

    async def source(self, name: str = "") -> None:
        """Wait until this is the source: `name`, or what the mode asks for."""
        wanted = name or ("poll" if self.mode == "poll" else "replication")
        await self.until(lambda: self.follow.state.source == wanted and self.board.begun)

    async def pushed(self, run_id: str, status: str) -> None:
        await self.until(lambda: any(p[ID] == run_id and p[STATUS] == status for p in self.pushes))

    async def settled(self) -> None:
        """Wait until the board equals SELECT.

        A poll does not see that a finished run was deleted, and no runs that had finished before.
        """
        deadline = time.monotonic() + PATIENCE
        while True:
            wanted, seen = await self.select(), self.view()
            if self.mode == "poll" or self.follow.state.source == "poll":
                seen = {i: run for i, run in seen.items() if i in wanted or run[STATUS] in ACTIVE}
            if seen == wanted:
                return
            if self._task.done():
                self._task.result()
            if time.monotonic() > deadline:
                assert seen == wanted
            await asyncio.sleep(0.01)

    # The state, seen from both ends.

    async def select(self) -> dict[str, Plain]:
        """The table, as any client reads it."""
        if self._sql is None or self._sql.broken or self._sql.closed:
            await self.sql("SELECT")
        assert self._sql is not None
        cursor = await self._sql.execute(sql.SQL("SELECT * FROM {}").format(self.table.sql))
        names = [column.name for column in cursor.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]
        words = {
            **{
                word: word
                for word in self.decoder.words("queued", "running", "completed", "failed")
            }
        }
        words = {word: str(self.decoder.status(word)) for word in words}
        column = self.table.columns.resolve(names)
        return {
            str(row[column["id"]]): tuple(
                str(row[column["id"]])
                if field == "id"
                else words[row[column["status"]]]
                if field == "status"
                else _moment(row.get(column.get(field, "")))
                for field in FIELDS
            )
            for row in rows
        }

    def view(self) -> dict[str, Plain]:
        """The board, as Python values."""
        return {run_id: plain(entry[RUN]) for run_id, entry in held(self.board).items()}

    def run(self, run_id: str) -> Run:
        entry = self.board.get(run_id)
        assert entry is not None, run_id
        return entry[RUN]

    def pushed_statuses(self) -> list[tuple[str, str]]:
        """What was pushed, as (id, status)."""
        return [(run[ID], run[STATUS]) for run in self.pushes]

    def changes(self) -> list[tuple[str, str]]:
        """What the stream has delivered, as (operation, id)."""
        return [
            (op, run[ID])
            for event in self.events
            if isinstance(event, Changes)
            for op, run in event.rows
        ]

    def snapshots(self) -> list[Snapshot]:
        return [event for event in self.events if isinstance(event, Snapshot)]


def plain(run: Run) -> Plain:
    started, completed = (
        datetime.fromisoformat(value) if value is not None else None for value in (run[5], run[6])
    )
    return (*run[:5], started, completed, run[7])


def _moment(value: object) -> object:
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    return value


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[AsyncConnection[TupleRow]]:
    """A connection outside of autocommit, for transactions that are held open."""
    conn = await AsyncConnection.connect(url)
    try:
        yield conn
    finally:
        await conn.close()


async def slots_gone(url: str) -> None:
    """A walsender notices late that its client has left. A slot keeps its database from a drop."""
    async with await AsyncConnection.connect(url, autocommit=True) as conn:
        await no_slot(conn)


async def no_slot(conn: AsyncConnection[TupleRow]) -> None:
    mine = "SELECT FROM pg_replication_slots WHERE database = current_database()"
    async with asyncio.timeout(PATIENCE):
        while await (await conn.execute(mine)).fetchall():
            await asyncio.sleep(0.005)
