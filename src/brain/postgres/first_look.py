"""The first look at the table after a restart: its rows, and the times at which they were sent, by
the records (records.py, rules 4 and 5).
"""

from operator import itemgetter

from brain.contract.events import Resumed
from brain.contract.messages import ACTIVE, STATUS, Micros, Run
from brain.postgres.records import Records


class FirstLook:
    """Takes the rows of one statement, which are unfinished or unknown to the oldest record."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._base = 0
        """The place of the record that will be the oldest one."""
        self._unchanged: list[Run] = []
        self._changed: list[tuple[int, Run]] = []
        """Each run with the place of the first record that sees it."""
        self._left: list[tuple[int, str]] = []

    @property
    def failed(self) -> bool:
        """More rows changed since the newest record than may be loaded."""
        return self._base >= len(self._records)

    def take(self, run: Run, xid: int) -> bool:
        """Take a row that this transaction wrote. Always False: `Poll.scan` need not keep it."""
        place = self._records.first(xid)
        if place > self._base:
            self._changed.append((place, run))
            if len(self._changed) > self._records.max_rows:
                self._reduce()
        elif run[STATUS] in ACTIVE:
            self._unchanged.append(run)
        return False

    def leave(self, run_id: str, xid: int) -> None:
        """Take the id of a row that is no run: clients may show a run that it was before."""
        place = self._records.first(xid)
        if place > self._base:
            self._left.append((place, run_id))
            if len(self._left) > self._records.max_rows:
                self._reduce()

    def _reduce(self) -> None:
        """Move the base so far that half of the rows are left.

        A rewrite of the table gives each of its rows a new transaction.
        """
        half = self._records.max_rows // 2
        places = sorted((place for place, _ in (*self._changed, *self._left)), reverse=True)
        self._base = places[half]
        kept = [each for each in self._changed if each[0] > self._base]
        self._unchanged += [
            run for place, run in self._changed if place <= self._base and run[STATUS] in ACTIVE
        ]
        self._changed = kept
        self._left = [each for each in self._left if each[0] > self._base]

    def resumed(self, at: Micros) -> Resumed:
        """`at`: the time of what no record sees. Drops the records before the base."""
        records, base = self._records, self._base
        self._changed.sort(key=itemgetter(0))
        changed = [(records.time(place, at), run) for place, run in self._changed]
        floor_time = records.time(base, at)
        records.drop_before(base)  # or all of them, if the file cannot be written
        left = [run_id for _, run_id in self._left]
        return Resumed(self._unchanged, changed, at, floor_time, records.refused, left)
