"""The source of a node: it reads the log, and yields what the leader's source has yielded.

(N5) Every board, the leader's too, is fed from the log only: one order of events for all.

(N7) A node that starts takes over the last image of a board that stands in the log, with its times,
facets and floors, and reads on behind it. It is ready when it has reached the end that the log had
at its start.
test_a_node_that_starts_takes_over_the_board

(N8) After an error of NATS, position and board stay. A node loads again only if the log provably
does not go on where it is: what comes next was discarded, the log ends before, it was created
again, or a message does not follow (N3). Then it pushes what differs.
test_a_node_goes_on_where_it_was, test_a_node_that_lacks_what_was_discarded_loads_again

Somebody may purge the log, or write what no reader understands. Then the nodes wait for a new image
(search.py), and a leader that cannot go on itself leads no longer.
test_a_log_that_was_purged_is_loaded_again, test_a_log_that_nobody_can_read_on_heals
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

import structlog

from brain.contract.events import Event, Image, Outcome, Snapshot
from brain.delivery.board import Board
from brain.nodes.connection import NATSError
from brain.nodes.difference import difference, image, pieces, seq_at
from brain.nodes.log import Facts, Item, Log, Reader, Superseded
from brain.nodes.messages import VERSION, Base
from brain.nodes.origin import Origin
from brain.nodes.search import Search
from brain.nodes.state import NodeState
from brain.nodes.timing import NodeTiming
from brain.nodes.track import Claim, LoadAgain, Track

log = structlog.get_logger()

UPGRADE_HINT = "upgrade this Brain"

GULP = 256 * 1024
"""Bytes of messages whose events are yielded at once."""


class Relay:
    """`node` is the id of this process. `empty` makes a board like `board`. `claimed` is called
    with each claim, once all before it has been applied.
    """

    def __init__(
        self,
        log_: Log,
        board: Board,
        state: NodeState,
        *,
        node: str,
        empty: Callable[[], Board],
        origin: Origin,
        timing: NodeTiming,
    ) -> None:
        self.track = Track()
        self.state = state
        self.claimed: Callable[[Claim], object] = lambda _: None
        self.vacant_since = float("inf")
        """Since when, by the loop's clock, this node has known the log as empty."""
        self._log = log_
        self._board = board
        self._node = node
        self._empty = empty
        self._search = Search(
            log_, state, node=node, origin=origin, idle=self.note_idle, timing=timing
        )
        self._misled = False
        """The board has runs of another table."""
        self._timing = timing
        self._outcomes: dict[tuple[int, int], Outcome] = {}
        self._target = 0
        """The end of the log when this node began to read it."""
        self.loads = "starting"
        """Why this node must load the log: "" if it follows."""
        self._loads_since = float("inf")
        self.obstacle = ""
        """Why the log could not be read the last time; "" if it answers."""
        self._newest: tuple[str, Claim] | None = None
        """The last claim that was read, also while the log is loaded, and of which stream."""
        self._applied = 0
        self._claim: Claim | None = None
        self._reader: Reader | None = None
        self._moved = asyncio.Event()
        self._yielding = False
        self._images: list[asyncio.Future[tuple[Image, Track]]] = []

    # What others ask.

    def base(self) -> Base | None:
        """(N2) From what this node would go on if it led; None if it cannot lead now."""
        if not self._log.connection.is_open or self.later:
            return None
        claim = self.track.claim
        if self.loads:
            if not self._search.stuck:
                return None
            return "board" if self._board.begun and not self._misled else "empty"
        if self._reader is None or not self.is_at_end:
            return None
        return "empty" if claim is None else "log"

    @property
    def later(self) -> str:
        """That the last leader writes a later version of the log than this Brain knows: nobody
        knows what its checkpoint means.
        """
        claim = self._last_claim()
        if claim is None or claim.version <= VERSION:
            return ""
        return (
            f"the leader {claim.name} writes version {claim.version} of the log, and this Brain"
            f" version {VERSION}"
        )

    @property
    def is_readable(self) -> bool:
        """Whether this Brain reads what the last leader writes."""
        claim = self._last_claim()
        return claim is None or claim.is_readable

    def _last_claim(self) -> Claim | None:
        """Of the board, or read since."""
        of, read = self._newest or ("", None)
        found = [
            *([self.track.claim] if self.track.claim is not None and not self.loads else []),
            *([read] if read is not None and of == self._search.created else []),
        ]
        return max(found, default=None, key=lambda claim: claim.seq)

    @property
    def is_at_end(self) -> bool:
        reader = self._reader
        return (
            reader is not None
            and not reader.waiting
            and reader.seq == self._applied
            and self._applied >= self._target
            and self.state.at_end >= self.state.heard
        )

    def expect(self, epoch: int, outcome: Outcome | None, n: int) -> None:
        """If it is a comparison, this node's own source wants to know its outcome."""
        if outcome is not None:
            self._outcomes[epoch, n] = outcome

    async def until(self, epoch: int, n: int) -> None:
        """Wait until this message of the leader has been applied. Raises Superseded."""
        track = self.track
        while not (track.epoch == epoch and track.n >= n and self._applied == track.position):
            if track.epoch > epoch:
                raise Superseded("another node leads")
            await self.moved()
            track = self.track

    async def image(self) -> tuple[Image, Track]:
        """The board, and what was known when it was as it is. Between two events (N6)."""
        if not self._yielding:
            return image(self._board), replace(self.track)
        found: asyncio.Future[tuple[Image, Track]] = asyncio.get_running_loop().create_future()
        self._images.append(found)
        return await found

    def loading(self, now: float) -> tuple[float, str]:
        """For how long this node has tried to load the log, and what it waits for."""
        if not self.loads:
            return 0.0, ""
        stuck = self._search.stuck
        wait = "the log contains no whole board" if stuck else "the leader reads the table"
        return now - self._loads_since, f"this node loads the log again ({self.loads}): {wait}"

    def has_read(self, seq: int, created: str) -> bool:
        """Whether this message, of the stream that was created then, has been applied."""
        return not self.loads and self._search.created == created and self._applied >= seq

    async def moved(self) -> None:
        """Wait until something has been read, or a heartbeat's time has passed."""
        self._moved.clear()
        await self._moved.wait()

    def note_idle(self, facts: Facts) -> None:
        """Somebody wrote to the log, whether or not this node has read it."""
        now = asyncio.get_running_loop().time()
        self.vacant_since = float("inf") if facts.last else min(self.vacant_since, now)
        self.state.heard = max(self.state.heard, now - facts.idle)

    def rebase(self, claim: Claim) -> None:
        """The claim of this node was accepted: if it loads, it goes on from its own board, or from
        nothing.
        """
        if self.loads:
            self._search.own = claim

    def leave(self, why: str) -> None:
        """The log is of another table."""
        self.loads, self._misled = why, True
        self._search.again()
        if self._reader is not None:
            self._reader.interrupt(why)

    # The source.

    async def events(self) -> AsyncGenerator[Sequence[Event]]:
        told = ""
        self._loads_since = asyncio.get_running_loop().time()
        while True:
            while not self._log.connection.is_open:
                await asyncio.sleep(self._timing.pause / 2)
            try:
                async with aclosing(self._events()) as events:
                    async for several in events:
                        self._yielding = True
                        yield several
                        self._yielding = False
            except LoadAgain as error:
                self._load_again(str(error))
                log.warning("the log does not go on", detail=str(error))
            except NATSError as error:
                self.obstacle = str(error)
                if self.obstacle != told:
                    told = self.obstacle
                    log.warning("the log cannot be read", detail=told)
            except Exception as error:
                # A bug in Brain, or an answer of NATS that nobody expects. What was read may not
                # have been applied. The clients stay connected.
                log.exception("the log cannot be read")
                self._load_again(f"a bug in Brain: {error!r}")
                await asyncio.sleep(self._timing.heartbeat)
            finally:
                self._yielding = False
                self._reader = None
            await asyncio.sleep(self._timing.pause)

    def _load_again(self, why: str) -> None:
        if not self.loads:
            self._loads_since = asyncio.get_running_loop().time()
        self.loads = why
        self._search.again()

    async def _events(self) -> AsyncGenerator[Sequence[Event]]:
        facts = await self._log.facts()
        self.obstacle = ""
        if not self.loads and (gone := self._does_not_go_on(facts)):
            raise LoadAgain(gone)
        self.note_idle(facts)
        if self.loads:
            async with aclosing(self._load()) as loading:
                async for several in loading:
                    yield several
            self.loads = ""
            self._search.again()
            self._settle()
        async with self._log.read("log", self.track.position) as reader:
            self._reader = reader
            async with aclosing(self._follow(reader)) as following:
                async for several in following:
                    yield several

    def _does_not_go_on(self, facts: Facts) -> str:
        """(N8)"""
        position = self.track.position
        if facts.created != self._search.created:
            return "the stream was deleted and created again"
        if facts.first > position + 1:
            return f"message {position + 1} was discarded: the log begins at {facts.first}"
        if facts.last < position:
            return f"the log ends at {facts.last}, before message {position}"
        return ""

    async def _follow(self, reader: Reader) -> AsyncGenerator[list[Event]]:
        while True:
            items = await reader.take(self._timing.heartbeat)
            ready: list[Event] = []
            size = 0
            for item in items:
                for event in self._take_next(item):
                    if isinstance(event, Snapshot) and event.unless_after is not None:
                        if ready:
                            yield ready
                            ready, size = [], 0
                        yield [self._comparison(event, self._board)]
                    else:
                        ready.append(event)
                size += len(item.data)
                if size > GULP and ready:
                    yield ready
                    ready, size = [], 0
            if ready:
                yield ready
            self._settle(at_end=not items or items[-1].pending == 0, reader=reader)

    def _take_next(self, item: Item) -> Sequence[Event]:
        """Raises LoadAgain."""
        try:
            return self._take(self.track, item)
        except LoadAgain:
            if not self._board.begun:  # it was loaded a moment ago, and the same would come again
                self._search.impassable = item.seq
            raise

    def _take(self, track: Track, item: Item) -> Sequence[Event]:
        """Raises LoadAgain."""
        claim, foreign = track.claim, track.foreign
        try:
            events = track.take(item.seq, item.data)
        finally:
            if track.foreign == foreign:
                now = self.state.heard = asyncio.get_running_loop().time()
                self.state.led = now if track.n else self.state.led
        if track.foreign != foreign:
            self.state.skip(self._log.name, item)
        if track.claim is claim or track.claim is None:
            return events
        claim = track.claim
        before, self._newest = self._newest, (self._search.created, claim)
        if self.later and self._newest != before:
            log.warning(
                "this node does not lead" if claim.is_readable else "the log cannot be understood",
                detail=self.later,
                hint=UPGRADE_HINT,
            )
        if claim.node == self._node:
            if claim.base != "log":
                self.rebase(claim)
            return events
        if claim.base == "log":
            return events
        if claim.base == "board" or self._board.begun:
            self._search.needed = claim
            raise LoadAgain(f"the leader {claim.name} goes on from another state ({claim.base})")
        return events

    def _comparison(self, event: Snapshot, board: Board) -> Snapshot:
        """(N4) Seqs are those of one board, and times are those of all. So a comparison says until
        which time the leader's board had changed when it looked.
        """
        after = event.unless_after
        assert after is not None
        track = self.track
        outcome = self._outcomes.pop((track.epoch, track.n), None)
        return replace(event, unless_after=seq_at(board, after), outcome=outcome)

    def _settle(self, *, at_end: bool = False, reader: Reader | None = None) -> None:
        """All that was read has been applied."""
        track, state = self.track, self.state
        self._applied = state.position = track.position
        state.epoch = track.epoch
        now = asyncio.get_running_loop().time()
        if at_end and not (reader is not None and reader.waiting):
            state.at_end = now
        if track.position >= self._target and track.status and not self.loads and self.is_readable:
            self._mirror()
        for future in self._images:
            if not future.done():
                future.set_result((image(self._board), replace(track)))
        self._images.clear()
        self._moved.set()
        if track.claim is not None and track.claim is not self._claim:
            self._claim = track.claim
            here = track.claim.node == self._node
            log.info("leader", node=track.claim.name, epoch=track.epoch, here=here)
            self.claimed(track.claim)

    _mirrored: object = None

    def _mirror(self) -> None:
        status = self.track.status
        if status is not self._mirrored:
            self._mirrored = status
            self.state.mirror(status)

    # Loading.

    async def _load(self) -> AsyncGenerator[list[Event]]:
        """(N7) Raises LoadAgain, NATSError."""
        if not self._board.begun:
            found = await self._search.start()
            if isinstance(found, Claim):
                self._go_on_alone(found)
                return
            track, whole = found
            await self._aim()
            if whole is not None:
                yield [whole]
            self.track = track
            return
        loaded = self._empty()
        found = await self._search.start()
        if isinstance(found, Claim):
            self._go_on_alone(found)
            return
        track, whole = found
        if whole is not None:
            for piece in pieces(whole):
                loaded.apply(piece)
                await asyncio.sleep(0)
        await self._aim()
        async with self._log.read("log", track.position) as reader:
            # (N8) What this node has applied, and the log has lost, the leader has read again from
            # the database once it has looked.
            while not (track.position >= self._target and track.looked):
                self._search.stuck = track.position >= self._target
                if (own := self._search.take_own()) is not None:
                    self._go_on_alone(own)
                    return
                for item in await reader.take(self._timing.pause):
                    try:
                        events = self._take(track, item)
                    except LoadAgain:
                        self._search.impassable = item.seq
                        raise
                    for event in events:
                        if isinstance(event, Snapshot) and event.unless_after is not None:
                            loaded.apply(replace(self._comparison(event, loaded), outcome=None))
                        else:
                            loaded.apply(event)
        changes = difference(self._board, loaded)
        log.info(
            "loaded again",
            changed=sum(len(each.entries) for each in changes),
            clients="start over" if changes[0].new else "stay",
        )
        for change in changes:
            yield [change]
        self.track = track

    def _go_on_alone(self, own: Claim) -> None:
        self.track = self.track.going_on(own)
        self._misled = False
        self._target = 0

    async def _aim(self) -> None:
        last = await self._log.last("log")
        self._target = 0 if last is None else last[0]
