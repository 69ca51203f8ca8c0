"""The source that needs no privilege: one query finds what changed since the last good moment, in any table, by `xmin`.

`xmin` is the id of the transaction that wrote a row's version (PostgreSQL documentation, 5.6 "System Columns"). Ids have no
order and no index, so the query is a sequential scan: about 45 ms per million rows. It runs only if
something was committed at all since (an unchanged `pg_current_snapshot()` means that nothing was), and no sooner than
SHARE times its duration after the last.

The horizon is the *xmin* of the last snapshot, the oldest transaction still open then: its xmax, a row's own visibility
(subtransactions) or a comparison of the numbers (wraparound) each lose rows.
"""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import cast

import psycopg
from psycopg import sql

from brain.contract.events import Known, Snapshot
from brain.contract.messages import FIELDS, ID, Run
from brain.postgres.checkpoints import Checkpoint, Identity
from brain.postgres.connection import Conn, Text, deadline
from brain.postgres.decoder import Decoder
from brain.postgres.pgoutput import LSN
from brain.postgres.snapshots import PgSnapshot, widen
from brain.postgres.table import Description, Table, describe, escaped

PIECE = 1000
SHARE = 20
"""A scan is followed by a pause of so many times its duration, or of what PAGE says it takes, if that is less."""

MAX_PAUSE = 60.0
"""Seconds. A scan of three seconds may take more of a core than that, in a table that is that large."""

PAGE = 2.8e-6
"""Seconds that are reckoned for 8 KiB of the table, at the most: a million rows are read once a second so, for 7.6 % of a core
(`python -m benchmarks.polling`), and not later on a busy machine, where a scan takes longer than it costs."""

LOCKED = 15.0
"""Seconds that a poll waits for who has locked the table (ALTER TABLE, VACUUM FULL)."""

SCAN = 600.0
"""Seconds for a first scan, on a cold disk; for a later one a minute, and as much more as the last ones took."""

_IDENTITY = """
SELECT (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::text FROM pg_control_checkpoint())
            ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END,
       (SELECT oid FROM pg_database WHERE datname = current_database()), %s::oid
"""

_SIZE = """
SELECT sum(pg_relation_size(oid)) FROM unnest(%s::oid[]) oid
"""

_HERE = """
SELECT pg_current_snapshot()::text, CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_flush_lsn() - '0/0'::pg_lsn END
"""


