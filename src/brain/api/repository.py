"""The table's rows, read and written in the words of the contract.

A value goes to PostgreSQL as text without a type, and PostgreSQL converts it to its column's: a
column may be of any type.
"""

import time
import uuid
import zlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import cast

import psycopg
from psycopg import errors, sql

from brain.api.errors import (
    ColumnNotWritable,
    ConcurrentChange,
    CursorInvalid,
    IdNotComparable,
    IdNotUnique,
    IdRequired,
    InvalidRequest,
    PolicyMissing,
    PreconditionFailed,
    PrivilegeMissing,
    RowNotInContract,
    RowRejected,
    RunEnded,
    RunExists,
    RunNotFound,
    TableNotRead,
    TransitionNotAllowed,
    UnknownStatus,
    postgres_message,
)
from brain.api.latest import Latest, Position, read_latest
from brain.api.overlay import Overlay
from brain.api.pages import Cursor, Page, Rows, encode_cursor, matches, read_page
from brain.api.pool import Pool, fetch, open_pool
from brain.api.preconditions import NONE, Preconditions
from brain.api.queries import (
    TIME_OF,
    UNCOMPARED,
    UNRESTRICTED,
    ByFields,
    Target,
    insert,
    select_one,
    select_page,
    update,
)
from brain.api.totals import Total, read_total
from brain.api.unfit import blamed
from brain.contract.messages import (
    ACTIVE,
    FIELDS,
    ID,
    STATUS,
    STATUSES,
    TRANSITIONS,
    Run,
    Status,
    body,
)
from brain.contract.subscription import Form
from brain.delivery.board import Board
from brain.delivery.log import RUN
from brain.postgres.canonical import canonical, printed
from brain.postgres.connection import Conn
from brain.postgres.decoder import Decoder
from brain.postgres.privileges import missing_privileges
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.table import Description, Table, TableError, describe

DESCRIPTION_TTL = 10.0
"""Seconds after which the table's columns are looked up again."""

MAX_TRIES = 3
"""How often a change runs its UPDATE if that changes no row although the row allows the change."""


@dataclass(frozen=True, slots=True)
class Version:
    """A run, and the ETag of what it is now."""

    run: Run
    etag: str
    """Without the quotes around it."""


