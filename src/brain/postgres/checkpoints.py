"""The checkpoint: what is known of the table, so that the next poll brings only what changed. And
its records, which outlive the process, so that after a restart `since` finds what it would have.

The rules of the records. Each stands with the test that fails without it.

1   A record is (time, xmin), of which xmin is that of a pg_snapshot. It sees a row exactly if the
    row's transaction is before xmin. (Not xmax and the list of running transactions: a snapshot
    does not list subtransactions.)
    test_a_record_sees_what_is_before_its_xmin
2   Its time is that of the last change that was sent, not of the last poll: on a quiet table a
    client holds an old time, and must not be told that it is too old.
    test_the_time_of_a_record_is_that_of_the_last_change
3   The highest time that may have been sent is stored before it is sent. The time of the next
    process starts there, and rows that no record sees have it, even if the database's clock was
    set back.
    test_time_goes_on_where_it_ended_before_the_restart
4   The first look reads what is unfinished and what the oldest record does not see, in one
    statement. A row has the time of the first record that sees it; an unfinished one that even the
    oldest sees has that time + 1, for clients that were cut off inside a snapshot. Nothing is
    pushed. Without records, the first look makes one.
    test_a_row_has_the_time_of_the_first_record_that_sees_it
5   What the oldest record does not see may have been anything before (delivery/board.py).
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
9   The file is locked: without the lock Brain neither reads nor writes records.
    test_a_second_brain_neither_reads_nor_writes
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

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import structlog

from brain.contract.messages import Micros
from brain.postgres.pgoutput import LSN
from brain.postgres.record_file import SLOTS, Header, Record, RecordFile, RecordFileError
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.table import Column

log = structlog.get_logger()

Identity: TypeAlias = tuple[str | None, ...]
"""System identifier, timeline, database, table and its columns, and how Brain reads them. When one
of them changes, nothing known of the table holds."""

NOWHERE = LSN(0)

RETRY: Micros = 10_000_000
"""Until Brain tries again to open a file that another Brain has locked."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that `visible` sees is known."""

    identity: Identity
    visible: PgSnapshot
    versions: frozenset[tuple[str, str | None]] = frozenset()
    """Id and xmin of row versions that are known although an open transaction holds the horizon
    before them: the next poll returns them again."""
    flushed: LSN = NOWHERE
    """How far the log was flushed to disk. It never goes back, unless an older state of this server
    is restored."""
    tree: frozenset[int] = frozenset()
    """The oids of the table and its partitions. One that is attached later brings rows that are
    older than the horizon."""
    epoch: str | None = None
    """When the server's statistics were reset: a crash resets them."""

    def voided_by(
        self, identity: Identity, visible: PgSnapshot, flushed: LSN, epoch: str | None = None
    ) -> bool:
        """Whether the database is no longer the one of this checkpoint."""
        return (
            identity != self.identity
            or epoch != self.epoch
            or visible.xmax < self.visible.xmax  # an older state of this very database was restored
            or 0 < flushed < self.flushed  # … and has had as many transactions since as before
            or visible.xmax - self.visible.xmin >= 2**31  # more than 32 bits can tell
        )

    def is_current(self, visible: PgSnapshot, flushed: LSN) -> bool:
        """Whether nothing was committed anywhere since."""
        return visible == self.visible and visible.whole and not 0 < flushed < self.flushed


