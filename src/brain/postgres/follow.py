"""Following the table for ever: choosing a source, falling back, climbing back, joining, watching, reconnecting.

    connect ──► poll ──────────► slot made ──► one more poll ──► stream ──► …
       ▲         ▲  │ (a task tries to climb,                      │
       │         │  │  and says why it cannot)                     │ lost, or changed under us
       │         └──┴──────────────────────────────────────────────┘
       └── the connection is gone: back-off with jitter

Whatever happens, what was true at the last good moment is known, and the next poll brings what has changed since.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import psycopg
import structlog
from psycopg import conninfo

from brain.contract.events import Event, Known, Op, Snapshot
from brain.contract.messages import ACTIVE, ID, STATUS, UNCHANGED, Run
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.connection import Conn, connect, deadline, error_line
from brain.postgres.decoder import Decoder
from brain.postgres.inspection import Inspection, inspect
from brain.postgres.pgoutput import LSN
from brain.postgres.poll import LOCKED, Poll
from brain.postgres.publication import ensure_publication
from brain.postgres.replication import LostError, SilentError, Stream
from brain.postgres.snapshots import Xid
from brain.postgres.table import Table, TableError
from brain.postgres.unavailable import (
    SlotBlocked,
    StreamUnavailable,
    UnavailableCode,
    from_error,
)

log = structlog.get_logger()

Mode: TypeAlias = Literal["auto", "replication", "poll"]

BACK_OFF_FIRST, MAX_BACK_OFF = 0.1, 1.5
"""Seconds. The longest keeps the promise that a database which is back is followed within 2 s."""

STEADY = 5.0
"""Seconds after which a connection that is lost is no failure to back off from."""

PROMOTE_EVERY = 10.0
"""Seconds until a refused stream is asked for again."""

SLOT_TIMEOUTS = (5.0, 30.0, 300.0)
"""Seconds that making a slot may wait for the open writing transactions, try by try."""

WATCH_EVERY = 10.0
COMPARE_EVERY = 60.0

MAX_WAL = 1024**3
"""Bytes of log that our slot may hold back before it is given up: an open transaction anywhere pins them."""


@dataclass(slots=True)
class State:
    """Which source is in use, and why it is not a better one: for /readyz, /metrics and the log."""

    source: Literal["none", "poll", "replication"] = "none"
    detail: str = "connecting"
    """Why the source is not a better one; "" if there is none better."""
    hint: str = ""
    """What to run or set for a better one."""
    code: UnavailableCode | None = "connecting"
    """The reason in a word; None if there is no better source."""
    heard: float = float("-inf")
    """When, by the loop's clock, the database was last known to have been read to its end."""
    connects: int = 0
    streams: int = 0
    losses: int = 0
    slow: bool = False
    """A scan takes so long that polling is late by more than half a second."""
    _said: set[str] = field(default_factory=set)

    def change(
        self,
        source: Literal["none", "poll", "replication"],
        code: UnavailableCode | None = None,
        detail: str = "",
        hint: str = "",
    ) -> None:
        """One log line per change of state, not per try: a reason that comes and goes (a server that refuses now, and resets
        then) is said once as long as the source stays the same.
        """
        if (source, detail) == (self.source, self.detail):
            return
        if source != self.source:
            self._said.clear()
        known = detail in self._said
        self._said.add(detail)
        self.source, self.code, self.detail, self.hint = source, code, detail, hint
        if known:
            return
        level = log.warning if source == "none" else log.info
        level(
            "source",
            now=source,
            **({"detail": detail} if detail else {}),
            **({"hint": hint} if hint else {}),
        )


@dataclass(frozen=True, slots=True)
class Mark:
    """What a watch found: once the stream has passed `lsn`, everything before `moment` is known."""

    moment: Checkpoint
    lsn: LSN
    compared: int | None = None
    """The board's seq when the table was compared with it, if it was."""
    differing: list[Snapshot] = field(default_factory=list)