class RunRepository:
    """Raises RunError, TableError and psycopg.Error.

    `within` is what a token may access: field → the values that a run may have there. To that
    token, any other run does not exist.
    """

    def __init__(
        self,
        pool: Pool,
        table: Table,
        decoder: Decoder,
        board: Board,
        overlay: Overlay | None = None,
    ) -> None:
        self._pool = pool
        self._table = table
        self._decoder = decoder
        self._board = board
        self._overlay = overlay or Overlay(board)
        self._description: Description | None = None
        self._described_until = 0.0
        words = [decoder.words(status) for status in STATUSES]
        settings = (decoder.max_text, words, decoder.zone.name)
        self._salt = zlib.crc32(repr(settings).encode())
        """Changes with the settings that change how the API shows a row, and so its ETag."""

    async def get(self, run_id: str, within: ByFields = UNRESTRICTED) -> Version:
        async with self._connection() as (conn, description):
            target = self._target(description, run_id, within)
            seen, *row = await self._select(conn, description, target)
        ahead = self._overlay.ahead(target.run_id, PgSnapshot.parse(str(seen)))
        if ahead is not None:
            if not matches(ahead, target.within):
                raise RunNotFound(run_id)
            return Version(ahead, sha256(body(ahead).encode()).hexdigest()[:32])
        if row[ID] is None:
            raise RunNotFound(run_id)
        try:
            return self._version(row)
        except RowNotInContract as error:
            raise RunNotFound(run_id, str(error)) from error

    def last_status(self, run_id: str, form: Form) -> str:
        """The status of the run that clients have seen last; "" if Brain does not hold it."""
        found = [self._board.get(each) for each in form("run_id", [run_id]) or ()]
        return next((entry[RUN][STATUS] for entry in found if entry is not None), "")

    async def page(self, wanted: ByFields, after: Cursor | None, limit: int) -> Page:
        """The first `limit` runs behind `after` whose fields have a `wanted` text."""
        if after is not None and after.seen is not None:
            await self._overlay.reach(after.seen)
        async with self._connection() as (conn, description):
            as_printed = _as_printed(description, wanted)
            in_table = {**as_printed, "status": self._decoder.words(*wanted["status"])}

            async def query(after: str | None, limit: int) -> Rows:
                statement = select_page(
                    self._table,
                    description,
                    self._decoder.max_text,
                    wanted=in_table,
                    after=after,
                    limit=limit,
                )
                return await fetch(conn, statement)

            try:
                return await read_page(
                    query,
                    self._decoder,
                    self._overlay,
                    wanted=as_printed,
                    after=after,
                    limit=limit,
                )
            except psycopg.DataError as error:
                if after is None:
                    raise
                raise CursorInvalid(encode_cursor(after), postgres_message(error)) from error

    async def latest(self, wanted: ByFields, limit: int, after: Position | None = None) -> Latest:
        """The runs that changed last, from the board. `wanted` are texts as columns print them."""
        if not self._board.begun:
            raise TableNotRead
        if after is not None:
            await self._overlay.reach(after.seen)
        return await read_latest(self._board, wanted, limit, after)

    async def total(self, wanted: ByFields) -> Total | None:
        """How many runs match. None if the database does not say it soon."""
        words = {**wanted, "status": self._decoder.words(*wanted["status"])}
        try:
            async with self._connection() as (conn, description):
                return await read_total(conn, self._table, description, words)
        except (TableError, psycopg.Error):
            return None

    async def create(self, status: Status, values: Mapping[str, str]) -> Version:
        async with self._connection() as (conn, description):
            self._check_writable(description, values)
            row = {**values, "status": self._decoder.word(status, description.statuses.allowed)}
            generated = "id" not in row and not description.columns["id"].default
            if generated:
                row["id"] = str(uuid.uuid4())
            statement = insert(
                self._table,
                description,
                self._decoder,
                row,
                now=TIME_OF.get(status),
                salt=self._salt,
            )
            try:
                rows = await fetch(conn, statement)
            except errors.UniqueViolation as error:
                if description.is_key_of_id(error.diag.message_detail or ""):
                    raise RunExists(row.get("id", "")) from error
                raise
            except psycopg.DataError as error:
                if generated:
                    raise IdRequired(postgres_message(error)) from error
                raise await blamed(conn, self._table, description, row, error) from error
            except errors.CheckViolation as error:
                raise await blamed(conn, self._table, description, row, error) from error
        if not rows:
            raise RowRejected
        return self._version(rows[0])

    async def change(
        self,
        run_id: str,
        status: Status | None,
        values: Mapping[str, str | None],
        within: ByFields = UNRESTRICTED,
        preconditions: Preconditions = NONE,
    ) -> Version:
        async with self._connection() as (conn, description):
            self._check_writable(description, values)
            target = self._target(description, run_id, within)
            statement = update(
                self._table,
                description,
                self._decoder,
                target,
                status=status,
                values=values,
                preconditions=preconditions,
            )
            sent = dict(values)
            if status is not None:
                sent["status"] = self._decoder.word(status, description.statuses.allowed)
            for _ in range(MAX_TRIES):
                try:
                    rows = await fetch(conn, statement)
                except (psycopg.DataError, errors.CheckViolation) as error:
                    await self._read(conn, description, target)  # RunNotFound goes first
                    raise await blamed(conn, self._table, description, sent, error) from error
                if rows:
                    return self._version(rows[0])
                present, changed = await self._read(conn, description, target, values)
                self._check_change(present, status, changed)
                version = self._version(present)
                if not preconditions.allow_change(version.etag):
                    raise PreconditionFailed(run_id, version.etag)
                if version.run[STATUS] not in ACTIVE:
                    return version  # the request asks for what the run already is
                # It is allowed, so the run changed between the two statements.
        raise ConcurrentChange(run_id)

    async def _read(
        self,
        conn: Conn,
        description: Description,
        target: Target,
        values: Mapping[str, str | None] = UNCOMPARED,
    ) -> tuple[list[str | None], list[str]]:
        """The fields of the run and its ETag, and the names of the `values` that the run does not
        have yet.
        """
        _, *row = await self._select(conn, description, target, values)
        if row[ID] is None:
            raise RunNotFound(target.run_id)
        equal = row[len(FIELDS) + 1 :]
        changed = [name for name, same in zip(values, equal, strict=True) if same != "t"]
        return row[: len(FIELDS) + 1], changed

    async def _select(
        self,
        conn: Conn,
        description: Description,
        target: Target,
        values: Mapping[str, str | None] = UNCOMPARED,
    ) -> tuple[str | None, ...]:
        statement = select_one(self._table, description, self._decoder.max_text, target, values)
        try:
            rows = await fetch(conn, statement)
        except psycopg.DataError as error:
            if values:  # one of them may have caused it
                await self._select(conn, description, target)
                raise await blamed(conn, self._table, description, values, error) from error
            # The id is not a value of the column's type, so no row has it.
            raise RunNotFound(target.run_id) from None
        if len(rows) > 1:
            raise IdNotUnique(target.run_id, self._table)
        return rows[0]

    def _target(self, description: Description, run_id: str, within: ByFields) -> Target:
        """Raises RunNotFound if the column cannot hold this id."""
        canonical_id = canonical(description.columns["id"], run_id)
        if canonical_id is None:
            raise RunNotFound(run_id)
        texts = printed(description.columns["id"], [run_id])
        return Target(canonical_id, texts, _as_printed(description, within), self._salt)

    async def _explain_incomparable(
        self, conn: Conn, description: Description, error: psycopg.Error
    ) -> Exception:
        """IdNotComparable if the type of the id caused the error, or else `error` itself."""
        run_id = description.column("r", "id")
        probe = sql.SQL("SELECT FROM {} r WHERE {} = '' ORDER BY {} LIMIT 0")
        try:
            await fetch(conn, (probe.format(self._table.in_query, run_id, run_id), []))
        except (errors.UndefinedFunction, errors.FeatureNotSupported):
            return IdNotComparable(self._table, description.columns["id"].type)
        except psycopg.DataError:
            pass  # '' is no value of the type, which can be compared
        return error

    async def _explain_forbidden(
        self, conn: Conn, description: Description, error: psycopg.Error
    ) -> Exception:
        """The policy or the privilege that Brain's role lacks, or else `error` itself."""
        missing = await missing_privileges(conn, self._table, description.oid)
        if grants := (*missing.to_read, *missing.to_write):
            # A comment behind a statement would hide the next one.
            statements = [grant.partition(" --")[0] for grant in grants]
            return PrivilegeMissing(postgres_message(error), statements)
        # The name of PostgreSQL's function, unlike the message, is never translated.
        if error.diag.source_function != "ExecWithCheckOptions":
            return error
        row = await (await conn.execute("SELECT current_user")).fetchone()
        assert row is not None
        role = sql.Identifier(str(row[0])).as_string()
        policy = f"CREATE POLICY brain ON {self._table.sql.as_string()} TO {role} USING (true)"
        return PolicyMissing(postgres_message(error), role, policy)

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[Conn, Description]]:
        async with self._pool.connection() as conn:
            if self._description is None or time.monotonic() > self._described_until:
                self._description = await describe(conn, self._table)
                self._described_until = time.monotonic() + DESCRIPTION_TTL
            try:
                yield conn, self._description
            except errors.NotNullViolation as error:
                detail = postgres_message(error)
                field = self._description.field(error.diag.column_name or "")
                raise InvalidRequest(detail, (field, detail)) from error
            except errors.InsufficientPrivilege as error:
                raise await self._explain_forbidden(conn, self._description, error) from error
            except (errors.UndefinedFunction, errors.FeatureNotSupported) as error:
                raise await self._explain_incomparable(conn, self._description, error) from error
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

    def _check_change(
        self, row: Sequence[str | None], wanted: Status | None, changed: Sequence[str]
    ) -> None:
        """Raises RunConflict."""
        run_id, word = str(row[ID]), row[STATUS]
        status = self._decoder.status(word)
        if status is None:
            raise UnknownStatus(run_id, word)
        present = cast("Status", status)
        if wanted is not None and wanted not in TRANSITIONS[present]:
            raise TransitionNotAllowed(run_id, present, wanted)
        if present not in ACTIVE and changed:
            raise RunEnded(run_id, present, changed)

    def _version(self, row: Sequence[str | None]) -> Version:
        """`row` has the fields, and the ETag."""
        *fields, etag = row
        run = self._decoder(fields)
        if run is None:
            raise RowNotInContract(fields[STATUS])
        return Version(run, str(etag))


def _as_printed(description: Description, wanted: ByFields) -> ByFields:
    """The wanted texts as the columns print them: of a number, `1` for `01` (see canonical.py)."""
    return {
        name: printed(description.columns.get("id" if name == "run_id" else name), texts)
        if name != "status"
        else texts
        for name, texts in wanted.items()
    }


@asynccontextmanager
async def open_repository(
    url: str, table: Table, decoder: Decoder, board: Board, overlay: Overlay | None = None
) -> AsyncIterator[RunRepository]:
    """`url` is one that postgres.database_url.parse_url returned. `overlay`: that of a node."""
    async with open_pool(url) as pool:
        yield RunRepository(pool, table, decoder, board, overlay)
