"""The HTTP API: `/api/runs`, `/docs` and `/openapi.json`.

It reads and writes rows and nothing else. What it has written is pushed because it was committed, like anybody's change.
Every error is a problem document (RFC 9457).
"""

import base64
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Path, Query, Request, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema, models_json_schema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brain.messages import (
    ID,
    RunData,
    Status,
    WSMessage,
    body,
    iso,
    parse_time,
)
from brain.problems import MAX_BODY, Problem, ProblemDocument, documented, handle
from brain.rows import ByFields, Runs

# What a request may say


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain NUL, which PostgreSQL cannot store")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain half a surrogate pair, which is no character") from None
    return text


def _moment(text: str) -> str:
    parse_time(text)
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except OverflowError:
        raise ValueError(f"{text!r} lies outside the years 1 to 9999 in UTC") from None


String = Annotated[str, AfterValidator(_storable)]
RunId = Annotated[String, Field(min_length=1, max_length=1024)]
Progress = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False, strict=True, description="percent")]
Moment = Annotated[
    str,
    AfterValidator(_moment),
    Field(description="ISO 8601 with a zone", json_schema_extra={"format": "date-time"}),
]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    def texts(self, *fields: str) -> dict[str, str | None]:
        """The values that were given, as texts that PostgreSQL takes for whatever type a column has."""
        values = {name: getattr(self, name) for name in fields if name in self.model_fields_set}
        return {name: _text(value) for name, value in values.items()}


class RunCreate(_Request):
    """A new run. Without an id, the table's own default or a fresh UUID."""

    id: RunId | None = None
    status: Status = "queued"
    progress: Progress | None = None
    task_id: String | None = None
    agent: String | None = None
    started_at: Annotated[Moment | None, Field(description="now, for a run created as running")] = None
    completed_at: Annotated[
        Moment | None, Field(description="now, for a run created as completed or failed")
    ] = None
    error: String | None = None


class RunPatch(_Request):
    """What is to change; what is left out stays. null empties a field. The table's clock sets the two times."""

    status: Status | SkipJsonSchema[None] = None
    progress: Progress | None = None
    task_id: String | None = None
    agent: String | None = None
    error: String | None = None

    @model_validator(mode="after")
    def _something(self) -> "RunPatch":
        if not self.model_fields_set:
            raise ValueError(f"name at least one field to change: {', '.join(RunPatch.model_fields)}")
        if "status" in self.model_fields_set and self.status is None:
            raise ValueError("status cannot be null")
        return self


class RunQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Annotated[list[Status], Field(max_length=100, description="one of these; repeatable")] = []
    agent: Annotated[list[String], Field(max_length=100, description="one of these; repeatable")] = []
    task_id: Annotated[list[String], Field(max_length=100, description="one of these; repeatable")] = []
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Annotated[str | None, Field(description="`next_cursor` of the page before")] = None


class RunList(BaseModel):
    """A page of runs in the order of their ids."""

    runs: list[RunData]
    next_cursor: Annotated[str | None, Field(description="null on the last page")]
    timestamp: Annotated[
        datetime | None,
        Field(
            description="A moment from which on `/ws?since=<timestamp>` brings every change that this page may lack: "
            "that of the first page, for a client that reads several. null until Brain follows the table."
        ),
    ]


def _text(value: object) -> str | None:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column of whole numbers takes 12 and not 12.0
    return None if value is None else str(value)


def _cursor(run_id: str) -> str:
    return base64.urlsafe_b64encode(run_id.encode()).decode().rstrip("=")


def _after(cursor: str) -> str:
    try:
        run_id = base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode()
        return _storable(run_id)
    except ValueError:
        wrong = ("cursor", "is not one that a page gave: take next_cursor as it is")
        raise Problem(422, f"cursor {cursor[:100]!r} {wrong[1]}", wrong) from None


def _only_json(request: Request) -> None:
    """A web page of somebody else's can make a browser send a form or plain text without asking; JSON it cannot."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, f"the Content-Type is {given[:100]!r}: send application/json")


# The application


def create_api(runs: Runs) -> FastAPI:
    app = _Api(
        title="Brain",
        description="Runs, and every change of them. `/ws` pushes each as a `WSMessage`; `GET /api/runs` is where a client begins.",
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(_BoundedBody)
    handle(app)
    app.include_router(_routes(runs))
    return app


def _routes(runs: Runs) -> APIRouter:
    router = APIRouter(prefix="/api/runs", tags=["runs"], default_response_class=Response)
    run_id_path = Path(description="the run's id; a slash in it is written %2F")

    @router.get(
        "",
        summary="List runs",
        responses={200: {"model": RunList}, **documented(422, 503)},
        response_model=None,
    )
    async def list_runs(query: Annotated[RunQuery, Query()]) -> Response:
        """Runs in the order of their ids. Values of one field are alternatives; different fields narrow each other.

        To follow on from here: connect to `/ws?since=<timestamp>` with the timestamp of the first page.
        """
        wanted: ByFields = {"status": query.status, "agent": query.agent, "task_id": query.task_id}
        after = None if query.cursor is None else _after(query.cursor)
        found, last, moment = await runs.page(wanted, after, query.limit)
        following = "null" if last is None else f'"{_cursor(last)}"'
        timestamp = "null" if moment is None else f'"{iso(moment)}"'
        text = ",".join(body(run) for run in found)
        return _json(f'{{"runs":[{text}],"next_cursor":{following},"timestamp":{timestamp}}}')

    @router.post(
        "",
        summary="Create a run",
        status_code=201,
        responses={201: {"model": RunData}, **documented(409, 413, 415, 422, 503)},
        response_model=None,
        dependencies=[Depends(_only_json)],
    )
    async def create_run(new: Annotated[RunCreate, Body()]) -> Response:
        given = new.texts("id", "progress", "task_id", "agent", "started_at", "completed_at", "error")
        run = await runs.create(new.status, {name: text for name, text in given.items() if text is not None})
        return _json(body(run), 201, Location=f"/api/runs/{quote(run[ID], safe='')}")

    @router.get(
        "/{run_id:path}",
        summary="Get a run",
        responses={200: {"model": RunData}, **documented(404, 422, 503)},
        response_model=None,
    )
    async def get_run(run_id: Annotated[RunId, run_id_path]) -> Response:
        return _json(body(await runs.get(run_id)))

    @router.patch(
        "/{run_id:path}",
        summary="Change a run",
        responses={200: {"model": RunData}, **documented(404, 409, 413, 415, 422, 503)},
        response_model=None,
        dependencies=[Depends(_only_json)],
    )
    async def change_run(
        run_id: Annotated[RunId, run_id_path], change: Annotated[RunPatch, Body()]
    ) -> Response:
        """A queued run can become running or failed, a running one completed or failed; an end is final."""
        values = change.texts("progress", "task_id", "agent", "error")
        return _json(body(await runs.change(run_id, change.status, values)))

    return router


def _json(text: str, status: int = 200, **headers: str) -> Response:
    return Response(text, status, headers, media_type="application/json")


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """With what clients rely on beside the routes: the message of `/ws`, and the problem document."""
        if self.openapi_schema is None:
            schema = super().openapi()
            _, extra = models_json_schema(
                [(WSMessage, "serialization"), (ProblemDocument, "serialization")],
                ref_template="#/components/schemas/{model}",
            )
            schema["components"]["schemas"] |= extra["$defs"]
        return super().openapi()


class _BoundedBody:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
            return message

        await self.app(scope, bounded if scope["type"] == "http" else receive, send)
