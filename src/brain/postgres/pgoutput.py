"""The messages of the plugin pgoutput: bytes → values. Protocol version 1, text format.

PostgreSQL documentation, "Logical Replication Message Formats". A transaction arrives after it has
committed: Begin, then an Insert, Update or Delete for each row, then Commit. A Relation precedes
the first row of its table.

There is one function for each kind of message. It is given the bytes of the envelope and the place
where the message begins in it: a copy of the message alone costs as much as to read it, and an
object for each message as much again. It raises nothing but PgoutputError, for any bytes.
"""

import codecs
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NewType, TypeAlias, TypeVar

from brain.contract.errors import BrainError
from brain.contract.messages import UNCHANGED, Micros
from brain.postgres.text import unreadable

G = TypeVar("G")
R = TypeVar("R")

LSN = NewType("LSN", int)
"""A position in the write-ahead log, in bytes. Printed by PostgreSQL as two hexadecimal halves:
16/B374D848."""

POSTGRES_EPOCH: Micros = 946_684_800_000_000
"""2000-01-01T00:00:00Z: PostgreSQL counts its microseconds from there."""

BEGIN, COMMIT, RELATION, INSERT, UPDATE, DELETE, TRUNCATE = b"BCRIUDT"
COMMIT_BYTES: Final = 26
IGNORED = b"OYM"
"""Origin, Type and Message: legal, and of no use here."""

Values: TypeAlias = list[str | None]
"""The wanted columns of a row: text, None for NULL, or UNCHANGED."""


class PgoutputError(BrainError):
    """Not a pgoutput message of protocol version 1"""


@dataclass(frozen=True, slots=True)
class Relation:
    oid: int
    schema: str
    name: str
    replica_identity: str
    columns: tuple[str, ...]


UNWANTED: Final = -1
"""The place of a column that nobody wants."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How the rows of one relation are read."""

    places: tuple[int, ...]
    """Where the value of each column goes."""
    width: int
    """How many values a row has. One without a column is None."""
    codec: str = "utf-8"
    """Python's name of the encoding of the texts. A text that has other bytes is an Unreadable."""
    decode: Callable[[bytes], str] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        # Without an argument it takes a tenth less of the time in which a row is read.
        decode = bytes.decode if self.codec == "utf-8" else partial(str, encoding=self.codec)
        object.__setattr__(self, "decode", decode)


RowFormats: TypeAlias = Mapping[int, RowFormat]
"""By OID. A row of any other relation is not read: its function returns None."""

_begin = struct.Struct(">xQqI").unpack_from
_commit = struct.Struct(">xxQQq").unpack_from
_oid = struct.Struct(">xI").unpack_from
_row = struct.Struct(">xIB").unpack_from
_u32 = struct.Struct(">I").unpack_from
_u16 = struct.Struct(">H").unpack_from
_length = struct.Struct(">I").pack

# The type bytes of a tuple's columns, and the marks before a tuple.
_NULL, _UNCHANGED, _TEXT = b"nut"
_NEW, _KEY, _OLD = b"NKO"


def malformed(data: bytes, at: int) -> PgoutputError:
    return PgoutputError(
        f"not a pgoutput message of protocol version 1: {data[at : at + 40]!r}"
        f" ({len(data) - at} bytes)"
    )


WRONG: Final = (LookupError, ValueError, ArithmeticError, struct.error)
"""What reading raises, by whatever wrong bytes."""


def _strict(read: Callable[[bytes, int, G], R]) -> Callable[[bytes, int, G], R]:
    def strict(data: bytes, at: int, given: G) -> R:
        try:
            return read(data, at, given)
        except WRONG as error:
            raise malformed(data, at) from error

    return strict


def begin(data: bytes, at: int) -> tuple[LSN, Micros, int]:
    """The LSN of the commit, which all rows of the transaction share; its time; the xid."""
    if len(data) - at != 21:
        raise malformed(data, at)
    lsn, time, xid = _begin(data, at)
    return lsn, time + POSTGRES_EPOCH, xid


def commit(data: bytes, at: int) -> tuple[LSN, LSN, Micros]:
    """The LSN of the commit, that behind the transaction, and the time."""
    if len(data) - at != COMMIT_BYTES:
        raise malformed(data, at)
    lsn, end, time = _commit(data, at)
    return lsn, end, time + POSTGRES_EPOCH


@_strict
def relation(data: bytes, at: int, codec: str) -> Relation:
    (oid,) = _oid(data, at)
    schema, name, rest = data[at + 5 :].split(b"\0", 2)
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


def oid(data: bytes, at: int) -> int:
    """That of a row's relation."""
    found: int = _oid(data, at)[0]
    return found


