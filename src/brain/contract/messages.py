"""The wire contract: a run, a message, and the frame that carries it.

A change is encoded and framed once for all clients: a server's frames are unmasked (RFC 6455,
section 5.1), so every client can be sent the same bytes.
"""

import struct
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quoted
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, cast, get_args

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema

T = TypeVar("T")

Status = Literal["queued", "running", "completed", "failed"]
Type = Literal["run_update", "run_complete", "run_failed"]

STATUSES: tuple[Status, ...] = get_args(Status)
ACTIVE: frozenset[str] = frozenset({"queued", "running"})
TYPES: dict[str, Type] = {
    "queued": "run_update",
    "running": "run_update",
    "completed": "run_complete",
    "failed": "run_failed",
}

Run = tuple[str, str, float | None, str | None, str | None, str | None, str | None, str | None]
"""A row in the words of the contract: the values of FIELDS, in that order.

A plain tuple of atoms, which Python's collector stops tracking: a board holds hundreds of
thousands.
"""

FIELDS = ("id", "status", "progress", "task_id", "agent", "started_at", "completed_at", "error")
ID: Final = 0
STATUS: Final = 1
TASK_ID: Final = 3
AGENT: Final = 4

MAX_ID_BYTES: Final = 1024
"""UTF-8 bytes of a run's id: one bound for messages, the HTTP API, filters and cursors. Such an id
fits into a URL when it is percent-encoded."""

UNCHANGED = "\0"
"""The value of a field that PostgreSQL did not send because it did not change (TOAST).

No text in PostgreSQL contains NUL.
"""

CUT: Final = "… [cut]"
"""The end of a text that was longer than BRAIN_MAX_TEXT. page/row.js looks for it, too."""

Micros = int
"""A time in microseconds since 1970-01-01T00:00:00Z: PostgreSQL's own resolution."""


def no_default(schema: dict[str, Any]) -> None:
    """Of a field that may be absent."""
    schema.pop("default", None)


Optional: TypeAlias = Annotated[T | SkipJsonSchema[None], Field(json_schema_extra=no_default)]
"""A field that is absent, never null, where the row has NULL."""


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the year must be 1 to 9999 in UTC") from None


Moment: TypeAlias = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time that `iso` can write again."""


class RunData(BaseModel):
    """A run as clients see it. A field that is NULL in the row is left out."""

    model_config = ConfigDict(extra="forbid", title="Run")

    id: str
    status: Status
    progress: Optional[Annotated[float, Field(ge=0, le=100, description="percent")]] = None
    task_id: Optional[str] = None
    agent: Optional[str] = None
    started_at: Optional[Annotated[Moment, Field(description="ISO 8601, UTC")]] = None
    completed_at: Optional[Annotated[Moment, Field(description="ISO 8601, UTC")]] = None
    error: Optional[str] = None


class WSMessage(BaseModel):
    """The one message that a client of `/ws` receives."""

    model_config = ConfigDict(extra="forbid")

    type: Type
    data: RunData
    timestamp: Annotated[Moment, Field(description="when the change was committed; ISO 8601, UTC")]


def filled(run: Run, known: Run | None) -> Run:
    """The run, with the values that PostgreSQL did not send from `known`; without it, absent."""
    old = known or (None,) * len(FIELDS)
    return cast(
        "Run", tuple(old[i] if value == UNCHANGED else value for i, value in enumerate(run))
    )


def storable(text: str) -> str:
    """Return the text if PostgreSQL can store it.

    Raises ValueError with a predicate ("must not …"): the caller knows the subject.
    """
    if "\0" in text:
        raise ValueError("must not contain NUL, which PostgreSQL cannot store")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain an unpaired surrogate: it is no character") from None
    return text


def shown(value: object) -> str:
    """A value for the sentence of an error: at most 40 characters, in printable ASCII."""
    if isinstance(value, str):
        return ascii(value[:40])
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "an object"
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value)[:40]


def body(run: Run) -> str:
    """The `data` of a message: JSON in printable ASCII."""
    run_id, status, progress, task_id, agent, started_at, completed_at, error = run
    text = f'{{"id":{quoted(run_id)},"status":"{status}"'
    if progress is not None:
        text += f',"progress":{progress}'
    if task_id is not None:
        text += f',"task_id":{quoted(task_id)}'
    if agent is not None:
        text += f',"agent":{quoted(agent)}'
    if started_at is not None:
        text += f',"started_at":"{started_at}"'
    if completed_at is not None:
        text += f',"completed_at":"{completed_at}"'
    if error is not None:
        text += f',"error":{quoted(error)}'
    return text + "}"


def message(run: Run, time: Micros) -> bytes:
    """The framed message about `run` as of `time`."""
    payload = f'{{"type":"{TYPES[run[STATUS]]}","data":{body(run)},"timestamp":"{_latest(time)}"}}'
    return text_frame(payload.encode())


PING: Final = b"\x89\x00"
"""An empty ping (RFC 6455, section 5.5.2)."""


_medium = struct.Struct(">HH").pack


def text_frame(payload: bytes) -> bytes:
    """An unmasked, unfragmented text frame (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return b"\x81" + size.to_bytes(1, "big") + payload
    if size < 65536:
        return _medium(0x817E, size) + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


@lru_cache(maxsize=256)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def iso(time: Micros) -> str:
    """`2026-11-21T09:30:00.123456Z`: always six digits, so that texts sort as times do."""
    return f"{_second(time // 1_000_000)}.{time % 1_000_000:06d}Z"


_latest = lru_cache(maxsize=1)(iso)
"""All rows of a transaction have the same time."""


def micros(moment: datetime) -> Micros:
    """The exact microseconds of an aware datetime, without rounding through a float."""
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def parse_time(text: str) -> Micros:
    """Parse an ISO 8601 time with a zone, such as a client's `since`.

    Raises ValueError with a sentence that states the expected format.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError(
            f"{shown(text)} is not an ISO 8601 time with a zone, "
            "such as 2026-11-21T09:30:00.123456Z"
        )
    return micros(moment)


TRANSITIONS: dict[Status, frozenset[Status]] = {
    "queued": frozenset({"queued", "running", "failed"}),
    "running": frozenset({"running", "completed", "failed"}),
    "completed": frozenset({"completed"}),
    "failed": frozenset({"failed"}),
}
"""The changes of status that the HTTP API allows. A status may stay the same (progress); completed
and failed are final."""
