"""The clients of the hub, grouped by filter and `include`, and indexed by the filters' values."""

from collections.abc import Callable, Collection, Iterator
from itertools import chain

from brain.contract.include import Included
from brain.contract.messages import ACTIVE, ID, STATUS, Run
from brain.contract.subscription import ALL, ANY, FIELDS, Facet, Filter
from brain.delivery.log import DELETED, FACETS, RUN, SEQ, Entry


class Client:
    """What the hub needs of a connection, which extends it: a lagging client costs an integer."""

    __slots__ = ("cohort", "goal", "intact", "joined", "paused", "pinged", "seq", "until", "write")

    write: Callable[[bytes], object]
    """Hands bytes to the transport. A closing connection replaces it by a no-op, so it is looked up
    for every write."""
    cohort: "Cohort | None"
    """None once the client has left."""
    seq: int | None
    """None while the client is live; see hub.py."""
    until: int
    """A client that joined with `snapshot` does not need runs that finished up to this seq."""
    goal: int | None
    """It is sent `ready` when its seq is this or more; None if it was, or has not asked for it."""
    joined: int
    """The board's seq when it joined."""
    paused: bool
    pinged: bool
    """A message about the source has taken the ping along for which it is due next."""
    intact: bool
    """It has been sent only flushes since it was live, so it has skipped no run (R5 in hub.py)."""

    def end(self, code: int, reason: str) -> None:
        """Close the connection with a close frame (RFC 6455, section 7.4)."""
        raise NotImplementedError

    def drop(self, error: Exception) -> None:
        """Close the connection because writing to it has raised this."""
        raise NotImplementedError


class Cohort:
    """The clients with the same filter and `include`: they receive the same bytes, made once."""

    __slots__ = ("deleted", "field", "filter", "include", "live", "members", "ready", "source")

    def __init__(self, filter_: Filter, include: Included) -> None:
        self.filter = filter_
        self.include = include
        self.deleted = "deleted" in include
        """It receives tombstones (T3 in tombstones.py)."""
        self.ready = "ready" in include
        self.source = "source" in include
        self.live: set[Client] = set()
        self.members = 0
        self.field = next((name for name in FIELDS if getattr(filter_, name)), None)
        """The most selective field of the filter: the cohort is indexed under each of its
        values."""

    def wanted(self, until: int) -> Callable[[Entry], bool] | None:
        """What a catch-up sends of what is no tombstone, or is one that the cohort receives (R10):
        None means everything. `until`: without the runs that finished up to this seq.
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
    """Every cohort that has members.

    The index makes 10 000 filters by run cost 8.6 µs a change; testing each filter took 1 751 µs.
    """

    def __init__(self) -> None:
        self._all: dict[tuple[Filter, Included], Cohort] = {}
        self._index: dict[str, dict[str, set[Cohort]]] = {name: {} for name in FIELDS}
        self.unfiltered: list[Cohort] = []
        """Those that receive everything, or everything but tombstones."""
        self.told: set[Cohort] = set()
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
            if cohort.field is not None:
                for value in getattr(filter_, cohort.field):
                    self._index[cohort.field].setdefault(value, set()).add(cohort)
            elif filter_ == ALL:
                self.unfiltered.append(cohort)
            if cohort.deleted:
                self.told.add(cohort)
        cohort.members += 1
        return cohort

    def remove(self, cohort: Cohort) -> None:
        """Take away one member of the cohort."""
        cohort.members -= 1
        if cohort.members:
            return
        del self._all[cohort.filter, cohort.include]
        self.told.discard(cohort)
        if cohort.field is not None:
            index = self._index[cohort.field]
            for value in getattr(cohort.filter, cohort.field):
                index[value].discard(cohort)
                if not index[value]:
                    del index[value]
        elif cohort.filter == ALL:
            self.unfiltered.remove(cohort)

    @property
    def indexed(self) -> bool:
        """Whether any filter has a field."""
        return any(self._index.values())

    def matching(self, run: Run, facets: Collection[Facet]) -> list[Cohort]:
        """The cohorts with live clients and a field in their filter that receive this change."""
        alive = run[STATUS] != DELETED
        return [
            cohort
            for cohort in self._candidates(run[ID], facets)
            if cohort.live
            and (alive or cohort.deleted)
            and cohort.filter.matches(run[ID], facets)
            and cohort.filter.permits(run)
        ]

    def _candidates(self, run_id: str, facets: Collection[Facet]) -> Collection[Cohort]:
        """The cohorts that are indexed under a value of the change; the others cost nothing."""
        index = self._index
        found = set(index["run_id"].get(run_id, ()))
        for status, agent, task_id in facets:
            found.update(index["status"].get(status, ()))
            for by_value, value in ((index["agent"], agent), (index["task_id"], task_id)):
                if value == ANY:
                    found.update(chain.from_iterable(by_value.values()))
                elif value is not None and by_value:
                    found.update(by_value.get(value, ()))
        return found
