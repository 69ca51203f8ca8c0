"""What a source of changes says, and to whom it may look back: the port between PostgreSQL and the board.

Whatever follows the table yields these two kinds of event in the order in which they are to be applied.
"""

from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from brain.contract.messages import Micros, Run

Op: TypeAlias = Literal["insert", "update", "delete", "truncate"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is true now, or a piece of it: rows as one query saw them at `at`, by the database's clock.

    The board compares and pushes what differs, so a Snapshot after an outage is simply applied.
    """

    rows: Sequence[Run]
    at: Micros
    gone: Collection[str] = ()
    """Ids that the board holds as unfinished and that the table no longer has."""
    complete: bool = True
    """False for each piece of a Snapshot but the last."""
    new: bool = False
    """A new beginning (another table, a restored backup, a failover): what came before answers no `since` any more."""
    unless_after: int | None = None
    """Rows of runs that the board has seen change after this seq are older than the board, and are skipped."""


@dataclass(frozen=True, slots=True)
class Changes:
    """A slice of one committed transaction.

    The run of a delete has only its id; that of a truncate nothing at all. A field may be messages.UNCHANGED.
    """

    rows: list[tuple[Op, Run]]
    at: Micros
    """The time of the commit. Not in the order of commits (seen: 0.07 % are not, by up to 17 ms)."""
    xid: int
    """The transaction's 64-bit id, so that a reader can tell whether a query has seen it."""


Event: TypeAlias = Snapshot | Changes


class Source(Protocol):
    """Follows the table for ever, whatever happens to the database; ends only when it is cancelled."""

    def events(self) -> AsyncGenerator[Event]: ...


class Known(Protocol):
    """What a source may ask of who applies its events."""

    @property
    def seq(self) -> int:
        """Grows with every change that has been applied."""
        ...

    @property
    def floor(self) -> int:
        """The seq of the newest change whose run is held no more, because memory is bounded."""
        ...

    def unfinished(self) -> Collection[str]:
        """The ids of the runs held as queued or running."""
        ...

    def differs(self, run: Run) -> bool:
        """Whether the run is unknown, or held in another state."""
        ...

    def __contains__(self, run_id: str) -> bool: ...


def only_id(run_id: str) -> Run:
    """The run of a delete."""
    return (run_id, "", None, None, None, None, None, None)
