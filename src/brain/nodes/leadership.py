"""Who leads: the log is the lock, the fence and the heartbeat in one.

(N2) A node that has heard nothing from the log for 3 s, is connected, and has applied all that
came, claims the log: it appends a claim, which must come behind the last message there is. Of
several that try, one gets in. A node that reads its own claim as the last one leads, whether or not
NATS has confirmed it to the node. (An advisory lock, a slot's name and a lease each fail to fence a
leader that was suspended and wakes up.)
test_a_node_that_reads_its_own_claim_leads, test_a_node_that_wakes_up_does_not_claim

(N10) A node that is stopped resigns behind its last message, so that another one claims at once. It
claims nothing any more, and resigns also behind a claim that was in flight.
test_a_node_that_is_stopped_resigns, test_a_node_that_is_stopped_while_it_claims_resigns
"""

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import TypeAlias

import structlog

from brain.nodes.appender import Appender
from brain.nodes.connection import NATSError
from brain.nodes.leader import GivesUp, Leader
from brain.nodes.log import Log, Superseded
from brain.nodes.messages import READABLE_FROM, VERSION, Base, encode
from brain.nodes.relay import Relay
from brain.nodes.state import NodeState
from brain.nodes.timing import NodeTiming
from brain.nodes.track import Claim

log = structlog.get_logger()

Lead: TypeAlias = Callable[[Claim], Leader]

CLAIMS = 10
"""How often in a row a claim is tried behind messages that are none of Brain's."""