class Poll:
    """Reads the table over an ordinary connection. `moment` outlives connections; it is the caller's to hand on."""

    def __init__(
        self, conn: Conn, table: Table, decoder: Decoder, known: Known, moment: Checkpoint | None
    ) -> None:
        self.conn = conn
        self.moment = moment
        self.pause = 0.0
        """Seconds for which the next scan is to wait, after what the last ones cost."""
        self._took = 0.0
        self.description: Description
        self._table = table
        self._decoder = decoder
        self._known = known
        self._identity: Identity

    async def look(self) -> None:
        """Read what the catalog says. Raises TableError."""
        async with deadline():
            self.description = await describe(self.conn, self._table)
            self._identity = await self.identify(self.description)

    async def identify(self, description: Description) -> Identity:
        try:
            row = await (await self.conn.execute(_IDENTITY, (description.oid,))).fetchone()
        except psycopg.errors.InsufficientPrivilege:
            row = (None, None, None, str(description.oid))
        assert row is not None
        # Another type prints another id, and a column that is added has its default in rows that nobody wrote again.
        columns = description.columns
        return (*row, *(columns[name].type if name in columns else None for name in FIELDS))

    async def visible(self) -> PgSnapshot:
        async with deadline():
            row = await (await self.conn.execute("SELECT pg_current_snapshot()::text")).fetchone()
        assert row is not None
        return PgSnapshot.parse(str(row[0]))

    async def _here(self) -> tuple[PgSnapshot, LSN]:
        """What can be seen, and how far the log is on the disk; 0 on a read replica."""
        async with deadline():
            row = await (await self.conn.execute(_HERE)).fetchone()
        assert row is not None
        return PgSnapshot.parse(str(row[0])), LSN(int(row[1] or 0))

    async def insert_lsn(self) -> LSN:
        async with deadline():
            row = await (
                await self.conn.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
            ).fetchone()
        assert row is not None
        return LSN(int(str(row[0])))

    async def read(self, *, always: bool = False) -> AsyncGenerator[Snapshot]:
        """What changed since the last good moment, in pieces. Nothing, and no scan, if nothing was committed anywhere."""
        heap = self.description.kind in "rpm"
        same = self.moment is not None and (self.moment.identity, self.moment.tree) == (
            self._identity,
            self.description.tree,
        )
        if not always and heap and same and self.moment is not None:
            visible, flushed = await self._here()
            back = 0 < flushed < self.moment.flushed
            if visible == self.moment.visible and visible.whole and not back:
                return
        # This takes the scan's lock first: to wait for it is no cost of the scan, and an hour would be followed by a day's pause.
        async with deadline(LOCKED, f"a lock on the table {self._table}"):
            row = await (await self.conn.execute(_SIZE, (list(self.description.tree),))).fetchone()
        assert row is not None
        took, begun = 0.0, time.perf_counter()
        async with aclosing(self.scan()) as pieces:
            async for piece in pieces:
                took += time.perf_counter() - begun
                yield piece
                begun = time.perf_counter()  # what was done with the piece is no cost of the scan
        # The lesser of two: one slow scan, as the first is and any may be on a busy machine, says nothing of the next. Nor is
        # it work to wait for a disk, or for a core that others use.
        last, self._took = self._took, took + time.perf_counter() - begun
        pages = int(row[0] or 0) / 8192
        self.pause = min(MAX_PAUSE, SHARE * min(last, self._took, PAGE * pages or MAX_PAUSE))

    async def scan(self, keep: Callable[[Run], bool] | None = None) -> AsyncGenerator[Snapshot]:
        """Read, and move `moment` on when the last piece has been taken. `keep` may leave rows out."""
        moment = self.moment
        here, flushed = await self._here()
        new = moment is not None and (
            moment.identity != self._identity
            or here.xmax < moment.visible.xmax  # an older state of this very database was put back
            or 0
            < flushed
            < moment.flushed  # and as many transactions made since as there were before
            or here.xmax - moment.visible.xmin >= 2**31  # further away than 32 bits can tell
        )
        if moment is None or new:
            by_id = self._by_text()
            query, parameters = self._first(by_id)
        else:
            by_id = self._by_id()
            query, parameters = self._since(moment)
        missing = set(self._known.unfinished())
        seen = moment.versions if moment is not None and not new else frozenset()
        versions: set[tuple[str, str | None]] = set()
        rows: list[Run] = []
        row: Text | None
        async with self.conn.cursor() as cursor:
            answer = cast("AsyncGenerator[Text]", cursor.stream(query, parameters, size=PIECE))
            async with aclosing(answer):
                async with deadline(
                    SCAN if moment is None or not self._took else 60 + SHARE * self._took,
                    "the end of a scan",
                ):
                    row = await anext(
                        answer
                    )  # there is one, be it of NULLs, and where nothing has changed it ends the scan
                visible, at = PgSnapshot.parse(str(row[0])), int(str(row[1]))
                while row is not None:
                    _, _, xmin, *values = row
                    row = await anext(answer, None)
                    run_id = values[ID]
                    if run_id is None:
                        continue
                    missing.discard(run_id)
                    if xmin is not None and widen(int(xmin), visible.xmax) >= visible.xmin:
                        versions.add((run_id, xmin))
                    if (run_id, xmin) in seen:
                        continue
                    run = self._decoder(values)
                    if run is not None and (keep is None or keep(run)):
                        rows.append(run)
                        if len(rows) == PIECE:
                            yield Snapshot(rows, at, complete=False, new=new)
                            rows, new = [], False
        gone = await self._gone(missing, by_id)
        yield Snapshot(rows, at, gone, new=new)
        # The catalog was read before the scan: what was attached between the two is found by the next look.
        self.moment = Checkpoint(
            self._identity, visible, frozenset(versions), flushed, self.description.tree
        )

    def _first(self, by_id: sql.Composable) -> tuple[sql.Composed, list[object]]:
        """Nothing is known, or nothing that holds: what is queued and running, and what is held as such."""
        condition = sql.SQL("({} OR {})").format(self._active(), by_id)
        return self._query(sql.SQL("NULL"), condition), [list(self._known.unfinished())]

    def _active(self) -> sql.Composed:
        # As constants, or no partial index would be found.
        words = [sql.SQL(escaped(sql.Literal(word))) for word in self._decoder.active_words]
        return sql.SQL("r.status::text IN ({})").format(sql.SQL(", ").join(words))

    def _since(self, moment: Checkpoint) -> tuple[sql.Composed, list[object]]:
        if self.description.kind not in "rpm":
            return self._first(self._by_id())  # a view's rows have no xmin
        condition = sql.SQL("age(r.xmin) <= (SELECT age(%s::text::xid))").format()
        if moment.tree != self.description.tree:
            condition = sql.SQL("({} OR {})").format(condition, self._active())
        return self._query(sql.SQL("r.xmin"), condition), [str(moment.visible.xmin % 2**32)]

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

    def _by_id(self) -> sql.Composed:
        return sql.SQL("r.id = ANY (%s::text[]::{}[])").format(
            sql.SQL(self.description.columns["id"].type)
        )

    def _by_text(self) -> sql.Composed:
        """Without an index, for ids of what may have been another table: its id may have been of another type."""
        return sql.SQL("format('%%s', r.id) = ANY (%s::text[])").format()

    async def _gone(self, ids: set[str], by_id: sql.Composable) -> list[str]:
        """Those of the ids that the table no longer has."""
        if not ids:
            return []
        query = sql.SQL("SELECT r.id FROM {} r WHERE {}").format(self._table.in_query, by_id)
        async with deadline(SCAN, "the ids of unfinished runs"):
            found = {row[0] async for row in await self.conn.execute(query, [list(ids)])}
        return [run_id for run_id in ids if run_id not in found]

    async def fetch(self, ids: list[str]) -> dict[str, Run]:
        """The rows as they are now."""
        query = sql.SQL("SELECT {} FROM {} r WHERE {}").format(
            self.description.select("r", self._decoder.max_text),
            self._table.in_query,
            self._by_id(),
        )
        async with deadline(LOCKED, f"rows of {self._table}"):
            runs = [self._decoder(row) async for row in await self.conn.execute(query, [ids])]
        return {run[ID]: run for run in runs if run is not None}
