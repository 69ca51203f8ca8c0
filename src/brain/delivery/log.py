"""The board's log: its entries in the order of `seq`, and what a client missed of them.

It is append-only, and only the newest entry of each run is current. Entries are flat tuples of
atoms and of such tuples, which Python's collector stops tracking: a full collection over 100 000 of
them took 0.6 ms, over slotted objects 21 ms.

R15  A piece holds at most 64 KiB, serves one filter, and ends before a round seq, so that clients
     with different seqs soon share pieces; the hub makes each once per tick. (5000 clients with
     5000 different `since` took 0.5 s of CPU so, 31 s otherwise.)
     test_pieces_are_bounded_and_soon_shared, test_a_piece_is_made_once_per_filter_and_seq
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from brain.contract.messages import ID, STATUS, Micros, Run
from brain.contract.subscription import Facet

DELETED: Final = "deleted"
"""The status of a tombstone: no filter and no run has it (T1 in tombstones.py)."""

Entry: TypeAlias = tuple[int, Micros, Run, bytes, tuple[Facet, ...], int]
"""seq, time on the wire, run, framed message, every facet since the board holds the run, and the id
of the transaction (0 if it came in a Snapshot)."""

SEQ: Final = 0
TIME: Final = 1
RUN: Final = 2
FRAME: Final = 3
FACETS: Final = 4
XID: Final = 5

OVERHEAD = 1200
"""Bytes that an entry costs besides its texts, with its share of the stale entries in the log.
Measured by test_the_memory_charged_is_the_memory_used."""

PIECE = 64 * 1024
"""Bytes of a catch-up piece at most, unless a single frame is larger."""

WINDOW = 2048
"""Log entries compacted at a time, in 1 ms. On average half of them are stale, and no event has
more rows than that."""


def is_tombstone(entry: Entry) -> bool:
    return entry[RUN][STATUS] == DELETED


class Log:
    """`current`: run id → its newest entry. `seqs` and `times` run parallel to `entries`, for
    bisection; all three grow together.
    """

    def __init__(self, current: Mapping[str, Entry], max_piece: int = PIECE) -> None:
        self.entries: list[Entry] = []
        self.seqs: list[int] = []
        self.times: list[Micros] = []
        self._current = current
        self._max_piece = max_piece
        self._cursor = 0
        """Where the next compaction starts."""

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.seqs.append(entry[SEQ])
        self.times.append(entry[TIME])

    def compact(self) -> None:
        """Remove the stale entries of the next WINDOW.

        Compacting a log of 100 000 runs at once held the loop for 80 to 140 ms; removing each entry
        as soon as it is stale takes a bisection, a tenth of the cost of a change.
        """
        window = slice(self._cursor, self._cursor + WINDOW)
        current = self._current.get
        held = [entry for entry in self.entries[window] if current(entry[RUN][ID]) is entry]
        self.entries[window] = held
        self.seqs[window] = [entry[SEQ] for entry in held]
        self.times[window] = [entry[TIME] for entry in held]
        self._cursor += len(held)
        if self._cursor >= len(self.entries):
            self._cursor = 0

    def before(self, time: Micros) -> int | None:
        """The seq after which every change at or after `time` lies; None if there is none."""
        i = bisect_left(self.times, time)
        return self.seqs[i] - 1 if i < len(self.seqs) else None

    def time_after(self, seq: int) -> Micros | None:
        """The time of the first change after this seq: every change before it has a seq up to this
        one. None if there is none.
        """
        i = bisect_right(self.seqs, seq)
        return self.times[i] if i < len(self.times) else None

    def current(self) -> list[Entry]:
        """The newest entry of each run, in the order of seq."""
        current = self._current.get
        return [entry for entry in self.entries if current(entry[RUN][ID]) is entry]

    def oldest(self, after: int, upto: int, wanted: Callable[[Entry], bool]) -> Entry | None:
        """The oldest wanted entry of the runs whose last change lies in (after, upto]."""
        for i in range(bisect_right(self.seqs, after), len(self.entries)):
            entry = self.entries[i]
            if entry[SEQ] > upto:
                break
            if self._current.get(entry[RUN][ID]) is entry and wanted(entry):
                return entry
        return None

    def latest(self, before: int, window: int) -> tuple[list[Entry], int]:
        """The current entries among `window` entries that end before the seq `before`, newest
        first, tombstones included; the seq to continue before, or 0 at the end of memory.
        """
        end = bisect_left(self.seqs, before)
        start = max(0, end - window)
        current = self._current.get
        held = [entry for entry in self.entries[start:end] if current(entry[RUN][ID]) is entry]
        held.reverse()
        return held, self.seqs[start] if start else 0

    def piece(
        self,
        after: int,
        upto: int,
        wanted: Callable[[Entry], bool] | None = None,
        deleted: bool = False,
    ) -> tuple[bytes, int]:
        """Frames of the runs whose last change lies in (after, upto], oldest first; the seq they
        reach. `deleted`: with those of tombstones (T3).

        (R15) A full piece ends before the roundest seq in its second half. Clients that start from
        different seqs therefore soon share pieces, whatever the size of the frames.
        """
        current, limit = self._current.get, self._max_piece
        frames: list[bytes] = []
        size, reached = 0, after
        cut = end = roundness = 0
        for i in range(bisect_right(self.seqs, after), len(self.entries)):
            entry = self.entries[i]
            seq, _, run, frame, _, _ = entry
            if seq > upto:
                break
            if current(run[ID]) is not entry or (run[STATUS] == DELETED and not deleted):
                continue
            if wanted is not None and not wanted(entry):
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


def _roundest(low: int, high: int) -> int:
    """The number in (low, high] that is divisible by the highest power of two."""
    shift = (low ^ high).bit_length() - 1
    return high >> shift << shift
