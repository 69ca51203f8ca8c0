"""The table's rows, read and written in the words of the contract.

A value goes to PostgreSQL as text without a type, and PostgreSQL converts it to its column's: a
column may be of any type.
"""

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

import psycopg
from psycopg import errors

from brain.api.errors import (
    ColumnNotWritable,
    ConcurrentChange,
    CursorInvalid,
    IdRequired,
    RowNotInContract,
    RowRejected,
    RunExists,
    RunNotFound,
    TransitionNotAllowed,
    UnknownStatus,
    postgres_message,
)
from brain.api.overlay import Overlay
from brain.api.pages import Page, Rows, encode_cursor, matches, read_page
from brain.api.pool import Pool, fetch, open_pool
from brain.api.queries import TIMES, UNRESTRICTED, ByFields, insert, select_one, select_page, update
from brain.contract.messages import ID, STATUS, TRANSITIONS, Run, Status
from brain.delivery.board import Board
from brain.postgres.connection import Conn
from brain.postgres.decoder import Decoder
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.table import Description, Table, describe

DESCRIPTION_TTL = 10.0
"""Seconds after which the table's columns are looked up again."""

MAX_TRIES = 3
"""Of an UPDATE that changed no row although the status allows it."""


class RunRepository:
    """Raises RunError, TableError and psycopg.Error.

    `within` is where a token ends: field → the values that its runs have. A run beyond it counts
    as absent.
    """

    def __init__(self, pool: Pool, table: Table, decoder: Decoder, board: Board) -> None:
        self._pool = pool
        self._table = table
        self._decoder = decoder
        self._overlay = Overlay(board)
        self._description: Description | None = None
        self._described_until = 0.0

    async def get(self, run_id: str, within: ByFields = UNRESTRICTED) -> Run:
        async with self._connection() as (conn, description):
            seen, *fields = await self._select(conn, description, run_id)
        run = self._overlay.ahead(run_id, PgSnapshot.parse(str(seen)))
        if run is None:
            if fields[ID] is None or not matches(fields, within):
                raise RunNotFound(run_id)
            try:
                run = self._decode(fields)
            except RowNotInContract as error:
                raise RunNotFound(run_id, str(error)) from error
        if not matches(run, within):
            raise RunNotFound(run_id)
        return run

    async def page(self, wanted: ByFields, after: str | None, limit: int) -> Page:
        """The first `limit` runs after the id `after` whose fields have a `wanted` text."""
        words = {**wanted, "status": self._decoder.words(*wanted["status"])}
        async with self._connection() as (conn, description):

            async def query(after: str | None, limit: int) -> Rows:
                statement = select_page(
                    self._table,
                    description,
                    self._decoder.max_text,
                    wanted=words,
                    after=after,
                    limit=limit,
                )
                return await fetch(conn, statement)

            try:
                return await read_page(
                    query, self._decoder, self._overlay, wanted=wanted, after=after, limit=limit
                )
            except psycopg.DataError as error:
                if after is None:
                    raise
                raise CursorInvalid(encode_cursor(after), postgres_message(error)) from error

    async def create(self, status: Status, values: Mapping[str, str]) -> Run:
        async with self._connection() as (conn, description):
            self._check_writable(description, values)
            row = {**values, "status": self._decoder.word(status, description.statuses.allowed)}
            made = "id" not in row and not description.columns["id"].default
            if made:
                row["id"] = str(uuid.uuid4())
            now = TIMES.get(status)
            statement = insert(self._table, description, self._decoder.max_text, row, now)
            try:
                rows = await fetch(conn, statement)
            except errors.UniqueViolation as error:
                if "(id)=" in (error.diag.message_detail or ""):
                    raise RunExists(row.get("id", "")) from error
                raise
            except psycopg.DataError as error:
                if made:
                    raise IdRequired(postgres_message(error)) from error
                raise
        if not rows:
            raise RowRejected
        return self._decode(rows[0])

    async def change(
        self,
        run_id: str,
        status: Status | None,
        values: Mapping[str, str | None],
        within: ByFields = UNRESTRICTED,
    ) -> Run:
        async with self._connection() as (conn, description):
            self._check_writable(description, values)
            statement = update(
                self._table,
                description,
                self._decoder,
                run_id=run_id,
                status=status,
                values=values,
                within=within,
            )
            for _ in range(MAX_TRIES):
                try:
                    rows = await fetch(conn, statement)
                except psycopg.DataError:
                    await self._word(conn, description, run_id, within)  # RunNotFound goes first
                    raise
                if rows:
                    return self._decode(rows[0])
                word = await self._word(conn, description, run_id, within)
                self._check_transition(run_id, word, status)
                # It is allowed, so the run changed between the two statements.
        raise ConcurrentChange(run_id)

    async def _word(
        self, conn: Conn, description: Description, run_id: str, within: ByFields
    ) -> str | None:
        """What the table has for the run's status."""
        _, *fields = await self._select(conn, description, run_id)
        if fields[ID] is None or not matches(fields, within):
            raise RunNotFound(run_id)
        return fields[STATUS]

    async def _select(
        self, conn: Conn, description: Description, run_id: str
    ) -> tuple[str | None, ...]:
        try:
            rows = await fetch(
                conn, select_one(self._table, description, self._decoder.max_text, run_id)
            )
        except psycopg.DataError:  # not a value of the column's type, so no row has it
            raise RunNotFound(run_id) from None
        return rows[0]

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[Conn, Description]]:
        async with self._pool.connection() as conn:
            if self._description is None or time.monotonic() > self._described_until:
                self._description = await describe(conn, self._table)
                self._described_until = time.monotonic() + DESCRIPTION_TTL
            try:
                yield conn, self._description
            except psycopg.ProgrammingError:  # the table is not as it was described
                self._description = None
                raise

    def _check_writable(self, description: Description, values: Mapping[str, object]) -> None:
        wrong = []
        for name in values:
            column = description.columns.get(name)
            if column is None:
                wrong.append((name, f"the table {self._table} has no such column"))
            elif column.generated:
                wrong.append((name, f"the table {self._table} computes this column itself"))
        if wrong:
            raise ColumnNotWritable(wrong)

    def _check_transition(self, run_id: str, word: str | None, wanted: Status | None) -> None:
        status = self._decoder.status(word)
        if status is None:
            raise UnknownStatus(run_id, word)
        present = cast("Status", status)
        if wanted is not None and wanted not in TRANSITIONS[present]:
            raise TransitionNotAllowed(run_id, present, wanted)

    def _decode(self, row: Sequence[str | None]) -> Run:
        run = self._decoder(row)
        if run is None:
            raise RowNotInContract(row[STATUS])
        return run


@asynccontextmanager
async def open_repository(
    url: str, table: Table, decoder: Decoder, board: Board
) -> AsyncIterator[RunRepository]:
    """`url` is one that postgres.connection.parse_url returned."""
    async with open_pool(url) as pool:
        yield RunRepository(pool, table, decoder, board)
