"""What `/ws?include=…` adds to the contract: one type of message for each word that a client gives.

A default client never receives any of it. Each `timestamp` is one that `since` takes.
"""

import json
import math
from json.encoder import encode_basestring_ascii as quoted
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, RootModel

from brain.contract.messages import Micros, Moment, Optional, WSMessage, iso, text_frame

Include = Literal["deleted", "ready", "source"]
INCLUDE: tuple[Include, ...] = get_args(Include)

SourceName = Literal["replication", "poll", "none"]

Included: TypeAlias = frozenset[Include]
"""The words that a client has given."""

NOTHING: Included = frozenset()

SILENT: Final = 5.0
"""Seconds of `lag_seconds` from which on a source counts as silent, which is a change of it."""


class DeletedData(BaseModel):
    model_config = ConfigDict(extra="forbid", title="Deleted")

    id: str


class DeletedMessage(BaseModel):
    """The row was deleted, or has become one that the contract cannot carry."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["run_deleted"]
    data: DeletedData
    timestamp: Annotated[Moment, Field(description="when the change was committed; ISO 8601, UTC")]


class ReadyMessage(BaseModel):
    """What `snapshot` or `since` asked for has been sent. Once per connection."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["ready"]
    timestamp: Annotated[Moment, Field(description="that of the last message; for `since`")]


class SourceData(BaseModel):
    """How Brain follows the database."""

    model_config = ConfigDict(extra="forbid", title="Source")

    source: SourceName
    code: Optional[Annotated[str, Field(description="why it is not `replication`, as a word")]] = (
        None
    )
    detail: Optional[Annotated[str, Field(description="the same as a sentence")]] = None
    lag_seconds: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | None,
        Field(
            description="how far behind the database Brain may be; null until it has read the table"
        ),
    ]


class SourceMessage(BaseModel):
    """Sent at once, at each change of the source, and every 5 s."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["source"]
    data: SourceData
    timestamp: Annotated[Moment, Field(description="that of the last message; for `since`")]


IncludeMessage: TypeAlias = Annotated[
    WSMessage | DeletedMessage | ReadyMessage | SourceMessage, Field(discriminator="type")
]


class WSIncludeMessage(RootModel[IncludeMessage]):
    """Any message that a client of `/ws?include=deleted,ready,source` receives."""


class SourceReport(NamedTuple):
    """The state of the source."""

    source: SourceName
    code: str | None
    detail: str
    """"" for none."""
    lag: float
    """Seconds; infinite until the table has been read."""

    @property
    def key(self) -> tuple[str, str | None, str, bool]:
        """What is another when the source has changed."""
        return self.source, self.code, self.detail, self.lag > SILENT


NO_SOURCE: Final = SourceReport("none", None, "", math.inf)


def deleted_message(run_id: str, time: Micros) -> bytes:
    """The framed message that this run was deleted."""
    data = f'{{"id":{quoted(run_id)}}}'
    payload = f'{{"type":"run_deleted","data":{data},"timestamp":"{iso(time)}"}}'
    return text_frame(payload.encode("ascii"))


def ready_message(time: Micros) -> bytes:
    return text_frame(f'{{"type":"ready","timestamp":"{iso(time)}"}}'.encode("ascii"))


def source_message(report: SourceReport, time: Micros) -> bytes:
    data: dict[str, Any] = {"source": report.source}
    if report.code is not None:
        data["code"] = report.code
    if report.detail:
        data["detail"] = report.detail
    data["lag_seconds"] = round(max(0.0, report.lag), 3) if math.isfinite(report.lag) else None
    message = {"type": "source", "data": data, "timestamp": iso(time)}
    return text_frame(json.dumps(message, separators=(",", ":")).encode("ascii"))
