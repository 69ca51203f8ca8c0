"""What every check is given, and how checks query the database."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from psycopg import sql

from brain.doctor.report import Finding, Report
from brain.postgres.connection import Conn, Row, deadline
from brain.postgres.decoder import Decoder
from brain.postgres.inspection import Inspection
from brain.postgres.table import Table
from brain.postgres.unavailable import StreamUnavailable


@dataclass(frozen=True, slots=True)
class Thresholds:
    slot_wait: float = 3.0
    """Seconds to wait for a slot. A transaction that writes for longer would make Brain wait."""
    long_transaction: float = 60.0
    """Seconds from which an open writing transaction is reported where no slot could be tried."""
    large_table: int = 10_000
    """Rows from which a missing index matters."""
    max_grouped: int = 1_000_000
    """Rows up to which duplicate ids are searched for."""


@dataclass(frozen=True, slots=True)
class Context:
    conn: Conn
    url: str
    table: Table
    decoder: Decoder
    inspection: Inspection
    user: str
    backend_pid: int
    """The backend that answered the first query."""
    thresholds: Thresholds
    report: Report
    """What the checks before this one have found."""
    blockers: tuple[StreamUnavailable, ...]
    """Why the table must not be streamed. Empty if BRAIN_SOURCE is poll."""
    records: Path | None
    """The folder of the records. None: there are to be none."""
    failures: list[StreamUnavailable] = field(default_factory=list)
    """Why the attempts to stream failed. Checks append to it."""

    @property
    def unavailable(self) -> list[StreamUnavailable]:
        """Every reason why Brain would poll."""
        return [*self.blockers, *self.failures]

    @property
    def sql_name(self) -> str:
        """The table's name, quoted."""
        return self.table.sql.as_string()

    async def rows(self, query: str | sql.Composed, values: Any = None) -> list[Row]:
        return await fetch(self.conn, query, values)

    async def row(self, query: str | sql.Composed, values: Any = None) -> Row:
        (row,) = await self.rows(query, values)
        return row

    @asynccontextmanager
    async def briefly(self) -> AsyncIterator[None]:
        """A transaction that is rolled back. No statement in it takes longer than 5 s."""
        async with self.conn.transaction(force_rollback=True):
            await self.conn.execute("SET LOCAL statement_timeout = '5s'")
            await self.conn.execute("SET LOCAL lock_timeout = '2s'")
            yield


Check: TypeAlias = Callable[[Context], Awaitable[list[Finding]]]


async def fetch(conn: Conn, query: str | sql.Composed, values: Any = None) -> list[Row]:
    async with deadline():
        return await (await conn.execute(query, values)).fetchall()
