"""What a stream sends, message by message, as Changes: rows in the words of the contract, in slices
of transactions, without those that the last poll has seen.

It reads no socket and waits for nothing.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

from brain.contract.events import Changes, Op, only_id
from brain.contract.messages import FIELDS, ID, UNCHANGED, Micros, Run
from brain.postgres import pgoutput
from brain.postgres.column_map import ColumnMap
from brain.postgres.decoder import Decoder, is_expressible
from brain.postgres.pgoutput import LSN, UNWANTED, PgoutputError, RowFormat, Values
from brain.postgres.snapshots import PgSnapshot, Xid, widen

SLICE = 1000
"""Rows of a slice at most: a transaction of a million rows is never in memory whole."""

LONGEST: Final = 64 * 1024
"""Bytes of a text that is read whole, whatever the bound of texts. No id, word, number or time that
the contract can express is as long."""


Handler: TypeAlias = Callable[[bytes, int], bool]


class Transactions:
    """`feed` it every message, and `take` what has gathered."""

    def __init__(
        self,
        oid: int,
        columns: ColumnMap,
        padded: tuple[int, ...],
        decoder: Decoder,
        codec: str,
    ) -> None:
        self._passed = LSN(0)
        self._committed: tuple[bytes, int] | None = None
        """The last Commit, and where it begins, until somebody asks for the position."""
        self.joined_at = LSN(0)
        """The insert position after the poll that the stream continues."""
        self.described = False
        """PostgreSQL has described the table. `feed` sets it; the reader resets it when it has
        looked at the table."""
        self._oid = oid
        self._columns = columns
        self._padded = padded
        self._decoder = decoder
        self._codec = codec
        # A character has four bytes at most. One character more, and the decoder sees that the text
        # is too long.
        self.longest = max(LONGEST, 4 * (decoder.max_text + 2))
        """Bytes of a message that need not be shortened."""
        self._formats: dict[int, RowFormat] = {}
        self._visible = PgSnapshot(0, 0, frozenset())
        self._joining = True
        self._skip = False
        self._begun = False
        self._time: Micros = 0
        self.xid = Xid(0)
        """Of the transaction that was fed last."""
        self._taken: list[Changes] = []
        self._changes: Changes | None = None
        """The slice of the present transaction."""
        self._count = 0
        """Rows that have gathered."""
        self._handlers: dict[int, Handler] = {
            pgoutput.BEGIN: self._begin,
            pgoutput.UPDATE: self._update,
            pgoutput.COMMIT: self._commit,
            pgoutput.INSERT: self._insert,
            pgoutput.DELETE: self._delete,
            pgoutput.RELATION: self._relation,
            pgoutput.TRUNCATE: self._truncate,
            **dict.fromkeys(pgoutput.IGNORED, lambda _, __: False),
        }

    @property
    def position(self) -> LSN:
        """Everything that was committed before it has been fed."""
        if self._committed is not None:
            _, end, _ = pgoutput.commit(*self._committed)
            self._committed = None
            self._passed = max(self._passed, end)
        return self._passed

    def join(self, visible: PgSnapshot, upto: LSN) -> None:
        """Leave out what the last poll has seen: the transactions that `visible`, its snapshot,
        sees and that were committed at or before `upto`, the insert position that was read after
        it.
        """
        self._visible, self.joined_at = visible, upto

    def feed(self, data: bytes, at: int) -> bool:
        """Add the message that begins there. True: `take` what has gathered before the next.

        Raises PgoutputError.
        """
        try:
            handle = self._handlers[data[at]]
        except LookupError:
            raise pgoutput.malformed(data, at) from None
        return handle(data, at)

    def shortened(self, data: memoryview, at: int) -> bytes:
        """The bytes, with texts that end behind the bound of texts. Raises PgoutputError."""
        return pgoutput.shortened(data, at, self.longest, self._codec)

    def pass_by(self, position: LSN) -> None:
        """Nothing of the table was committed before it but what has been fed."""
        self._passed = max(self._passed, position)

    def take(self) -> list[Changes]:
        """At most SLICE rows, and one more if the last was an UPDATE of an id."""
        taken = self._taken
        self._taken, self._changes, self._count = [], None, 0
        return taken

    # One function for each kind of message, which returns what `feed` returns.

    def _begin(self, data: bytes, at: int) -> bool:
        lsn, self._time, xid = pgoutput.begin(data, at)
        self.xid = xid = widen(xid, self.xid or self._visible.xmax)
        self._begun = True
        self._changes = None
        if self._joining:
            self._joining = lsn <= self.joined_at
            self._skip = self._joining and self._visible.sees(xid)
        return False

    def _commit(self, data: bytes, at: int) -> bool:
        # One position is asked for in a read of hundreds of transactions.
        if len(data) - at != pgoutput.COMMIT_BYTES:
            raise pgoutput.malformed(data, at)
        self._committed = data, at
        self._begun = False
        return False

    def _relation(self, data: bytes, at: int) -> bool:
        found = pgoutput.relation(data, at, self._codec)
        if found.oid != self._oid:
            return False
        names = self._columns.resolve(found.columns)
        places = {names[field]: i for i, field in enumerate(FIELDS) if field in names}
        self._formats[found.oid] = RowFormat(
            tuple(places.get(column, UNWANTED) for column in found.columns),
            len(FIELDS),
            self._codec,
        )
        self.described = True
        return True

    def _truncate(self, data: bytes, at: int) -> bool:
        if self._skip or self._oid not in pgoutput.truncate(data, at, None):
            return False
        self._slice()
        return self._add("truncate", only_id(""))

    def _insert(self, data: bytes, at: int) -> bool:
        found = pgoutput.insert(data, at, self._formats)
        if found is None:
            return self._foreign(data, at)
        values, lacking = found
        return not self._skip and self._put("insert", values, lacking)

    def _update(self, data: bytes, at: int) -> bool:
        found = pgoutput.update(data, at, self._formats)
        if found is None:
            return self._foreign(data, at)
        values, lacking, old, whole = found
        if self._skip:
            return False
        if old is None:
            return self._put("update", values, lacking)
        return self._replace(values, old, whole=whole)

    def _delete(self, data: bytes, at: int) -> bool:
        old = pgoutput.delete(data, at, self._formats)
        if old is None:
            return self._foreign(data, at)
        if self._skip:
            return False
        self._slice()
        return self._forget(self._unpadded(old)[ID])

    def _foreign(self, data: bytes, at: int) -> bool:
        """A row of a relation whose format is unknown."""
        if pgoutput.oid(data, at) == self._oid:
            raise PgoutputError("a row before its relation")
        return False

    # Rows.

    def _slice(self) -> Changes:
        """The present transaction's slice."""
        changes = self._changes
        if changes is None:
            if not self._begun:
                raise PgoutputError("a row outside of a transaction")
            self._changes = changes = Changes([], self._time, self.xid)
            self._taken.append(changes)
        return changes

    def _put(self, op: Op, values: Values, lacking: bool) -> bool:
        changes = self._changes or self._slice()
        run = self._decoder(self._unpadded(values) if self._padded else values)
        if run is None:
            # The board may hold the run as it was, in words of the contract.
            return op == "update" and self._forget(values[ID])
        if lacking:
            if run[ID] == UNCHANGED:
                # An id that is no part of the replica identity: a comparison finds the run.
                return False
            changes.incomplete = True
        changes.rows.append((op, run))
        self._count = count = self._count + 1
        return count >= SLICE

    def _replace(self, values: Values, old: Values, *, whole: bool) -> bool:
        """An UPDATE that says what the row was."""
        if values[ID] == UNCHANGED:
            values[ID] = old[ID]  # an id so long that it is stored out of line
        op: Op = "update"
        if old[ID] is not None and old[ID] != values[ID]:
            self._slice()
            op = "insert"  # (T9 in delivery/tombstones.py)
            self._forget(self._unpadded(old)[ID])
        if whole:
            values = [
                o if value == UNCHANGED else value for value, o in zip(values, old, strict=True)
            ]
        return self._put(op, values, UNCHANGED in values)

    def _forget(self, run_id: str | None) -> bool:
        if not run_id or not is_expressible(run_id):
            return False
        return self._add("delete", only_id(run_id))

    def _add(self, op: Op, run: Run) -> bool:
        self._slice().rows.append((op, run))
        self._count += 1
        return self._count >= SLICE

    def _unpadded(self, values: Values) -> Values:
        """Without the spaces at the end of the columns of type char(n)."""
        for i in self._padded:
            value = values[i]
            if value is not None:
                values[i] = type(value)(value.rstrip(" "))
        return values
