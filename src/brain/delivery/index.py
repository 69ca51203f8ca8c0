"""The index: which cohorts a change concerns.

A cohort is indexed under the values of the most selective field of its filter, so that 10 000
filters by run cost 8.6 µs a change; testing each filter took 1 751 µs. A filter that names no run,
agent or task is indexed by what its token's bounds permit, if it has any.

What may have been of any agent and task (R10 in board.py) concerns every filter by agent or task
that has a fitting status. So it is not matched with their cohorts, but with their kinds, of which
there are 32 at most (L7 in shared.py). Those with bounds have no kind: they are looked up under
their bounds, which test what the run is.
"""

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, TypeAlias

from brain.contract.messages import AGENT, ID, STATUS, TASK_ID, Run
from brain.contract.subscription import ANY, BOUNDS, FIELDS, Facet, Filter
from brain.delivery.log import DELETED

if TYPE_CHECKING:
    from brain.delivery.cohorts import Cohort

ByValue: TypeAlias = "dict[str, set[Cohort]]"


class Kind:
    """Cohorts with filters by agent or task that have the same statuses and no bounds."""

    __slots__ = ("cohorts", "deleted", "statuses")

    def __init__(self, statuses: frozenset[str], deleted: bool) -> None:
        self.statuses = statuses
        self.deleted = deleted
        self.cohorts: dict[Cohort, None] = {}

    def concerned(self, unsure: Collection[str], alive: bool) -> bool:
        """Whether a change concerns them. Its run may have had any agent and task in the statuses
        `unsure`.
        """
        statuses = self.statuses
        return (alive or self.deleted) and (not statuses or not statuses.isdisjoint(unsure))


class Index:
    def __init__(self) -> None:
        self._was: dict[str, ByValue] = {name: {} for name in FIELDS}
        """Cohorts by what a run is or was."""
        self._bound: dict[str, ByValue] = {name: {} for name in BOUNDS}
        """Cohorts by what a run is: filters with bounds that name no run, agent or task."""
        self._unsure: dict[str, ByValue] = {name: {} for name in BOUNDS}
        """Cohorts by what a run is, if it may have been anything: filters by agent or task with
        bounds."""
        self._kinds: dict[tuple[frozenset[str], bool], Kind] = {}
        self._bounded = 0
        """How many cohorts have bounds."""

    def __bool__(self) -> bool:
        tables = (*self._was.values(), *self._bound.values(), *self._unsure.values())
        return bool(self._kinds) or any(tables)

    def add(self, cohort: "Cohort") -> None:
        filter_ = cohort.filter
        self._bounded += bool(filter_.bounds)
        for table, values in self._tables(filter_):
            for value in values:
                table.setdefault(value, set()).add(cohort)
        if (filter_.agent or filter_.task_id) and not (filter_.run_id or filter_.bounds):
            key = filter_.status, cohort.deleted
            cohort.kind = self._kinds.setdefault(key, Kind(*key))
            cohort.kind.cohorts[cohort] = None

    def remove(self, cohort: "Cohort") -> None:
        self._bounded -= bool(cohort.filter.bounds)
        for table, values in self._tables(cohort.filter):
            for value in values:
                table[value].discard(cohort)
                if not table[value]:
                    del table[value]
        if (kind := cohort.kind) is not None:
            del kind.cohorts[cohort]
            if not kind.cohorts:
                del self._kinds[kind.statuses, kind.deleted]

    def _tables(self, filter_: Filter) -> Iterator[tuple[ByValue, frozenset[str]]]:
        """Where a filter is indexed."""
        field = next((name for name in FIELDS if getattr(filter_, name)), None)
        bound = min(filter_.bounds, key=lambda bound: (len(bound[1]), bound[0]), default=None)
        if bound is not None and field in (None, "status"):
            yield self._bound[bound[0]], bound[1]
            return
        if field is not None:
            yield self._was[field], getattr(filter_, field)
        if bound is not None and field != "run_id":
            yield self._unsure[bound[0]], bound[1]

    def lookup(self, run: Run, facets: Collection[Facet]) -> tuple[list[Kind], set["Cohort"]]:
        """The kinds that this change concerns, and cohorts that it may concern."""
        was = self._was
        found = set(was["run_id"].get(run[ID], ()))
        unsure: list[str] = []
        by_status, by_agent, by_task = was["status"], was["agent"], was["task_id"]
        if by_status or by_agent or by_task:
            for status, agent, task_id in facets:
                if some := by_status.get(status):
                    found |= some
                if agent == ANY:
                    unsure.append(status)
                    continue
                if agent is not None and (some := by_agent.get(agent)):
                    found |= some
                if task_id is not None and (some := by_task.get(task_id)):
                    found |= some
        if self._bounded:
            self._add_bounded(found, run, unsure=bool(unsure))
        if not unsure:
            return [], found
        alive = run[STATUS] != DELETED
        return [kind for kind in self._kinds.values() if kind.concerned(unsure, alive)], found

    def _add_bounded(self, found: set["Cohort"], run: Run, *, unsure: bool) -> None:
        for name, value in (("agent", run[AGENT]), ("task_id", run[TASK_ID])):
            if value is not None:
                found.update(self._bound[name].get(value, ()))
                if unsure:
                    found.update(self._unsure[name].get(value, ()))


def concerned(cohort: "Cohort", run: Run, facets: Collection[Facet]) -> bool:
    """Whether the cohort receives this change."""
    return (
        (run[STATUS] != DELETED or cohort.deleted)
        and cohort.filter.matches(run[ID], facets)
        and cohort.filter.permits(run)
    )
