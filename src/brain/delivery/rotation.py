"""The rotation: every lane is planned once, and its groups are written to, some in each turn.

First each group is written one batch, as soon as its lane is planned. Those that lack more follow
one another from then on, a batch each time. (With all batches of a group in consecutive turns, its
clients had no time to read: in a burst of 20 000 changes to 1 000 clients, each of them filled up
67 times and was caught up instead, for 18 % more CPU.)

uvloop only queues what `write` receives, and sends it when the turn of the loop ends. So a turn
serves some 250 clients with all that is pending at that moment, and the loop reads new changes
before the next. With all clients in one turn, a change waited for the rest of that turn, of 70 ms
with 5 000 clients, and then for its place in the next.

Rules R1, R2, R6 and R16 (others in lanes.py and hub.py). Below each stands a test that fails
without it. In addition, tests/unit/delivery/mutants.py removes every rule, and a random history
then goes wrong.

R1   The position of a group moves before the first write of a batch, which may fill a transport.
     test_a_client_that_fills_up_in_a_batch_was_sent_that_batch
R2   A client that fills up leaves its group at once, and is written to no more.
     test_a_client_that_fills_up_receives_nothing_more
R6   A write that fails ends that client only.
     test_a_client_whose_write_raises_is_dropped_alone
R16  A turn makes at most 250 writes, or serves one group with one batch; a plan counts by its
     changes. A lane is planned when each group of the one before has been written a batch. The next
     rotation begins when the pace allows it (pace.py) and every lane has been served.
     test_a_turn_serves_a_group_and_the_loop_reads_changes_in_between,
     test_no_rotation_starts_before_every_lane_has_been_served,
     test_a_turn_plans_only_as_many_changes_as_it_could_write,
     test_groups_that_lack_more_than_a_batch_take_turns
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from brain.contract.messages import Micros
from brain.delivery.cohorts import Client
from brain.delivery.counts import Counts
from brain.delivery.groups import Group, Lane
from brain.delivery.lanes import Lanes
from brain.delivery.log import TIME
from brain.delivery.pending import Pending

PLANNED: Final = 16
"""Changes whose plan costs as much as a write: 8 µs with a filter."""


@dataclass(slots=True)
class _Plan:
    oldest: Micros | None
    """The time of its oldest change."""
    groups: int
    """Those that lack a part of it."""


class Rotation:
    """`failed`: a write to this client has raised this. `observe` receives the time of the oldest
    change of each plan, when it has been written to all.
    """

    def __init__(
        self,
        pending: Pending,
        lanes: Lanes,
        counts: Counts,
        *,
        max_writes: int,
        failed: Callable[[Client, Exception], None],
        observe: Callable[[Micros], object],
    ) -> None:
        self._pending = pending
        self._lanes = lanes
        self._counts = counts
        self._max_writes = max_writes
        self._failed = failed
        self._observe = observe
        self._round: deque[Lane] = deque()
        """Lanes that are not planned yet."""
        self._planned: deque[tuple[Group, _Plan]] = deque()
        """Groups of the last plan that have not been written a batch."""
        self._left: deque[tuple[Group, _Plan]] = deque()
        """Groups that have been, and lack more."""

    @property
    def under_way(self) -> bool:
        return bool(self._round or self._planned or self._left)

    def begin(self) -> None:
        self._round.extend(self._lanes.all)

    def turn(self) -> bool:
        """Write to some clients (R16). True if the rotation has ended."""
        work = 0
        while self.under_way:
            if self._round and not self._planned:
                lane = self._round[0]
                cost = (self._pending.end - lane.at) // PLANNED
                if work and work + cost + lane.writes > self._max_writes:
                    return False  # planned in the next turn, it is sent also what comes until then
                work += cost
                self._plan(self._round.popleft())
            else:
                due = self._planned or self._left
                group, plan = due[0]
                writes = len(group.live)
                if work and work + writes > self._max_writes:
                    return False
                work += writes
                due.popleft()
                self._serve(group)
                if group.left:
                    self._left.append((group, plan))
                else:
                    self._written(plan)
        return True

    def _plan(self, lane: Lane) -> None:
        if lane.at == self._pending.end:
            self._lanes.settle(lane)
            return
        if lane is self._lanes.shared and self._lanes.shared.behind:
            return  # (L5) it takes part in the next rotation
        oldest = next((entry[TIME] for _, entry, _ in self._pending.since(lane.at, lane.at)), None)
        groups = self._lanes.plan(lane)
        plan = _Plan(oldest, len(groups))
        self._planned.extend((group, plan) for group in groups)
        self._lanes.trim()

    def _written(self, plan: _Plan) -> None:
        """A group has been written all of this plan."""
        plan.groups -= 1
        if not plan.groups and plan.oldest is not None:
            self._observe(plan.oldest)

    def _serve(self, group: Group) -> None:
        receivers = tuple(group.live)
        if not receivers:
            group.clear()
            return
        batch = group.next()
        if batch is None:
            return
        group.seq, group.time = batch.end, batch.time  # (R1)
        data = batch.data
        for client in receivers:
            # Read the slot first: CPython cannot specialize a method call on it.
            write = client.write
            try:
                write(data)
            except Exception as error:  # noqa: BLE001 - must not end the turn (R6)
                self._failed(client, error)
        self._counts.deliveries += len(receivers) * batch.count
