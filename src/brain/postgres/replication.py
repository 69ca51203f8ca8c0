"""The source that is told: logical replication, plugin pgoutput, over a temporary slot.

PostgreSQL documentation, chapters 47 "Logical Decoding", 53.4 "Streaming Replication Protocol" and 53.5 "Logical Streaming
Replication Protocol". No trigger, and no writer ever waits: what it committed is read from the write-ahead log, and arrives
here before its COMMIT has returned.
"""

import asyncio
import contextlib
import os
import secrets
import time
from operator import itemgetter
from struct import Struct
from typing import Any, assert_never

import psycopg
from psycopg import generators, pq, sql

from brain.contract.events import Changes, only_id
from brain.contract.messages import FIELDS, ID, UNCHANGED, Micros
from brain.postgres.connection import Conn, connect, deadline, error_line
from brain.postgres.decoder import Decoder
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

SLICE = 1000
"""Rows that are handed on at a time: a transaction of a million never stands in memory whole."""

GULP = 0.005
"""Seconds between two reads under load: half the CPU of reading at once, and writers keep 0.88 of their rate instead of 0.82."""

IDLE = 1.0
"""Seconds that a read waits for something to arrive."""

STATUS_EVERY = 1.0
ASK_EVERY = 5.0
DEAD_AFTER = 15.0
SENDER_TIMEOUT = "10s"
"""The walsender's: it writes when half of this has passed, also while it decodes a large transaction and answers nothing."""

_XLOG_DATA, _KEEPALIVE = b"wk"
_lsn = Struct(">Q").unpack_from
_status = Struct(">cQQQq?").pack


class LostError(Exception):
    """The stream has ended, or says nothing any more. The text says how it was noticed."""


class SilentError(LostError):
    """Nothing comes any more. Then the other connection, which goes the same way, is not to be trusted either."""


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


