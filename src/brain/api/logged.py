"""The overlay of one of several nodes: a list shows what stands in their log, and nothing else.

A list of one node and the connection that continues it may be of two. A query may see a state that
no log will ever contain: the table is polled and has changed again, or the leader has died. Then
only the node that has shown it could know that a client with a filter still has to receive the
run's next change. So a list shows each run as the board has it, which is what the log contains. It
waits for a moment until the log brings what the query has seen: without that, a client would not
find in a list what it has just written.

The pages of a list may be of several nodes, too. A later page never shows an older state than
`since` of the first one promises: its node waits until it has read that far.
test_a_list_shows_what_the_log_contains, test_a_list_waits_for_what_the_query_has_seen,
test_a_later_page_waits_for_what_the_first_one_had_read
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from brain.api.errors import NodeBehind
from brain.api.overlay import Overlay, is_ahead
from brain.contract.messages import ACTIVE, ID, STATUS, Micros, Run
from brain.delivery.board import Board
from brain.delivery.log import RUN, SEQ, is_tombstone
from brain.postgres.snapshots import PgSnapshot

PATIENCE: Final = 0.3
"""Seconds for which a page waits for the log: three polls by default. A stream takes some ms."""

PAUSE: Final = 0.005
"""Between two looks at the board."""


class Logged(Overlay):
    """`reached` waits until this node has read what had this time, and says whether it has."""

    several = True

    def __init__(self, board: Board, reached: Callable[[Micros], Awaitable[bool]]) -> None:
        super().__init__(board)
        self._reached = reached

    async def reach(self, seen: Micros) -> None:
        """Raises NodeBehind."""
        if not await self._reached(seen):
            raise NodeBehind

    async def settle(
        self, runs: Sequence[Run], snapshot: PgSnapshot, asked: int, until: float
    ) -> None:
        clock = asyncio.get_running_loop().time
        missing = [run for run in runs if self._lacks(run, snapshot, asked)]
        while missing and clock() < until:
            await asyncio.sleep(PAUSE)
            missing = [run for run in missing if self._lacks(run, snapshot, asked)]

    def _lacks(self, run: Run, snapshot: PgSnapshot, asked: int) -> bool:
        """Whether the board may still be sent what the query has seen."""
        if not self._board.begun:
            return False
        entry = self._board.entry(run[ID])
        if entry is None:  # a finished run was evicted, or has finished before the board began
            return run[STATUS] in ACTIVE
        return entry[RUN] != run and entry[SEQ] <= asked and not is_ahead(entry, snapshot)

    def shown(self, run: Run, snapshot: PgSnapshot, asked: int) -> Run | None:  # noqa: ARG002
        if not self._board.begun:
            return run
        entry = self._board.entry(run[ID])
        if entry is None:
            return None if run[STATUS] in ACTIVE else run
        return None if is_tombstone(entry) else entry[RUN]