class Records:
    """The records of one table, oldest first. Without a folder, or without the file, there are
    none, and Brain works all the same: `detail` says why.

    `keep`: seconds for which a record is kept, at least. `max_rows`: how many rows that are not
    unfinished the first look may bring; beyond it, older records are dropped.
    """

    def __init__(
        self, folder: Path | None = None, *, keep: float = 3600, max_rows: int = 100_000
    ) -> None:
        self.detail = "BRAIN_RESUME is 0" if folder is None else "the table has not been read yet"
        """Why `since` does not reach back over a restart; "" if it does."""
        self.max_rows = max_rows
        self._folder = folder
        self._keep = int(keep * 1_000_000)
        # Few enough for the file. A row then has a later time than it might: it is sent to more
        # clients than need it.
        self._apart = max(1_000_000, 2 * self._keep // SLOTS)
        self._file: RecordFile | None = None
        self._list: list[Record] = []
        self._slots: list[int] = []
        self._free: list[int] = []
        self._counts_for: tuple[object, ...] = ()
        """Identity, tree and epoch of the records."""
        self._told = ""
        self._name: object = None
        self._retry_at: Micros = 0

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

    def remember(self, time: Micros) -> None:
        """(3) To be called before anything with this time is sent."""
        if self._file is not None:
            self._file.high = time

    def first(self, xid: int) -> int:
        """(1) The place of the first record that sees this transaction; their number if none
        does.
        """
        return bisect_right(self._list, xid, key=lambda record: record.xmin)

    def time(self, place: int, otherwise: Micros) -> Micros:
        """(4) The time of a row that this record is the first to see."""
        return self._list[place].time if place < len(self._list) else otherwise

    # The file.

    def open(self, name: object, checkpoint: Checkpoint) -> None:
        """Read those that count for a checkpoint that has not read any rows yet."""
        self._name = name
        if self._file is None:
            self._open()
        if self._file is not None:
            self._read(self._file, checkpoint)

    def _open(self) -> None:
        if self._folder is not None and self._name is not None:
            try:
                self._file = RecordFile(self._folder, self._name)
            except RecordFileError as error:  # (9)
                self._fail(error.detail, error.hint)

    def unavailable(self, detail: str, hint: str = "") -> None:
        """The database does not permit records."""
        if self._folder is not None:
            self._fail(detail, hint)

    def _fail(self, detail: str, hint: str) -> None:
        self.detail = detail
        if detail != self._told:
            self._told = detail
            log.warning(
                "no resume over restarts", detail=detail, **({"hint": hint} if hint else {})
            )

    def _read(self, file: RecordFile, checkpoint: Checkpoint) -> None:
        wanted, found = _header(checkpoint), file.header
        self._counts_for = _dependencies(checkpoint)
        self._set(file.records())
        if found is None or not self._list:
            void = file.ignored
            self._set([])
        else:
            void = _void(found, wanted, self._list, checkpoint)
            if not void and found.epoch != wanted.epoch:
                void = self._crash(file, checkpoint)
            while self._list and checkpoint.visible.xmax - self.oldest.xmin >= 2**31:
                self._drop(0)
                void = void or ("" if self._list else "2^31 transactions have passed")
        self.detail = ""
        file.ignored = ""
        if void:
            self.void(void)
        elif not self._list:
            file.clear()

    def _set(self, records: list[tuple[int, Record]]) -> None:
        self._slots = [slot for slot, _ in records]
        self._list = [record for _, record in records]
        self._free = sorted(set(range(SLOTS)).difference(self._slots), reverse=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    # Making and dropping records.

    def begin(self, time: Micros, checkpoint: Checkpoint) -> None:
        """(4) The first of a new history: a `since` after this time is answered."""
        if self._file is None:
            return
        self._file.clear()
        self._set([])
        self._counts_for = _dependencies(checkpoint)
        self._append(_record(time, checkpoint))
        self._file.header = _header(checkpoint)
        self.detail = ""

    def add(self, time: Micros, checkpoint: Checkpoint, now: Micros) -> None:
        """(6, 7) Everything visible to the checkpoint has been applied, and the last change had
        this time.
        """
        if self._file is None and now >= self._retry_at:
            # The Brain that this one replaces may have ended; what it recorded is of no use here.
            self._retry_at = now + RETRY
            self._open()
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

    def drop_before(self, place: int) -> None:
        """Let this record be the oldest."""
        for _ in range(place):
            self._drop(0)

    def void(self, detail: str) -> None:
        """(8) None of them counts any more. `begin` makes the first of the new ones."""
        if self._file is not None:
            self._file.clear()
            self._set([])
            self.detail = detail
            log.warning("clients from before start over", detail=detail)

    def correct(self, xmin: int) -> None:
        """(8) The stream has left something out, which a comparison at `xmin` had not yet found."""
        while self._list and self._list[-1].xmin > xmin:
            self._drop(len(self) - 1)
        if self._file is not None and not self._list:
            self.void("the stream had left out changes")

    # Crashes of PostgreSQL.

    def settle(self, checkpoint: Checkpoint | None) -> None:
        """A crash loses nothing that this checkpoint sees. None: it may lose what was read."""
        if self._file is not None:
            visible = checkpoint.visible if checkpoint is not None else None
            self._file.durable = (visible.xmin, visible.xmax) if visible is not None else None

    def crashed(self, checkpoint: Checkpoint) -> None:
        """PostgreSQL has crashed, and lost nothing that was read."""
        if self._file is not None and (void := self._crash(self._file, checkpoint)):
            self.void(void)

    def _crash(self, file: RecordFile, checkpoint: Checkpoint) -> str:
        """Let the records see only what the crash cannot have lost. Returns why that is nothing."""
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
        file.header = _header(checkpoint)
        return ""


def _dependencies(checkpoint: Checkpoint) -> tuple[object, ...]:
    return checkpoint.identity, checkpoint.tree, checkpoint.epoch


def _header(checkpoint: Checkpoint) -> Header:
    return Header.of(checkpoint.identity, checkpoint.tree, checkpoint.epoch)


def _record(time: Micros, checkpoint: Checkpoint) -> Record:
    visible = checkpoint.visible
    return Record(time, visible.xmin, visible.xmax, checkpoint.flushed)


def _void(found: Header, wanted: Header, records: list[Record], checkpoint: Checkpoint) -> str:
    """(8) Why the records of a file do not count."""
    if found.identity != wanted.identity:
        return "the table, the server or the settings that change messages are not those of before"
    if found.tree != wanted.tree:
        return "the table's partitions are not those of before"
    behind = found.epoch == wanted.epoch and checkpoint.visible.xmax < records[-1].xmax
    if behind or 0 < checkpoint.flushed < max(record.flushed for record in records):
        return "an older state of the database was restored"
    return ""


@dataclass(slots=True)
class Progress:
    """How far the table has been followed. It outlives connections and streams."""

    checkpoint: Checkpoint | None = None
    unseen: set[int] = field(default_factory=set)
    """Transactions that a stream has delivered and that a query may not see yet."""
    columns: Mapping[str, Column] | None = None
    """Of the table, as last described. None until it has been described once."""
    streamed: bool = False
    """A stream has told every delete, and is lost. The next Snapshot from which on deletes may be
    unknown (T7 in delivery/tombstones.py) is still to come."""
    records: Records = field(default_factory=Records)
    durable: Checkpoint | None = None
    """The last mark, if nothing was read by a query since: a crash of PostgreSQL loses nothing."""
    mark: tuple[LSN, Checkpoint] | None = None
    """While polling: once the log has been flushed up to here, this checkpoint is durable."""

    def read_rows(self) -> None:
        """To be called before rows that a query has read are passed on."""
        self.records.settle(None)
        self.durable = self.mark = None

    def settle(self, checkpoint: Checkpoint) -> None:
        """What this checkpoint sees has been flushed since."""
        self.durable = checkpoint
        self.records.settle(checkpoint)

    def flushed(self, flushed: LSN, inserted: LSN) -> None:
        """While polling: where the log is flushed and written, after the last query."""
        if self.mark is not None and self.mark[0] <= flushed:
            self.settle(self.mark[1])
            self.mark = None
        if self.mark is None and self.checkpoint is not None and inserted:
            self.mark = inserted, self.checkpoint

    def notice(self, epoch: str | None) -> None:
        """Whether PostgreSQL has crashed. If it may have lost something that was sent, the next
        poll finds a new history.
        """
        if self.checkpoint is None or self.checkpoint.epoch == epoch:
            return
        if self.durable is not None:
            self.checkpoint = self.durable = replace(self.durable, epoch=epoch)
            self.records.crashed(self.checkpoint)
