"""The shared lane: in it stands the first group of each filter, so that 10 000 are one plan.

L5   Its changes are matched with filters when they are pushed, not when they are planned, and as
     many in a turn as half a budget allows; the rest follow in the next turns. The lane is planned
     when all are. (With 10 000 filters a plan of 4 MiB would hold the loop for 0.13 s. 1 500
     changes that concern all of them would hold it for 10 s when they are pushed.)
     test_a_plan_of_ten_thousand_filters_compares_nothing,
     test_changes_that_concern_ten_thousand_filters_are_matched_in_slices
L7   A change that may have been anything is noted once for all cohorts of a kind (index.py), and
     made into batches once for those that lack nothing else.
     test_a_change_that_may_have_been_anything_is_matched_once_for_all_of_a_kind
L8   A group's batches are made when they are written, from the changes as they were planned. So a
     plan takes as long as there are groups, however much each of them lacks.
     test_batches_of_the_shared_lane_are_made_when_they_are_written
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from heapq import merge
from typing import Final

from brain.delivery.batches import Batch, Batches, cut
from brain.delivery.cohorts import Cohort
from brain.delivery.groups import Group, Lane
from brain.delivery.index import Index, Kind, concerned
from brain.delivery.log import RUN, Entry
from brain.delivery.pending import Pending

COMPARED: Final = 10_000
"""Filters that are compared with changes in a turn, of 0.8 µs each."""

LOOKUP: Final = 4
"""Comparisons that cost as much as one lookup in the index."""

PLACE: Final = 8
"""Bytes that it takes to note that a group lacks a change."""


class Plan:
    """What the groups of the shared lane lack, as it was planned."""

    def __init__(
        self, changes: list[Entry | None], at: int, unsure: dict[Kind, list[int]], max_batch: int
    ) -> None:
        self._changes = changes
        """From the place `at` on."""
        self._at = at
        self._unsure = unsure
        self._max_batch = max_batch
        self._made: dict[Kind, Batches] = {}

    def batches(self, group: Group, places: list[int]) -> Iterator[Batch]:
        """Those of this group. `places`: the changes for it alone. Nothing is made before the first
        is asked for (L8).
        """
        kind = group.cohort.kind
        unsure = None if kind is None else self._unsure.get(kind)
        if kind is None or unsure is None:
            yield from cut(self._entries(places), self._max_batch)
            return
        if unsure[0] < group.opened:
            unsure = unsure[bisect_left(unsure, group.opened) :]
        elif not places:  # (L7)
            if kind not in self._made:
                self._made[kind] = Batches([*self._entries(unsure)], self._max_batch)
            yield from self._made[kind]
            return
        yield from cut(self._entries(merge(places, unsure)), self._max_batch)

    def _entries(self, places: Iterable[int]) -> Iterator[Entry]:
        changes, at = self._changes, self._at
        found = (changes[place - at] for place in places)
        return (entry for entry in found if entry is not None)


class SharedLane(Lane):
    __slots__ = (
        "_due",
        "_index",
        "_matched",
        "_max_batch",
        "_max_compared",
        "_pending",
        "_unsure",
        "groups",
        "size",
    )

    def __init__(
        self, pending: Pending, index: Index, *, max_batch: int, max_compared: int
    ) -> None:
        super().__init__(0, 0, 0)
        self.groups = 0
        self.size = 0
        """Bytes of what is noted."""
        self._pending = pending
        self._index = index
        self._max_batch = max_batch
        self._max_compared = max_compared
        self._matched = 0
        """The place up to which changes have been matched."""
        self._due: dict[Group, list[int]] = {}
        """The places of what each group lacks, in their order."""
        self._unsure: dict[Kind, list[int]] = {}
        """The places of what all cohorts of a kind lack."""

    @property
    def writes(self) -> int:
        return self.groups if self._unsure else len(self._due)

    @property
    def behind(self) -> bool:
        """Changes are not matched yet."""
        return self.groups > 0 and self._matched < self._pending.end

    def open(self, cohort: Cohort) -> Group:
        """Make the cohort's group that stands in this lane."""
        end = self._pending.end
        if not self.groups:
            self._matched = end
        self.groups += 1
        group = cohort.shared = Group(cohort, self, end)
        return group

    def close(self, group: Group) -> None:
        self.groups -= 1
        self.size -= PLACE * len(self._due.pop(group, ()))
        group.cohort.shared = None
        if not self.groups:
            self._due, self._unsure, self.size = {}, {}, 0

    def match(self) -> None:
        """Match changes with filters, as many as a turn may (L5)."""
        compared = 0
        for place, entry, facets in self._pending.since(self._matched, self.at):
            run = entry[RUN]
            kinds, cohorts = self._index.lookup(run, facets)
            for kind in kinds:
                self._unsure.setdefault(kind, []).append(place)
            noted = len(kinds)
            for cohort in cohorts:
                group = cohort.shared
                if (
                    group is not None
                    and place >= group.opened
                    and not (kinds and cohort.kind in kinds)
                    and concerned(cohort, run, facets)
                ):
                    self._due.setdefault(group, []).append(place)
                    noted += 1
            self.size += PLACE * noted
            compared += LOOKUP + len(cohorts)
            if compared >= self._max_compared:
                self._matched = place + 1
                return
        self._matched = self._pending.end

    def plan(self) -> list[Group]:
        """The groups that lack any changes: all of them, once all are matched."""
        due, unsure = self._due, self._unsure
        self._due, self._unsure, self.size = {}, {}, 0
        plan = Plan(self._pending.window(self.at), self.at, unsure, self._max_batch)
        for kind in unsure:
            for cohort in kind.cohorts:
                if cohort.shared is not None:
                    due.setdefault(cohort.shared, [])
        planned = []
        for group, places in due.items():
            if group.live:
                group.seq, group.time = self.seq, self.time
                group.batches = plan.batches(group, places)
                planned.append(group)
        return planned
