"""Lanes and groups: which live clients are sent the same bytes in the same turn of the loop.

A **group** is up to 250 live clients of one cohort. A **lane** is what is planned at once: it
stands at a place of the pending changes, and a plan takes it to their end. The clients without a
filter, and those of a filter that many have, form groups with a lane each. The first group of each
other filter stands in the shared lane, so that 10 000 filters are one plan.

L1   A client that goes live joins a group that is not full; if all are, a new one, which stands at
     the end of what is pending. No group is ever split or united.
     test_a_group_that_is_full_is_followed_by_another
L2   A plan covers all that its lane lacks. A part would be wrong: the change that replaces one in
     it may stand behind it.
     test_a_lane_that_lags_is_sent_all_in_one_plan
L3   The position of a live client is that of its group: the end of the last batch written while
     batches are left, otherwise the seq of the lane's plan.
     test_a_client_filled_by_a_pong_between_two_batches_was_sent_the_first
L4   A lane that stands at the end of what is pending has been sent everything up to the board's
     seq, which deletes and the first Snapshot move without a push.
     test_a_delete_is_not_pushed_and_leaves_no_client_behind
L5   The changes for the groups of the shared lane are matched when they are pushed: with 10 000
     filters a plan of 4 MiB would hold the loop for 0.13 s.
     test_a_plan_of_ten_thousand_filters_compares_nothing
L6   Lanes that stand at one place share their batches, until the next change.
     test_lanes_at_one_place_share_their_batches
"""

from collections import deque

from brain.contract.messages import ID, Micros
from brain.contract.subscription import ALL
from brain.delivery.batches import Batch, cut
from brain.delivery.board import Board
from brain.delivery.cohorts import Client, Cohort, Cohorts
from brain.delivery.log import RUN, is_tombstone
from brain.delivery.pending import Pending

GROUP = 250
"""Clients of a group at most, and writes of a turn of the loop. 100 to 500 are alike."""


class Lane:
    __slots__ = ("at", "due", "group", "seq", "time")

    def __init__(self, at: int, seq: int, time: Micros, group: "Group | None" = None) -> None:
        self.at = at
        """The place up to which its clients have been sent everything, once their batches are."""
        self.seq = seq
        """The board's seq at that plan."""
        self.time = time
        """A `since` from which nothing is lost to a client that was sent that plan."""
        self.group = group
        """Its only one. None: this is the shared lane."""
        self.due: dict[Group, list[int]] = {}
        """In the shared lane: the places of what each group lacks (L5)."""

    @property
    def writes(self) -> int:
        """How many a plan needs at least."""
        return len(self.due if self.group is None else self.group.live)


class Group:
    __slots__ = ("batches", "cohort", "lane", "live", "seq", "time")

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.lane: Lane | None = None
        """None once the group is gone."""
        self.live: set[Client] = set()
        self.batches: deque[Batch] = deque()
        """Those of the last plan that are not written yet."""
        self.seq = 0
        self.time: Micros = 0

    @property
    def position(self) -> int:
        """The seq up to which its clients have been sent everything (L3)."""
        assert self.lane is not None
        return self.seq if self.batches else self.lane.seq

    @property
    def position_time(self) -> Micros:
        assert self.lane is not None
        return self.time if self.batches else self.lane.time


