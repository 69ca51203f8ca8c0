"""The watch over a stream: it finds what silences the stream without an error, and what the stream
did not deliver.

PostgreSQL ends a stream silently when the table is dropped and created again, or leaves its
publication. A key that is dropped makes the application's UPDATEs fail, and these send nothing. And
an open transaction, of any table, makes our slot retain log although Brain confirms all of it.
"""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace

import psycopg
import structlog

from brain.contract.events import Known, Outcome, Snapshot
from brain.contract.messages import ACTIVE, ID, STATUS, Run
from brain.postgres.cancellation import cancel
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.connection import Conn, deadline
from brain.postgres.fingerprint import fingerprint
from brain.postgres.inspection import inspect
from brain.postgres.lateness import LogEnd, log_end
from brain.postgres.pgoutput import LSN
from brain.postgres.poll import Poll
from brain.postgres.promotion import Promoted
from brain.postgres.replication import StreamLost
from brain.postgres.snapshots import Xid
from brain.postgres.table import Table
from brain.postgres.table_warnings import TableWarnings
from brain.postgres.timing import Timing
from brain.postgres.unavailable import StreamUnavailable

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Mark:
    """What a look has found. It counts once the stream has passed `lsn`."""

    checkpoint: Checkpoint
    lsn: LSN
    comparison: list[Snapshot]
    """What differs from the board."""
    compared_seq: int | None
    """The board's seq before the table was compared with it; None if it was not."""


