"""Groups and lanes: which live clients are sent the same bytes in the same turn of the loop.

A **group** is up to 250 live clients of one cohort. A **lane** is what is planned at once: it
stands at a place of the pending changes, and a plan takes it to their end.

L3   The position of a live client is that of its group: the end of the last batch written while
     batches are left, otherwise the seq of the lane's plan.
     test_a_client_filled_by_a_pong_between_two_batches_was_sent_the_first
"""

from typing import TYPE_CHECKING

from brain.contract.messages import Micros
from brain.delivery.batches import Batch
from brain.delivery.cohorts import Client, Cohort

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUP = 250
"""Clients of a group at most, and writes of a turn of the loop. 100 to 500 are alike."""


class Lane:
    __slots__ = ("at", "group", "seq", "time")

    def __init__(self, at: int, seq: int, time: Micros, group: "Group | None" = None) -> None:
        self.at = at
        """The place up to which its clients will have been sent everything when their batches are
        written."""
        self.seq = seq
        """The board's seq at that plan."""
        self.time = time
        """A `since` from which nothing is lost to a client that was sent that plan."""
        self.group = group
        """Its only one. None: this is the shared lane."""

    @property
    def writes(self) -> int:
        """How many a plan needs at least."""
        return 0 if self.group is None else len(self.group.live)


class Group:
    __slots__ = ("batches", "cohort", "lane", "live", "opened", "seq", "time")

    def __init__(self, cohort: Cohort, lane: Lane, opened: int) -> None:
        self.cohort = cohort
        self.lane: Lane | None = lane
        """None once the group is gone."""
        self.opened = opened
        """The end of what was pending when it was opened. It is sent only what follows (L1 in
        lanes.py)."""
        self.live: set[Client] = set()
        self.batches: Iterator[Batch] | None = None
        """Those of the last plan that are not written yet. None: all are."""
        self.seq = 0
        self.time: Micros = 0

    @property
    def left(self) -> bool:
        """Whether batches are left."""
        return self.batches is not None

    @property
    def position(self) -> int:
        """The seq up to which its clients have been sent everything (L3)."""
        assert self.lane is not None
        return self.seq if self.left else self.lane.seq

    @property
    def position_time(self) -> Micros:
        assert self.lane is not None
        return self.time if self.left else self.lane.time

    def next(self) -> Batch | None:
        """Take the next batch. None: nothing is left."""
        batch = next(self.batches, None) if self.batches is not None else None
        if batch is None or batch.last:
            self.batches = None
        return batch

    def clear(self) -> None:
        """Discard what is left: no client would receive it."""
        self.batches = None
