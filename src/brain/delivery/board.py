"""The board: the last state of each run, in the order in which the runs changed.

Pure: it takes events and has no clock and no I/O. Its log (log.py) answers three questions:

- What is new?          `apply` returns what to push.
- What did I miss?      `log.piece` returns the current state of each run that changed after a seq.
- Did I miss too much?  Yes, if `floor` is above the seq: a newer entry has been evicted.

Rules R9 to R11 and R13 (hub.py says where the others are). Each names a test that fails without it.
In addition, tests/unit/delivery/mutants.py removes every rule, and a random history then goes
wrong.

R9   `timestamp` never decreases: it is the commit time or the last timestamp, whichever is later.
     Rows of a Snapshot have the database's time of that query; Brain's own clock is never used.
     `since` means every change at or after it; it is a gap at or before the time of the newest
     evicted change, and before the first Snapshot. Times that were sent while the database's clock
     was far ahead are gaps too, and time skips them.
     test_time_never_decreases, test_since_at_its_boundaries,
     test_time_skips_what_is_refused_and_a_since_there_is_a_gap
R10  A run concerns a filter that matches what it is or was before this change; in a catch-up,
     anything that it has been since the board holds it. An inserted run was nothing; an updated run
     that the board does not hold may have been anything finished.
     test_a_push_has_what_a_run_is_or_was_and_its_entry_everything_it_has_been
R11  Unfinished runs are never evicted. Finished runs are, in the order of their last change. (A
     plain LRU that is smaller than the unfinished runs would push all of them again at every poll.)
     test_finished_runs_are_evicted_in_the_order_of_their_last_change_and_unfinished_never
R13  A Snapshot removes the unfinished runs that it reports as gone. The first one pushes nothing.
     One with `unless_after` never overrides what the stream has changed, deleted or evicted since.
     test_the_first_snapshot_pushes_nothing, test_a_comparison_does_not_override_newer_changes

After a restart (postgres/records.py has the rules) the first event is Resumed instead of a
Snapshot. Resumed runs keep the times at which they were sent, at the earliest; those that changed
since the floor may have been ANYTHING, because nobody knows what they were. No byte leaves with a
time that `remember` has not stored, so that time continues there.
test_resumed_runs_have_the_times_of_before, test_resumed_runs_may_have_been_anything,
test_every_time_is_remembered_before_it_is_sent
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Final, TypeAlias, assert_never

from brain.contract.events import Changes, Event, Image, Resumed, Snapshot, first_allowed
from brain.contract.include import deleted_message
from brain.contract.messages import (
    ACTIVE,
    ID,
    STATUS,
    UNCHANGED,
    Micros,
    Run,
    filled,
    message,
)
from brain.contract.subscription import Facet, facet
from brain.delivery.copied import Copied
from brain.delivery.log import (
    DELETED,
    FACETS,
    FRAME,
    OVERHEAD,
    PIECE,
    RUN,
    SEQ,
    TIME,
    XID,
    Entry,
    Log,
    is_tombstone,
)
from brain.delivery.tombstones import ANYTHING, FINISHED, buried, tombstone, was_unfinished

Push: TypeAlias = tuple[Entry, tuple[Facet, ...], bool]
"""An entry to push, the facets that the run has and had, and whether its status stayed the same."""

ENTRY: Final = 0

MAX_FACETS = 32
"""Facets remembered of one run. A run that had more may have been ANYTHING."""


def _forget_nothing(_: Micros) -> None:
    """Without a file, no time outlives the process."""


class Board(Copied):
    """`memory` bounds the bytes of all entries; unfinished runs are kept even beyond it (R11).

    `remember` stores the highest timestamp that may leave.
    """

    def __init__(
        self,
        memory: int,
        *,
        push_unchanged: bool = True,
        encode: Callable[[Run, Micros], bytes] = message,
        encode_deleted: Callable[[str, Micros], bytes] = deleted_message,
        max_piece: int = PIECE,
        max_facets: int = MAX_FACETS,
        remember: Callable[[Micros], object] = _forget_nothing,
    ) -> None:
        self.seq = 0
        self.time: Micros = 0
        """The last timestamp on the wire. Commit times may decrease; this never does (R9)."""
        self.last_time: Micros = 0
        """The time of the newest entry."""
        self.floor = 0
        """The seq of the newest entry that is no longer held."""
        self.floor_time: Micros = 0
        """A `since` at or before this time is a gap."""
        self.dead_floor = 0
        """The seq of the newest change that deleted runs, or may have, without naming them."""
        self.dead_floor_time: Micros = 0
        """A `since` at or before this time is a gap for a client that includes `deleted`."""
        self.begun = False
        """The first Snapshot has been applied."""
        self.corrections = 0
        """Runs for which a comparison with the table contradicted the stream."""
        self.size = 0
        self.tombstones = 0
        """How many deleted runs are held (T1)."""
        self._memory = memory
        self._push_unchanged = push_unchanged
        self._encode = encode
        self._encode_deleted = encode_deleted
        self._max_facets = max_facets
        self._remember = remember
        self._runs: dict[str, Entry] = {}
        """Run id → its newest entry, tombstones included."""
        self.log = Log(self._runs, max_piece)
        self._done: OrderedDict[str, None] = OrderedDict()
        """The ids of finished and deleted runs, in the order of their last change."""
        self._unfinished: set[str] = set()
        self._refused: Sequence[tuple[Micros, Micros]] = ()
        """Spans of times that no message may bear (R9)."""
        self._unheld = FINISHED
        """What an updated run that the board does not hold may have been."""
        self._shown: dict[str, tuple[int, tuple[Facet, ...]]] = {}
        """Run id → `_snapshots` and the facets that the API showed before the source reported
        them."""
        self._snapshots = 0
        """How many complete Snapshots have been applied, comparisons excluded."""

    def __contains__(self, run_id: str) -> bool:
        return self.get(run_id) is not None

    def __len__(self) -> int:
        return len(self._runs) - self.tombstones

    def differs(self, run: Run) -> bool:
        known = self._runs.get(run[ID])
        return known is None or known[RUN] != run

    def get(self, run_id: str) -> Entry | None:
        entry = self._runs.get(run_id)
        return None if entry is None or is_tombstone(entry) else entry

    def entry(self, run_id: str) -> Entry | None:
        """The run's newest entry, if it was deleted its tombstone."""
        return self._runs.get(run_id)

    def unfinished(self) -> Collection[str]:
        return self._unfinished

    @property
    def as_of(self) -> Micros:
        """The time of an answer of the API, which shows all that was applied so far. It is above
        `floor_time`: otherwise a client that close code 4410 sent to the API would get a timestamp
        that `/ws?since=` answers with 4410 again.
        """
        return self.time if self.time > self.floor_time else self._allowed(self.floor_time + 1)

    def _allowed(self, time: Micros) -> Micros:
        """The first time from this one on that a message may bear."""
        return first_allowed(time, self._refused)

    @property
    def reached(self) -> Micros:
        """The time of the newest entry, or the earliest that `since` takes after it."""
        if not self.begun:
            return 0
        earliest = max(self.floor_time, self.dead_floor_time) + 1
        return max(self.last_time, self._allowed(earliest))

    def since(self, time: Micros, *, deleted: bool = False) -> int | None:
        """The seq after which every change at or after `time` lies; None for a gap (R9).

        `deleted`: for a client that includes deletes (T6 to T8).
        """
        floor = max(self.floor_time, self.dead_floor_time) if deleted else self.floor_time
        if not self.begun or time <= floor or self._allowed(time) != time:
            return None
        found = self.log.before(time)
        return self.seq if found is None else found

    def show(self, run: Run, asked: int) -> Entry | None:
        """The API is about to show this row, which it queried when the board was at seq `asked`.

        A poll may never find the row in this state. A client that was shown it and filters on it
        still has to receive the next change, so the state becomes part of what the run was. Returns
        the entry to show instead if a Snapshot brought one after the query: that may be the newer
        state.
        """
        known = self._runs.get(run[ID])
        if known is not None and known[RUN] == run:
            return None
        if known is not None and known[SEQ] > asked and not known[XID] and not is_tombstone(known):
            return known
        if known is not None or run[STATUS] in ACTIVE:
            _, shown = self._shown.get(run[ID], (0, ()))
            self._shown[run[ID]] = (self._snapshots, self._union(shown, (facet(run),)))
        return None

    # What is new?

    def apply(self, *events: Event) -> list[Push]:
        """Apply them in their order. Returns what to push, in the order of seq."""
        pushes: list[Push] = []
        for event in events:
            match event:
                case Changes():
                    self._changes(event, pushes)
                case Snapshot():
                    pushes += self._snapshot(event)
                case Resumed():
                    pushes += self._resume(event)
                case Image():
                    pushes += self.take_over(event)
                case _:
                    assert_never(event)
        self._evict()
        if self.log.times:
            self.last_time = max(self.last_time, self.log.times[-1])
        self._remember(self.as_of)
        if len(self.log.entries) > 2 * len(self._runs) + 1024:
            self.log.compact()
        return pushes

    def _advance(self, at: Micros) -> None:
        # (R9) Above `floor_time`, so that a client that loads the table after an eviction gets a
        # `since` that is no gap. It is always above `dead_floor_time`.
        if at > self.time and at > self.floor_time and not self._refused:
            self.time = at  # nearly each transaction: a third of the cost
        else:
            self.time = self._allowed(max(self.time, at, self.floor_time + 1))

    def _changes(self, event: Changes, pushes: list[Push]) -> None:
        self._advance(event.at)
        incomplete = event.incomplete
        for op, row in event.rows:
            run = row
            known = self._runs.get(run[ID])
            if op == "delete":
                pushes += self._bury(run[ID], event.xid, known)
            elif op == "truncate":
                for entry in list(self._runs.values()):
                    self._forget(entry)
                self._shown.clear()
                self._delete_unnamed()
            elif known is None:
                if incomplete and UNCHANGED in run:
                    run = filled(run, None)
                was = () if op == "insert" else self._unheld
                pushes.append(self._put(run, event.xid, None, was))
            else:
                if incomplete and UNCHANGED in run:
                    run = filled(run, None if is_tombstone(known) else known[RUN])
                if self._push_unchanged or op == "insert" or run != known[RUN]:
                    pushes.append(self._put(run, event.xid, known, ()))

    def _delete_unnamed(self) -> None:
        """Runs were deleted, or may have been, and nobody knows which (T6)."""
        self.seq += 1
        self.dead_floor, self.dead_floor_time = self.seq, self.time
        self.time = self._allowed(self.time + 1)

    def _resume(self, event: Resumed) -> list[Push]:
        """Fill the empty board. A client that was cut off while it was sent the unfinished
        runs lacks some whose time was `floor_time`: they follow it.
        """
        self._refused = event.refused
        self.floor_time = self.last_time = event.floor_time
        self.time = self._allowed(event.floor_time + 1)
        for run in event.unchanged:
            self._forget(self._runs.get(run[ID]))
            self._put(run, 0, None, ())
        for run_id in event.left:
            self._forget(self._runs.get(run_id))
            self._bury(run_id, 0, None, *ANYTHING)  # (T4)
        for time, run in event.changed:
            self.time = time
            self._forget(self._runs.get(run[ID]))
            self._put(run, 0, None, ANYTHING)
        self.dead_floor_time = event.at  # (T8)
        self.time = self._allowed(event.at + 1)
        self.begun = True
        return []

    def _snapshot(self, event: Snapshot) -> list[Push]:
        self._refuse(event.refused)
        self._advance(event.at)
        if event.new:
            for run_id in list(self._done):
                self._forget(self._runs[run_id])
            self.floor, self.floor_time = self.seq, self.time
        pushes: list[Push] = []
        for run in event.rows:
            known = self._runs.get(run[ID])
            if self._is_news(run, known, event.unless_after):
                # An unfinished run that is not held counts as new. A query cannot tell it from a
                # finished run that was reopened; if it counted as that, every new run would be sent
                # to every filter for finished runs.
                was = () if known is not None or run[STATUS] in ACTIVE else self._unheld
                pushes.append(self._put(run, 0, known, was))
        corrections, removed = len(pushes), 0
        for run_id in event.gone:
            known = self.get(run_id)
            if known is not None and _up_to(known, event.unless_after):
                pushes += self._bury(run_id, 0, known)  # (T5)
                removed += 1
        if event.unless_after is not None:
            self.corrections += corrections
            if event.outcome is not None:
                self._evict()  # a row that is evicted at once counts as skipped
                event.outcome.pushed, event.outcome.removed = corrections, removed
                event.outcome.skipped = sum(run[ID] not in self for run in event.rows)
        elif event.complete:
            # The query behind this Snapshot began after everything that was shown before the
            # previous one. Of that, only deleted runs can be left.
            last = self._snapshots
            self._shown = {each: shown for each, shown in self._shown.items() if shown[0] >= last}
            self._snapshots += 1
        if self.begun:
            if event.deletes_unknown:  # (T7)
                self._delete_unnamed()
            return pushes
        if event.complete:
            self.begun = True
            self.floor_time = max(self.floor_time, event.at - 1)
            self.dead_floor_time = event.at - 1  # (T8)
            self.last_time = max(self.last_time, self.floor_time)
        return []

    def _is_news(self, run: Run, known: Entry | None, unless_after: int | None) -> bool:
        """Whether a row of a Snapshot tells something that the stream has not overtaken (R13)."""
        if known is not None:
            news = run != known[RUN] or run[ID] in self._shown
            return news and _up_to(known, unless_after)
        # After the query began, the run may have been deleted, or may have changed and been
        # evicted.
        return unless_after is None or max(self.floor, self.dead_floor) <= unless_after

    def _put(self, run: Run, xid: int, known: Entry | None, was: tuple[Facet, ...]) -> Push:
        """Make the run's newest entry. `was`: what it may have been if it is not `known`."""
        run_id = run[ID]
        self.seq = seq = self.seq + 1
        time = self.time
        frame = self._encode(run, time)
        now = facet(run)
        steady = False
        if known is None:
            ever = is_or_was = (*was, now)
            self.size += OVERHEAD + 2 * len(frame)
        elif known[FACETS] == (now,) and known[RUN][STATUS] == now[0]:
            # Most changes: the run has never been anything else, and is no tombstone.
            ever = is_or_was = known[FACETS]
            steady = True
            self.size += 2 * (len(frame) - len(known[FRAME]))
        else:
            ever = known[FACETS]
            before = facet(known[RUN])
            steady = before[0] == now[0]
            is_or_was = (now,) if before == now else (before, now)
            if now not in ever:
                ever = (*ever, now) if len(ever) < self._max_facets else ANYTHING
            if not steady and before[0] == DELETED:  # (T4)
                self.tombstones -= 1
                is_or_was = ever
            self.size += 2 * (len(frame) - len(known[FRAME]))
        if self._shown and (shown := self._shown.pop(run_id, None)):
            ever = self._union(ever, shown[1])
            is_or_was = self._union(is_or_was, shown[1])
        entry: Entry = (seq, time, run, frame, ever, xid)
        self._runs[run_id] = entry
        log = self.log
        log.entries.append(entry)
        log.seqs.append(seq)
        log.times.append(time)
        if now[0] not in ACTIVE:
            self._unfinished.discard(run_id)
            self._done[run_id] = None
            self._done.move_to_end(run_id)
        elif not steady:
            self._unfinished.add(run_id)
            self._done.pop(run_id, None)
        return entry, is_or_was, steady

    def _bury(self, run_id: str, xid: int, known: Entry | None, *was: Facet) -> list[Push]:
        """Make the tombstone (T1) of a run, which may have been `was`. Returns what to push:
        nothing if it was buried already and the API has not shown it since.
        """
        self.seq = seq = self.seq + 1
        frame = self._encode_deleted(run_id, time := self.time)
        again = pushed = known is not None and is_tombstone(known)
        if known is None:
            ever = is_or_was = was or self._unheld  # (T2)
            self.size += OVERHEAD + 2 * len(frame)
        else:
            is_or_was, ever = buried(known)
            self.size += 2 * (len(frame) - len(known[FRAME]))
        if self._shown and (shown := self._shown.pop(run_id, None)):
            ever = self._union(shown[1], ever)
            is_or_was = self._union(is_or_was, shown[1])
            pushed = False
        entry: Entry = (seq, time, tombstone(run_id, known), frame, ever, xid)
        self._runs[run_id] = entry
        self.log.append(entry)
        self.tombstones += not again
        self._unfinished.discard(run_id)
        self._done[run_id] = None
        self._done.move_to_end(run_id)
        return [] if pushed else [(entry, is_or_was, False)]

    def _union(self, facets: tuple[Facet, ...], more: tuple[Facet, ...]) -> tuple[Facet, ...]:
        found = tuple(dict.fromkeys(facets + more))
        return found if len(found) <= self._max_facets else ANYTHING

    def _forget(self, entry: Entry | None) -> None:
        if entry is not None:
            run_id = entry[RUN][ID]
            del self._runs[run_id]
            self._unfinished.discard(run_id)
            self._done.pop(run_id, None)
            self.tombstones -= is_tombstone(entry)
            self.size -= OVERHEAD + 2 * len(entry[FRAME])

    def _evict(self) -> None:
        while self.size > self._memory and self._done:
            entry = self._runs[next(iter(self._done))]
            self._forget(entry)
            self.floor = max(self.floor, entry[SEQ])
            self.floor_time = max(self.floor_time, entry[TIME])
            if was_unfinished(entry):
                self._unheld = ANYTHING  # (T4)


def _up_to(known: Entry, seq: int | None) -> bool:
    """Whether the run has not changed after this seq, if there is one."""
    return seq is None or known[SEQ] <= seq
