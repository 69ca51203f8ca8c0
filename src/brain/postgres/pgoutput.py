"""The messages of the plugin pgoutput: bytes → relation, row, commit. Protocol version 1, text
format.

PostgreSQL documentation, "Logical Replication Message Formats". A transaction arrives after it has
committed: Begin, then an Insert, Update or Delete for each row, then Commit. A Relation precedes
the first row of its table.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import NewType, TypeAlias

from brain.contract.errors import BrainError
from brain.contract.messages import UNCHANGED, Micros
from brain.postgres.text import unreadable

LSN = NewType("LSN", int)
"""A position in the write-ahead log, in bytes. Printed by PostgreSQL as two hexadecimal halves:
16/B374D848."""

POSTGRES_EPOCH: Micros = 946_684_800_000_000
"""2000-01-01T00:00:00Z: PostgreSQL counts its microseconds from there."""

Values: TypeAlias = list[str | None]
"""A row's columns in the order of its relation: text, None for NULL, or UNCHANGED."""


class PgoutputError(BrainError):
    """Not a pgoutput message of protocol version 1"""


# The messages of each row and transaction are not frozen: to make a frozen one takes three times as
# long.


@dataclass(slots=True)
class Begin:
    """`lsn` is that of the commit, which all rows of the transaction share."""

    lsn: LSN
    time: Micros
    xid: int


@dataclass(slots=True)
class Commit:
    lsn: LSN
    end: LSN
    time: Micros


@dataclass(frozen=True, slots=True)
class Relation:
    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[str, ...]


@dataclass(slots=True)
class Insert:
    oid: int
    new: Values


@dataclass(slots=True)
class Update:
    """`old`: the key alone if it changed, the row if REPLICA IDENTITY is FULL, else None."""

    oid: int
    new: Values
    old: Values | None = None
    full: bool = False


@dataclass(slots=True)
class Delete:
    """`old` holds at least the columns of the replica identity."""

    oid: int
    old: Values


@dataclass(frozen=True, slots=True)
class Truncate:
    oids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ignored:
    """Origin, Type or Message: legal, and of no use here."""

    kind: str


Message: TypeAlias = Begin | Commit | Relation | Insert | Update | Delete | Truncate | Ignored

_begin = struct.Struct(">xQqI").unpack
_commit = struct.Struct(">xxQQq").unpack
_column = struct.Struct(">BI").unpack_from
_u32 = struct.Struct(">I").unpack_from
_u16 = struct.Struct(">H").unpack_from

# The type bytes of a tuple's columns, and the marks before a tuple.
_NULL, _UNCHANGED, _TEXT = b"nut"
_NEW, _KEY, _OLD = b"NKO"


def parse(data: bytes, codec: str = "utf-8") -> Message:
    """One message, as CopyData carries it. Raises nothing but PgoutputError, for any bytes.

    `codec` is Python's name of the encoding of the texts. A text that has other bytes is an
    Unreadable.
    """
    try:
        return _PARSERS[data[0]](data, codec)
    except (LookupError, ValueError, ArithmeticError, struct.error) as error:
        raise _malformed(data) from error


def _malformed(data: bytes) -> PgoutputError:
    return PgoutputError(
        f"not a pgoutput message of protocol version 1: {data[:40]!r} ({len(data)} bytes)"
    )


def _tuple(data: bytes, at: int, codec: str) -> tuple[Values, int]:
    (count,) = _u16(data, at)
    at += 2
    values: Values = []
    append = values.append
    # A kind and a size are read at once, also where the kind is the last byte.
    padded = data + b"\0\0\0\0"
    for _ in range(count):
        kind, size = _column(padded, at)
        if kind == _TEXT:
            start = at + 5
            at = start + size
            try:
                append(data[start:at].decode(codec))
            except UnicodeDecodeError:
                append(unreadable(data[start:at], codec))
        elif kind == _NULL:
            append(None)
            at += 1
        elif kind == _UNCHANGED:
            append(UNCHANGED)
            at += 1
        else:
            raise _malformed(data)
    return values, at


def _whole(data: bytes, at: int) -> None:
    """A slice past the end is silently short, so this finds a wrong length."""
    if at != len(data):
        raise _malformed(data)


def _parse_begin(data: bytes, _codec: str) -> Begin:
    lsn, time, xid = _begin(data)
    return Begin(lsn, time + POSTGRES_EPOCH, xid)


def _parse_commit(data: bytes, _codec: str) -> Commit:
    lsn, end, time = _commit(data)
    return Commit(lsn, end, time + POSTGRES_EPOCH)


def _parse_relation(data: bytes, codec: str) -> Relation:
    (oid,) = _u32(data, 1)
    schema, name, rest = data[5:].split(b"\0", 2)
    identity = chr(rest[0])
    (count,) = _u16(rest, 1)
    at = 3
    columns = []
    for _ in range(count):
        end = rest.index(b"\0", at + 1)
        columns.append(rest[at + 1 : end].decode(codec, "replace"))
        at = end + 9  # past the OID and modifier of its type: Brain reads every type as text
    _whole(rest, at)
    return Relation(
        oid,
        schema.decode(codec, "replace"),
        name.decode(codec, "replace"),
        identity,
        tuple(columns),
    )


def _parse_insert(data: bytes, codec: str) -> Insert:
    (oid,) = _u32(data, 1)
    if data[5] != _NEW:
        raise _malformed(data)
    new, at = _tuple(data, 6, codec)
    _whole(data, at)
    return Insert(oid, new)


def _parse_update(data: bytes, codec: str) -> Update:
    (oid,) = _u32(data, 1)
    mark = data[5]
    old = None
    at = 5
    if mark in (_KEY, _OLD):
        old, at = _tuple(data, 6, codec)
    if data[at] != _NEW:
        raise _malformed(data)
    new, at = _tuple(data, at + 1, codec)
    _whole(data, at)
    return Update(oid, new, old, mark == _OLD)


def _parse_delete(data: bytes, codec: str) -> Delete:
    (oid,) = _u32(data, 1)
    if data[5] not in (_KEY, _OLD):
        raise _malformed(data)
    old, at = _tuple(data, 6, codec)
    _whole(data, at)
    return Delete(oid, old)


def _parse_truncate(data: bytes, _codec: str) -> Truncate:
    (count,) = _u32(data, 1)
    _whole(data, 6 + 4 * count)
    return Truncate(tuple(_u32(data, 6 + 4 * i)[0] for i in range(count)))


def _parse_ignored(data: bytes, _codec: str) -> Ignored:
    return Ignored(chr(data[0]))


_PARSERS: dict[int, Callable[[bytes, str], Message]] = {
    ord("B"): _parse_begin,
    ord("C"): _parse_commit,
    ord("R"): _parse_relation,
    ord("I"): _parse_insert,
    ord("U"): _parse_update,
    ord("D"): _parse_delete,
    ord("T"): _parse_truncate,
    ord("O"): _parse_ignored,
    ord("Y"): _parse_ignored,
    ord("M"): _parse_ignored,
}
