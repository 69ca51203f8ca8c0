"""The messages of pgoutput as objects, with every column of a row: `parse` reads any message by the
functions that Brain reads it with.
"""

from dataclasses import dataclass
from typing import TypeAlias

from brain.contract.messages import UNCHANGED, Micros
from brain.postgres import pgoutput
from brain.postgres.pgoutput import LSN, Relation, RowFormat, Values


@dataclass
class Begin:
    lsn: LSN
    time: Micros
    xid: int


@dataclass
class Commit:
    lsn: LSN
    end: LSN
    time: Micros


@dataclass
class Insert:
    oid: int
    new: Values


@dataclass
class Update:
    oid: int
    new: Values
    old: Values | None = None
    full: bool = False


@dataclass
class Delete:
    oid: int
    old: Values


@dataclass
class Truncate:
    oids: tuple[int, ...]


@dataclass
class Ignored:
    kind: str


Message: TypeAlias = Begin | Commit | Relation | Insert | Update | Delete | Truncate | Ignored


def parse(data: bytes, codec: str = "utf-8", at: int = 0) -> Message:
    """Raises nothing but PgoutputError, for any bytes."""
    kind = data[at] if len(data) > at else None
    match chr(kind or 0):
        case "B":
            return Begin(*pgoutput.begin(data, at))
        case "C":
            return Commit(*pgoutput.commit(data, at))
        case "R":
            return pgoutput.relation(data, at, codec)
        case "T":
            return Truncate(pgoutput.truncate(data, at, None))
        case "O" | "Y" | "M":
            return Ignored(chr(data[at]))
        case "I" | "U" | "D":
            return _row(data, codec, at)
    raise pgoutput.malformed(data, at)


def _row(data: bytes, codec: str, at: int) -> Message:
    oid = int.from_bytes(data[at + 1 : at + 5], "big")
    # Both rows of an UPDATE have as many columns as the first says, each of one byte at least.
    count = min(int.from_bytes(data[at + 6 : at + 8], "big"), len(data))
    formats = {oid: RowFormat(tuple(range(count)), count, codec)}
    match data[at]:
        case pgoutput.INSERT:
            inserted = pgoutput.insert(data, at, formats)
            assert inserted is not None
            _check(inserted[0], lacking=inserted[1])
            return Insert(oid, inserted[0])
        case pgoutput.UPDATE:
            updated = pgoutput.update(data, at, formats)
            assert updated is not None
            new, lacking, old, whole = updated
            _check(new, lacking=lacking)
            return Update(oid, new, old, whole)
        case _:
            deleted = pgoutput.delete(data, at, formats)
            assert deleted is not None
            return Delete(oid, deleted)


def _check(values: Values, *, lacking: bool) -> None:
    # A text of one NUL is none that PostgreSQL sends, and any bytes may contain it.
    assert not lacking or UNCHANGED in values
