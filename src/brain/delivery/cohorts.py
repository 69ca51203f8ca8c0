"""Clients, and cohorts: those with the same filter and `include`."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from brain.contract.include import Included
from brain.contract.messages import ACTIVE, ID, STATUS, Micros
from brain.contract.subscription import ALL, Filter
from brain.delivery.index import Index, Kind
from brain.delivery.log import FACETS, RUN, SEQ, Entry

if TYPE_CHECKING:
    from brain.delivery.groups import Group


class Client:
    """What the hub needs of a connection, which extends it: a lagging client costs an integer."""

    __slots__ = (
        "cohort",
        "goal",
        "group",
        "intact",
        "joined",
        "paused",
        "pinged",
        "seq",
        "since",
        "until",
        "waiting",
        "whole",
        "write",
    )

    write: Callable[[bytes], object]
    """Hands bytes to the transport. A closing connection replaces it by a no-op, so it is looked up
    for every write."""
    cohort: "Cohort | None"
    """None once the client has left."""
    group: "Group | None"
    """In which it is live, or was when its transport filled up."""
    seq: int | None
    """None while the client is live; see hub.py."""
    whole: int
    """It has been sent everything up to this seq, and has skipped no run (R5 in catch_up.py)."""
    until: int
    """A client that joined with `snapshot` does not need runs that finished up to this seq."""
    goal: int | None
    """It is sent `ready` when its seq is this or more. None: it has been, or did not ask for it."""
    joined: int
    """The board's seq when it joined."""
    since: Micros
    """Its `since`, or the board's time if that was earlier. 0: it came without."""
    paused: bool
    waiting: bool
    """It stands in the queue of the catch-up."""
    pinged: bool
    """A message about the source also carried its next ping, so the round of pings skips it."""
    intact: bool
    """It has been sent only flushes since it was live, so it has skipped no run (R5 in
    catch_up.py)."""

    def end(self, code: int, reason: str) -> None:
        """Close the connection with a close frame (RFC 6455, section 7.4)."""
        raise NotImplementedError

    def drop(self, error: Exception) -> None:
        """Close the connection because serving it has raised this."""
        raise NotImplementedError


class Cohort:
    """The clients with the same filter and `include`: they receive the same bytes, made once."""

    __slots__ = (
        "deleted",
        "filter",
        "groups",
        "home",
        "include",
        "kind",
        "members",
        "ready",
        "shared",
        "source",
    )

    def __init__(self, filter_: Filter, include: Included) -> None:
        self.filter = filter_
        self.include = include
        self.deleted = "deleted" in include
        """It receives tombstones (T3 in tombstones.py)."""
        self.ready = "ready" in include
        self.source = "source" in include
        self.groups: list[Group] = []
        self.home: Group | None = None
        """Where clients go live (L1 in lanes.py)."""
        self.shared: Group | None = None
        """The one that stands in the shared lane."""
        self.members = 0
        self.kind: Kind | None = None
        """See index.py."""

    def wanted(self, until: int) -> Callable[[Entry], bool] | None:
        """Which entries a catch-up sends: of runs, and of the tombstones that the cohort receives
        (R10). None: all. `until`: without the runs that finished up to this seq.
        """
        filter_ = self.filter
        if filter_ == ALL and not until:
            return None
        return lambda entry: (
            (entry[SEQ] > until or entry[RUN][STATUS] in ACTIVE)
            and filter_.matches(entry[RUN][ID], entry[FACETS])
            and filter_.permits(entry[RUN])
        )


class Cohorts:
    """Every cohort that has members."""

    def __init__(self) -> None:
        self._all: dict[tuple[Filter, Included], Cohort] = {}
        self.index = Index()
        self.with_deletes: set[Cohort] = set()
        """Those that receive tombstones."""

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Cohort]:
        return iter(self._all.values())

    def add(self, filter_: Filter, include: Included) -> Cohort:
        """The cohort with this filter and include, with one member more."""
        cohort = self._all.get((filter_, include))
        if cohort is None:
            cohort = self._all[filter_, include] = Cohort(filter_, include)
            self.index.add(cohort)
            if cohort.deleted:
                self.with_deletes.add(cohort)
        cohort.members += 1
        return cohort

    def remove(self, cohort: Cohort) -> bool:
        """Take away one member of the cohort. True if it was the last."""
        cohort.members -= 1
        if cohort.members:
            return False
        del self._all[cohort.filter, cohort.include]
        self.index.remove(cohort)
        self.with_deletes.discard(cohort)
        return True
