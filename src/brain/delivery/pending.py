"""The changes that wait for the next flush, in the order of seq.

Rules R7 and R8 (the others are in hub.py). Below each stands a test that holds it. In addition,
tests/unit/delivery/mutants.py removes every rule, and a random history then goes wrong.

R7   A batch is in the order of seq. Conflation deletes the older change and appends the newer one:
     in its place, times would decrease, and a client cut off there would resume past the rest.
     test_progress_is_conflated_to_the_newest_which_stands_last
R8   A change that leaves the status as it was replaces the run's last pending change if that did so
     too. A change of status is never conflated and ends the chain. What was merged unites its
     facets.
     test_a_change_of_status_is_never_conflated_and_ends_the_chain
"""

from collections.abc import Collection

from brain.contract.messages import ID
from brain.delivery.board import ENTRY, Push
from brain.delivery.log import FRAME, RUN, is_tombstone


class Pending:
    def __init__(self) -> None:
        self.bytes = 0
        self._pushes: list[Push | None] = []
        self._steady: dict[str, int] = {}
        """Run id → the index of its last pending change, if that left the status as it was."""
        self._tombstones = 0

    def __bool__(self) -> bool:
        return bool(self._pushes)

    def add(self, pushes: Collection[Push], *, tombstones: bool) -> tuple[int, int]:
        """Add what `Board.apply` returned, without the tombstones if nobody receives them (T3).

        Returns how many were added, and how many older ones they replaced.
        """
        pending, steady_at = self._pushes, self._steady
        skipped = conflated = 0
        for entry, facets, steady in pushes:
            run_id = entry[RUN][ID]
            merged = facets
            if steady:  # (R7, R8)
                place = steady_at.get(run_id)
                if place is not None and (older := pending[place]) is not None:
                    older_entry, older_facets, _ = older
                    pending[place] = None
                    self.bytes -= len(older_entry[FRAME])
                    conflated += 1
                    if older_facets != facets:
                        merged = tuple(dict.fromkeys(older_facets + facets))
                steady_at[run_id] = len(pending)
            else:
                steady_at.pop(run_id, None)
                if is_tombstone(entry):
                    if not tombstones:
                        skipped += 1
                        continue
                    self._tombstones += 1
            pending.append((entry, merged, steady))
            self.bytes += len(entry[FRAME])
        return len(pushes) - skipped, conflated

    def take(self) -> tuple[list[Push], list[Push]]:
        """All of them, and all but the tombstones, which is the same list if there are none."""
        pushes = [push for push in self._pushes if push is not None]
        alive = pushes
        if self._tombstones:
            alive = [push for push in pushes if not is_tombstone(push[ENTRY])]
        self._pushes.clear()
        self._steady.clear()
        self._tombstones = self.bytes = 0
        return pushes, alive
