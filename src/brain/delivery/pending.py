"""The changes that some live client still lacks, in the order of seq.

Every change has a place, which never changes; a lane (lanes.py) knows the place up to which it has
been sent everything. Changes that every lane has been sent are cut off.

Rules R7, R8 and W (hub.py says where the others are). Each names a test that fails without it. In
addition, tests/unit/delivery/mutants.py removes every rule, and a random history then goes wrong.

R7   A batch is in the order of seq. Conflation deletes the older change and appends the newer one:
     in its place, times would decrease, and a client cut off there would resume past the rest.
     test_progress_is_conflated_to_the_newest_which_stands_last
R8   A change that leaves the status as it was replaces the run's last pending change if that did so
     too. A change of status is never conflated and ends the chain. A lane that lacks both is sent
     the newer as having been what both were; one that was sent the older, as what the newer was.
     test_a_change_of_status_is_never_conflated_and_ends_the_chain,
     test_a_conflated_change_was_for_each_lane_what_the_lane_lacks
W1   What a lane lacks is cut off only when no lane lacks it. `bytes` is what the slowest lacks, so
     that the source waits for it.
     test_a_change_is_kept_until_every_lane_has_been_sent_it
W2   `conflated` counts only changes that no lane has been sent.
     test_a_change_that_a_lane_was_sent_is_not_counted_as_conflated
"""

from collections.abc import Collection, Iterator
from typing import TypeAlias

from brain.contract.messages import ID
from brain.contract.subscription import Facet
from brain.delivery.board import Push
from brain.delivery.log import FRAME, RUN, Entry, is_tombstone

Part: TypeAlias = tuple[int, tuple[Facet, ...]]
"""The place of a change that was replaced, and its facets."""

Item: TypeAlias = tuple[Entry, tuple[Facet, ...], tuple[Part, ...]]
"""An entry, the facets that the run has and had, and those of the changes that it replaces."""


class Pending:
    def __init__(self) -> None:
        self.bytes = 0
        self.base = 0
        """The place of the first item."""
        self._items: list[Item | None] = []
        """None: replaced by a later one."""
        self._steady: dict[str, int] = {}
        """Run id → the place of its last change, if that left the status as it was."""

    def __bool__(self) -> bool:
        return bool(self._items)

    @property
    def end(self) -> int:
        """The place of the next change."""
        return self.base + len(self._items)

    def add(self, pushes: Collection[Push], *, sent: int, tombstones: bool) -> tuple[int, int]:
        """Add what `Board.apply` returned, without the tombstones if nobody receives them (T3).

        `sent`: the place up to which some lane has been sent everything. Returns how many were
        added, and how many older ones, sent to nobody, they replaced.
        """
        items, steady_at, base = self._items, self._steady, self.base
        skipped = conflated = 0
        for entry, facets, steady in pushes:
            run_id = entry[RUN][ID]
            parts: tuple[Part, ...] = ()
            if steady:  # (R7, R8)
                place = steady_at.get(run_id, -1)
                if place >= base and (older := items[place - base]) is not None:
                    older_entry, older_facets, parts = older
                    items[place - base] = None
                    self.bytes -= len(older_entry[FRAME])
                    conflated += place >= sent  # (W2)
                    if older_facets != facets:
                        kept = (part for part in parts if part[1] != older_facets)
                        parts = (*kept, (place, older_facets))
                steady_at[run_id] = base + len(items)
            else:
                steady_at.pop(run_id, None)
                if is_tombstone(entry) and not tombstones:
                    skipped += 1
                    continue
            items.append((entry, facets, parts))
            self.bytes += len(entry[FRAME])
        return len(pushes) - skipped, conflated

    def since(self, start: int, at: int) -> Iterator[tuple[int, Entry, tuple[Facet, ...]]]:
        """Each change from the place `start` on, with its place and what it was to a lane that
        stands at the place `at` (R8).
        """
        for place, item in enumerate(self._items[start - self.base :], start):
            if item is not None:
                entry, facets, parts = item
                yield place, entry, united(facets, parts, at) if parts else facets

    def window(self, start: int) -> list[Entry | None]:
        """The changes from this place on, one for each place. None: it has been replaced."""
        found = self._items[start - self.base :]
        return [None if item is None else item[0] for item in found]

    def cut(self, at: int) -> None:
        """Every lane has been sent what lies before this place (W1)."""
        count = at - self.base
        if not count:
            return
        gone = self._items[:count]
        self.bytes -= sum(len(item[0][FRAME]) for item in gone if item is not None)
        del self._items[:count]
        self.base = at
        if not self._items:
            self._steady.clear()


def united(facets: tuple[Facet, ...], parts: tuple[Part, ...], at: int) -> tuple[Facet, ...]:
    """What a change was to a lane that stands at this place."""
    more = [facet for place, older in parts if place >= at for facet in older]
    return tuple(dict.fromkeys((*more, *facets)))
