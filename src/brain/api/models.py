"""What requests and pages hold, as FastAPI validates and documents it."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from brain.api.sentences import BREAKS_RULE
from brain.contract.messages import (
    MAX_ID_BYTES,
    RunData,
    Status,
    no_default,
    parse_time,
    storable,
)


def _utc(text: str) -> str:
    try:
        parse_time(text)
    except ValueError:
        raise PydanticCustomError(BREAKS_RULE, "is no time") from None
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except OverflowError:
        raise ValueError("is a time in the years 1 to 9999 in UTC, which this is not") from None


def _fits(text: str) -> str:
    if not 1 <= len(text.encode()) <= MAX_ID_BYTES:
        raise PydanticCustomError(BREAKS_RULE, "is too long, or empty")
    return text


def _not_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError(BREAKS_RULE, "is null")
    return value


String = Annotated[str, AfterValidator(storable)]
RunId = Annotated[
    String,
    AfterValidator(_fits),
    Field(
        description=f"1 to {MAX_ID_BYTES} bytes in UTF-8",
        json_schema_extra={"minLength": 1, "maxLength": MAX_ID_BYTES},
    ),
]
Progress = Annotated[
    float, Field(ge=0, le=100, allow_inf_nan=False, strict=True, description="percent")
]
Time = Annotated[
    str,
    AfterValidator(_utc),
    Field(description="ISO 8601 with a UTC offset or Z", json_schema_extra={"format": "date-time"}),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def texts(self, *fields: str) -> dict[str, str | None]:
        """The fields that were given, as texts that PostgreSQL accepts for any type of column."""
        values = {name: getattr(self, name) for name in fields if name in self.model_fields_set}
        return {name: _text(value) for name, value in values.items()}


class RunCreate(_Request):
    """A new run. Without an id it gets the table's default, or else a random UUID."""

    id: RunId | None = None
    status: Status = "queued"
    progress: Progress | None = None
    task_id: String | None = None
    agent: String | None = None
    started_at: Annotated[
        Time | None, Field(description="default: now, if the run is created as running")
    ] = None
    completed_at: Annotated[
        Time | None, Field(description="default: now, if the run is created as completed or failed")
    ] = None
    error: String | None = None


class RunPatch(_Request):
    """The fields to change. null empties a field.

    The database's clock sets started_at and completed_at.
    """

    status: Annotated[Status | SkipJsonSchema[None], BeforeValidator(_not_null)] = None
    progress: Progress | None = None
    task_id: String | None = None
    agent: String | None = None
    error: String | None = None

    @model_validator(mode="after")
    def _check(self) -> "RunPatch":
        if not self.model_fields_set:
            names = ", ".join(RunPatch.model_fields)
            raise ValueError(f"has no field to change: name at least one of {names}")
        return self


class RunList(BaseModel):
    """A page of runs. It has at most 1 MiB, so it may be shorter than the limit.

    `changed_at`, `exact_after`, `complete`, `total` and `total_is_estimate` are there with
    `order=changed` only.
    """

    runs: list[RunData]
    next_cursor: Annotated[
        str | None,
        Field(description="null on the last page; with `order=changed`, where Brain's memory ends"),
    ]
    timestamp: Annotated[
        datetime | None,
        Field(
            description="`/ws?since=<timestamp>` brings every change that this page may lack. "
            "A client that reads several pages uses that of the first. "
            "null until Brain has read the table."
        ),
    ]
    changed_at: Annotated[
        list[datetime],
        Field(
            description="When each of the runs changed last, in their order",
            json_schema_extra=no_default,
        ),
    ] = []
    exact_after: Annotated[
        datetime | None,
        Field(
            description="A time of `changed_at` up to this one means: the run has not changed "
            "since then. When it changed before is not known.",
            json_schema_extra=no_default,
        ),
    ] = None
    complete: Annotated[
        bool,
        Field(
            description="No run that is missing here changed later than one of these. false: "
            "Brain's memory ends within this list, and runs that changed before may be missing.",
            json_schema_extra=no_default,
        ),
    ] = True
    total: Annotated[
        int | None,
        Field(
            description="How many runs match. null: the database did not say it in time",
            json_schema_extra=no_default,
        ),
    ] = None
    total_is_estimate: Annotated[
        bool,
        Field(
            description="`total` is an estimate of PostgreSQL's planner",
            json_schema_extra=no_default,
        ),
    ] = False


def _text(value: object) -> str | None:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of integers accepts 12, not 12.0
    return None if value is None else str(value)
