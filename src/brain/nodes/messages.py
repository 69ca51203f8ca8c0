"""The messages of the log: a line of JSON, which says what it is, and behind it a body of JSON.

    claim    "I lead": its place in the log is the epoch of what follows
    events   what a source has yielded, also nothing: the heartbeat
    resign   "I lead no longer"
    ckpt     a part of a board
    end      the board is complete, and what it is of

A message is at most so many bytes *encoded*: a row may have three texts of a megabyte, and a
Snapshot may name 60 000 runs that are gone. What does not fit is cut, and put together again by the
reader.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, TypeAlias, cast, get_args

from brain.contract.errors import BrainError
from brain.contract.events import Changes, Event, Held, Image, Op, Snapshot
from brain.contract.messages import Micros, Run
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.pgoutput import LSN
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.source_state import TableWarning
from brain.postgres.table import Column

VERSION: Final = 1
"""Of the format. A node does not lead after a leader of a later one."""

READABLE_FROM: Final = 1
"""The oldest version whose readers understand what this one writes."""

Kind: TypeAlias = Literal["claim", "events", "resign", "ckpt", "end"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

Base: TypeAlias = Literal["log", "empty", "board"]
"""What a leader goes on from: the log, nothing, or its own board, which it writes first."""

_OPS: Final[dict[str, Op]] = {"i": "insert", "u": "update", "d": "delete", "t": "truncate"}
_LETTERS: Final[dict[Op, str]] = {op: letter for letter, op in _OPS.items()}

_NEW, _COMPLETE, _DELETES_UNKNOWN = 1, 2, 4


class MessageError(BrainError):
    """What stands in the log is no message of Brain's."""


@dataclass(frozen=True, slots=True)
class Message:
    kind: Kind
    epoch: int
    n: int
    """Its number among the leader's messages: the claim is 0."""
    head: dict[str, Any]
    body: bytes

    @property
    def is_last(self) -> bool:
        """Whether no other part of it follows."""
        part, parts = self.head.get("part", (1, 1))
        return bool(part == parts)


def encode(kind: Kind, epoch: int, n: int, body: bytes = b"", **head: Any) -> bytes:
    line = {"v": VERSION, "r": READABLE_FROM, "k": kind, "e": epoch, "n": n, **head}
    return _json(line) + b"\n" + body


def decode(data: bytes) -> Message:
    """Raises MessageError."""
    line, _, body = data.partition(b"\n")
    try:
        head = json.loads(line)
        kind, epoch, n = head["k"], head["e"], head["n"]
        part, parts = head.get("part", (1, 1))
        numbers = (epoch, n, part, parts, head["v"], head["r"])
        valid = kind in KINDS and all(isinstance(each, int) for each in numbers)
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if not valid:
        raise MessageError(f"the log contains {data[:40]!r}, which is no message of Brain's")
    return Message(kind, epoch, n, head, body)


_encoded = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
"""json.dumps makes an encoder for each call, which takes longer than to encode a change."""


def _json(value: object) -> bytes:
    return _encoded(value).encode()


def parts(body: bytes, limit: int) -> list[bytes]:
    """At least one."""
    return [body[at : at + limit] for at in range(0, len(body), limit)] or [b""]


# Bodies: lists.


