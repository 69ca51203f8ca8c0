"""The source that gets every change pushed: logical replication, plugin pgoutput, over a temporary
slot.

PostgreSQL documentation, chapters 47 "Logical Decoding", 53.4 "Streaming Replication Protocol" and
53.5 "Logical Streaming Replication Protocol". It needs no trigger, and no writer ever waits: the
server reads what was committed from the write-ahead log, and a change arrives here before its
COMMIT has returned.
"""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import Awaitable, Callable
from operator import itemgetter
from struct import Struct
from typing import assert_never

import psycopg
from psycopg import generators, pq, sql

from brain.contract.errors import BrainError
from brain.contract.events import Changes, only_id
from brain.contract.messages import FIELDS, ID, UNCHANGED, Micros
from brain.postgres.connection import Conn, codec_of, connect, deadline, error_line
from brain.postgres.decoder import Decoder, is_expressible
from brain.postgres.pgoutput import (
    LSN,
    POSTGRES_EPOCH,
    Begin,
    Commit,
    Delete,
    Ignored,
    Insert,
    Message,
    PgoutputError,
    Relation,
    Truncate,
    Update,
    Values,
    parse,
)
from brain.postgres.snapshots import PgSnapshot, Xid, widen
from brain.postgres.table import Description, Table
from brain.postgres.timing import TIMING, StreamTiming

SLICE = 1000
"""Rows of a slice at most: a transaction of a million rows is never in memory whole."""

_XLOG_DATA, _KEEPALIVE = b"wk"
_lsn = Struct(">Q").unpack_from
_status = Struct(">cQQQq?").pack


class StreamLost(BrainError):  # noqa: N818 - a state of affairs, not a fault
    """The stream has ended"""


class StreamSilent(StreamLost):
    """Nothing arrives any more. The ordinary connection takes the same route: it is as dead."""


