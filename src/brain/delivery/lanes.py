"""All lanes of a hub: where clients go live, and what each group is sent (groups.py).

The clients without a filter, and those of a filter that many have, form groups with a lane each.
The first group of each filter stands in the shared lane (shared.py).

L1   A client that goes live joins a group that is not full; if all are, a new one, which stands at
     the end of what is pending. No group is ever split or united.
     test_a_group_that_is_full_is_followed_by_another,
     test_a_new_filter_is_sent_nothing_that_was_pushed_before
L2   A plan covers all that its lane lacks. A part would be wrong: the change that replaces one in
     it may stand behind it.
     test_a_lane_that_lags_is_sent_all_in_one_plan
L4   A lane that stands at the end of what is pending has been sent everything up to the board's
     seq, which deletes and the first Snapshot move without a push.
     test_a_delete_is_not_pushed_and_leaves_no_client_behind
L6   Lanes that stand at one place share their batches, until the next change.
     test_lanes_at_one_place_share_their_batches
"""

from brain.contract.subscription import ALL
from brain.delivery.batches import Batches
from brain.delivery.board import Board
from brain.delivery.cohorts import Cohort, Cohorts
from brain.delivery.groups import Group, Lane
from brain.delivery.index import concerned
from brain.delivery.log import RUN, is_tombstone
from brain.delivery.pending import Pending
from brain.delivery.shared import SharedLane


class Lanes:
    def __init__(
        self,
        board: Board,
        pending: Pending,
        cohorts: Cohorts,
        *,
        max_group: int,
        max_batch: int,
        max_compared: int,
    ) -> None:
        self.all: list[Lane] = []
        """Those with a group."""
        self.shared = SharedLane(
            pending, cohorts.index, max_batch=max_batch, max_compared=max_compared
        )
        self._board = board
        self._pending = pending
        self._max_group = max_group
        self._max_batch = max_batch
        self._made: dict[tuple[object, int, int], Batches] = {}
        """(cohort or whether it includes deletes, place, end) → batches (L6)."""

    @property
    def furthest(self) -> int:
        """The place up to which some lane has been sent everything."""
        return max((lane.at for lane in self.all), default=self._pending.base)

    @property
    def ready(self) -> bool:
        """Some lane can be planned (L5)."""
        return len(self.all) > 1 or not self.shared.behind

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
        """Note that the lane has been sent everything, if it has (L4)."""
        if lane.at == self._pending.end:
            lane.seq, lane.time = self._board.seq, self._board.reached

    def _open(self, cohort: Cohort) -> Group:
        end = self._pending.end
        if cohort.filter != ALL and cohort.shared is None:
            shared = self.shared
            if not shared.groups:
                self.all.append(shared)
                shared.at = end
                self.settle(shared)
            group = shared.open(cohort)
        else:
            lane = Lane(end, self._board.seq, self._board.reached)
            group = lane.group = Group(cohort, lane, end)
            self.all.append(lane)
        cohort.groups.append(group)
        return group

    def close(self, group: Group) -> None:
        """Nobody is left in it, or its cohort is gone."""
        lane = group.lane
        if lane is None:
            return
        if lane is self.shared:
            self.shared.close(group)
        if lane is not self.shared or not self.shared.groups:
            self.all.remove(lane)
        group.lane = None
        group.clear()
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

    def changed(self) -> None:
        """New changes are pending: batches made before do not contain them (L6)."""
        self._made.clear()

    def match(self) -> None:
        """Match changes for the shared lane. It is behind afterwards if there are too many (L5)."""
        if self.shared.behind:
            self.shared.match()

    def plan(self, lane: Lane) -> list[Group]:
        """Take the lane to the end of what is pending. Returns its groups that lack any changes
        (L2).
        """
        group, planned = lane.group, list[Group]()
        if group is None:
            planned = self.shared.plan()
        elif group.live:
            if batches := self._batches(group.cohort, lane.at):
                group.seq, group.time = lane.seq, lane.time
                group.batches = iter(batches)
                planned.append(group)
        elif group.cohort.home is not group:
            self.close(group)
            return []
        lane.at, lane.seq, lane.time = self._pending.end, self._board.seq, self._board.reached
        return planned

    def _batches(self, cohort: Cohort, at: int) -> Batches:
        everything = cohort.filter == ALL
        key = (cohort.deleted if everything else cohort, at, self._pending.end)
        if key not in self._made:
            changes = self._pending.since(at, at)
            if everything:
                found = (entry for _, entry, _ in changes)
                entries = (
                    each for each in found if cohort.deleted or not is_tombstone(each)
                )  # (T3)
            else:
                entries = (
                    entry for _, entry, facets in changes if concerned(cohort, entry[RUN], facets)
                )
            self._made[key] = Batches(list(entries), self._max_batch)
        return self._made[key]
