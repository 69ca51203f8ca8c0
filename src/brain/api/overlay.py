"""The board's changes that a query cannot see yet, laid over the rows of that query.

PostgreSQL streams a commit before queries see it: while a synchronous standby does not answer,
for as long as that takes. The board then knows more than the table shows. In the other direction,
a query may see a change that the board has yet to receive.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from brain.contract.messages import ID, Micros, Run
from brain.delivery.board import Board
from brain.delivery.log import RUN, SEQ, TIME, XID, Entry
from brain.postgres.snapshots import PgSnapshot, Xid


@dataclass(frozen=True, slots=True)
class BoardPosition:
    """Where the board stood before a query."""

    seq: int
    time: Micros | None
    """None until the board has a first Snapshot."""
    visible: int


class Overlay:
    several: ClassVar = False
    """There are several nodes: a later page has to `reach` the time of the first."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._visible = 0
        """A seq of the board. Every query from now on sees all changes up to it, because what
        one query saw, each later one sees. So `since` looks at few entries, unless a
        synchronous standby does not answer."""

    @property
    def seq(self) -> int:
        return self._board.seq

    def position(self) -> BoardPosition:
        board = self._board
        return BoardPosition(board.seq, board.as_of if board.begun else None, self._visible)

    def ahead(self, run_id: str, snapshot: PgSnapshot) -> Run | None:
        """The run as the board has it, if the query of `snapshot` cannot see that change yet."""
        entry = self._board.get(run_id)
        return entry[RUN] if entry is not None and is_ahead(entry, snapshot) else None

    async def reach(self, seen: Micros) -> None:
        """A page continues a list, of which the first had this time."""

    async def settle(
        self, runs: Sequence[Run], snapshot: PgSnapshot, asked: int, until: float
    ) -> None:
        """These rows of a query are about to be shown. `until`: not later, by the loop's clock."""

    def shown(self, run: Run, snapshot: PgSnapshot, asked: int) -> Run | None:
        """What to show of a row of the query of `snapshot`; None: nothing.

        `asked` is the board's seq before that query.
        """
        ahead = self.ahead(run[ID], snapshot)
        if ahead is not None:
            return ahead
        entry = self._board.show(run, asked)
        return run if entry is None else entry[RUN]

    def since(self, before: BoardPosition, snapshot: PgSnapshot) -> Micros | None:
        """The time from which `/ws?since=` brings each change that the query did not see.

        This is the time of the first change that the query of `snapshot` did not see, or else the
        board's before the query.
        """
        if before.time is None:
            return None
        hidden = self._board.log.oldest(
            before.visible, before.seq, partial(is_ahead, snapshot=snapshot)
        )
        if hidden is None:
            self._visible = max(self._visible, before.seq)
            return before.time
        self._visible = max(self._visible, hidden[SEQ] - 1)
        return min(before.time, hidden[TIME])


def is_ahead(entry: Entry, snapshot: PgSnapshot) -> bool:
    """The change is committed and on the board, but the query does not see its transaction."""
    return entry[XID] != 0 and not snapshot.sees(Xid(entry[XID]))