class Lanes:
    """All lanes and groups of a hub."""

    def __init__(
        self, board: Board, pending: Pending, cohorts: Cohorts, *, max_group: int, max_batch: int
    ) -> None:
        self.all: list[Lane] = []
        """Those with a group."""
        self._board = board
        self._pending = pending
        self._cohorts = cohorts
        self._max_group = max_group
        self._max_batch = max_batch
        self._shared = Lane(0, 0, 0)
        self._sharing = 0
        """Groups of the shared lane."""
        self._made: dict[tuple[object, int, int], list[Batch]] = {}
        """(cohort or whether it includes deletes, place, end) → batches (L6)."""

    @property
    def furthest(self) -> int:
        """The place up to which some lane has been sent everything."""
        return max((lane.at for lane in self.all), default=self._pending.base)

    def full(self, group: Group) -> bool:
        return len(group.live) >= self._max_group

    def home(self, cohort: Cohort) -> Group:
        """The group in which clients of the cohort go live (L1)."""
        group = cohort.home
        if group is None or self.full(group):
            group = next((each for each in cohort.groups if not self.full(each)), None)
            cohort.home = group = group or self._open(cohort)
        assert group.lane is not None
        self.settle(group.lane)
        return group

    def settle(self, lane: Lane) -> None:
        """(L4)"""
        if lane.at == self._pending.end:
            lane.seq, lane.time = self._board.seq, self._board.reached

    def _open(self, cohort: Cohort) -> Group:
        group = Group(cohort)
        if cohort.field is not None and not any(
            each.lane is self._shared for each in cohort.groups
        ):
            lane = self._shared
            if not self._sharing:
                self.all.append(lane)
                lane.at = self._pending.end
                self.settle(lane)
            self._sharing += 1
            cohort.shared = group
        else:
            lane = Lane(self._pending.end, self._board.seq, self._board.reached, group)
            self.all.append(lane)
        group.lane = lane
        cohort.groups.append(group)
        return group

    def close(self, group: Group) -> None:
        """Nobody is left in it, or its cohort is gone."""
        lane = group.lane
        if lane is None:
            return
        if lane is self._shared:
            lane.due.pop(group, None)
            self._sharing -= 1
            group.cohort.shared = None
            if not self._sharing:
                self.all.remove(lane)
        else:
            self.all.remove(lane)
        group.lane = None
        group.batches.clear()
        group.cohort.groups.remove(group)
        if group.cohort.home is group:
            group.cohort.home = None
        self.trim()

    def trim(self) -> None:
        """Cut off what no lane lacks (W1)."""
        self._pending.cut(min((lane.at for lane in self.all), default=self._pending.end))
        if not self._pending:
            self._made.clear()

    # Changes

    def match(self, start: int) -> None:
        """Changes were added from this place on (L5)."""
        self._made.clear()
        if not self._sharing:
            return
        shared = self._shared
        for place, entry, facets in self._pending.since(start, shared.at):
            for cohort in self._cohorts.matching(entry[RUN], facets):
                assert cohort.shared is not None
                shared.due.setdefault(cohort.shared, []).append(place)

    def plan(self, lane: Lane) -> list[Group]:
        """Give each group of the lane the batches that it lacks (L2). Returns those that lack
        any.
        """
        if (only := lane.group) is not None and not only.live and only.cohort.home is not only:
            self.close(only)
            return []
        found: list[tuple[Group, list[Batch]]] = []
        if lane.group is not None:
            if lane.group.live:
                found.append((lane.group, self._batches(lane.group.cohort, lane.at)))
        else:
            for group, places in lane.due.items():
                entries = (self._pending.get(place) for place in places)
                batches = cut((each for each in entries if each is not None), self._max_batch)
                found.append((group, batches))
            lane.due.clear()
        seq, time = lane.seq, lane.time
        lane.at, lane.seq, lane.time = self._pending.end, self._board.seq, self._board.reached
        planned: list[Group] = []
        for group, batches in found:
            if batches and group.live:
                group.seq, group.time = seq, time
                group.batches.extend(batches)
                planned.append(group)
        return planned

    def _batches(self, cohort: Cohort, at: int) -> list[Batch]:
        filter_ = cohort.filter
        key = (cohort.deleted if filter_ == ALL else cohort, at, self._pending.end)
        if key not in self._made:
            changes = self._pending.since(at, at)
            entries = [
                entry
                for _, entry, facets in changes
                if (cohort.deleted or not is_tombstone(entry))  # (T3)
                and (
                    filter_ == ALL
                    or (filter_.matches(entry[RUN][ID], facets) and filter_.permits(entry[RUN]))
                )
            ]
            self._made[key] = cut(entries, self._max_batch)
        return self._made[key]