def _without_padding(
    pick: Callable[[Values], tuple[str | None, ...]], padded: tuple[int, ...]
) -> Callable[[Values], tuple[str | None, ...]]:
    """`pick`, and no spaces at the end of the columns of type char(n), if there are any."""
    if not padded:
        return pick

    def unpadded(values: Values) -> tuple[str | None, ...]:
        picked = list(pick(values))
        for i in padded:
            value = picked[i]
            picked[i] = None if value is None else type(value)(value.rstrip(" "))
        return tuple(picked)

    return unpadded


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class Stream:
    """A slot, and what arrives through it: `open` it, `start` it, `read` it, `close` it."""

    def __init__(
        self,
        conn: Conn,
        slot: str,
        table: Table,
        description: Description,
        decoder: Decoder,
        *,
        timing: StreamTiming = TIMING.stream,
    ) -> None:
        self.slot = slot
        self.position = LSN(0)
        """Everything that was committed before it has been read."""
        self.heard = 0.0
        """When, by the loop's clock, the database last sent anything."""
        self.walsender = conn.info.backend_pid
        """The process id of the other end."""
        self.inspect: Callable[[], Awaitable[None]] | None = None
        """Called when PostgreSQL has described the table, for the first time or again, before a row
        behind that is read: the table may be another than it was. What it raises ends `read`."""
        self._conn = conn
        self._pg = conn.pgconn
        self._publication = table.publication
        self._oid = description.oid
        self._columns = table.columns
        self._padded = description.padded
        self._decoder = decoder
        self._codec = codec_of(conn)
        self._timing = timing
        self._loop = asyncio.get_running_loop()
        self._picks: Callable[[Values], tuple[str | None, ...]] | None = None
        self._described = False
        """`inspect` is due."""
        self._ready: asyncio.Future[None] | None = None
        self._begin: Begin | None = None
        self._xid = Xid(0)
        self._visible = PgSnapshot(0, 0, frozenset())
        self.joined_at = LSN(0)
        """The insert position after the poll that the stream continues."""
        self._joining = True
        self._skip = False
        self._more = False
        """Another slice has arrived already."""
        self._end = ""
        """Why the stream has ended, once it has."""
        self._gulped = 0.0
        self._asked = self._first_asked = 0.0
        self._heartbeat: asyncio.TimerHandle | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        table: Table,
        description: Description,
        decoder: Decoder,
        *,
        application: str,
        patience: float,
        timing: StreamTiming = TIMING.stream,
    ) -> "Stream":
        """Connect and create the slot, which waits for every open write transaction, for up to
        `patience` seconds.

        No other statement runs on this connection: an SQL error would drop the temporary slot. To
        cancel is safe, because psycopg cancels the statement first; a closed socket would leave a
        walsender that waits on. Raises psycopg.Error.
        """
        conn = await connect(
            url,
            application,
            replication=True,
            wal_sender_timeout=f"{round(timing.sender_timeout * 1000)}ms",
            lock_timeout=f"{round(patience * 1000)}ms",
        )
        slot = f"brain_{os.getpid()}_{secrets.token_hex(4)}"
        try:
            command = f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT"
            async with deadline(patience + timing.dead_after, "a slot"):
                await conn.execute(command.encode())
        except BaseException:
            await conn.close()
            raise
        return cls(conn, slot, table, description, decoder, timing=timing)

    async def start(self, visible: PgSnapshot, upto: LSN) -> None:
        """Start streaming, without what the last poll has seen. Raises StreamLost.

        Left out are the transactions that `visible`, the poll's snapshot, sees and that were
        committed at or before `upto`, the insert position that was read after it.
        """
        self._visible, self.joined_at = visible, upto
        # A list of identifiers, in a literal.
        name = sql.Identifier(self._publication).as_string()
        publication = sql.Literal(name).as_string()
        options = f"proto_version '1', publication_names {publication}"
        try:
            self._pg.send_query(
                f"START_REPLICATION SLOT {self.slot} LOGICAL 0/0 ({options})".encode(self._codec)
            )
            async with deadline():
                results = await self._conn.wait(generators.execute(self._pg))
            if results[-1].status != pq.ExecStatus.COPY_BOTH:
                raise psycopg.errors.error_from_result(results[-1])
        except psycopg.Error as error:
            raise StreamLost(error_line(error)) from error
        self.heard = self._loop.time()
        self._beat()

    async def close(self) -> None:
        """The slot goes with the connection."""
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            with contextlib.suppress(psycopg.Error):
                self._send_status(ask=False)
        await self._conn.close()

    # Reading.

    async def read(self) -> list[Changes]:
        """Up to SLICE rows; waits for up to `idle` seconds for the first. Raises StreamLost."""
        try:
            await self._readable()
            taken = [] if self._described else self._take()
        except psycopg.Error as error:
            raise StreamLost(error_line(error)) from error
        except PgoutputError as error:
            raise StreamLost(str(error)) from error
        if self._described and not taken:
            self._described = False
            if self.inspect is not None:
                await self.inspect()
            return await self.read()
        return taken

    async def _readable(self) -> None:
        if self._more:
            await asyncio.sleep(0)
            return
        rest = self._gulped + self._timing.gulp - self._loop.time()
        if rest > 0:
            await asyncio.sleep(rest)
        self._ready = ready = self._loop.create_future()
        self._loop.add_reader(self._pg.socket, _wake, ready)
        try:
            async with asyncio.timeout(self._timing.idle):
                await ready
        except TimeoutError:
            pass
        finally:
            self._ready = None
            self._loop.remove_reader(self._pg.socket)

    @property
    def unanswered_since(self) -> float | None:
        """When, by the loop's clock, the database was first asked for a reply that it owes."""
        return self._first_asked if self._asked > self.heard else None

    def interrupt(self) -> None:
        """Let `read` return at once, if it waits."""
        if self._ready is not None:
            _wake(self._ready)

    def _take(self) -> list[Changes]:
        taken: list[Changes] = []
        rows = 0
        heard = fresh = False
        if self._end:
            raise StreamLost(self._end)
        self._more = False
        while rows < SLICE:
            size, data = self._pg.get_copy_data(1)
            if size == 0 and not fresh:
                # libpq reads about 16 KB at a time. Read until the socket is empty, or that would
                # cap the stream.
                self._pg.consume_input()
                fresh = True
                continue
            if size <= 0:
                break
            fresh = False
            heard = True
            if data[0] == _XLOG_DATA:
                rows += self._handle(parse(bytes(data[25:]), self._codec), taken)
            elif data[0] == _KEEPALIVE:
                self.position = max(self.position, LSN(_lsn(data, 1)[0]))
                if data[17]:
                    self._send_status(ask=False)
        else:
            self._more = True
        now = self._loop.time()
        if size < 0:
            self._end = self._ended()  # raised by the next read, after what arrived before it
            self._more = True
        if heard:
            self.heard = now
            if taken:
                self._gulped = now
        elif now - self.heard > self._timing.dead_after:
            seconds = f"{self._timing.dead_after:.0f} s"
            raise StreamSilent(f"nothing was heard from the database for {seconds}")
        return taken

    def _ended(self) -> str:
        result = self._pg.get_result()
        message = (
            result.error_message.decode(errors="replace").strip() if result is not None else ""
        )
        return message.removeprefix("ERROR:").strip() or "the database has ended the stream"

    def _handle(self, message: Message, taken: list[Changes]) -> int:
        """Returns the number of rows that the message adds, or SLICE to end the slice. The most
        frequent cases come first.
        """
        match message:
            case Update() | Insert() | Delete():
                if self._skip or message.oid != self._oid:
                    return 0
                changes = self._slice(taken)
                before = len(changes.rows)
                self._row(message, changes)
                return len(changes.rows) - before
            case Begin():
                self._begin = message
                self._skip = False
                self._xid = widen(message.xid, self._xid or self._visible.xmax)
                if self._joining:
                    self._joining = message.lsn <= self.joined_at
                    self._skip = self._joining and self._visible.sees(self._xid)
            case Commit():
                self.position = max(self.position, message.end)
                self._begin = None
            case Relation():
                if message.oid == self._oid:
                    names = self._columns.resolve(message.columns)
                    # -1, for a column that the table lacks, picks the None that _pick appends.
                    places = (message.columns.index(names[f]) if f in names else -1 for f in FIELDS)
                    self._picks = _without_padding(itemgetter(*places), self._padded)
                    self._described = True
                    return SLICE
            case Truncate():
                if self._oid in message.oids and not self._skip:
                    self._slice(taken).rows.append(("truncate", only_id("")))
                    return 1
            case Ignored():
                pass
            case _:
                assert_never(message)
        return 0

    def _slice(self, taken: list[Changes]) -> Changes:
        """The current transaction's slice: the last one, or a new one."""
        if self._begin is None:
            raise PgoutputError("a row outside of a transaction")
        if not taken or taken[-1].xid != self._xid:
            taken.append(Changes([], self._begin.time, self._xid))
        return taken[-1]

    def _row(self, message: Insert | Update | Delete, changes: Changes) -> None:
        if isinstance(message, Delete):
            old_id = self._pick(message.old)[ID]
            if old_id and is_expressible(old_id):
                changes.rows.append(("delete", only_id(old_id)))
            return
        values = self._pick(message.new)
        new = isinstance(message, Insert)
        if isinstance(message, Update) and message.old is not None:
            old = self._pick(message.old)
            if values[ID] == UNCHANGED:
                values = (old[ID], *values[1:])  # an id so long that it is stored out of line
            if old[ID] is not None and old[ID] != values[ID]:
                new = True  # (T9 in delivery/tombstones.py)
                if old[ID] and is_expressible(old[ID]):
                    changes.rows.append(("delete", only_id(old[ID])))
            if message.full:
                values = tuple(
                    o if value == UNCHANGED else value for value, o in zip(values, old, strict=True)
                )
        run = self._decoder(values)
        if run is None:
            # The board may hold the run as it was, in words of the contract.
            run_id = values[ID]
            if not new and run_id and is_expressible(run_id):
                changes.rows.append(("delete", only_id(run_id)))
            return
        if UNCHANGED in run:
            if run[ID] == UNCHANGED:
                return  # an id that is no part of the replica identity: a comparison finds the run
            changes.incomplete = True
        changes.rows.append(("insert" if new else "update", run))

    def _pick(self, values: Values) -> tuple[str | None, ...]:
        """The fields of the contract, in their order."""
        if self._picks is None:
            raise PgoutputError("a row before its relation")
        values.append(None)
        return self._picks(values)

    # Replying.

    def _beat(self) -> None:
        """Send a status update, whatever the reader does.

        A server that hears nothing ends the stream; one that is shut down waits for a reply.
        """
        self._heartbeat = self._loop.call_later(self._timing.status_every, self._beat)
        now = self._loop.time()
        ask = now - max(self._asked, self.heard) >= self._timing.ask_every
        if ask:
            if self._asked <= self.heard:
                self._first_asked = now
            self._asked = now
        with contextlib.suppress(psycopg.Error):  # the next read raises the same error
            self._send_status(ask=ask)

    def _send_status(self, *, ask: bool) -> None:
        """Standby status update. A temporary slot never resumes: what is read is confirmed."""
        now: Micros = time.time_ns() // 1000
        position = self.position
        self._pg.put_copy_data(
            _status(b"r", position, position, position, now - POSTGRES_EPOCH, ask)
        )
        self._pg.flush()
