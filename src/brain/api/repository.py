"""The table's rows, read and written for the HTTP API in the words of the contract.

A value goes to PostgreSQL as text without a type, and PostgreSQL takes it for its column's: a table's columns may be
of any type. What the board knows and a query does not see yet is answered from the board.
"""

import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from dataclasses import field as default
from functools import partial
from http import HTTPStatus
from typing import cast

import psycopg
from psycopg import errors
from psycopg_pool import AsyncConnectionPool

from brain.api.problems import Problem, said
from brain.api.queries import (
    EVERYWHERE,
    TIMES,
    ByFields,
    Statement,
    insert,
    select_one,
    select_page,
    update,
)
from brain.contract.messages import (
    AGENT,
    ID,
    STATUS,
    TASK_ID,
    TRANSITIONS,
    Micros,
    Run,
    Status,
    body,
)
from brain.delivery.board import RUN, SEQ, TIME, XID, Board, Entry
from brain.postgres.connection import Conn, Session, configure, deadline, parameters
from brain.postgres.decoder import Decoder
from brain.postgres.snapshots import PgSnapshot, Xid
from brain.postgres.table import Description, Table, describe

CONNECTIONS = 8
"""To the database, for all requests of the API. `turns` shares them out."""

STALE = 10.0
"""Seconds after which the table's columns are looked up again."""


PIECE = 100
"""Rows that are asked for at a time: a page that is cut at its bytes must not have been in memory whole."""

MAX_PAGE = 1024 * 1024
"""Bytes of a page: a thousand runs with long texts would be 8 MB, held for as long as the client does not read."""


@dataclass(slots=True)
class RunRepository:
    """The table's rows, as the contract words them. Raises Problem, TableError, psycopg.Error.

    `within` is where a token ends: field → the values that its runs have. A run beyond it is as if there were none.
    """

    pool: AsyncConnectionPool[Conn]
    table: Table
    decoder: Decoder
    board: Board
    _described: Description | None = default(default=None, init=False)
    _until: float = default(default=0.0, init=False)
    _visible: int = default(default=0, init=False)
    """A seq of the board: whatever is asked from now on sees all changes up to it, for what one query saw each later one sees. So
    few entries have to be looked at, unless a synchronous standby does not answer.
    """

    async def get(self, run_id: str, within: ByFields = EVERYWHERE) -> Run:
        async with self._connection() as (conn, described):
            try:
                rows = await _rows(
                    conn, select_one(self.table, described, self.decoder.max_text, run_id)
                )
            except psycopg.DataError:  # not a value of the column's type, so no row has it
                raise _unknown(run_id) from None
        seen, *fields = rows[0]
        entry = self.board.get(run_id)
        if entry and _unseen(entry, PgSnapshot.parse(str(seen))):
            run = entry[RUN]
        elif fields[ID] is None or not _matches(fields, within):
            raise _unknown(run_id)
        else:
            run = self._decoded(fields, HTTPStatus.NOT_FOUND)
        if not _matches(run, within):
            raise _unknown(run_id)
        return run

    async def page(
        self, wanted: ByFields, after: str | None, limit: int
    ) -> tuple[list[str], str | None, Micros | None]:
        """Runs in JSON, as many as `limit` and MAX_PAGE let in; the id after which the next page begins; and a moment from which
        on `/ws?since=` misses nothing.

        That moment is the board's before the first query, or that of the first change that a query did not see yet.
        """
        # Beyond what was evicted, of which the query will see all: or who was sent here by a 4410 would be sent back for ever.
        moment = max(self.board.time, self.board.floor_time + 1) if self.board.begun else None
        begun, visible = self.board.seq, self._visible
        texts = {**wanted, "status": self.decoder.words(*wanted["status"])}
        found: list[str] = []
        size, last, left = 0, after, limit
        async with self._connection() as (conn, described):
            while True:
                count, asked = min(left, PIECE), self.board.seq
                query = select_page(
                    self.table,
                    described,
                    self.decoder.max_text,
                    wanted=texts,
                    after=last,
                    limit=count + 1,
                )
                try:
                    rows = await _rows(conn, query)
                except psycopg.DataError as error:
                    if after is None:
                        raise
                    raise Problem(
                        422, "cursor is not one that a page gave", ("cursor", said(error))
                    ) from error
                seen = PgSnapshot.parse(str(rows[0][0]))
                if (
                    moment is not None and left == limit
                ):  # later queries see what the first has seen
                    hidden = self.board.oldest(visible, begun, partial(_unseen, visible=seen))
                    moment = moment if hidden is None else min(moment, hidden[TIME])
                    self._visible = max(self._visible, begun if hidden is None else hidden[SEQ] - 1)
                for _, *fields in rows[:count]:
                    run = self.decoder(fields) if fields[ID] is not None else None
                    if run:
                        entry = self.board.get(run[ID])
                        if entry is None or not _unseen(entry, seen):
                            entry = self.board.show(run, asked)
                        if entry is not None:
                            run = entry[RUN] if _matches(entry[RUN], wanted) else None
                    if run:
                        text = body(run)
                        size += len(text)
                        if found and size > MAX_PAGE:
                            return found, last, moment
                        found.append(text)
                    last = fields[ID]
                left -= count
                if len(rows) <= count or not left:
                    return found, last if len(rows) > count else None, moment

    async def create(self, status: Status, values: Mapping[str, str]) -> Run:
        async with self._connection() as (conn, described):
            self._refuse_missing(described, values)
            row = {**values, "status": self.decoder.word(status)}
            made = "id" not in row and not described.columns["id"].default
            if made:
                row["id"] = str(uuid.uuid4())
            query = insert(self.table, described, self.decoder.max_text, row, TIMES.get(status))
            try:
                rows = await _rows(conn, query)
            except errors.UniqueViolation as error:
                if "(id)=" in (error.diag.message_detail or ""):
                    raise Problem(
                        409,
                        f"there is a run {row.get('id')!r} already: change it with PATCH /api/runs/{{id}}",
                    ) from error
                raise
            except psycopg.DataError as error:
                if made:
                    raise Problem(
                        422, f"give an id, as the table has none of its own to give: {said(error)}"
                    ) from error
                raise
        if not rows:
            raise Problem(
                409, "the table took no row: a trigger or a rule of its own has refused it"
            )
        return self._decoded(rows[0], HTTPStatus.CONFLICT)

    async def change(
        self,
        run_id: str,
        status: Status | None,
        values: Mapping[str, str | None],
        within: ByFields = EVERYWHERE,
    ) -> Run:
        async with self._connection() as (conn, described):
            self._refuse_missing(described, values)
            for _ in range(3):
                try:
                    rows = await _rows(
                        conn,
                        update(
                            self.table,
                            described,
                            self.decoder,
                            run_id=run_id,
                            status=status,
                            values=values,
                            within=within,
                        ),
                    )
                except psycopg.DataError:
                    await self._present(conn, described, run_id, within)
                    raise
                if rows:
                    return self._decoded(rows[0], HTTPStatus.CONFLICT)
                word = await self._present(conn, described, run_id, within)
                present = self.decoder.status(word)
                if present is None:
                    raise Problem(
                        409,
                        f"run {run_id!r} has the status {word!r}, which Brain does not know and does not change",
                    )
                allowed = TRANSITIONS[cast("Status", present)]
                if status is None or status in allowed:
                    continue  # it has changed between the two statements
                others = " or ".join(sorted(allowed - {present}))
                raise Problem(
                    409,
                    f"run {run_id!r} is {present} and cannot become {status}: "
                    + (
                        f"from {present} it can become {others}"
                        if others
                        else f"{present} is final"
                    ),
                )
        raise Problem(
            409, f"run {run_id!r} could not be changed, or is being changed by others: try again"
        )

    async def _present(
        self, conn: Conn, described: Description, run_id: str, within: ByFields
    ) -> str | None:
        """The table's word for the run's status."""
        try:
            rows = await _rows(
                conn, select_one(self.table, described, self.decoder.max_text, run_id)
            )
        except psycopg.DataError:
            raise _unknown(run_id) from None
        _, *fields = rows[0]
        if fields[ID] is None or not _matches(fields, within):
            raise _unknown(run_id)
        return fields[STATUS]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[Conn, Description]]:
        async with self.pool.connection() as conn:
            if self._described is None or time.monotonic() > self._until:
                self._described = await describe(conn, self.table)
                self._until = time.monotonic() + STALE
            try:
                yield conn, self._described
            except psycopg.ProgrammingError:  # the table is not as it was described
                self._described = None
                raise

    def _refuse_missing(self, described: Description, values: Mapping[str, object]) -> None:
        wrong = [
            (name, f"the table {self.table} has no such column")
            if name not in described.columns
            else (name, f"the table {self.table} computes this column itself")
            for name in values
            if name not in described.columns or described.columns[name].generated
        ]
        if wrong:
            raise Problem(422, f"{wrong[0][0]} cannot be set: {wrong[0][1]}", *wrong)

    def _decoded(self, row: Sequence[str | None], otherwise: HTTPStatus) -> Run:
        run = self.decoder(row)
        if run is None:
            raise Problem(
                otherwise,
                f"the row has the status {row[STATUS]!r} or an id that has no place in the contract: "
                "map the table's own words with BRAIN_STATUS_MAP",
            )
        return run


