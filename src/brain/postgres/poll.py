"""The source that needs no privilege: one query finds what changed since the checkpoint, in any
table, by `xmin`.

`xmin` is the id of the transaction that wrote a row's version (PostgreSQL documentation, 5.6
"System Columns"). Ids have no order and no index, so the query is a sequential scan: about 45 ms
per million rows. It runs only if something was committed since (an unchanged
`pg_current_snapshot()` means that nothing was), and no sooner than PollTiming.pause after the last.

The horizon is the *xmin* of the checkpoint's snapshot, the oldest transaction that was open then.
Its xmax, a row's own visibility (subtransactions) and a comparison of the numbers (wraparound) each
lose rows.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import aclosing
from dataclasses import replace
from typing import cast

import psycopg
from psycopg import sql

from brain.contract.events import Known, Resumed, Snapshot
from brain.contract.messages import FIELDS, ID, Run
from brain.postgres.checkpoints import Checkpoint, Identity
from brain.postgres.connection import Conn, Row, deadline
from brain.postgres.decoder import Decoder
from brain.postgres.first_look import FirstLook
from brain.postgres.pgoutput import LSN
from brain.postgres.progress import Progress
from brain.postgres.row_security import RowSecurity, row_security
from brain.postgres.scanned_rows import Keep, Leave, ScannedRows
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.statements import Statement, escaped
from brain.postgres.table import Description, Table, describe
from brain.postgres.timing import TIMING, PollTiming

PIECE = 1000
"""Rows of a piece of a Snapshot."""

_COMPARED = frozenset({"text", "varchar", "bpchar", "uuid", "int2", "int4", "int8", "numeric"})
"""Built-in types of ids of which it is known that PostgreSQL compares them."""

_EPOCH = """
SELECT current_user, (SELECT to_jsonb(b) ->> 'stats_reset' FROM pg_stat_bgwriter b)
"""

_IDENTITY = """
SELECT (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::text FROM pg_control_checkpoint())
            ELSE pg_catalog.left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END,
       (SELECT oid FROM pg_database WHERE datname = current_database()), %s::oid
"""

_SIZE = """
SELECT sum(pg_relation_size(oid)) FROM unnest(%s::oid[]) oid
"""

_POSITION = """
SELECT pg_current_snapshot()::text,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() - '0/0'::pg_lsn END,
       CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() - '0/0'::pg_lsn END