class Leadership:
    """`node` is a random id of this process, `name` its name for people."""

    def __init__(
        self,
        log_: Log,
        relay: Relay,
        state: NodeState,
        lead: Lead,
        *,
        node: str,
        name: str,
        timing: NodeTiming,
    ) -> None:
        self.leader: Leader | None = None
        self.obstacle = ""
        """Why this node could not claim the log when it tried last."""
        self._log = log_
        self._relay = relay
        self._state = state
        self._lead = lead
        self._node = node
        self._name = name
        self._timing = timing
        self._task: asyncio.Task[None] | None = None
        self._retired = False
        self._patience = timing.patience()
        self._tried = float("-inf")
        self._lost = 0
        """How often in a row this node has led for a moment only."""
        self._told = ""
        self._before: set[asyncio.Task[None]] = set()
        """Leaders of before that may not have ended yet."""
        relay.claimed = self._claimed

    async def watch(self) -> None:
        """Claim the log whenever nobody leads."""
        while True:
            await asyncio.sleep(self._timing.heartbeat / 10)
            if self._retired:  # what is vacant now is what this node has resigned
                return
            if self._task is not None and self._relay.loads:
                self._depose(self._task)
            base = self._relay.base()
            if base is None or self._task is not None or not self._is_due(base):
                continue
            try:
                await self._claim(base)
            except Superseded:
                pass  # another one was quicker; its claim comes
            except NATSError as error:
                self._tell(error)
            self._tried = asyncio.get_running_loop().time()
            self._patience = self._timing.patience()

    def _tell(self, error: NATSError) -> None:
        """Why nobody leads: once for each reason."""
        self.obstacle = str(error)
        if self.obstacle != self._told:
            self._told = self.obstacle
            log.warning("this node cannot lead", detail=self._told)

    def _depose(self, task: asyncio.Task[None]) -> None:
        """Nobody claims as long as this node writes, though it cannot read what it has written."""
        if self.leader is not None:
            epoch = self.leader.claim.seq
            log.warning("this node leads no longer", epoch=epoch, detail=self._relay.loads)
        self._end(task)
        self._task = None

    def _is_due(self, base: Base) -> bool:
        if self._retired:
            return False
        now = asyncio.get_running_loop().time()
        if self._relay.track.resigned and base == "log":
            wait = random.uniform(0, self._timing.heartbeat / 5)
            return now - max(self._tried, self._state.heard) > wait
        if base == "log" and self._was_last():
            wait = min(
                self._timing.silence, self._timing.heartbeat / 5 * 2.0 ** min(self._lost, 32)
            )
            return now - self._tried > wait
        vacant_since = self._relay.vacant_since
        if vacant_since < now and base != "log":
            # A node that has a board comes first: its clients need not start over.
            wait = 0.0 if base == "board" else self._timing.first
            wait += random.uniform(0, self._timing.heartbeat / 5)
            return now - max(vacant_since, self._tried) > wait
        # A node that cannot load the log comes last: without a board, all clients start over.
        patience = self._patience * (3 if base == "empty" else 1)
        return now - max(self._tried, self._state.heard) > patience

    def _was_last(self) -> bool:
        """The last claim is this node's, and it leads no longer: a message was refused, or not
        confirmed. Nobody else leads.
        """
        claim = self._relay.track.claim
        return claim is not None and claim.node == self._node and not self._before

    async def _claim(self, base: Base) -> None:
        """Raises NATSError."""
        relay, heard, before = self._relay, self._state.heard, self._relay.track.position
        facts = await self._log.facts()
        last = await self._log.last("log")
        # A node that wakes up after a suspension finds out here what it has not heard yet: over one
        # connection, the messages of the log arrive before these answers.
        position = 0 if last is None else last[0]
        if base == "log" and not await self._at_end(
            lambda: relay.has_read(position, facts.created)
        ):
            return
        if self._state.heard != heard or relay.base() != base or self._retired:
            return
        relay.note_idle(facts)
        is_free = relay.track.resigned or (base == "log" and self._was_last())
        if facts.idle < self._timing.silence and not is_free:
            return
        if base == "log" and position < before:
            return  # it has gone back
        seq = await self._append(base, facts.last)
        if base != "log":
            relay.rebase(Claim(seq, self._node, self._name, base, VERSION, READABLE_FROM))

    async def _at_end(self, condition: Callable[[], bool]) -> bool:
        """Whether the relay comes to the end of the log, where this holds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._timing.heartbeat):
                while not (condition() and self._relay.base() == "log"):
                    await self._relay.moved()
                return True
        return False

    async def _append(self, base: Base, after: int) -> int:
        """Append a claim behind this message. If another program writes to the log more often than
        one can ask where it ends, the claim goes behind what was read of that program since.

        Raises NATSError.
        """
        claim = encode("claim", 0, 0, id=self._node, name=self._name, base=base)
        track = self._relay.track
        read = (track.epoch, track.n)
        for _ in range(CLAIMS):
            try:
                return await self._log.append("log", claim, after)
            except Superseded:
                at = after
                if base != "log" or not await self._at_end(lambda at=at: track.position > at):  # type: ignore[misc]
                    raise
                if self._relay.track is not track or (track.epoch, track.n) != read:
                    raise
                after = track.position
        raise Superseded("somebody else writes to the log all the time")

    # Leading.

    def _claimed(self, claim: Claim) -> None:
        """The relay has applied all that stands before this claim."""
        if self._task is not None:
            self._end(self._task)
            self._task = None
        if claim.node != self._node:
            self.obstacle = self._told = ""
        if claim.node == self._node and not self._retired:
            leader = self.leader = self._lead(claim)
            self._state.role = "leader"
            self._task = asyncio.create_task(self._run(leader), name="leader")
        else:
            self._state.role = "follower"
            if claim.node == self._node:  # it was in flight when this node was stopped (N10)
                self._remember(asyncio.create_task(self._resign(claim.seq), name="resign"))

    async def _resign(self, epoch: int) -> None:
        """Behind a claim of this node, which does not lead."""
        with contextlib.suppress(NATSError):
            await Appender(self._log, epoch, head=dict, timing=self._timing).resign()
            log.info("resigned", epoch=epoch)

    def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self._remember(task)

    def _remember(self, task: asyncio.Task[None]) -> None:
        self._before.add(task)
        task.add_done_callback(self._before.discard)

    async def _run(self, leader: Leader) -> None:
        detail = ""
        began = asyncio.get_running_loop().time()
        try:
            await leader.lead()
        except NATSError as error:
            detail = str(error)
            if isinstance(error, GivesUp):
                # The others come first.
                self._tried = asyncio.get_running_loop().time() + 2 * self._timing.silence
        except Exception as error:
            log.exception("leading failed")
            detail = repr(error)
        finally:
            now = asyncio.get_running_loop().time()
            self._lost = self._lost + 1 if now - began < self._timing.silence else 0
            if self.leader is leader:
                self.leader = None
                self._state.role = "follower"
            if detail and not self._retired:
                self.obstacle = detail
                log.warning("this node leads no longer", epoch=leader.claim.seq, detail=detail)
            await leader.end()
            if self._task is asyncio.current_task():
                self._task = None

    async def retire(self) -> None:
        """(N10) May be called twice."""
        self._retired = True
        task, leader = self._task, self.leader
        if leader is not None:
            with contextlib.suppress(NATSError, TimeoutError):
                async with asyncio.timeout(self._timing.resign):
                    await leader.resign()
                    log.info("resigned", epoch=leader.claim.seq)
        if task is not None:
            self._end(task)
        if self._before:
            await asyncio.wait(self._before, timeout=2 * self._timing.resign)
