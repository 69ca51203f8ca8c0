"""The board: the last state of each run, in the order in which the runs changed.

Pure: it takes events and has no clock and no I/O. One append-only log of entries in the order of
`seq`, in which only the newest entry of each run is current, answers three questions:

- What is new?          `apply` returns what to push.
- What did I miss?      `piece` returns the current state of each run that changed after a seq.
- Did I miss too much?  Yes, if `floor` is above the seq: a newer entry has been evicted.

Entries are flat tuples of atoms and of such tuples, which Python's collector stops tracking: a full
collection over 100 000 of them took 0.6 ms, over slotted objects 21 ms.

The rules R1 to R17 are numbered over two modules. Here are R9 to R11, R13 and R15; the others are
in hub.py. Below each rule stands a test that fails without it. In addition,
tests/unit/delivery/mutants.py removes every rule, and a random history then goes wrong.

R9   `timestamp` never decreases: it is the commit time or the last timestamp, whichever is later.
     Rows of a Snapshot have the database's time of that query; Brain's own clock is never used.
     `since` means every change at or after it; it is a gap at or before the time of the newest
     evicted change, and before the first Snapshot.
     test_time_never_decreases, test_since_at_its_boundaries
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
R15  A piece holds at most 64 KiB, serves one filter, and ends before a round seq, so that clients
     with different seqs soon share pieces; the hub makes each once per tick. (5000 clients with
     5000 different `since` took 0.5 s of CPU so, 31 s otherwise.)
     test_pieces_are_bounded_and_soon_shared, test_a_piece_is_made_once_per_filter_and_seq

After a restart (postgres/checkpoints.py has the rules) the first event is Resumed instead of a
Snapshot. Resumed runs keep the times at which they were sent, at the earliest; those that changed
since the floor may have been ANYTHING, because nobody knows what they were. No byte leaves with a
time that `remember` has not been told, so that time goes on there.
test_resumed_runs_have_the_times_of_before, test_resumed_runs_may_have_been_anything,
test_every_time_is_remembered_before_it_is_sent
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final, TypeAlias, assert_never, cast

from brain.contract.events import Changes, Event, Resumed, Snapshot
from brain.contract.messages import (
    ACTIVE,
    FIELDS,
    ID,
    STATUS,
    STATUSES,
    UNCHANGED,
    Micros,
    Run,
    message,
)
from brain.contract.subscription import ANY, Facet, facet

FINISHED: tuple[Facet, ...] = (("completed", ANY, ANY), ("failed", ANY, ANY))
"""What an updated run that the board does not hold may have been: unfinished runs are never
evicted."""

ANYTHING: tuple[Facet, ...] = tuple((status, ANY, ANY) for status in STATUSES)

Entry: TypeAlias = tuple[int, Micros, Run, bytes, tuple[Facet, ...], int]
"""seq, time on the wire, run, framed message, every facet since the board holds the run, and the id
of the transaction (0 if it came in a Snapshot)."""

SEQ: Final = 0
TIME: Final = 1
RUN: Final = 2
FRAME: Final = 3
FACETS: Final = 4
XID: Final = 5

Push: TypeAlias = tuple[Entry, tuple[Facet, ...], bool]
"""An entry to push, the facets that the run has and had, and whether its status stayed the same."""

ENTRY: Final = 0

MAX_FACETS = 32
"""Facets remembered of one run. A run that had more may have been ANYTHING."""

MAX_DELETED = 1024
"""Deletes remembered one by one. Beyond it, any run that is not held may have been deleted."""

PIECE = 64 * 1024
"""Bytes of a catch-up piece at most, unless a single frame is larger."""

WINDOW = 2048
"""Log entries compacted at a time, in 1 ms. On average half of them are stale, and no event has
more rows than that."""

OVERHEAD = 1200
"""Bytes that an entry costs besides its texts, with its share of the stale entries in the log.
Measured by test_the_memory_charged_is_the_memory_used."""


def _forget_nothing(_: Micros) -> None:
    """Without a file, no time outlives the process."""


class Board:
    """`memory` bounds the bytes of all entries; unfinished runs are kept even beyond it (R11).

    `remember` stores the highest timestamp that may leave.
    """

    def __init__(
        self,
        memory: int,
        *,
        push_unchanged: bool = True,
        encode: Callable[[Run, Micros], bytes] = message,
        max_piece: int = PIECE,
        max_facets: int = MAX_FACETS,
        max_deleted: int = MAX_DELETED,
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
        self.begun = False
        """The first Snapshot has been applied."""
        self.corrections = 0
        """Runs for which a comparison with the table contradicted the stream."""
        self.size = 0
        self._memory = memory
        self._push_unchanged = push_unchanged
        self._encode = encode
        self._max_piece = max_piece
        self._max_facets = max_facets
        self._max_deleted = max_deleted
        self._remember = remember
        self._runs: dict[str, Entry] = {}
        self._log: list[Entry] = []
        self._seqs: list[int] = []
        self._times: list[Micros] = []
        """`_seqs` and `_times` run parallel to `_log`, for bisection."""
        self._cursor = 0
        """Where the next compaction of the log starts."""
        self._done: OrderedDict[str, None] = OrderedDict()
        """The ids of finished runs, in the order of their last change."""
        self._unfinished: set[str] = set()
        self._deleted: dict[str, int] = {}
        """Run id → the seq of its delete. Any other run that is not held: `_deleted_floor`."""
        self._deleted_floor = 0
        self._shown: dict[str, tuple[int, tuple[Facet, ...]]] = {}
        """Run id → `_snapshots` and the facets that the API showed before the source reported
        them."""
        self._snapshots = 0
        """How many complete Snapshots have been applied, comparisons excluded."""

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def __len__(self) -> int:
        return len(self._runs)

    def differs(self, run: Run) -> bool:
        known = self._runs.get(run[ID])
        return known is None or known[RUN] != run

    def get(self, run_id: str) -> Entry | None:
        return self._runs.get(run_id)

    def unfinished(self) -> Collection[str]:
        return self._unfinished

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
        if known is not None and known[SEQ] > asked and not known[XID]:
            return known
        if known is not None or run[STATUS] in ACTIVE:
            _, shown = self._shown.get(run[ID], (0, ()))
            self._shown[run[ID]] = (self._snapshots, self._union(shown, (facet(run),)))
        return None

    # What is new?

    def apply(self, event: Event) -> list[Push]:
        """Apply an event. Returns what to push, in the order of seq."""
        match event:
            case Changes():
                pushes = self._changes(event)
            case Snapshot():
                pushes = self._snapshot(event)
            case Resumed():
                pushes = self._resume(event)
            case _:
                assert_never(event)
        self._evict()
        if pushes:
            self.last_time = self.time
        # The API answers with a time above `floor_time`.
        self._remember(self.time if self.time > self.floor_time else self.floor_time + 1)
        if len(self._log) > 2 * len(self._runs) + 1024:
            self._compact()
        return pushes

    def _advance(self, at: Micros) -> None:
        # (R9) Above `floor_time`, so that a client that loads the table after an eviction gets a
        # `since` that is no gap.
        self.time = max(self.time, at, self.floor_time + 1)

    def _changes(self, event: Changes) -> list[Push]:
        self._advance(event.at)
        pushes: list[Push] = []
        for op, row in event.rows:
            run = row
            known = self._runs.get(run[ID])
            if op == "delete":
                self._forget(known)
                self._shown.pop(run[ID], None)
                self.seq += 1
                self._deleted[run[ID]] = self.seq
            elif op == "truncate":
                for entry in list(self._runs.values()):
                    self._forget(entry)
                self._shown.clear()
                self.seq += 1
                self._deleted.clear()
                self._deleted_floor = self.seq
            elif known is None:
                if UNCHANGED in run:
                    run = _filled(run, None)
                pushes.append(self._put(run, event.xid, None, () if op == "insert" else FINISHED))
            else:
                if UNCHANGED in run:
                    run = _filled(run, known[RUN])
                if self._push_unchanged or op == "insert" or run != known[RUN]:
                    pushes.append(self._put(run, event.xid, known, ()))
        if len(self._deleted) > self._max_deleted:
            self._deleted.clear()
            self._deleted_floor = self.seq
        return pushes

    def _resume(self, event: Resumed) -> list[Push]:
        """Fill the empty board. A client that was cut off while it was sent the unfinished
        runs lacks some whose time was `floor_time`: they follow it.
        """
        self.floor_time = self.last_time = event.floor_time
        self.time = event.floor_time + 1
        for run in event.unchanged:
            self._forget(self._runs.get(run[ID]))
            self._put(run, 0, None, ())
        for time, run in event.changed:
            self.time = time
            self._forget(self._runs.get(run[ID]))
            self._put(run, 0, None, ANYTHING)
        if self._log:
            self.last_time = self.time
        self.time = event.at
        self.begun = True
        return []

    def _snapshot(self, event: Snapshot) -> list[Push]:
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
                was = () if known is not None or run[STATUS] in ACTIVE else FINISHED
                pushes.append(self._put(run, 0, known, was))
        removed = 0
        for run_id in event.gone:
            known = self._runs.get(run_id)
            if known is not None and _up_to(known, event.unless_after):
                self._forget(known)
                removed += 1
        if event.unless_after is not None:
            self.corrections += len(pushes)
            if event.outcome is not None:
                self._evict()  # a row that is evicted at once counts as skipped
                event.outcome.pushed, event.outcome.removed = len(pushes), removed
                event.outcome.skipped = sum(run[ID] not in self._runs for run in event.rows)
        elif event.complete:
            # The query behind this Snapshot began after everything that was shown before the
            # previous one. Of that, only deleted runs can be left.
            last = self._snapshots
            self._shown = {each: shown for each, shown in self._shown.items() if shown[0] >= last}
            self._snapshots += 1
        if not self.begun:
            pushes = []
            if event.complete:
                self.begun = True
                self.floor_time = max(self.floor_time, event.at - 1)
                self.last_time = self.time if self._log else self.floor_time
        return pushes

    def _is_news(self, run: Run, known: Entry | None, unless_after: int | None) -> bool:
        """Whether a row of a Snapshot tells something that the stream has not overtaken (R13)."""
        if known is not None:
            news = run != known[RUN] or run[ID] in self._shown
            return news and _up_to(known, unless_after)
        # After the query began, the run may have been deleted, or may have changed and been
        # evicted.
        return (
            unless_after is None
            or max(self.floor, self._deleted.get(run[ID], self._deleted_floor)) <= unless_after
        )

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
        else:
            ever = known[FACETS]
            before = facet(known[RUN])
            steady = before[0] == now[0]
            is_or_was = (now,) if before == now else (before, now)
            if now not in ever:
                ever = (*ever, now) if len(ever) < self._max_facets else ANYTHING
            self.size += 2 * (len(frame) - len(known[FRAME]))
        if self._shown and (shown := self._shown.pop(run_id, None)):
            ever = self._union(ever, shown[1])
            is_or_was = self._union(is_or_was, shown[1])
        entry: Entry = (seq, time, run, frame, ever, xid)
        self._runs[run_id] = entry
        self._log.append(entry)
        self._seqs.append(seq)
        self._times.append(time)
        if now[0] not in ACTIVE:
            self._unfinished.discard(run_id)
            self._done[run_id] = None
            self._done.move_to_end(run_id)
        elif not steady:
            self._unfinished.add(run_id)
            self._done.pop(run_id, None)
        return entry, is_or_was, steady

    def _union(self, facets: tuple[Facet, ...], more: tuple[Facet, ...]) -> tuple[Facet, ...]:
        found = tuple(dict.fromkeys(facets + more))
        return found if len(found) <= self._max_facets else ANYTHING

    def _forget(self, entry: Entry | None) -> None:
        if entry is not None:
            run_id = entry[RUN][ID]
            del self._runs[run_id]
            self._unfinished.discard(run_id)
            self._done.pop(run_id, None)
            self.size -= OVERHEAD + 2 * len(entry[FRAME])

    def _evict(self) -> None:
        while self.size > self._memory and self._done:
            entry = self._runs[next(iter(self._done))]
            self._forget(entry)
            self.floor = max(self.floor, entry[SEQ])
            self.floor_time = max(self.floor_time, entry[TIME])

    def _compact(self) -> None:
        """Remove the stale entries of the next WINDOW.

        Compacting a log of 100 000 runs at once held the loop for 80 to 140 ms; removing each entry
        as soon as it is stale takes a bisection, a tenth of the cost of a change.
        """
        window = slice(self._cursor, self._cursor + WINDOW)
        current = self._runs.get
        held = [entry for entry in self._log[window] if current(entry[RUN][ID]) is entry]
        self._log[window] = held
        self._seqs[window] = [entry[SEQ] for entry in held]
        self._times[window] = [entry[TIME] for entry in held]
        self._cursor += len(held)
        if self._cursor >= len(self._log):
            self._cursor = 0

    # What did I miss?

    def since(self, time: Micros) -> int | None:
        """The seq after which every change at or after `time` lies; None for a gap (R9)."""
        if not self.begun or time <= self.floor_time:
            return None
        i = bisect_left(self._times, time)
        return self._seqs[i] - 1 if i < len(self._seqs) else self.seq

    def oldest(self, after: int, upto: int, wanted: Callable[[Entry], bool]) -> Entry | None:
        """The oldest wanted entry of the runs whose last change lies in (after, upto]."""
        for i in range(bisect_right(self._seqs, after), len(self._log)):
            entry = self._log[i]
            if entry[SEQ] > upto:
                break
            if self._runs.get(entry[RUN][ID]) is entry and wanted(entry):
                return entry
        return None

    def latest(self, before: int, window: int) -> tuple[list[Entry], int]:
        """The runs whose last change is among `window` entries of the log that end before the seq
        `before`, newest first; the seq to continue before, or 0 at the end of memory.
        """
        end = bisect_left(self._seqs, before)
        start = max(0, end - window)
        current = self._runs.get
        held = [entry for entry in self._log[start:end] if current(entry[RUN][ID]) is entry]
        held.reverse()
        return held, self._seqs[start] if start else 0

    def piece(
        self, after: int, upto: int, wanted: Callable[[Entry], bool] | None
    ) -> tuple[bytes, int]:
        """Frames of the runs whose last change lies in (after, upto], oldest first; the seq they
        reach.

        (R15) A full piece ends before the roundest seq in its second half. Clients that start from
        different seqs therefore soon share pieces, whatever the size of the frames.
        """
        current, limit = self._runs.get, self._max_piece
        frames: list[bytes] = []
        size, reached = 0, after
        cut = end = roundness = 0
        for i in range(bisect_right(self._seqs, after), len(self._log)):
            entry = self._log[i]
            seq, _, run, frame, _, _ = entry
            if seq > upto:
                break
            if current(run[ID]) is not entry or (wanted is not None and not wanted(entry)):
                continue
            if frames and size + len(frame) > limit:
                return (b"".join(frames[:cut]), end) if cut else (b"".join(frames), reached)
            if size > limit // 2:
                common = _roundest(reached, seq)
                if common & -common >= roundness:
                    cut, end, roundness = len(frames), common - 1, common & -common
            frames.append(frame)
            size += len(frame)
            reached = seq
        return b"".join(frames), upto


def _up_to(known: Entry, seq: int | None) -> bool:
    """Whether the run has not changed after this seq, if there is one."""
    return seq is None or known[SEQ] <= seq


def _roundest(low: int, high: int) -> int:
    """The number in (low, high] that is divisible by the highest power of two."""
    shift = (low ^ high).bit_length() - 1
    return high >> shift << shift


def _filled(run: Run, known: Run | None) -> Run:
    """The run, with values that PostgreSQL did not send taken from `known`, else absent."""
    old = known or (None,) * len(FIELDS)
    return cast(
        "Run", tuple(old[i] if value == UNCHANGED else value for i, value in enumerate(run))
    )