def joined(items: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """Lists of the items, each within the limit if its items are."""
    taken: list[bytes] = []
    size = 0
    for item in items:
        if taken and size + len(item) > limit:
            yield b"[" + b",".join(taken) + b"]"
            taken, size = [], 0
        taken.append(item)
        size += len(item) + 1
    if taken:
        yield b"[" + b",".join(taken) + b"]"


def items(body: bytes) -> list[Any]:
    """Raises MessageError."""
    try:
        found = json.loads(body) if body else []
    except ValueError as error:
        raise MessageError(f"the log contains a message that is not JSON: {error}") from None
    if not isinstance(found, list):
        raise MessageError("the log contains a message that is no list")
    return found


def encode_event(event: Event, at: Micros) -> bytes:
    """With this time in place of its own."""
    match event:
        case Changes():
            rows = [(_LETTERS[op], *run) for op, run in event.rows]
            return _json(("c", at, event.xid, int(event.incomplete), rows))
        case Snapshot():
            flags = (
                _NEW * event.new
                + _COMPLETE * event.complete
                + _DELETES_UNKNOWN * event.deletes_unknown
            )
            lists = (list(each) for each in (event.gone, event.rows, event.refused))
            return _json(("s", at, flags, event.unless_after, *lists))
        case _:
            raise TypeError(f"a node's source yields no {type(event).__name__}")


def decode_event(values: Sequence[Any]) -> Event:
    """`unless_after` of a Snapshot is a time. Raises MessageError."""
    try:
        match values:
            case ["c", int(at), int(xid), int(incomplete), list(rows)]:
                return Changes(
                    [(_OPS[op], cast("Run", tuple(run))) for op, *run in rows],
                    at,
                    xid,
                    incomplete=bool(incomplete),
                )
            case [
                "s",
                int(at),
                int(flags),
                int() | None as after,
                list(gone),
                list(rows),
                list(refused),
            ]:
                return Snapshot(
                    [cast("Run", tuple(run)) for run in rows],
                    at,
                    gone,
                    complete=bool(flags & _COMPLETE),
                    new=bool(flags & _NEW),
                    deletes_unknown=bool(flags & _DELETES_UNKNOWN),
                    unless_after=after,
                    refused=_spans(refused),
                )
    except (KeyError, TypeError, ValueError):
        pass
    raise MessageError(f"the log contains the event {str(values)[:60]}, which is none of Brain's")


# What else stands in a head.


def encode_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Without `versions`: the next poll returns these rows again, and they are no news."""
    visible = checkpoint.visible
    return {
        "identity": checkpoint.identity,
        "visible": f"{visible.xmin}:{visible.xmax}:{','.join(map(str, sorted(visible.running)))}",
        "flushed": checkpoint.flushed,
        "tree": sorted(checkpoint.tree),
        "epoch": checkpoint.epoch,
    }


def decode_checkpoint(values: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        tuple(values["identity"]),
        PgSnapshot.parse(values["visible"]),
        flushed=LSN(values["flushed"]),
        tree=frozenset(values["tree"]),
        epoch=values["epoch"],
    )


def encode_columns(columns: dict[str, Column]) -> dict[str, Any]:
    return {name: asdict(column) for name, column in columns.items()}


def decode_columns(values: dict[str, Any]) -> dict[str, Column]:
    return {name: Column(**_known(Column, each)) for name, each in values.items()}


def decode_warnings(values: Sequence[dict[str, Any]]) -> tuple[TableWarning, ...]:
    return tuple(TableWarning(**_known(TableWarning, each)) for each in values)


def _known(what: type, values: dict[str, Any]) -> dict[str, Any]:
    """Without what a later version may have added."""
    names = {field.name for field in fields(what)}
    return {name: value for name, value in values.items() if name in names}


# The board.


def encode_held(entries: Sequence[Held]) -> Iterator[bytes]:
    return map(_json, entries)


def decode_held(body: bytes) -> list[Held]:
    """Raises MessageError."""
    try:
        return [
            (time, cast("Run", tuple(run)), tuple(tuple(each) for each in facets), xid)
            for time, run, facets, xid in items(body)
        ]
    except (TypeError, ValueError):
        raise MessageError("the log contains a board that is none of Brain's") from None


def encode_image(image: Image) -> dict[str, Any]:
    """Without the entries."""
    return {
        "time": image.time,
        "last_time": image.last_time,
        "floor_time": image.floor_time,
        "dead_floor_time": image.dead_floor_time,
        "ended_early": image.ended_early,
        "refused": image.refused,
    }


def decode_image(values: dict[str, Any], entries: Sequence[Held]) -> Image:
    refused = _spans(values.get("refused", ()))
    return Image(**_known(Image, values) | {"entries": entries, "refused": refused})


def _spans(values: Sequence[Sequence[Micros]]) -> tuple[tuple[Micros, Micros], ...]:
    return tuple((first, last) for first, last in values)
