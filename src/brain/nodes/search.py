"""The search for a place from where a node can read the log, as long as there is none (N7).

Somebody may purge the log, or write what no reader understands. Then it cannot be loaded: the node
asks the leader for a new image of the board, and looks again.
"""

import asyncio
from collections.abc import Callable

import structlog

from brain.nodes import roster
from brain.nodes.boards import Start, Unusable, beginning, own_claim
from brain.nodes.log import Facts, Log
from brain.nodes.origin import Origin
from brain.nodes.state import NodeState
from brain.nodes.timing import NodeTiming
from brain.nodes.track import Claim

log = structlog.get_logger()

ELSEWHERE = 10
"""A log of another table is free for this one when nobody has written to it for so many times the
silence after which a node claims its own."""


class Search:
    """`node` is the id of this process. `idle` receives what JetStream says of the stream."""

    def __init__(
        self,
        log_: Log,
        state: NodeState,
        *,
        node: str,
        origin: Origin,
        idle: Callable[[Facts], None],
        timing: NodeTiming,
    ) -> None:
        self.created = ""
        """Which stream this is."""
        self.needed: Claim | None = None
        """The claim of a leader that goes on from its own board: what stood before does not count.
        """
        self.impassable = 0
        """The last message that is not understood, or does not follow, although the log was loaded:
        only an image of what is behind it helps."""
        self.stuck = False
        """What stands in the log is not enough to load it."""
        self.own: Claim | None = None
        """This node's, if it goes on from its own board."""
        self._log = log_
        self._state = state
        self._node = node
        self._origin = origin
        self._idle = idle
        self._timing = timing

    def again(self) -> None:
        """Begin again: the log must be loaded, or it just was."""
        self.stuck, self.own = False, None

    def take_own(self) -> Claim | None:
        own, self.own = self.own, None
        if own is not None:
            self.needed = None
        return own

    async def start(self) -> Start | Claim:
        """Where to begin to read, or the claim of this node if it goes on from its own board.

        Raises NATSError.
        """
        asked = float("-inf")
        while True:
            if (own := self.take_own()) is not None:
                return own
            facts = await self._log.facts()
            self._idle(facts)
            if facts.created != self.created:
                self.created, self.needed, self.own = facts.created, None, None
                self.impassable = self._state.foreign_at = 0
            found = await self._beginning(facts)
            identity = None if found is None else found[0].identity
            why = "" if identity is None else (await self._origin.compare(identity))[0]
            self._state.elsewhere = why
            if why and facts.idle < ELSEWHERE * self._timing.silence:
                self.stuck = False
                await asyncio.sleep(2 * self._timing.heartbeat)
                continue
            if found is not None and not why:
                self.stuck = False
                return found
            self.stuck = True
            # (N2) The claim of this node may have been accepted although nobody has told it so.
            self.own = await own_claim(self._log, self._node) or self.own
            if (now := asyncio.get_running_loop().time()) - asked > 2 * self._timing.heartbeat:
                asked = now
                await roster.ask_for_board(self._log.connection, self._log.name)
            await asyncio.sleep(self._timing.pause)

    async def _beginning(self, facts: Facts) -> Start | None:
        try:
            return await beginning(
                self._log,
                facts,
                needed=self.needed,
                impassable=self.impassable,
                timing=self._timing,
            )
        except Unusable as error:
            log.warning("the log cannot be loaded", detail=str(error))
            self.impassable = max(self.impassable, error.as_of + 1)
            return None