@_strict
def insert(data: bytes, at: int, formats: RowFormats) -> tuple[Values, bool] | None:
    """The row, and whether some value is UNCHANGED."""
    oid, mark = _row(data, at)
    if mark != _NEW:
        raise ValueError
    row_format = formats.get(oid)
    if row_format is None:
        return None
    new, lacking, at = _tuple(data, at + 6, row_format)
    _whole(data, at)
    return new, lacking


def update(
    data: bytes, at: int, formats: RowFormats
) -> tuple[Values, bool, Values | None, bool] | None:
    """The new row; whether some value of it is UNCHANGED; the old row, and whether it is whole.

    The old row is the key alone if that changed, the row if REPLICA IDENTITY is FULL, else None.
    """
    try:  # not by `_strict`: most messages with a row are updates, and that would be another call
        oid, mark = _row(data, at)
        row_format = formats.get(oid)
        if row_format is None:
            return None
        old, place = None, at + 6
        if mark != _NEW:
            if mark not in (_KEY, _OLD):
                raise ValueError
            old, _, place = _tuple(data, place, row_format)
            if data[place] != _NEW:
                raise ValueError
            place += 1
        new, lacking, place = _tuple(data, place, row_format)
        if place != len(data):  # _whole, without another call
            raise ValueError
    except WRONG as error:
        raise malformed(data, at) from error
    return new, lacking, old, mark == _OLD


@_strict
def delete(data: bytes, at: int, formats: RowFormats) -> Values | None:
    """The old row: at least the columns of the replica identity."""
    oid, mark = _row(data, at)
    if mark not in (_KEY, _OLD):
        raise ValueError
    row_format = formats.get(oid)
    if row_format is None:
        return None
    old, _, at = _tuple(data, at + 6, row_format)
    _whole(data, at)
    return old


@_strict
def truncate(data: bytes, at: int, _: None) -> tuple[int, ...]:
    """The OIDs of the relations."""
    (count,) = _oid(data, at)
    _whole(data, at + 6 + 4 * count)
    return tuple(_u32(data, at + 6 + 4 * i)[0] for i in range(count))


def _tuple(data: bytes, at: int, row_format: RowFormat) -> tuple[Values, bool, int]:
    """The values, whether one is UNCHANGED, and the place behind the tuple."""
    places, decode = row_format.places, row_format.decode
    if _u16(data, at)[0] != len(places):
        raise ValueError
    at += 2
    values: Values = [None] * row_format.width
    lacking = False
    for place in places:
        kind = data[at]
        if kind == _TEXT:
            start = at + 5
            at = start + _u32(data, at + 1)[0]
            if place >= 0:
                try:
                    values[place] = decode(data[start:at])
                except UnicodeDecodeError:
                    values[place] = unreadable(data[start:at], row_format.codec)
        elif kind == _NULL:
            at += 1
        elif kind == _UNCHANGED:
            at += 1
            if place >= 0:
                values[place] = UNCHANGED
                lacking = True
        else:
            raise ValueError
    return values, lacking, at


def _whole(data: bytes, at: int) -> None:
    """A slice past the end is silently short, so this finds a wrong length."""
    if at != len(data):
        raise ValueError


def shortened(data: memoryview, at: int, longest: int, codec: str) -> bytes:
    """The bytes, in which no text of a row has more than `longest` bytes.

    A longer one ends with the last whole character before. It is never copied: decoding takes as
    much memory as the texts may have, and not as much as PostgreSQL sends.
    """
    if len(data) <= at or data[at] not in (INSERT, UPDATE, DELETE):
        return bytes(data)
    try:
        return b"".join(_shortened(data, at, longest, codec))
    except (LookupError, ValueError, struct.error) as error:
        raise malformed(bytes(data[: at + 40]), at) from error


def _shortened(data: memoryview, at: int, longest: int, codec: str) -> Iterator[bytes]:
    yield bytes(data[: at + 5])
    at += 5
    while at < len(data):  # one tuple, or two
        (count,) = _u16(data, at + 1)
        yield bytes(data[at : at + 3])
        at += 3
        for _ in range(count):
            if data[at] != _TEXT:
                yield bytes(data[at : at + 1])
                at += 1
                continue
            start = at + 5
            at = start + _u32(data, start - 4)[0]
            if at - start <= longest:
                yield bytes(data[start - 5 : at])
                continue
            text = _to_character(bytes(data[start : start + longest]), codec)
            yield b"t" + _length(len(text)) + text
    if at != len(data):
        raise ValueError


def _to_character(text: bytes, codec: str) -> bytes:
    """Without the bytes of a last character that is incomplete."""
    decoder = codecs.getincrementaldecoder(codec)("replace")
    decoder.decode(text)
    incomplete, _ = decoder.getstate()
    return text[: len(text) - len(incomplete)]