@asynccontextmanager
async def open_repository(
    url: str, table: Table, decoder: Decoder, board: Board
) -> AsyncIterator[RunRepository]:
    """Opens at once, whether or not the database answers, and holds no connection until the first request.

    `url` is one that database.parse_url has returned.
    """
    # It warns at every try. What is wrong with the database is said once, by who follows it.
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
    pool: AsyncConnectionPool[Conn] = AsyncConnectionPool(
        connection_class=Session,
        # A writer that holds a row for minutes must not use up the pool.
        kwargs={
            **parameters(url, "brain-api", statement_timeout="10s", lock_timeout="3s"),
            "autocommit": True,
        },
        configure=configure,
        check=_alive,
        min_size=0,
        max_size=CONNECTIONS,
        open=False,
        timeout=2.0,
        # Then it gives up, and the next request tries again: with the default, pauses grow to minutes.
        reconnect_timeout=2.0,
    )
    await pool.open()
    try:
        yield RunRepository(pool, table, decoder, board)
    finally:
        await pool.close(timeout=1.0)


async def _alive(conn: Conn) -> None:
    """A connection whose packets vanish would keep its request waiting for ever."""
    async with deadline(1.0):
        await AsyncConnectionPool.check_connection(conn)


async def _rows(conn: Conn, statement: Statement) -> list[tuple[str | None, ...]]:
    query, values = statement
    async with deadline(15.0):  # statement_timeout is less
        return await (await conn.execute(query, values)).fetchall()


def _unseen(entry: Entry, visible: PgSnapshot) -> bool:
    """Committed and on the board, but not yet in what that query saw: a synchronous standby may hold that up for long."""
    return entry[XID] != 0 and not visible.sees(Xid(entry[XID]))


def _matches(run: Sequence[object], wanted: ByFields) -> bool:
    values = {"status": run[STATUS], "agent": run[AGENT], "task_id": run[TASK_ID]}
    return all(not texts or values[name] in texts for name, texts in wanted.items())


def _unknown(run_id: str) -> Problem:
    return Problem(404, f"there is no run {run_id!r}")
