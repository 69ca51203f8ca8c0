"""The leader: it follows the database, and writes to the log what it finds.

(N4) It begins where the last leader has ended, at the checkpoint that stands in the log. It gives
each event its time, once and for all nodes: that of the commit, or the last one and a microsecond,
whichever is later. So a message is the same bytes on every node, and `since` holds everywhere.

(N11) A log may lose what readers have applied, and sent to clients. So the times between the last
event that this leader has read and its first one are refused: a client that comes with one of them
has seen what this log does not contain, and starts over.
test_a_client_that_has_seen_what_the_log_has_lost_starts_over

It waits until its own board has applied what it has written, before it reads on: what the board
knows decides what is read (events.Known).

(N6) It writes its board, too, so that others can start: first, if it goes on from its own board;
behind its first look at the table; and then whenever the log has grown by 8 MB, and by as much as
the board takes. A node that finds none in the log, because somebody has purged it, asks for one.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import structlog

from brain.contract.events import Event, Known, Outcome, Snapshot
from brain.contract.messages import Micros, Run
from brain.delivery.board import Board
from brain.nodes.appender import Appender
from brain.nodes.connection import NATSError
from brain.nodes.log import Log
from brain.nodes.messages import (
    encode_checkpoint,
    encode_columns,
    encode_event,
    encode_held,
    encode_image,
    joined,
)
from brain.nodes.relay import Relay
from brain.nodes.timing import NodeTiming
from brain.nodes.track import Claim
from brain.postgres.cancellation import cancel
from brain.postgres.progress import Progress
from brain.postgres.source_state import SourceState

if TYPE_CHECKING:
    from brain.postgres.checkpoints import Checkpoint
    from brain.postgres.table import Column

log = structlog.get_logger()

MAX_GIVEN_UP = 3
"""So many leaders in a row may give up because they cannot reach the database. Then nobody can, and
the next one waits for it."""

ROWS = 200
"""Entries of a board that are encoded at a time: about a millisecond."""


class Source(Protocol):
    """postgres.follow.Follow."""

    state: SourceState

    def events(self) -> AsyncGenerator[Sequence[Event]]: ...


MakeSource: TypeAlias = Callable[[Known, Progress], Source]


class Times:
    """What the source may ask: the board, whose seqs are its own, and whose times are those of all
    nodes. So times stand for seqs.
    """

    def __init__(self, board: Board) -> None:
        self._board = board

    @property
    def seq(self) -> int:
        return self._board.time

    @property
    def floor(self) -> int:
        return self._board.floor_time

    @property
    def time(self) -> int:
        return self._board.time

    @property
    def last_time(self) -> int:
        return self._board.last_time

    @property
    def floor_time(self) -> int:
        return self._board.floor_time

    def unfinished(self) -> Collection[str]:
        return self._board.unfinished()

    def differs(self, run: Run) -> bool:
        return self._board.differs(run)

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._board


class GivesUp(NATSError):  # noqa: N818 - a state of the leader, not an error of Brain
    """The leader has resigned: another node may be able to reach the database."""


class Leader:
    """Leads from its claim on until `lead` raises NATSError or is cancelled."""

    def __init__(
        self,
        claim: Claim,
        relay: Relay,
        board: Board,
        log_: Log,
        *,
        source: MakeSource,
        timing: NodeTiming,
    ) -> None:
        self.claim = claim
        self._relay = relay
        self._board = board
        self._timing = timing
        self._log = log_
        self._appender = Appender(log_, claim.seq, head=self._head, timing=timing)
        track = relay.track
        self._new = track.checkpoint is None and board.begun
        """The board has begun, but nobody knows up to where the database was read."""
        self._at = max(track.at, board.time)
        self._progress = Progress(
            checkpoint=track.checkpoint,
            unseen=set(track.unseen),
            streamed=track.checkpoint is not None,
        )
        self._read: Micros | None = board.time if board.begun else None
        """The time of what this leader has read in the log, until it has written an event."""
        self._source = source(Times(board), self._progress)
        self._sent: tuple[Checkpoint | None, Mapping[str, Column] | None] = (
            track.checkpoint,
            track.columns,
        )
        self._away_since = asyncio.get_running_loop().time()
        self._status_at = float("-inf")
        self._status: tuple[object, ...] = ()
        self._looked = False
        self._looked_n = 0
        """The message that has said so, and of which table the log is."""
        self._written = 0
        """Bytes of the log when the board was last written."""
        self._size = 0
        """Bytes of the board as it was last written."""
        self._max_size = log_.max_bytes // 3
        """Two boards, and what is appended meanwhile."""
        self._board_due = asyncio.Event()
        self._board_after = float("-inf")
        """Before this time no board is written because somebody asks for it."""
        self._following: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    @property
    def source(self) -> SourceState:
        return self._source.state

    async def lead(self) -> None:
        """Raises NATSError."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._beat(), name="heartbeat")
                if self.claim.base == "board":
                    await self._write_board()
                tasks.create_task(self._write_boards(), name="boards")
                self._following = asyncio.create_task(self._follow(), name="leader's source")
                await asyncio.wait([self._following])
                self._following.result()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            # In a task of its own. A second cancellation of this one must not cut short the end of
            # the source: it makes psycopg abandon a connection that is closing.
            if self._following is not None:
                self._ending = asyncio.create_task(cancel(self._following), name="leader's end")

    async def end(self) -> None:
        """To be called when `lead` has ended: wait until the source is closed."""
        if self._ending is not None:
            await asyncio.wait([self._ending])

    async def resign(self) -> None:
        """`lead` raises Superseded from now on. Raises NATSError."""
        await self._appender.resign()

    # Events.

    async def _follow(self) -> None:
        async with aclosing(self._source.events()) as events:
            async for several in events:
                await self._give(several)

    async def _give(self, events: Sequence[Event]) -> None:
        appender, relay = self._appender, self._relay
        outcome: Outcome | None = None
        encoded = []
        for event in events:
            found = event
            if isinstance(found, Snapshot):
                outcome = found.outcome or outcome
                if self._new:
                    self._new = False
                    found = replace(found, new=True)
            at = self._time(event)
            if self._read is not None:
                encoded += _refusal(self._read, at)
                self._read = None
            encoded.append(encode_event(found, at))
        for body in joined(encoded, self._timing.piece):
            await appender.events(body, partial(relay.expect, appender.epoch, outcome))
        await relay.until(appender.epoch, appender.n)
        if appender.bytes - self._written > max(self._timing.checkpoint, self._size):
            self._board_due.set()

    def _time(self, event: Event) -> Micros:
        at = getattr(event, "at", 0)
        self._at = max(at, self._at + 1, self._board.time + 1)
        return self._at

    async def _beat(self) -> None:
        """An empty message now and then, and at once when others wait for what it says."""
        loop, timing = asyncio.get_running_loop(), self._timing
        while True:
            looked = self._has_looked()
            due = loop.time() - self._status_at >= timing.heartbeat
            if due or looked or self._status != self._described():
                await self._appender.events(b"")
            if looked:
                self._looked_n = self._appender.n
                self._board_due.set()
            await self._give_up_if_away(loop.time())
            await asyncio.sleep(timing.heartbeat / 5)

    async def _give_up_if_away(self, now: float) -> None:
        """Raises GivesUp."""
        if self.source.source != "none" or self.source.code != "away":
            self._away_since = now
        elif (
            now - self._away_since > self._timing.leaderless
            and self._relay.track.given_up < MAX_GIVEN_UP
        ):
            await self._appender.resign(away=True)
            raise GivesUp(f"the database cannot be reached: {self.source.detail}")

    def _has_looked(self) -> bool:
        """Whether what the table contained when this leader had a first look stands in the log:
        from now on, and for the first time.
        """
        if self._looked or self.source.heard == float("-inf"):
            return False
        self._looked = True
        return True

    def _head(self) -> dict[str, Any]:
        head: dict[str, Any] = {}
        if self._looked:
            head["looked"] = True
        checkpoint, columns = self._progress.checkpoint, self._progress.columns
        if checkpoint is not None and checkpoint is not self._sent[0]:
            head["checkpoint"] = encode_checkpoint(checkpoint)
        if columns is not None and columns is not self._sent[1] and columns != self._sent[1]:
            head["columns"] = encode_columns(dict(columns))
        self._sent = (checkpoint or self._sent[0], columns or self._sent[1])
        now = asyncio.get_running_loop().time()
        if self.source.code == "connecting":
            return head  # until this leader knows better, what the last one said counts
        described = self._described()
        if described != self._status or now - self._status_at >= self._timing.heartbeat / 2:
            self._status, self._status_at = described, now
            head["status"] = self._report(now)
        return head

    def _described(self) -> tuple[object, ...]:
        state = self.source
        return (state.source, state.code, state.detail, state.hint, state.warnings)

    def _report(self, now: float) -> dict[str, Any]:
        state = self.source
        heard = state.heard
        lag = state.lateness.seconds(now)
        return {
            "source": state.source,
            "code": state.code,
            "detail": state.detail,
            "hint": state.hint,
            "age": None if heard == float("-inf") else max(0.0, now - heard),
            "lag": min(lag, 1e9),
            "warnings": [asdict(each) for each in state.warnings],
        }

    # The board.

    def want_board(self) -> None:
        """A node cannot load the log. Several may ask for the same reason."""
        now = asyncio.get_running_loop().time()
        if now >= self._board_after:
            self._board_after = now + self._timing.boards
            self._board_due.set()

    async def _write_boards(self) -> None:
        while True:
            await self._board_due.wait()
            self._board_due.clear()
            await self._relay.until(self._appender.epoch, self._looked_n)
            await self._write_board()

    async def _write_board(self) -> None:
        """In pieces, between which others write what happens."""
        appender = self._appender
        self._written = appender.bytes
        whole, track = await self._relay.image()
        if not self._board.begun:
            return
        as_of = track.position
        seqs: list[int] = []
        size = 0
        for at in range(0, len(whole.entries), ROWS):
            for body in joined(encode_held(whole.entries[at : at + ROWS]), self._timing.piece):
                seqs += await appender.piece(body, as_of)
                size += len(body)
            await asyncio.sleep(0)
        self._size = size
        checkpoint, columns = track.checkpoint, track.columns
        await appender.end(
            as_of=as_of,
            at_n=track.n,
            at=track.at,
            first=seqs[0] if seqs else 0,
            pieces=len(seqs),
            claim=track.claim,
            looked=track.looked,
            status=track.status,
            checkpoint=encode_checkpoint(checkpoint) if checkpoint is not None else None,
            columns=encode_columns(columns) if columns is not None else None,
            board=encode_image(whole),
        )
        log.info("board written", runs=len(whole.entries), bytes=size, as_of=as_of)
        if size > self._max_size:
            log.warning(
                "the board fills the log",
                bytes=size,
                detail="a node can start only from a whole board, and the log discards the last one"
                " while the next one is written",
            )
        await self._check_room(as_of, size)

    async def _check_room(self, as_of: int, size: int) -> None:
        """A log that discards the beginning of a board before its end is written is of no use to a
        node that starts, however often it asks.
        """
        facts = await self._log.facts()
        if facts.first > as_of + 1:
            self._board_after = asyncio.get_running_loop().time() + 12 * self._timing.boards
            log.error(
                "the board does not fit into the log",
                bytes=size,
                effect="no other node can start",
                hint="stop all nodes, delete the stream and start them, or set BRAIN_BOARD_MEMORY",
            )


def _refusal(read: Micros, at: Micros) -> list[bytes]:
    """(N11) That no event lies between these two. An answer of the API may bear the time that
    follows the last event's (Board.as_of), or that of the refusal.
    """
    first, last = read + 2, at - 2
    if first > last:
        return []
    refusal = Snapshot([], last + 1, complete=False, refused=((first, last),))
    return [encode_event(refusal, refusal.at)]
