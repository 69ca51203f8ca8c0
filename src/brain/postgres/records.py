"""Records: the part of the checkpoints that outlives the process, so that after a restart `since`
finds what it would have found before.

Each rule names a test that fails without it.

1   A record is (time, xmin), of which xmin is that of a pg_snapshot. It sees a row exactly if the
    row's transaction is before xmin. (Not xmax and the list of running transactions: a snapshot
    does not list subtransactions.)
    test_a_record_sees_what_is_before_its_xmin
2   Its time is that of the last change that was sent, not of the last poll: on a quiet table a
    client holds an old time, which must not count as too old.
    test_the_time_of_a_record_is_that_of_the_last_change
3   The highest time that may have been sent is stored before it is sent: a tenth of a second ahead,
    so that not every change needs a write. The time of the next process starts there, and rows
    that no record sees have it, even if the database's clock was set back (but see sent_times.py
    for a clock that was far ahead).
    test_time_goes_on_where_it_ended_before_the_restart
4   The first look reads what is unfinished and what the oldest record does not see, in one
    statement. A row has the time of the first record that sees it; an unfinished one that even the
    oldest sees has that time + 1, for clients that were cut off inside a snapshot. Nothing is
    pushed. Without records, the first look makes one.
    test_a_row_has_the_time_of_the_first_record_that_sees_it
5   What the oldest record does not see may have been anything before (delivery/board.py), also
    a row that is no run now.
    test_resumed_runs_may_have_been_anything
6   A record is made after each complete poll and each mark of the stream. Of two with one time the
    newer counts, of two with one xmin the older.
    test_of_two_records_with_one_time_the_newer_counts
7   The oldest is dropped only while the next one's time lies before the last change, however old
    both are: a client holds the time of the last change.
    test_the_oldest_record_is_kept_while_clients_may_hold_the_next_ones_time
8   Records count for one identity and tree of the table. A new history voids all; a comparison
    that corrects the board voids those since the last one that did not.
    test_another_table_voids_the_records, test_a_correction_voids_the_records_since
9   The file is locked: without the lock Brain neither reads nor writes records. What another
    program does to the file is undone; when it can no longer be written, it is emptied, because
    what it says of times and of crashes would be wrong.
    test_a_second_brain_neither_reads_nor_writes, test_what_others_do_to_the_file_is_undone,
    test_a_file_that_can_no_longer_be_written_is_emptied
10  No `since` is too new: while nothing changes the board's time stands still, and a good clock
    would be refused. By rule 3, no genuine one is.
    test_a_since_beyond_the_last_change_is_answered

A crash of PostgreSQL loses commits with `synchronous_commit=off`, and gives their ids to others. It
resets the statistics (the `epoch`), which a clean restart does not. Then records count only up to
the last mark: a position of the log, read after a query, that has since been flushed. And only if
nothing was read by a query since, because that may be lost. (The stream carries only what is
flushed.)
test_a_crash_of_postgresql_voids_what_it_may_have_lost
"""

import time
from bisect import bisect_right
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Concatenate, Final, ParamSpec

import structlog

from brain.contract.messages import Micros
from brain.postgres.checkpoints import Checkpoint, parts
from brain.postgres.record_file import LATEST, SLOTS, Record, RecordFile, RecordFileError
from brain.postgres.sent_times import MAX_LEAD, SentTimes, Span
from brain.postgres.void import header, why_void

log = structlog.get_logger()

EVERY: Final = 1.0
"""Seconds between two looks whether somebody changed the file, and between two tries to open one
that another Brain has locked."""

_CLOCK_HINT = "restart Brain: timestamps return to the clock, and clients start over"

AHEAD: Final[Micros] = 100_000
"""How far ahead the highest time is stored. A start of Brain takes longer."""


P = ParamSpec("P")


def guarded(
    method: Callable[Concatenate["Records", P], None],
) -> Callable[Concatenate["Records", P], None]:
    """A decorator: if the method cannot use the file, there are no records from then on (9)."""

    @wraps(method)
    def guard(self: "Records", /, *args: P.args, **kwargs: P.kwargs) -> None:
        try:
            method(self, *args, **kwargs)
        except RecordFileError as error:
            self.lose(error)

    return guard


