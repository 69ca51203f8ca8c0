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
from struct import Struct
from typing import TypeAlias

import psycopg
from psycopg import generators, pq, sql

from brain.contract.errors import BrainError
from brain.contract.events import Changes
from brain.postgres.connection import Conn, codec_of, connect, deadline, error_line
from brain.postgres.decoder import Decoder
from brain.postgres.pgoutput import LSN, POSTGRES_EPOCH, PgoutputError
from brain.postgres.snapshots import PgSnapshot, Xid
from brain.postgres.table import Description, Table
from brain.postgres.timing import TIMING, StreamTiming
from brain.postgres.transactions import Transactions

_XLOG_DATA, _KEEPALIVE = b"wk"
_ENVELOPE = 25
"""Bytes of XLogData before the message of the plugin."""
_BUSY = 8
"""Transactions of one read."""
_lsn = Struct(">Q").unpack_from
_status = Struct(">cQQQq?").pack

Inspect: TypeAlias = Callable[[Xid], Awaitable[None]]
Watched: TypeAlias = Callable[[], bool]


def always() -> bool:
    return True


class StreamLost(BrainError):  # noqa: N818 - a state of affairs, not a fault
    """The stream has ended"""


class StreamSilent(StreamLost):
    """Nothing arrives any more. The ordinary connection takes the same route, so it is dead too."""


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
        self.heard = 0.0
        """When, by the loop's clock, the database last sent anything."""
        self.walsender = conn.info.backend_pid
        """The process id of the other end."""
        self.inspect: Inspect | None = None
        """Called when PostgreSQL has described the table, for the first time or again, in this
        transaction, before a row behind that is read: the table may be another than it was. What it
        raises ends `read`."""
        self.watched: Watched = always
        """Whether somebody waits for what is read."""
        self._conn = conn
        self._pg = conn.pgconn
        self._publication = table.publication
        self._codec = codec_of(conn)
        self._transactions = Transactions(
            description.oid, table.columns, description.padded, decoder, self._codec
        )
        self._timing = timing
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] | None = None
        self._more = False
        """Another slice has arrived already."""
        self._end = ""
        """Why the stream has ended, once it has."""
        self._gulped = 0.0
        self._busy = False
        """So much came at once that more has come after the next pause. To ask the event loop for
        it costs more than to look."""
        self._asked = self._first_asked = 0.0
        self._heartbeat: asyncio.TimerHandle | None = None

    @property
    def position(self) -> LSN:
        """Everything that was committed before it has been read."""
        return self._transactions.position

    @property
    def joined_at(self) -> LSN:
        """The insert position after the poll that the stream continues."""
        return self._transactions.joined_at

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
        """Start streaming, without what the last poll has seen (Transactions.join). Raises
        StreamLost.
        """
        self._transactions.join(visible, upto)
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
        """Up to SLICE rows, or none; waits for up to `idle` seconds for some. Raises StreamLost."""
        transactions = self._transactions
        try:
            await self._readable()
            taken = [] if transactions.described else self._take()
        except psycopg.Error as error:
            raise StreamLost(error_line(error)) from error
        except PgoutputError as error:
            raise StreamLost(str(error)) from error
        if transactions.described and not taken:
            transactions.described = False
            if self.inspect is not None:
                await self.inspect(transactions.xid)
            return await self.read()
        return taken

    async def _readable(self) -> None:
        if self._more:
            await asyncio.sleep(0)
            return
        gulp = self._timing.gulp if self.watched() else self._timing.unwatched_gulp
        rest = self._gulped + gulp - self._loop.time()
        if rest > 0:
            await asyncio.sleep(rest)
            if self._busy:
                return
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
        if self._end:
            raise StreamLost(self._end)
        transactions, get = self._transactions, self._pg.get_copy_data
        feed, longest = transactions.feed, transactions.longest
        heard = fresh = self._more = False
        while True:
            size, copied = get(1)
            if size > 0:
                heard, fresh = True, False
                # Bytes are cheaper to read than a view of libpq's.
                small = size <= longest
                data = copied.tobytes() if small else transactions.shortened(copied, _ENVELOPE)
                if data[0] == _XLOG_DATA:
                    if feed(data, _ENVELOPE):
                        self._more = True
                        break
                elif data[0] == _KEEPALIVE:
                    transactions.pass_by(LSN(_lsn(data, 1)[0]))
                    if data[17]:
                        self._send_status(ask=False)
            elif size == 0 and not fresh:
                # libpq reads about 16 KB at a time. Read until the socket is empty, or that would
                # cap the stream.
                self._pg.consume_input()
                fresh = True
            else:
                break
        now = self._loop.time()
        if size < 0:
            self._end = self._ended()  # raised by the next read, after what arrived before it
            self._more = True
        taken = transactions.take()
        self._busy = len(taken) >= _BUSY
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
        position, now = self.position, time.time_ns() // 1000 - POSTGRES_EPOCH
        self._pg.put_copy_data(_status(b"r", position, position, position, now, ask))
        self._pg.flush()
