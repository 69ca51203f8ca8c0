"""The port between PostgreSQL and the board: the events of a source, and what it may ask back.

A source yields Snapshot, Resumed, Image and Changes in the order in which they must be applied,
several at a time: all that it has read at once. What is done for each event, and could be done for
all of them, a database pays that commits ten thousand transactions a second.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from brain.contract.messages import Micros, Run
from brain.contract.subscription import Facet

Op: TypeAlias = Literal["insert", "update", "delete", "truncate"]


def first_allowed(time: Micros, refused: Sequence[tuple[Micros, Micros]]) -> Micros:
    """The first time from this one on that is in none of the spans, which are in order."""
    for first, last in refused:
        if first <= time <= last:
            time = last + 1
    return time


@dataclass(slots=True)
class Outcome:
    """What the consumer did with a comparison. It fills it in while it applies the event."""

    pushed: int = 0
    """Rows that differed from what the consumer held."""
    removed: int = 0
    """Runs that the consumer held and that the table no longer has."""
    skipped: int = 0
    """Rows that the consumer does not hold afterwards. It takes their runs for deleted or evicted
    after the query; it cannot tell those from runs that the stream left out."""


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
    """Ids that the board holds, and whose rows are no longer in the table, or no longer in the
    contract."""
    complete: bool = True
    """False for each piece of a Snapshot but the last."""
    new: bool = False
    """A new history (another table, a restored backup, a failover): no `since` from before is
    answered."""
    deletes_unknown: bool = False
    """Finished runs may have been deleted before this query without anybody naming them: no stream
    delivered what was committed then. Set when a stream is joined, and when one was lost and cannot
    be joined again at once."""
    unless_after: int | None = None
    """Set on a comparison. Rows of runs that the board has seen change after this seq are older
    than the board: it skips them."""
    refused: Sequence[tuple[Micros, Micros]] = ()
    """Spans of times that no message may bear, and at which every `since` is a gap. Set on the
    first one of a process: they were sent while the database's clock was far ahead. Set on the
    first event of a node that leads: nobody has written them to the log (N11)."""
    outcome: Outcome | None = field(default=None, compare=False)
    """Set on a comparison. The source reads it when the consumer asks for the next event."""


@dataclass(frozen=True, slots=True)
class Resumed:
    """The first state after a restart, with wire times that `since` can be compared with.

    It takes the place of the first Snapshot, and is applied as a whole: clients from before the
    restart find every change at or after their `since`. See postgres/records.py.
    """

    unchanged: Sequence[Run]
    """Queued and running runs that had their present state before `floor_time`."""
    changed: Sequence[tuple[Micros, Run]]
    """The others, in the order of time: each change was sent at or before this time, or never."""
    at: Micros
    """The database's time of the query, or the last timestamp sent before, if that is later."""
    floor_time: Micros
    """A `since` at or before this time is a gap."""
    refused: Sequence[tuple[Micros, Micros]] = ()
    """As a Snapshot has them."""
    left: Sequence[str] = ()
    """The ids of rows that have changed since `floor_time` too, and that the contract cannot
    express: clients may show what they were."""


@dataclass(slots=True)
class Changes:
    """A slice of one committed transaction.

    The run of a delete has only its id; that of a truncate is empty. An UPDATE after which the
    contract cannot express the row is a delete, whether or not the run is held. Nobody changes a
    slice that has been yielded; it is not frozen because one is made for each transaction, and a
    frozen one takes three times as long.
    """

    rows: list[tuple[Op, Run]]
    at: Micros
    """The time of the commit. It may decrease: 0.07 % of commits were late, by up to 17 ms."""
    xid: int
    """The transaction's 64-bit id, so that a reader can tell whether a query has seen it."""
    incomplete: bool = False
    """Some field may be messages.UNCHANGED: PostgreSQL did not send it, and the source does not
    know it. Without this mark none is."""


Held: TypeAlias = tuple[Micros, Run, tuple[Facet, ...], int]
"""An entry of a board: its time on the wire, the run, all that the run has been, and the id of the
transaction that wrote it (0: unknown)."""


@dataclass(frozen=True, slots=True)
class Image:
    """The board of another process, with the times at which clients were sent its entries.

    An empty board takes it over as it is. One that holds runs takes over the entries, and pushes
    them: those that differ from its own. Applied as a whole.
    """

    entries: Sequence[Held]
    """In the order of time. A deleted run has the status that tombstones have."""
    time: Micros
    last_time: Micros
    floor_time: Micros
    dead_floor_time: Micros
    ended_early: bool
    """A run that is not held may have been anything, not only finished (T4)."""
    refused: Sequence[tuple[Micros, Micros]] = ()
    """As a Snapshot has them."""
    new: bool = False
    """Another history: nothing of what the board holds counts, and no message can say what changed.
    So nothing is pushed, and all clients start over."""


Event: TypeAlias = Snapshot | Changes | Resumed | Image


class Known(Protocol):
    """What a source may ask its consumer, which has applied every event that it has taken."""

    @property
    def seq(self) -> int:
        """Grows with every change that has been applied."""
        ...

    @property
    def floor(self) -> int:
        """The seq of the newest change whose run is no longer held, because memory is bounded."""
        ...

    @property
    def time(self) -> int:
        """The last timestamp that a message or an answer of the API may bear."""
        ...

    @property
    def last_time(self) -> int:
        """The timestamp of the newest change."""
        ...

    @property
    def floor_time(self) -> int:
        """A `since` at or before this time is a gap."""
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