"""


class Poll:
    """Reads the table over an ordinary connection. `progress` outlives it."""

    def __init__(
        self,
        conn: Conn,
        table: Table,
        decoder: Decoder,
        known: Known,
        progress: Progress,
        *,
        timing: PollTiming = TIMING.poll,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.conn = conn
        self.progress = progress
        self.pause = 0.0
        """Seconds to wait before the next scan, after what the last ones cost."""
        self.description: Description
        self._table = table
        self._decoder = decoder
        self._known = known
        self._timing = timing
        self._clock = clock
        self._took = 0.0
        self._ids_compare = True
        self._identity: Identity
        self._role = ""
        self._epoch: str | None = None
        self._row_security: RowSecurity | None = None

    # The catalog and the server.

    async def read_catalog(self) -> None:
        """Describe the table. Raises TableError."""
        async with deadline():
            self.description = await describe(self.conn, self._table)
            self._ids_compare = await self._look_whether_ids_compare()
            self._row_security = await row_security(self.conn, self.description.oid)
            self._identity = await self._identify(self.description)
        self.progress.columns = self.description.columns
        self.progress.notice(self._epoch)

    @property
    def identity(self) -> Identity:
        """As the catalog was last read."""
        return self._identity

    async def _look_whether_ids_compare(self) -> bool:
        """Not those of type json, of an array, or of an extension whose operators our search_path
        lacks.
        """
        if self.description.columns["id"].base in _COMPARED:
            return True
        query = sql.SQL("SELECT FROM {} r WHERE {} LIMIT 0")
        try:
            await self.conn.execute(query.format(self._table.in_query, self._by_value()), [[]])
        except (
            psycopg.errors.UndefinedFunction,
            psycopg.errors.UndefinedObject,
            psycopg.errors.FeatureNotSupported,
        ):
            return False
        return True

    async def _identify(self, description: Description) -> Identity:
        row = await (await self.conn.execute(_EPOCH)).fetchone()
        assert row is not None
        self._role, self._epoch = str(row[0]), row[1]
        try:
            row = await (await self.conn.execute(_IDENTITY, (description.oid,))).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            row = (None, None, None, str(description.oid))
        assert row is not None
        # Another type prints another id, and an added column has its default in rows that nobody
        # wrote again. So has one that took the place, or the name, of another.
        columns = [description.columns.get(name) for name in FIELDS]
        known = (f"{each.number} {each.type}" if each is not None else None for each in columns)
        # Policies hide and reveal rows that nobody wrote again, finished ones too.
        security = self._row_security
        policies = None if security is None else str(security)
        return (*row, *known, policies, self._role, self._decoder.dialect)

    async def visible(self) -> PgSnapshot:
        async with deadline():
            row = await (await self.conn.execute("SELECT pg_current_snapshot()::text")).fetchone()
        assert row is not None
        return PgSnapshot.parse(str(row[0]))

    async def until_seen(self, xids: Collection[int]) -> None:
        """Wait until a query sees these transactions, which a stream has delivered.

        A commit is in the log shortly before it is visible. Behind a synchronous standby that does
        not answer, that may last for ever: then, after a second, what SELECT returns counts.
        """
        given_up_at = self._clock() + self._timing.unseen
        while True:
            visible = await self.visible()
            xids = visible.unseen(xids)
            if not xids or self._clock() > given_up_at:
                return
            await asyncio.sleep(0.01)

    async def insert_lsn(self) -> LSN:
        async with deadline():
            row = await (
                await self.conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
            ).fetchone()
        assert row is not None
        return LSN(int(str(row[0])))

    async def _position(self) -> tuple[PgSnapshot, LSN, LSN]:
        """What a query sees, and how far the log is flushed and written; 0 on a read replica."""
        async with deadline():
            row = await (await self.conn.execute(_POSITION)).fetchone()
        assert row is not None
        return PgSnapshot.parse(str(row[0])), LSN(int(row[1] or 0)), LSN(int(row[2] or 0))

    # Rows.

    async def read(self, *, always: bool = False) -> AsyncGenerator[Snapshot | Resumed]:
        """What changed since the checkpoint, in pieces; the checkpoint moves when the last one has
        been taken.

        Yields nothing, without a scan, if nothing was committed anywhere. `always`: scan
        nevertheless.
        """
        if not always and await self.is_current():
            return
        # This query waits for the table's lock, so that the scan does not. A wait is no cost of the
        # scan: an hour of it would be followed by a pause of a day.
        async with deadline(self._timing.locked, f"a lock on the table {self._table}"):
            row = await (await self.conn.execute(_SIZE, (list(self.description.tree),))).fetchone()
        assert row is not None
        took, begun = 0.0, self._clock()
        progress, known = self.progress, self._known
        since, again = progress.checkpoint, False
        async with aclosing(self._first_look() if since is None else self.scan(since)) as pieces:
            async for piece, reached in pieces:
                took += self._clock() - begun
                if isinstance(piece, Snapshot) and (piece.new or since is None):
                    again = True
                    if piece.new:
                        progress.records.void("another history of the table has begun")
                if isinstance(piece, Resumed) or piece.rows or piece.gone:
                    progress.read_rows()
                yield piece
                begun = self._clock()  # what the consumer did with the piece is no cost of the scan
                if reached is not None:
                    progress.checkpoint = reached
                    if again:
                        progress.records.begin(known.floor_time, reached)
                    else:
                        progress.records.add(known.last_time, reached, known.time)
        last, self._took = self._took, took + self._clock() - begun
        self.pause = self._timing.pause(last, self._took, int(row[0] or 0))

    async def is_current(self) -> bool:
        """Whether nothing was committed anywhere since the last poll. False for a view: there it is
        not known.
        """
        checkpoint = self.progress.checkpoint
        return (
            checkpoint is not None
            and self._has_xmin
            and (checkpoint.identity, checkpoint.tree, checkpoint.epoch)
            == (self._identity, self.description.tree, self._epoch)
            and await self._is_unchanged(checkpoint)
        )

    async def _is_unchanged(self, checkpoint: Checkpoint) -> bool:
        visible, flushed, inserted = await self._position()
        self.progress.flushed(flushed, inserted)
        return checkpoint.is_current(visible, flushed)

    async def _first_look(self) -> AsyncGenerator[tuple[Snapshot | Resumed, Checkpoint | None]]:
        """What is unfinished, and what changed since the oldest record, if there is one."""
        records = self.progress.records
        here = await self.here()
        if (reason := self.unrecordable()) is not None:
            records.unavailable(*reason)
        else:
            records.open(self.record_name, here)
        if len(records):
            found = FirstLook(records)
            visible = PgSnapshot(records.oldest.xmin, records.oldest.xmin, frozenset())
            since = replace(here, visible=visible, tree=frozenset())  # and what is unfinished
            async with aclosing(self.scan(since, found.take, found.leave)) as pieces:
                piece, reached = await anext(pieces)
            if found.failed:
                records.void(f"more than {records.max_rows} rows have changed since")
            at = records.start(piece.at)
            if len(records):
                yield found.resumed(at), reached
                return
        at = 0
        async with aclosing(self.scan(None)) as pieces:
            async for piece, reached in pieces:
                # Above every time that may have been sent before, which are all gaps now.
                at = at or records.start(piece.at) + 1
                yield replace(piece, at=at, refused=records.refused), reached

    async def here(self) -> Checkpoint:
        """The checkpoint of a reader that has read nothing yet."""
        visible, flushed, _ = await self._position()
        tree, epoch = self.description.tree, self._epoch
        return Checkpoint(self._identity, visible, flushed=flushed, tree=tree, epoch=epoch)

    def unrecordable(self) -> tuple[str, str] | None:
        """Why the table can have no records, and what to run; None if it can."""
        if not self._has_xmin:
            return "a view has no xmin", ""
        if self._row_security is not None:
            return "row security may reveal rows that nobody has written", ""
        if self._identity[0] is None:
            role = sql.Identifier(self._role).as_string()
            hint = f"GRANT EXECUTE ON FUNCTION pg_control_system() TO {role};"
            detail = "the role may not call pg_control_system(), which identifies the server"
            return detail, hint
        return None

    @property
    def record_name(self) -> tuple[str | None, ...]:
        """What the file of records is of."""
        return (self._identity[0], self._identity[2], str(self._table))

    @property
    def _has_xmin(self) -> bool:
        """A view's rows have none."""
        return self.description.kind in "rpm"

    async def scan(
        self, since: Checkpoint | None, keep: Keep | None = None, leave: Leave | None = None
    ) -> AsyncGenerator[tuple[Snapshot, Checkpoint | None]]:
        """What changed since this checkpoint, in pieces; with the last piece the checkpoint that is
        reached. `keep` may leave rows out; `leave` receives rows that are no run.
        """
        here, flushed, inserted = await self._position()
        self.progress.flushed(flushed, inserted)
        new = since is not None and since.voided_by(self._identity, here, flushed, self._epoch)
        base = None if new else since
        by_id = self._by_text() if base is None else self._by_id()
        query, parameters = self._first(by_id) if base is None else self._since(base)
        seen = base.versions if base is not None else frozenset()
        rows = ScannedRows(self._decoder, self._known, seen, keep, leave)
        row: Row | None
        async with self.conn.cursor() as cursor:
            answer = cast("AsyncGenerator[Row]", cursor.stream(query, parameters, size=PIECE))
            async with aclosing(answer):
                seconds = self._timing.deadline(self._took, first=since is None)
                async with deadline(seconds, "the end of a scan"):
                    # A LEFT JOIN returns one row at least. If nothing has changed it is one of
                    # NULLs, and arrives when the scan has ended.
                    row = await anext(answer)
                visible, at = PgSnapshot.parse(str(row[0])), int(str(row[1]))
                self.progress.records.compare(at)
                while row is not None:
                    # One deadline for many rows: it costs as much as a row.
                    async with deadline(seconds, "the rest of a scan"):
                        for _ in range(PIECE):
                            taken, row = row, await anext(answer, None)
                            rows.take(taken, visible)
                            if row is None or len(rows.changed) == PIECE:
                                break
                    if len(rows.changed) == PIECE:
                        yield Snapshot(rows.take_changed(), at, complete=False, new=new), None
                        new = False
        gone = [*rows.rejected, *await self._gone(rows.missing, by_id)]
        # The catalog was read before the scan: the next reading finds a partition that was attached
        # between the two.
        tree = self.description.tree
        reached = Checkpoint(
            self._identity, visible, frozenset(rows.versions), flushed, tree, self._epoch
        )
        yield Snapshot(rows.changed, at, gone, new=new), reached

    async def fetch(self, ids: list[str]) -> dict[str, Run]:
        """The rows as they are now, without those that the contract cannot express."""
        query = sql.SQL("SELECT {} FROM {} r WHERE {}").format(
            self.description.select("r", self._decoder.max_text),
            self._table.in_query,
            self._by_id(),
        )
        async with deadline(self._timing.locked, f"rows of {self._table}"):
            runs = [self._decoder(row) async for row in await self.conn.execute(query, [ids])]
        return {run[ID]: run for run in runs if run is not None}

    async def _gone(self, ids: set[str], by_id: sql.Composable) -> list[str]:
        """Those of the ids that the table no longer has, or has with a status that is none."""
        if not ids:
            return []
        query = sql.SQL("SELECT {}, {} FROM {} r WHERE {}").format(
            self.description.unpadded("r", "id"),
            self.description.column("r", "status"),
            self._table.in_query,
            by_id,
        )
        async with deadline(self._timing.first_scan, "the ids of unfinished runs"):
            found = {
                run_id
                async for run_id, word in await self.conn.execute(query, [list(ids)])
                if self._decoder.status(word) is not None
            }
        return [run_id for run_id in ids if run_id not in found]

    # Statements.

    def _first(self, by_id: sql.Composable) -> Statement:
        """Without a checkpoint: what is queued or running, in the table or on the board."""
        condition = sql.SQL("({} OR {})").format(self._active(), by_id)
        return self._query(sql.SQL("NULL"), condition), [list(self._known.unfinished())]

    def _since(self, checkpoint: Checkpoint) -> Statement:
        if not self._has_xmin:
            return self._first(self._by_id())
        # The age of a row that was frozen more than 2^31 transactions ago is negative.
        condition = sql.SQL(
            "pg_catalog.age(r.xmin) BETWEEN 0 AND (SELECT pg_catalog.age(%s::text::xid))"
        ).format()
        # A policy may ask other tables, so a row may become visible that nobody wrote.
        if checkpoint.tree != self.description.tree or self._row_security is not None:
            condition = sql.SQL("({} OR {})").format(condition, self._active())
        return self._query(sql.SQL("r.xmin"), condition), [str(checkpoint.visible.xmin % 2**32)]

    def _query(self, xmin: sql.Composable, condition: sql.Composable) -> sql.Composed:
        return sql.SQL(
            "WITH s AS MATERIALIZED (SELECT pg_current_snapshot() AS visible,"
            " (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS at)"
            " SELECT s.visible::text, s.at, {}, {} FROM s LEFT JOIN {} r ON {}"
        ).format(
            xmin,
            self.description.select("r", self._decoder.max_text),
            self._table.in_query,
            condition,
        )

    def _active(self) -> sql.SQL:
        condition = self.description.statuses.one_of("r", self._decoder.active_words)
        return sql.SQL(escaped(condition))

    def _by_id(self) -> sql.Composed:
        return self._by_value() if self._ids_compare else self._by_text()

    def _by_value(self) -> sql.Composed:
        return sql.SQL("{} = ANY (%s::text[]::{}[])").format(
            self.description.column("r", "id"), sql.SQL(self.description.columns["id"].type)
        )

    def _by_text(self) -> sql.Composed:
        """For ids of another table, whose type may have been another, and for those that do not
        compare. It uses no index.
        """
        return sql.SQL("pg_catalog.format('%%s', {}) = ANY (%s::text[])").format(
            self.description.unpadded("r", "id")
        )
