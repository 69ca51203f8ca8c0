"""Batches: the bytes that the hub writes to a client at a time.

R17  A batch is cut at 128 KiB, unless a single frame is larger. It is made when it is written, so
     that what waits is a list of entries, whose bytes all groups share.
     test_a_batch_is_cut_at_128_kib, test_a_batch_is_made_when_it_is_written
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from brain.contract.messages import Micros
from brain.delivery.log import FRAME, SEQ, TIME, Entry

BATCH = 128 * 1024
"""Bytes of a batch at most: no more than a socket takes at once (SO_SNDBUF), or healthy clients
pause too. With 1 MB, 200 of them paused 2 815 times; with 128 KiB never, at the same throughput."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Bytes for one write, the seq and the time that they reach, how many messages they are, and
    whether none of the plan follows.
    """

    data: bytes
    end: int
    time: Micros
    count: int
    last: bool


def cut(entries: Iterable[Entry], limit: int) -> Iterator[Batch]:
    """Cut at `limit` bytes, unless a single frame is larger (R17)."""
    frames: list[bytes] = []
    size = reached = time = 0
    for entry in entries:
        frame = entry[FRAME]
        if frames and size + len(frame) > limit:
            yield Batch(b"".join(frames), reached, time, len(frames), last=False)
            frames, size = [], 0
        frames.append(frame)
        size += len(frame)
        reached, time = entry[SEQ], entry[TIME]
    if frames:
        yield Batch(b"".join(frames), reached, time, len(frames), last=True)


class Batches:
    """What several groups are sent. They share the first batch, which most plans consist of: to
    make another costs little beside 128 KiB for each client, and all of them may be 4 MiB.
    """

    def __init__(self, entries: Sequence[Entry], limit: int) -> None:
        self._entries = entries
        self._limit = limit
        self._first: Batch | None = None

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __iter__(self) -> Iterator[Batch]:
        if self._first is None:
            self._first = next(cut(self._entries, self._limit), None)
        if (first := self._first) is not None:
            yield first
            yield from cut(islice(self._entries, first.count, None), self._limit)
