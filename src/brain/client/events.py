"""What watch() yields."""

from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from pydantic import TypeAdapter, ValidationError

from brain.client.endings import WatchError
from brain.contract.include import (
    DeletedMessage,
    IncludeMessage,
    ReadyMessage,
    SourceMessage,
    SourceName,
)
from brain.contract.messages import RunData, Type


@dataclass(frozen=True, slots=True)
class Message:
    """A message of /ws: the state of one run. Replace what you hold of that run."""

    type: Type
    data: RunData
    timestamp: datetime
    text: str
    """The JSON, as received."""


@dataclass(frozen=True, slots=True)
class Deleted:
    """The run was deleted, or its row can no longer be shown: forget it. Asks for
    `include="deleted"`.
    """

    id: str
    timestamp: datetime
    text: str
    """The JSON, as received."""


@dataclass(frozen=True, slots=True)
class Ready:
    """What `snapshot` or `since` asked for has been yielded. Once per connection; asks for
    `include="ready"`.
    """

    timestamp: datetime
    text: str
    """The JSON, as received."""


@dataclass(frozen=True, slots=True)
class Source:
    """How Brain follows the database: at once, at each change, and every 5 s. Asks for
    `include="source"`.
    """

    source: SourceName
    code: str | None
    """Why it is not "replication", as a word."""
    detail: str | None
    """The same as a sentence."""
    lag_seconds: float | None
    """How far behind the database Brain may be. None: it has not read the table yet."""
    timestamp: datetime
    text: str
    """The JSON, as received."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The server answers.

    `reset`: discard your local data, Brain cannot say what changed. The queued and running runs
    follow, except on the first connection of a watch without `snapshot`. Without `reset`, what
    changed during the outage follows.
    """

    reset: bool


@dataclass(frozen=True, slots=True)
class Away:
    """There is no connection. Reported once per outage."""

    reason: str


Received: TypeAlias = Message | Deleted | Ready | Source
Event: TypeAlias = Received | Connected | Away

_any_message: TypeAdapter[IncludeMessage] = TypeAdapter(IncludeMessage)


def received(url: str, text: str) -> Received:
    """The event of a message from this URL. Raises WatchError."""
    try:
        found = _any_message.validate_json(text)
    except ValidationError as error:
        raise WatchError(f"{url} sent something that is not a message: {text[:80]!r}") from error
    match found:
        case DeletedMessage():
            return Deleted(found.data.id, found.timestamp, text)
        case ReadyMessage():
            return Ready(found.timestamp, text)
        case SourceMessage(data=data):
            return Source(
                data.source, data.code, data.detail, data.lag_seconds, found.timestamp, text
            )
        case _:
            return Message(found.type, found.data, found.timestamp, text)