class Stream:
    """A slot, and what comes through it. `open` makes the slot, `start` begins, `read` yields."""

    def __init__(
        self, conn: Conn, slot: str, publication: str, description: Description, decoder: Decoder
    ) -> None:
        self.slot = slot
        self.position = LSN(0)
        """All that was committed before has been read."""
        self.holes = False
        """The last answer contains a value that PostgreSQL did not send (messages.UNCHANGED)."""
        self._conn = conn
        self._pg = conn.pgconn
        self._publication = publication
        self._oid = description.oid
        self._decoder = decoder
        self._loop = asyncio.get_running_loop()
        self._relation: Relation | None = None
        self._picks: itemgetter[Any] | None = None
        self._begin: Begin | None = None
        self._xid = Xid(0)
        self._visible = PgSnapshot(0, 0, frozenset())
        self._joined_at = LSN(0)
        self._joining = True
        self._skip = False
        self._more = False
        self._end = ""
        self._gulped = 0.0
        self.heard = 0.0
        """When, by the loop's clock, the database last said anything."""
        self._asked = 0.0
        self._beat: asyncio.TimerHandle | None = None

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
    ) -> "Stream":
        """Connect and make the slot, which waits for every open writing transaction, `patience` seconds at the most.

        Nothing else is asked on this connection before: an SQL error there would drop the temporary slot. Cancelling is
        safe: psycopg cancels the statement first; closing the socket would leave a walsender waiting. Raises psycopg.Error.
        """
        conn = await connect(
            url,
            application,
            replication=True,
            wal_sender_timeout=SENDER_TIMEOUT,
            lock_timeout=f"{round(patience * 1000)}ms",
        )
        slot = f"brain_{os.getpid()}_{secrets.token_hex(4)}"
        try:
            command = f"CREATE_REPLICATION_SLOT {slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT"
            async with deadline(patience + DEAD_AFTER, "a slot"):
                await conn.execute(command.encode())
        except BaseException:
            await conn.close()
            raise
        return cls(conn, slot, table.publication, description, decoder)

    async def start(self, visible: PgSnapshot, upto: LSN) -> None:
        """Begin. Left out is what that last poll has seen already: a transaction that it sees and that was committed not
        after `upto`, the insert position read behind it.
        """
        self._visible, self._joined_at = visible, upto
        name = sql.Identifier(self._publication).as_string(
            self._conn
        )  # a list of identifiers, in a literal
        publication = sql.Literal(name).as_string(self._conn)
        options = f"proto_version '1', publication_names {publication}"
        try:
            self._pg.send_query(
                f"START_REPLICATION SLOT {self.slot} LOGICAL 0/0 ({options})".encode()
            )
            async with deadline():
                results = await self._conn.wait(generators.execute(self._pg))
            if results[-1].status != pq.ExecStatus.COPY_BOTH:
                raise psycopg.errors.error_from_result(results[-1])
        except psycopg.Error as error:
            raise LostError(error_line(error)) from error
        self.heard = self._loop.time()
        self._heartbeat()

    async def close(self) -> None:
        """The slot goes with the connection."""
        if self._beat is not None:
            self._beat.cancel()
            with contextlib.suppress(psycopg.Error):
                self._send_status(ask=False)
        await self._conn.close()

    # Reading.

    async def read(self) -> list[Changes]:
        """What has arrived, up to SLICE rows; waits up to IDLE for it. Raises LostError."""
        try:
            await self._readable()
            return self._take()
        except psycopg.Error as error:
            raise LostError(error_line(error)) from error
        except PgoutputError as error:
            raise LostError(str(error)) from error

    async def _readable(self) -> None:
        if self._more:
            await asyncio.sleep(0)
            return
        rest = self._gulped + GULP - self._loop.time()
        if rest > 0:
            await asyncio.sleep(rest)
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(self._pg.socket, _wake, ready)
        try:
            async with asyncio.timeout(IDLE):
                await ready
        except TimeoutError:
            pass
        finally:
            self._loop.remove_reader(self._pg.socket)

    def _take(self) -> list[Changes]:
        taken: list[Changes] = []
        rows = 0
        heard = fresh = False
        if self._end:
            raise LostError(self._end)
        self.holes = self._more = False
        while rows < SLICE:
            size, data = self._pg.get_copy_data(1)
            if size == 0 and not fresh:
                # libpq reads some 16 KB at a time: a gulp goes on until the socket is empty, or it would cap the stream there.
                self._pg.consume_input()
                fresh = True
                continue
            if size <= 0:
                break
            fresh = False
            heard = True
            if data[0] == _XLOG_DATA:
                rows += self._handle(parse(bytes(data[25:])), taken)
            elif data[0] == _KEEPALIVE:
                self.position = max(self.position, LSN(_lsn(data, 1)[0]))
                if data[17]:
                    self._send_status(ask=False)
        else:
            self._more = True
        now = self._loop.time()
        if size < 0:
            self._end = self._ended()  # what came before it is handed on first
            self._more = True
        if heard:
            self.heard = now
            if taken:
                self._gulped = now
        elif now - self.heard > DEAD_AFTER:
            raise SilentError(f"nothing was heard from the database for {DEAD_AFTER:.0f} s")
        return taken

    def _ended(self) -> str:
        result = self._pg.get_result()
        message = (
            result.error_message.decode(errors="replace").strip() if result is not None else ""
        )
        return message.removeprefix("ERROR:").strip() or "the database has ended the stream"

    def _handle(self, message: Message, taken: list[Changes]) -> int:
        """Take one message in; returns the rows that it adds. Its order is that of their number."""
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
                    self._joining = message.lsn <= self._joined_at
                    self._skip = self._joining and self._visible.sees(self._xid)
            case Commit():
                self.position = max(self.position, message.end)
                self._begin = None
            case Relation():
                if message.oid == self._oid:
                    # -1, for a column that the table lacks, is the None that _pick puts behind the last.
                    places = (
                        message.columns.index(f) if f in message.columns else -1 for f in FIELDS
                    )
                    self._picks = itemgetter(*places)
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
        """The slice of the present transaction: the last one, or a new one."""
        if self._begin is None:
            raise PgoutputError("a row outside of a transaction")
        if not taken or taken[-1].xid != self._xid:
            taken.append(Changes([], self._begin.time, self._xid))
        return taken[-1]

    def _row(self, message: Insert | Update | Delete, changes: Changes) -> None:
        if isinstance(message, Delete):
            changes.rows.append(("delete", only_id(self._pick(message.old)[ID] or "")))
            return
        values = self._pick(message.new)
        if isinstance(message, Update) and message.old is not None:
            old = self._pick(message.old)
            if values[ID] == UNCHANGED:
                values = (old[ID], *values[1:])  # so long that it is stored out of line
            if old[ID] is not None and old[ID] != values[ID]:
                changes.rows.append(("delete", only_id(old[ID])))
            if message.full:
                values = tuple(
                    o if value == UNCHANGED else value for value, o in zip(values, old, strict=True)
                )
        run = self._decoder(values)
        if run is not None:
            changes.rows.append(("insert" if isinstance(message, Insert) else "update", run))
            self.holes = self.holes or UNCHANGED in run

    def _pick(self, values: Values) -> tuple[str | None, ...]:
        """The fields of the contract, in their order."""
        if self._picks is None:
            raise PgoutputError("a row before its relation")
        values.append(None)
        picked: tuple[str | None, ...] = self._picks(values)
        return picked

    # Answering.

    def _heartbeat(self) -> None:
        """Once a second, whatever the reader does: a server that hears nothing ends the stream, or waits for us when it stops."""
        self._beat = self._loop.call_later(STATUS_EVERY, self._heartbeat)
        now = self._loop.time()
        ask = now - max(self._asked, self.heard) >= ASK_EVERY
        if ask:
            self._asked = now
        with contextlib.suppress(psycopg.Error):  # the reader will find the same error, and say so
            self._send_status(ask=ask)

    def _send_status(self, *, ask: bool) -> None:
        """Standby status update: written = flushed = applied = what was read, for a temporary slot has nothing to resume."""
        now: Micros = time.time_ns() // 1000
        position = self.position
        self._pg.put_copy_data(
            _status(b"r", position, position, position, now - POSTGRES_EPOCH, ask)
        )
        self._pg.flush()
