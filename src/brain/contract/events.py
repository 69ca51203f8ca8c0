"""The port between PostgreSQL and the board: the events of a source, and what it may ask back.

A source yields events of these two kinds, in the order in which the board applies them.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from brain.contract.messages import Micros, Run

Op: TypeAlias = Literal["insert", "update", "delete", "truncate"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The current state, or a piece of it: rows as one query saw them.

    The board compares the rows with what it holds and pushes the differences. So after an outage a
    source just yields a Snapshot.
    """

    rows: Sequence[Run]
    at: Micros
    """The database's time of the query."""
    gone: Collection[str] = ()
    """Ids that the board holds as unfinished and that the table no longer has."""
    complete: bool = True
    """False for each piece of a Snapshot but the last."""
    new: bool = False
    """The table's history began again (another table, a restored backup, a failover): no `since`
    from before it is answered."""
    unless_after: int | None = None
    """A row is skipped if its run has changed on the board after this seq: the row is older."""


@dataclass(frozen=True, slots=True)
class Changes:
    """A slice of one committed transaction.

    The run of a delete has only its id, and that of a truncate has not even an id. A field may be
    messages.UNCHANGED.
    """

    rows: list[tuple[Op, Run]]
    at: Micros
    """The time of the commit. It may decrease: 0.07 % of commits were late, by up to 17 ms."""
    xid: int
    """The transaction's 64-bit id, by which a reader can tell whether a query has seen it."""


Event: TypeAlias = Snapshot | Changes


class Known(Protocol):
    """What a source may ask about the events that were applied. The board answers."""

    @property
    def seq(self) -> int:
        """Grows with every change that is applied."""
        ...

    @property
    def floor(self) -> int:
        """The seq of the newest change whose run was evicted to bound memory."""
        ...

    def unfinished(self) -> Collection[str]:
        """The ids of the runs held as queued or running."""
        ...

    def differs(self, run: Run) -> bool:
        """Whether the run is not held, or held in another state."""
        ...

    def __contains__(self, run_id: str) -> bool: ...


def only_id(run_id: str) -> Run:
    """The run of a delete."""
    return (run_id, "", None, None, None, None, None, None)
