"""The board: the last state of each run, and in which order they came to it.

Pure: it is handed events, and answers three questions with one mechanism, an append-only log of entries in the
order of `seq` of which all but each run's newest are stale:

- what is new?           `apply` returns what is to be pushed
- what did I miss?       `piece` returns the current state of each run that changed after a seq
- am I beyond memory?    `floor`: whoever stopped before it cannot be brought up to date, and is told so

Entries are flat tuples of atoms and of such tuples, which Python's collector stops tracking: a full collection over
100 000 of them took 0.6 ms, over slotted objects 21 ms.
"""

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Final, TypeAlias, assert_never

from brain.contract.events import Changes, Event, Snapshot
from brain.contract.messages import (
    ACTIVE,
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
"""What a run may have been that is updated and that the board does not hold: active runs are never evicted."""

ANYTHING: tuple[Facet, ...] = tuple((status, ANY, ANY) for status in STATUSES)
MAX_FACETS = 32
MAX_DELETED = 1024

Entry: TypeAlias = tuple[int, Micros, Run, bytes, tuple[Facet, ...], int]
"""seq, time on the wire, run, its framed message, all it has been since the board knows it, the id of its transaction or 0."""

SEQ: Final = 0
TIME: Final = 1
RUN: Final = 2
FRAME: Final = 3
FACETS: Final = 4
XID: Final = 5

Push: TypeAlias = tuple[Entry, tuple[Facet, ...], bool]
"""An entry to be pushed, what it was and is, and whether its status stayed as it was."""

PIECE = 64 * 1024
"""Bytes of a catch-up piece, at the most (a single larger frame excepted)."""

WINDOW = 2048
"""Entries of the log that are compacted at a time, in 1 ms: half of them are stale on average, and no event has more rows than that."""

OVERHEAD = 1200
"""Bytes that an entry costs beside its texts, its share of the stale ones in the log included: tests/test_board.py measures it."""


class Board:
    """`memory` bounds the bytes of entries held; unfinished runs are kept even beyond it."""

    def __init__(self, memory: int, *, push_unchanged: bool = True) -> None:
        self.seq = 0
        self.time: Micros = 0
        """The latest time on the wire. It never decreases, though commit times do."""
        self.floor = 0
        """The seq of the newest entry that is no longer held."""
        self.floor_time: Micros = 0
        """`since` at or before this moment cannot be answered."""
        self.begun = False
        """A first Snapshot has been applied."""
        self.corrections = 0
        """Runs that a comparison with the table found to differ from what the stream had said."""
        self.size = 0
        self._memory = memory
        self._push_unchanged = push_unchanged
        self._runs: dict[str, Entry] = {}
        self._log: list[Entry] = []
        self._seqs: list[int] = []
        self._times: list[Micros] = []
        self._cursor = 0
        """Where the log is compacted next."""
        self._done: OrderedDict[str, None] = OrderedDict()
        """The ids of finished runs, in the order of their last change."""
        self._unfinished: set[str] = set()
        self._deleted: dict[str, int] = {}
        """Run id → the board's seq at its delete, and `_emptied` for all others: see `_is_news`."""
        self._emptied = 0
        self._shown: dict[str, tuple[int, tuple[Facet, ...]]] = {}
        """Run id → what it was where the API has shown it ahead of the source, and which complete Snapshot was the last then."""
        self._complete = 0

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
        """The table said this to a question that was asked at that seq: whoever is shown it and filters has to hear what becomes of it,
        though a poll may never find it so. Returns what to show in its place, if a Snapshot came in between: it may be the later.
        """
        known = self._runs.get(run[ID])
        if known is not None and known[RUN] == run:
            return None
        if known is not None and known[SEQ] > asked and not known[XID]:
            return known
        if known is not None or run[STATUS] in ACTIVE:
            _, shown = self._shown.get(run[ID], (0, ()))
            self._shown[run[ID]] = (self._complete, _joined(shown, (facet(run),)))
        return None

    # What is new?

    def apply(self, event: Event) -> list[Push]:
        """Take an event in. Returns what is to be pushed, in the order of seq."""
        match event:
            case Changes():
                pushes = self._changes(event)
            case Snapshot():
                pushes = self._snapshot(event)
            case _:
                assert_never(event)
        self._evict()
        if len(self._log) > 2 * len(self._runs) + 1024:
            self._compact()
        return pushes

    def _advance(self, at: Micros) -> None:
        # Never again the time of what was evicted: who read the table after that can ask for what is later (rows.py).
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
                self._emptied = self.seq
            elif known is None:
                if UNCHANGED in run:
                    run = _filled(run, None)
                pushes.append(self._put(run, event.xid, None, () if op == "insert" else FINISHED))
            else:
                if UNCHANGED in run:
                    run = _filled(run, known[RUN])
                if self._push_unchanged or op == "insert" or run != known[RUN]:
                    pushes.append(self._put(run, event.xid, known, ()))
        if len(self._deleted) > MAX_DELETED:
            self._deleted.clear()
            self._emptied = self.seq
        return pushes

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
                # An active run that the board does not hold is taken for a new one: a query cannot tell it from
                # a finished one that was opened again, and who filters would otherwise be sent every new run.
                was = () if known is not None or run[STATUS] in ACTIVE else FINISHED
                pushes.append(self._put(run, 0, known, was))
        removed = 0
        for run_id in event.gone:
            known = self._runs.get(run_id)
            if known is not None and (
                event.unless_after is None or known[SEQ] <= event.unless_after
            ):
                self._forget(known)
                removed += 1
        if event.unless_after is not None:
            self.corrections += len(pushes)
            if event.outcome is not None:
                self._evict()
                skipped = sum(run[ID] not in self._runs for run in event.rows)
                event.outcome.pushed, event.outcome.removed = len(pushes), removed
                event.outcome.skipped = skipped
        elif event.complete:
            # The question behind this one was asked after what was shown before the last: of that, only the deleted are left.
            self._shown = {
                each: shown for each, shown in self._shown.items() if shown[0] >= self._complete
            }
            self._complete += 1
        if not self.begun:
            pushes = []
            if event.complete:
                self.begun = True
                self.floor_time = max(self.floor_time, event.at - 1)
        return pushes

    def _is_news(self, run: Run, known: Entry | None, unless_after: int | None) -> bool:
        """Whether a row of a Snapshot tells something new, and not something that the stream has overtaken."""
        if known is not None:
            news = run != known[RUN] or run[ID] in self._shown
            return news and (unless_after is None or known[SEQ] <= unless_after)
        # A run that is not held may have been deleted since the question was asked, or have changed and been evicted.
        return (
            unless_after is None
            or max(self.floor, self._deleted.get(run[ID], self._emptied)) <= unless_after
        )

    def _put(self, run: Run, xid: int, known: Entry | None, was: tuple[Facet, ...]) -> Push:
        self.seq = seq = self.seq + 1
        time = self.time
        frame = message(run, time)
        now = facet(run)
        steady = False
        if known is None:
            seen = both = (*was, now)
            self.size += OVERHEAD + 2 * len(frame)
        else:
            seen = known[FACETS]
            before = facet(known[RUN])
            steady = before[0] == now[0]
            both = (now,) if before == now else (before, now)
            if now not in seen:
                seen = (*seen, now) if len(seen) < MAX_FACETS else ANYTHING
            self.size += 2 * (len(frame) - len(known[FRAME]))
        if self._shown and (shown := self._shown.pop(run[ID], None)):
            seen, both = _joined(seen, shown[1]), _joined(both, shown[1])
        entry: Entry = (seq, time, run, frame, seen, xid)
        self._runs[run[0]] = entry
        self._log.append(entry)
        self._seqs.append(seq)
        self._times.append(time)
        if now[0] not in ACTIVE:
            self._unfinished.discard(run[0])
            self._done[run[0]] = None
            self._done.move_to_end(run[0])
        elif not steady:
            self._unfinished.add(run[0])
            self._done.pop(run[0], None)
        return entry, both, steady

    def _forget(self, entry: Entry | None) -> None:
        if entry is not None:
            run_id = entry[RUN][0]
            del self._runs[run_id]
            self._unfinished.discard(run_id)
            self._done.pop(run_id, None)
            self.size -= _cost(entry)

    def _evict(self) -> None:
        while self.size > self._memory and self._done:
            entry = self._runs[next(iter(self._done))]
            self._forget(entry)
            self.floor, self.floor_time = (
                max(self.floor, entry[SEQ]),
                max(self.floor_time, entry[TIME]),
            )

    def _compact(self) -> None:
        """Take the stale ones out of the next window. Of 100 000 runs, all at once held the loop for 80 to 140 ms; to look for each
        as soon as it is stale took a bisection, a tenth of all that a change costs.
        """
        window = slice(self._cursor, self._cursor + WINDOW)
        current = self._runs.get
        held = [entry for entry in self._log[window] if current(entry[2][0]) is entry]
        self._log[window] = held
        self._seqs[window] = [entry[0] for entry in held]
        self._times[window] = [entry[1] for entry in held]
        self._cursor += len(held)
        if self._cursor >= len(self._log):
            self._cursor = 0

    # What did I miss?

    def since(self, time: Micros) -> int | None:
        """The seq after which lies every change at or after `time`; None if the board's memory does not reach there."""
        if not self.begun or time <= self.floor_time:
            return None
        i = bisect_left(self._times, time)
        return self._seqs[i] - 1 if i < len(self._seqs) else self.seq

    def oldest(self, after: int, upto: int, wanted: Callable[[Entry], bool]) -> Entry | None:
        """The first run of those whose last change lies in (after, upto] that is wanted."""
        for i in range(bisect_right(self._seqs, after), len(self._log)):
            entry = self._log[i]
            if entry[SEQ] > upto:
                break
            if self._runs.get(entry[RUN][ID]) is entry and wanted(entry):
                return entry
        return None

    def piece(
        self, after: int, upto: int, wanted: Callable[[Entry], bool] | None
    ) -> tuple[bytes, int]:
        """Frames of the runs whose last change lies in (after, upto], oldest first, and the seq they reach.

        A piece that is full ends before the roundest seq in its second half, so that clients who were cut off at
        different places soon share them, whatever the size of the frames.
        """
        current = self._runs.get
        frames: list[bytes] = []
        size, reached = 0, after
        cut = end = roundness = 0
        for i in range(bisect_right(self._seqs, after), len(self._log)):
            entry = self._log[i]
            seq, _, run, frame, _, _ = entry
            if seq > upto:
                break
            if current(run[0]) is not entry or (wanted is not None and not wanted(entry)):
                continue
            if frames and size + len(frame) > PIECE:
                return (b"".join(frames[:cut]), end) if cut else (b"".join(frames), reached)
            if size > PIECE // 2:
                common = _roundest(reached, seq)
                if common & -common >= roundness:
                    cut, end, roundness = len(frames), common - 1, common & -common
            frames.append(frame)
            size += len(frame)
            reached = seq
        return b"".join(frames), upto


def _roundest(low: int, high: int) -> int:
    """The number in (low, high] that is divisible by the highest power of two."""
    shift = (low ^ high).bit_length() - 1
    return high >> shift << shift


def _joined(facets: tuple[Facet, ...], more: tuple[Facet, ...]) -> tuple[Facet, ...]:
    found = tuple(dict.fromkeys(facets + more))
    return found if len(found) <= MAX_FACETS else ANYTHING


def _cost(entry: Entry) -> int:
    return OVERHEAD + 2 * len(entry[3])


def _filled(run: Run, known: Run | None) -> Run:
    """The run with what PostgreSQL did not send taken from what is known; left out, never null, if nothing is."""
    old = known or (None,) * 8
    return tuple(old[i] if value == UNCHANGED else value for i, value in enumerate(run))  # type: ignore[return-value]
