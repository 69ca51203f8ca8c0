"""`GET /api/runs?order=changed`: the runs that changed last, from the board's memory."""

import asyncio
import base64
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

from brain.api.errors import CursorInvalid
from brain.api.pages import MAX_PAGE, matches
from brain.api.queries import ByFields
from brain.api.totals import Total
from brain.contract.messages import ACTIVE, Micros, body, iso
from brain.delivery.board import Board
from brain.delivery.log import RUN, SEQ, TIME, Entry, is_tombstone

WINDOW = 2048
"""Log entries looked at between two turns of the loop, in about 1 ms. A filter that few runs match
looks at all that the board holds: 100 ms in one go, for 80 000 runs."""


PROCESS: Final = secrets.token_hex(4)
"""Whose seqs a cursor means: those of an earlier process number other changes."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ends: its last change.

    Its text begins with NUL, which no id contains. Otherwise a list in the order of the ids would
    take it for an id, and continue at some other run.
    """

    time: Micros
    seq: int
    process: str = PROCESS
    seen: Micros = 0
    """Of several nodes: what the one that has sent the first page had read."""

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """Raises CursorInvalid."""
        try:
            text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True)
        except ValueError:
            raise CursorInvalid(cursor) from None
        number = b"([0-9]{1,17})"
        found = re.fullmatch(b"\0%b %b ([0-9a-f]{8}) %b" % (number, number, number), text)
        if found is None:
            raise CursorInvalid(cursor)
        return cls(int(found[1]), int(found[2]), found[3].decode(), int(found[4]))

    def __str__(self) -> str:
        text = f"\0{self.time} {self.seq} {self.process} {self.seen}".encode()
        return base64.urlsafe_b64encode(text).decode().rstrip("=")

    def seq_in(self, board: Board) -> int:
        """The page continues with the changes before this seq. After a restart of Brain, a run may
        come twice: of the changes at one time, it is not known which the last page had.
        """
        if self.process == PROCESS:
            return self.seq
        later = board.log.before(self.time + 1)
        return board.seq + 1 if later is None else later + 1


@dataclass(frozen=True, slots=True)
class Latest:
    runs: list[str]
    """Each in JSON, the one that changed last first."""
    times: Sequence[Micros]
    """When each of them changed last."""
    exact_after: Micros
    """A run with a time up to this one has not changed since; when it did before is not known."""
    last: Position | None
    """Where the next page begins. None: Brain's memory has no more."""
    complete: bool
    """No run that is missing here changed later than one of these; and where the limit did not end
    the list, none is missing at all."""
    since: Micros
    """The time from which `/ws?since=` brings every change that the list may lack."""

    def json(self, total: Total | None) -> str:
        runs = ",".join(self.runs)
        times = ",".join(f'"{iso(time)}"' for time in self.times)
        cursor = "null" if self.last is None else f'"{self.last}"'
        count = "null" if total is None else str(total.runs)
        estimated = "true" if total is not None and total.is_estimate else "false"
        return (
            f'{{"runs":[{runs}],"next_cursor":{cursor},"timestamp":"{iso(self.since)}",'
            f'"changed_at":[{times}],"exact_after":"{iso(self.exact_after)}",'
            f'"complete":{"true" if self.complete else "false"},'
            f'"total":{count},"total_is_estimate":{estimated}}}'
        )


async def read_latest(
    board: Board, wanted: ByFields, limit: int, after: Position | None = None
) -> Latest:
    """At most `limit` runs, and MAX_PAGE bytes unless the first run alone is larger.

    The board has had its first Snapshot. It may change between two turns of the loop: a run that
    does moves out of reach, and `since` brings it.
    """
    since = board.as_of
    seen = since if after is None else after.seen
    runs: list[str] = []
    times: list[Micros] = []
    size, oldest = 0, since
    before = board.seq + 1 if after is None else after.seq_in(board)
    last: Position | None = None
    ended = False
    while before and not ended:
        entries, before = board.log.latest(before, WINDOW)
        for entry in entries:
            if not _is_wanted(entry, wanted):
                continue
            text = body(entry[RUN])
            size += len(text)
            if len(runs) == limit or (runs and size > MAX_PAGE):
                ended = True
                break
            runs.append(text)
            oldest = entry[TIME]
            times.append(oldest)
            last = Position(oldest, entry[SEQ], seen=seen)
        if not ended:
            await asyncio.sleep(0)
    statuses = wanted["status"]
    # At floor_time + 1 are also the runs of the first read: when they changed is not known.
    exact_after = board.floor_time + 1
    holds_all = bool(statuses) and ACTIVE.issuperset(statuses)  # the board holds these for ever
    complete = oldest > exact_after if ended else holds_all
    return Latest(runs, times, exact_after, last if ended else None, complete, since)


def _is_wanted(entry: Entry, wanted: ByFields) -> bool:
    return not is_tombstone(entry) and matches(entry[RUN], wanted)
