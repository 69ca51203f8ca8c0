"""How a node waits for what a client has seen elsewhere.

A client may have seen more on another node than this one has read. It waits until this node has
read all that the log contains now. The place of a message counts within one stream only: after the
stream was lost, a place in the new one says nothing of what was read of the old one.
test_a_place_in_a_lost_stream_says_nothing_of_the_new_one

(N11) A client that has seen more than the log contains has seen what a lost log contained. Until
the leader has written what the database contains, nobody can tell what became of it; then the time
of the client is one that is refused (leader.py), or it is in the future.
test_a_client_that_has_seen_what_the_log_has_lost_starts_over
"""

import asyncio

from brain.contract.messages import Micros
from brain.delivery.board import Board
from brain.nodes.connection import NATSError
from brain.nodes.log import Log
from brain.nodes.relay import Relay
from brain.nodes.timing import NodeTiming


class Barrier:
    def __init__(self, log: Log, board: Board, relay: Relay, timing: NodeTiming) -> None:
        self._log = log
        self._board = board
        self._relay = relay
        self._timing = timing

    def is_behind(self, since: Micros) -> bool:
        """Whether this node may lack what was seen up to this time."""
        return since > self._board.as_of

    async def reached(self, since: Micros) -> bool:
        """Wait until it lacks nothing. False: that cannot be told in time."""
        if not self.is_behind(since):
            return True
        try:
            async with asyncio.timeout(self._timing.barrier):
                while not await self._has_read_all():
                    await self._relay.moved()
                while self.is_behind(since) and not self._relay.track.looked:
                    await self._relay.moved()
        except (NATSError, TimeoutError):
            return False
        return True

    async def _has_read_all(self) -> bool:
        """Wait until this node has read what the log contains now. False: it contains nothing.

        If the log is lost between the two answers, its place is never reached in the new one.
        """
        last = await self._log.last("log")
        created = await self._log.created()
        if last is None:
            return False
        while not self._relay.has_read(last[0], created):
            await self._relay.moved()
        return True