class Watch:
    """Looks in a task, over the ordinary connection.

    The next look waits until the stream has passed the mark of the last one. At the same time,
    another task checks the catalog's fingerprint, and inspects the table when it has changed.
    """

    def __init__(
        self,
        poll: Poll,
        table: Table,
        known: Known,
        promoted: Promoted,
        *,
        warnings: TableWarnings,
        timing: Timing,
    ) -> None:
        self._poll = poll
        self._table = table
        self._known = known
        self._stream = promoted.stream
        self._inspection = promoted.inspection
        self._warnings = warnings
        self._timing = timing
        self._task: asyncio.Task[Mark] | None = None
        joined = poll.progress.checkpoint
        assert joined is not None, "a poll comes before each stream"
        now = asyncio.get_running_loop().time()
        self._mark: Mark | None = Mark(joined, promoted.stream.joined_at, [], None)
        """The poll that the stream continues is the first."""
        self._look_at = now
        self._compare_at = now + timing.compare_every
        self._compared, self._compared_seq = joined, known.seq
        """Since when the next comparison looks for changes, and the board's seq then."""
        self._fingerprint: int | None = None
        self._walsender: int | None = promoted.stream.walsender
        self._owed: LogEnd | None = None
        """The oldest end of the log that the walsender had not sent yet when Brain asked."""
        self._unproven: LogEnd | None = None
        """The end of the log that the stream has yet to reach."""
        self._proven_at = now
        self._checking = asyncio.create_task(self._check(), name="check")
        # What the task has found must not wait until the stream sends something.
        self._checking.add_done_callback(lambda _: self._stream.interrupt())

    def unanswered_since(self) -> float | None:
        """Since when the stream owes something: the end of the log, or an answer. None: nothing."""
        owed = self._owed
        late = owed.at if owed is not None and not self._reached(owed) else None
        silent = self._stream.unanswered_since
        return min(late, silent) if late is not None and silent is not None else late or silent

    def proven_at(self) -> float:
        """The latest time, by the loop's clock, at which the log surely held nothing that the
        stream has not read.
        """
        end = self._unproven
        # What the server has sent since comes behind all that it had sent before. A stream that is
        # silent proves nothing, although it has reached the end: it may never send what comes next.
        if (
            end is not None
            and self._stream.heard > end.answered_at
            and (end.waiting or self._reached(end))
        ):
            self._proven_at, self._unproven = end.at, None
        return self._proven_at

    def _reached(self, end: LogEnd) -> bool:
        return self._stream.position >= end.lsn

    def advance(self) -> None:
        """Take the mark of a look that has ended, or start one that is due. Raises as `_look`."""
        if self._checking.done():
            self._checking.result()
        now = asyncio.get_running_loop().time()
        if self._task is not None:
            if self._task.done():
                self._mark, self._task = self._task.result(), None
        elif self._mark is None and now >= self._look_at:
            compare = now >= self._compare_at
            self._task = asyncio.create_task(self._look(compare=compare), name="watch")
            self._look_at = now + self._timing.watch_every
            if compare:
                self._compare_at = now + self._timing.compare_every

    def passed(self, position: LSN) -> Iterator[Snapshot]:
        """The comparison, once the stream has passed the mark; then its checkpoint counts."""
        mark = self._mark
        if mark is None or position < mark.lsn:
            return
        skipped = 0
        progress, known = self._poll.progress, self._known
        for piece in mark.comparison:
            outcome = Outcome()
            yield replace(piece, outcome=outcome)
            skipped += outcome.skipped
            # Most of what differed when the query ran, the stream has delivered since.
            if outcome.pushed or outcome.removed:
                progress.records.correct(self._compared.visible.xmin)
                log.warning(
                    "stream differed from the table", rows=outcome.pushed, gone=outcome.removed
                )
        self._mark = None
        progress.checkpoint = mark.checkpoint
        progress.records.add(known.last_time, mark.checkpoint, known.time)
        progress.settle(mark.checkpoint)
        if mark.compared_seq is not None and not skipped:
            self._compared, self._compared_seq = mark.checkpoint, mark.compared_seq

    async def close(self) -> None:
        try:
            await cancel(self._checking)
        finally:
            if self._task is not None:
                await cancel(self._task)

    async def _check(self) -> None:
        """Raises as `check_now`."""
        while True:
            await asyncio.sleep(self._timing.check_every)
            # A look inspects the table itself, and its comparison may keep the connection busy.
            if self._task is None:
                await self.check_now()
                await self._ask()

    async def _ask(self) -> None:
        """Where the log ends. The oldest end that the stream has not reached counts."""
        try:
            end = await log_end(self._poll.conn, self._walsender)
        except psycopg.errors.InsufficientPrivilege:  # somebody has revoked it from PUBLIC
            if self._walsender is None:
                raise
            self._walsender = None
            return
        if end.waiting:
            self._owed = None
        elif self._owed is None or self._reached(self._owed):
            self._owed = end
        self.proven_at()
        if self._unproven is None:
            self._unproven = end

    async def described(self, xid: Xid) -> None:
        """Inspect the table before what this transaction wrote is read: it may have changed the
        table. Raises as `_inspect`.
        """
        await self._poll.until_seen([xid])
        await self.check_now()

    async def check_now(self) -> None:
        """Inspect the table if its fingerprint has changed. Raises as `_inspect`."""
        if self._task is not None:
            await asyncio.wait([self._task])
        seen = await fingerprint(self._poll.conn, self._table, self._inspection.description)
        if seen != self._fingerprint:
            await self._inspect()
            await self._warnings.look(self._poll.conn, self._inspection.description, seen)
            self._fingerprint = seen

    async def _look(self, *, compare: bool) -> Mark:
        """Raises StreamLost, StreamUnavailable, TableError, psycopg.Error."""
        progress = self._poll.progress
        seq, streamed = self._known.seq, progress.unseen.copy()
        compared_seq = seq if compare else None
        checkpoint, comparison = await (self._compare(seq) if compare else self._see())
        progress.unseen = checkpoint.visible.unseen(progress.unseen)
        if not streamed.isdisjoint(progress.unseen):
            comparison, compared_seq = [], None  # the stream has delivered more than the query saw
        # After the query: if the publication is unchanged now, it was for all that the query saw.
        await self._inspect()
        return Mark(checkpoint, await self._poll.insert_lsn(), comparison, compared_seq)

    async def _see(self) -> tuple[Checkpoint, list[Snapshot]]:
        """What a query would see, without one."""
        checkpoint = self._poll.progress.checkpoint
        assert checkpoint is not None
        visible = await self._poll.visible()
        return replace(checkpoint, visible=visible, versions=frozenset()), []

    async def _compare(self, seq: int) -> tuple[Checkpoint, list[Snapshot]]:
        """Find what changed since the last comparison and differs from the board at `seq`."""
        async with aclosing(self._poll.scan(self._compared, self._may_be_undelivered)) as scan:
            pieces = [piece async for piece in scan]
        checkpoint = pieces[-1][1]
        assert checkpoint is not None
        # What changes after `seq`, the stream delivers.
        found = [
            replace(piece, unless_after=seq) for piece, _ in pieces if piece.rows or piece.gone
        ]
        return checkpoint, found

    def _may_be_undelivered(self, run: Run, _: int) -> bool:
        """Whether the stream may have failed to deliver this run.

        If the board has evicted changes since the last comparison, a finished run that it does not
        hold is one of those. To push them again every minute would be a storm of what everyone
        knows.
        """
        evicted = (
            run[ID] not in self._known
            and run[STATUS] not in ACTIVE
            and self._known.floor > self._compared_seq
        )
        return not evicted and self._known.differs(run)

    async def _inspect(self) -> None:
        """Look for what ends the stream, or will. Raises StreamLost, StreamUnavailable."""
        if await inspect(self._poll.conn, self._table) != self._inspection:
            raise StreamLost("the table or its publication has changed")
        retained = await _retained(self._poll.conn, self._stream.slot)
        if retained > self._timing.max_wal:
            raise StreamUnavailable(
                f"an open transaction makes our slot hold back {retained // 1024**2} MB of log",
                _OLDEST_FIRST,
                "held_back",
            )


_OLDEST_FIRST = (
    "SELECT pid, usename, state, xact_start, query FROM pg_stat_activity"
    " WHERE backend_xid IS NOT NULL ORDER BY age(backend_xid) DESC;"
    " -- end the first of them: SELECT pg_terminate_backend(its pid);"
)


async def _retained(conn: Conn, slot: str) -> int:
    """Bytes of log that the slot retains."""
    query = (
        "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint"
        " FROM pg_replication_slots WHERE slot_name = %s"
    )
    async with deadline():
        row = await (await conn.execute(query, (slot,))).fetchone()
    return int(row[0]) if row is not None and row[0] is not None else 0