class Records:
    """The records of one table, oldest first. Without a folder, or without the file, there are
    none; Brain works without them, and `detail` says why.

    `keep`: seconds for which a record is kept, at least. `max_rows`: how many rows that are not
    unfinished the first look may bring; beyond it, older records are dropped. `detail`: why there
    is no folder.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        keep: float = 3600,
        max_rows: int = 100_000,
        clock: Callable[[], float] = time.monotonic,
        detail: str = "BRAIN_RESUME is 0",
    ) -> None:
        self.detail = detail if folder is None else "the table has not been read yet"
        """Why `since` does not reach back over a restart; "" if it does."""
        self.voided = ""
        """Why clients from before started over the last time; "" if they have not."""
        self.voids = 0
        """How often clients from before started over."""
        self.max_rows = max_rows
        self._folder = folder
        self._keep = int(keep * 1_000_000)
        # Few enough for the file. A row then has a later time than it might: it is sent to more
        # clients than need it.
        self._apart = max(1_000_000, 2 * self._keep // SLOTS)
        self._clock = clock
        self._file: RecordFile | None = None
        self._sent = SentTimes(None, 0)
        self._time: Micros = 0
        """The highest time that this process may have sent, or that it has found."""
        self._found: Micros = 0
        """The highest time of the process before."""
        self._lead: Micros = 0
        """How far timestamps are ahead of the database's clock, as it was last read."""
        self._stored = LATEST
        """Up to where times may be sent without a write: all of them while there is no file."""
        self._list: list[Record] = []
        self._slots: list[int] = []
        self._free: list[int] = []
        self._counts_for: tuple[object, ...] = ()
        """Identity, tree and epoch of the records."""
        self._logged = ""
        self._name: object = None
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._list)

    @property
    def oldest(self) -> Record:
        return self._list[0]

    @property
    def high(self) -> Micros:
        """(3) The highest time that may have been sent by this or the last process; 0 if it is not
        known.
        """
        return self._file.high if self._file is not None else 0

    @property
    def refused(self) -> tuple[Span, ...]:
        """Times that no message may bear, and at which every `since` is a gap (sent_times.py)."""
        return self._sent.refused

    def remember(self, time: Micros) -> None:
        """(3) Call it before anything with this time is sent."""
        self._time = time
        if time > self._stored:
            self._store(time)

    @guarded
    def _store(self, time: Micros) -> None:
        if self._file is None:
            return
        if self._sent.leap(self._stored, time):
            self._file.spans = self._sent.numbers()
        self._file.high = self._stored = self._sent.before_refused(time, time + AHEAD)

    def start(self, now: Micros) -> Micros:
        """The time at which a new process begins, given the database's: usually the last time of
        the process before. If the database's clock was far ahead, nobody can resume, and the clock
        counts.
        """
        now, high = self._sent.allowed(now), self.high
        if high - now <= MAX_LEAD:
            return max(now, high)
        if not self._sent.refuse(high, now):
            return high
        self._return(now, f"the database's clock was {(high - now) // 1_000_000} s ahead")
        return now

    @guarded
    def _return(self, now: Micros, detail: str) -> None:
        if self._file is not None:
            self.void(detail)
            self._file.spans = self._sent.numbers()
            self._file.high = self._stored = self._found = now

    def compare(self, now: Micros) -> None:
        """Say when the database's clock is far behind the timestamps that clients have."""
        before, self._lead = self._lead, self._time - now
        if self._lead > MAX_LEAD >= before:
            (warning,) = self.warnings()
            log.warning("clock", **{name: warning[name] for name in ("detail", "hint")})

    def warnings(self) -> list[dict[str, str]]:
        """For /readyz."""
        if self._lead <= MAX_LEAD:
            return []
        ahead = f"the last timestamp is {self._lead // 1_000_000} s ahead of the database's clock"
        detail = f"{ahead}: timestamps stand still until the clock has reached it"
        return [{"code": "clock", "detail": detail, "hint": _CLOCK_HINT}]

    def first(self, xid: int) -> int:
        """(1) The place of the first record that sees this transaction; the number of records if
        none does.
        """
        return bisect_right(self._list, xid, key=lambda record: record.xmin)

    def time(self, place: int, otherwise: Micros) -> Micros:
        """(4) The time of a row that this record is the first to see."""
        return self._list[place].time if place < len(self._list) else otherwise

    # The file.

    @guarded
    def open(self, name: object, checkpoint: Checkpoint) -> None:
        """Read the records that count for this checkpoint, which has read no rows yet."""
        self._name = name
        if self._file is None:
            self._open()
        if self._file is not None:
            self._read(self._file, checkpoint)

    def _open(self) -> None:
        """Raises RecordFileError."""
        self._look_at = self._clock() + EVERY
        if self._folder is None or self._name is None:
            return
        self._file = file = RecordFile(self._folder, self._name)  # (9)
        self._sent = SentTimes(file.spans, file.high)
        if self._sent.high != file.high:  # killed while it returned to the clock
            file.high = self._sent.high
        self._found = self._stored = file.high
        if self._time > self._stored:
            self._store(self._time)

    def _look(self) -> None:
        """(9) See what others did to the file, or whether it can be used again. Raises
        RecordFileError.
        """
        if self._clock() < self._look_at:
            return
        self._look_at = self._clock() + EVERY
        if self._file is None:
            # The Brain that this one replaces may have ended; what it recorded is of no use here.
            self._open()
        elif done := self._file.repair():
            log.warning("the records are written again", detail=done)

    def lose(self, error: RecordFileError) -> None:
        """(9) The file cannot be used: there are no records from now on."""
        if self._file is not None:
            self._file.abandon()
            self._file = None
        self._stored = LATEST
        self._set([])
        self._fail(error.detail, error.hint)

    def unavailable(self, detail: str, hint: str = "") -> None:
        """The database does not permit records."""
        if self._folder is not None:
            self._fail(detail, hint)

    def _fail(self, detail: str, hint: str) -> None:
        self.detail = detail
        if detail != self._logged:
            self._logged = detail
            log.warning(
                "no resume over restarts", detail=detail, **({"hint": hint} if hint else {})
            )

    def _read(self, file: RecordFile, checkpoint: Checkpoint) -> None:
        wanted, found = header(checkpoint), file.header
        self._counts_for = _dependencies(checkpoint)
        self._set(file.records())
        void = why_void(file, self._list, checkpoint)
        if self._list and not void and found is not None and found.epoch != wanted.epoch:
            void = self._crash(file, checkpoint)
        while self._list and checkpoint.visible.xmax - self.oldest.xmin >= 2**31:
            self._drop(0)
            void = void or ("" if self._list else "2^31 transactions have passed")
        self.detail = self._logged = file.ignored = ""
        if void:
            self.void(void)
        elif not self._list:
            file.clear()
        elif self._sent.forget(self.oldest.time):
            file.spans = self._sent.numbers()

    def _set(self, records: list[tuple[int, Record]]) -> None:
        self._slots = [slot for slot, _ in records]
        self._list = [record for _, record in records]
        self._free = sorted(set(range(SLOTS)).difference(self._slots), reverse=True)

    @guarded
    def close(self) -> None:
        file = self._file
        if file is not None:
            if self._time:
                file.high = max(self._time, self._found)
            self._file = None
            self._stored = LATEST
            file.close()

    # Making and dropping records.

    @guarded
    def begin(self, time: Micros, checkpoint: Checkpoint) -> None:
        """(4) The first of a new history: a `since` after this time is answered."""
        if self._file is None:
            return
        self._file.clear()
        self._set([])
        self._counts_for = _dependencies(checkpoint)
        self._append(_record(time, checkpoint))
        self._file.header = header(checkpoint)
        self._file.parts = parts(checkpoint.identity)
        if self._sent.refused:
            self._file.spans = self._sent.numbers()
        self.detail = self._logged = ""

    @guarded
    def add(self, time: Micros, checkpoint: Checkpoint, now: Micros) -> None:
        """(6, 7) Everything visible to the checkpoint has been applied, and the last change had
        this time.
        """
        self._look()
        if self._file is None:
            return
        if not self._list or _dependencies(checkpoint) != self._counts_for:
            # (8) They were void, or a partition has come or gone.
            self.begin(time, checkpoint)
            return
        record, last = _record(time, checkpoint), self._list[-1]
        if record.xmin > last.xmin:
            # (6) A time that is replaced by a later one is that of more rows: sent more often.
            if time == last.time or (len(self) > 1 and time - self._list[-2].time < self._apart):
                self._list[-1] = record
                self._file.write(self._slots[-1], record)
            else:
                self._append(record)
        while (
            len(self) > 1
            and self._list[1].time < time  # (7)
            and (
                self._list[1].time < now - self._keep
                or len(self) >= SLOTS
                or record.xmax - self.oldest.xmin >= 2**30
            )
        ):
            self._drop(0)

    def _append(self, record: Record) -> None:
        assert self._file is not None
        slot = self._free.pop()
        self._list.append(record)
        self._slots.append(slot)
        self._file.write(slot, record)

    def _drop(self, place: int) -> None:
        assert self._file is not None
        slot = self._slots.pop(place)
        del self._list[place]
        self._free.append(slot)
        self._file.erase(slot)

    @guarded
    def drop_before(self, place: int) -> None:
        """Drop the records before this place."""
        if self._file is None:
            return
        for _ in range(place):
            self._drop(0)

    @guarded
    def void(self, detail: str) -> None:
        """(8) None of them counts any more. `begin` makes the first of the new ones."""
        if self._file is not None:
            self._file.clear()
            self._set([])
            self.detail = self.voided = detail
            self.voids += 1
            log.warning("clients from before start over", detail=detail)

    @guarded
    def correct(self, xmin: int) -> None:
        """(8) The stream has left something out, which a comparison at `xmin` had not yet found."""
        while self._list and self._list[-1].xmin > xmin:
            self._drop(len(self) - 1)
        if self._file is not None and not self._list:
            self.void("the stream had left out changes")

    # Crashes of PostgreSQL.

    @guarded
    def settle(self, checkpoint: Checkpoint | None) -> None:
        """A crash loses nothing that this checkpoint sees. None: it may lose what was read."""
        if self._file is not None:
            visible = checkpoint.visible if checkpoint is not None else None
            self._file.durable = (visible.xmin, visible.xmax) if visible is not None else None

    @guarded
    def crashed(self, checkpoint: Checkpoint) -> None:
        """PostgreSQL has crashed, and lost nothing that was read."""
        if self._file is not None and (void := self._crash(self._file, checkpoint)):
            self.void(void)

    def _crash(self, file: RecordFile, checkpoint: Checkpoint) -> str:
        """Let the records see only what the crash cannot have lost. Returns why that is impossible,
        or "".
        """
        durable = file.durable
        if durable is None or checkpoint.visible.xmax < durable[1]:
            return "PostgreSQL has crashed, and may have lost changes that were sent"
        place = self.first(durable[0])  # the first that sees more than the mark
        while len(self) > place + 1:
            self._drop(place + 1)
        if place < len(self):
            if place and self._list[place - 1].xmin == durable[0]:
                self._drop(place)
            else:
                record = self._list[place]._replace(xmin=durable[0], xmax=durable[1])
                self._list[place] = record
                file.write(self._slots[place], record)
        self._counts_for = _dependencies(checkpoint)
        file.header = header(checkpoint)
        file.parts = parts(checkpoint.identity)
        return ""


def _dependencies(checkpoint: Checkpoint) -> tuple[object, ...]:
    return checkpoint.identity, checkpoint.tree, checkpoint.epoch


def _record(time: Micros, checkpoint: Checkpoint) -> Record:
    visible = checkpoint.visible
    return Record(time, visible.xmin, visible.xmax, checkpoint.flushed)