class Follow:
    """The Source of a running Brain. `application` names its connections, and must not be a synchronous standby's name."""

    def __init__(
        self,
        url: str,
        table: Table,
        decoder: Decoder,
        known: Known,
        *,
        mode: Mode,
        interval: float,
        application: str,
    ) -> None:
        self.state = State()
        self._url = url
        self._table = table
        self._decoder = decoder
        self._known = known
        self._mode = mode
        self._interval = interval
        self._application = application
        self._user = str(conninfo.conninfo_to_dict(url).get("user") or "")
        self._moment: Checkpoint | None = None
        self._slot_tries = 0
        self._next_promotion = 0.0
        self._streamed: set[int] = set()
        """Transactions that the stream has told of since the last watch, and that a query may not see yet."""

    async def events(self) -> AsyncGenerator[Event]:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            began = loop.time()
            try:
                conn = await connect(self._url, self._application)
                async with conn:
                    self.state.connects += 1
                    poll = Poll(conn, self._table, self._decoder, self._known, self._moment)
                    await poll.look()
                    self._next_promotion = 0.0
                    async with aclosing(self._follow(poll)) as events:
                        async for event in events:
                            yield event
            except TableError as error:
                self.state.change("none", "table", str(error))
            except (psycopg.Error, OSError, TimeoutError) as error:
                self.state.change("none", "away", error_line(error))
            except Exception as error:
                # A fault of ours. To begin again, with a poll, is still the way back to the truth; clients stay.
                log.exception("following failed")
                self.state.change("none", "fault", f"a fault of Brain's: {error!r}")
            failures = 1 if loop.time() - began > STEADY else failures + 1
            longest = min(MAX_BACK_OFF, BACK_OFF_FIRST * 2 ** min(failures, 10))
            await asyncio.sleep(random.uniform(longest / 2, longest))

    async def _follow(self, poll: Poll) -> AsyncGenerator[Event]:
        """Poll, and stream while that can be had. Ends by raising what the ordinary connection raised."""
        loop = asyncio.get_running_loop()
        promotion: asyncio.Task[tuple[Stream, Inspection]] | None = None
        next_look = loop.time() + WATCH_EVERY
        try:
            while True:
                if loop.time() >= next_look:
                    # Another table may have taken the name, with rows older than any horizon, or a column have been added.
                    before = poll.description
                    await poll.look()
                    next_look = loop.time() + WATCH_EVERY
                    if promotion is not None and poll.description != before:
                        # It may wait for a slot for minutes, and a publication that has come to hurt would stay for as long.
                        abandoned, promotion = promotion, None
                        await _abandon(abandoned)
                        self._next_promotion = 0.0
                if self._streamed:
                    await self._seen(poll)
                async with aclosing(poll.read()) as pieces:
                    async for piece in pieces:
                        yield piece
                self._good(poll.moment)
                if promotion is not None and promotion.done():
                    finished, promotion = promotion, None
                    opened = self._promoted(finished)
                    if opened is not None:
                        async with aclosing(self._stream(poll, *opened)) as events:
                            async for event in events:
                                yield event
                        next_look = 0.0
                        continue
                elif self.state.source != "poll":
                    if self._mode == "poll":
                        self.state.change(
                            "poll", "chosen", "BRAIN_SOURCE is poll", "BRAIN_SOURCE=auto"
                        )
                    else:
                        self.state.change("poll", "preparing", "the stream is being prepared")
                if (
                    promotion is None
                    and self._mode != "poll"
                    and loop.time() >= self._next_promotion
                ):
                    promotion = asyncio.create_task(self._promote(), name="climb")
                self._warn_if_slow(poll.pause)
                pause = max(self._interval, poll.pause)
                if promotion is None:
                    await asyncio.sleep(pause)
                else:
                    await asyncio.wait([promotion], timeout=pause)
        finally:
            if promotion is not None:
                await _abandon(promotion)

    async def _seen(self, poll: Poll) -> None:
        """Wait until a query sees what the stream has told, or the next poll would take runs back to what they were.

        A commit is in the log a little before it is visible. Behind a synchronous standby that does not answer it can be for
        ever: then a second is enough, and what SELECT says is what is told.
        """
        for _ in range(100):
            visible = await poll.visible()
            self._streamed = {xid for xid in self._streamed if not visible.sees(Xid(xid))}
            if not self._streamed:
                return
            await asyncio.sleep(0.01)
        self._streamed.clear()

    def _good(self, moment: Checkpoint | None) -> None:
        self._moment = moment
        self.state.heard = asyncio.get_running_loop().time()

    def _warn_if_slow(self, pause: float) -> None:
        if self.state.slow != (pause > 0.5):
            self.state.slow = not self.state.slow
            log.info("poll pace", slow=self.state.slow, seconds_between_scans=round(pause, 2))

    # Climbing.

    async def _promote(self) -> tuple[Stream, Inspection]:
        """Look whether the table can be streamed, and make a slot. Raises Refused, TableError or psycopg.Error."""
        try:
            conn = await connect(self._url, self._application)
            async with conn, deadline(LOCKED, f"a lock on the table {self._table}"):
                found = await ensure_publication(conn, self._table, self._application)
            patience = SLOT_TIMEOUTS[min(self._slot_tries, len(SLOT_TIMEOUTS) - 1)]
            stream = await Stream.open(
                self._url,
                self._table,
                found.description,
                self._decoder,
                application=self._application,
                patience=patience,
            )
        except psycopg.Error as error:
            raise from_error(error, self._user) from error
        return stream, found

    def _promoted(
        self, promotion: asyncio.Task[tuple[Stream, Inspection]]
    ) -> tuple[Stream, Inspection] | None:
        """What a finished climb brought: a stream, or the reason why there is none."""
        now = asyncio.get_running_loop().time()
        try:
            opened = promotion.result()
        except SlotBlocked as unavailable:
            self._slot_tries += 1
            self.state.change("poll", unavailable.code, unavailable.detail, unavailable.hint)
            self._next_promotion = now
        except StreamUnavailable as unavailable:
            self.state.change("poll", unavailable.code, unavailable.detail, unavailable.hint)
            self._next_promotion = now + PROMOTE_EVERY
        except (TableError, OSError, TimeoutError) as error:
            self.state.change(
                "poll", "table" if isinstance(error, TableError) else "other", error_line(error)
            )
            self._next_promotion = now + PROMOTE_EVERY
        else:
            self._slot_tries = 0
            return opened
        return None

    # Streaming.

    async def _stream(self, poll: Poll, stream: Stream, found: Inspection) -> AsyncGenerator[Event]:
        """Join the stream and follow it until it is lost, which is said, or the ordinary connection is, which is raised."""
        loop = asyncio.get_running_loop()
        watch: asyncio.Task[Mark] | None = None
        mark: Mark | None = None
        try:
            # The slot first, then one more poll, then the insert position, then the stream less what that poll has seen.
            await poll.look()
            async with aclosing(poll.read(always=True)) as pieces:
                async for piece in pieces:
                    yield piece
            assert poll.moment is not None
            self._good(poll.moment)
            await stream.start(poll.moment.visible, await poll.insert_lsn())
            self.state.streams += 1
            self.state.change("replication")
            compared, compared_seq = poll.moment, self._known.seq
            next_watch, next_compare = loop.time(), loop.time() + COMPARE_EVERY
            while True:
                for changes in await stream.read():
                    if stream.holes:
                        await self._fill(poll, changes.rows)
                    self._streamed.add(changes.xid)
                    yield changes
                self.state.heard = stream.heard
                now = loop.time()
                if mark is not None and stream.position >= mark.lsn:
                    skipped = False
                    for snapshot in mark.differing:
                        seq, held = self._known.seq, [i for i in snapshot.gone if i in self._known]
                        yield snapshot
                        # Deleted or evicted meanwhile, says the board, which cannot tell that from a run it was never told of.
                        skipped = skipped or not all(
                            run[ID] in self._known for run in snapshot.rows
                        )
                        # Most of it the stream has brought meanwhile.
                        rows, gone = self._known.seq - seq, sum(i not in self._known for i in held)
                        if rows or gone:
                            log.warning("stream differed from the table", rows=rows, gone=gone)
                    poll.moment = self._moment = mark.moment
                    if mark.compared is not None and not skipped:
                        compared, compared_seq = mark.moment, mark.compared
                    mark = None
                if watch is not None and watch.done():
                    mark, watch = watch.result(), None
                elif watch is None and mark is None and now >= next_watch:
                    compare = now >= next_compare
                    watch = asyncio.create_task(
                        self._watch(
                            poll, found, stream.slot, compared if compare else None, compared_seq
                        ),
                        name="watch",
                    )
                    next_watch, next_compare = (
                        now + WATCH_EVERY,
                        now + COMPARE_EVERY if compare else next_compare,
                    )
        except LostError as error:
            self.state.losses += 1
            if isinstance(error, SilentError):
                raise psycopg.OperationalError(str(error)) from error
            self.state.change("poll", "lost", f"the stream was lost: {error}")
            self._next_promotion = loop.time() + random.uniform(0, 0.5)
        except StreamUnavailable as unavailable:
            self.state.change("poll", unavailable.code, unavailable.detail, unavailable.hint)
            self._next_promotion = loop.time() + PROMOTE_EVERY
        finally:
            if watch is not None:
                await _give_up(watch)
            if self._moment is not None and self._moment.flushed:
                # Only what is on the disk is streamed.
                poll.moment = self._moment = replace(
                    self._moment, flushed=max(self._moment.flushed, stream.position)
                )
            await stream.close()

    async def _watch(
        self,
        poll: Poll,
        before: Inspection,
        slot: str,
        compared: Checkpoint | None,
        compared_seq: int,
    ) -> Mark:
        """Look for what would silence the stream without an error; `compared`: and for what changed since that moment, when
        the board was at `compared_seq`, without being told. Raises LostError, Refused, TableError, psycopg.Error.
        """
        differing: list[Snapshot] = []
        seq, streamed = self._known.seq, self._streamed.copy()
        moment = poll.moment
        assert moment is not None
        if compared is not None:
            # A scan that leaves the moment where it is until the stream has passed the position read behind it; what it
            # finds changed since `seq` is the stream's own business.
            poll.moment = compared
            try:
                async with aclosing(poll.scan(partial(self._untold, compared_seq))) as pieces:
                    differing = [
                        replace(p, unless_after=seq) async for p in pieces if p.rows or p.gone
                    ]
            finally:
                scanned, poll.moment = poll.moment, moment
        else:
            scanned = replace(moment, visible=await poll.visible(), versions=frozenset())
        unseen = {xid for xid in streamed if not scanned.visible.sees(Xid(xid))}
        self._streamed -= streamed - unseen
        if unseen:
            differing, compared = [], None  # the stream knows more than the query
        # Behind the snapshot: a publication that is found whole was so for all that the snapshot has seen.
        found = await inspect(poll.conn, self._table)
        if found != before:
            raise LostError("the table or its publication has changed")
        retained = await _retained(poll.conn, slot)
        if retained > MAX_WAL:
            raise StreamUnavailable(
                f"an open transaction makes our slot hold back {retained // 1024**2} MB of log",
                "end the oldest transaction of pg_stat_activity",
                "held_back",
            )
        return Mark(scanned, await poll.insert_lsn(), None if compared is None else seq, differing)

    def _untold(self, compared_seq: int, run: Run) -> bool:
        """Whether the stream may have failed to tell of this run.

        If the board has had to forget changes since `compared_seq`, a finished run that it does not hold is one of those: to
        push them all again every minute would be a storm of what everyone knows.
        """
        if (
            run[ID] not in self._known
            and run[STATUS] not in ACTIVE
            and self._known.floor > compared_seq
        ):
            return False
        return self._known.differs(run)

    async def _fill(self, poll: Poll, rows: list[tuple[Op, Run]]) -> None:
        """Ask for values that PostgreSQL did not send (unchanged TOAST) of runs that nobody here knows."""
        wanted = [run[ID] for _, run in rows if UNCHANGED in run and run[ID] not in self._known]
        if not wanted:
            return
        now = await poll.fetch(wanted)
        for i, (op, run) in enumerate(rows):
            if UNCHANGED in run and run[ID] in now:
                current = now[run[ID]]
                rows[i] = (
                    op,
                    tuple(c if v == UNCHANGED else v for v, c in zip(run, current, strict=True)),
                )  # type: ignore[assignment]


async def _give_up(task: asyncio.Task[Any]) -> None:
    """End it, whatever it waits for: psycopg first asks the server to cancel, for 10 s if that is silent, unless cancelled again."""
    for _ in range(2):
        task.cancel()
        await asyncio.wait([task], timeout=1)
    if task.done() and not task.cancelled():
        task.exception()  # or its end would be reported as never looked at


async def _abandon(promotion: asyncio.Task[tuple[Stream, Inspection]]) -> None:
    await _give_up(promotion)
    if promotion.done() and not promotion.cancelled() and promotion.exception() is None:
        await promotion.result()[0].close()


async def _retained(conn: Conn, slot: str) -> int:
    query = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots WHERE slot_name = %s"
    async with deadline():
        row = await (await conn.execute(query, (slot,))).fetchone()
    return int(row[0]) if row is not None and row[0] is not None else 0
