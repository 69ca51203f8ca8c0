"""The HTTP API: `/api/runs`, `/docs` and `/openapi.json`.

It reads and writes rows and nothing else. What it has written is pushed because it was committed, like anybody's change.
Every error is a problem document (RFC 9457).
"""

import base64
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema, models_json_schema
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brain.access.policy import Headers
from brain.access.rejections import RejectionCounter
from brain.access.tokens import BOUNDS, OPEN, Grant, TokenError, Tokens, bearer
from brain.api.concurrency import ConcurrencyLimiter
from brain.api.problems import (
    MAX_BODY,
    Problem,
    ProblemDocument,
    documented,
    handle,
    problem_answer,
)
from brain.api.repository import RunRepository
from brain.contract.messages import ID, RunData, Status, WSMessage, body, iso, parse_time, storable

if TYPE_CHECKING:
    from brain.api.queries import ByFields

# What a request may say


def _moment(text: str) -> str:
    parse_time(text)
    try:
        return datetime.fromisoformat(text).astimezone(UTC).isoformat()
    except OverflowError:
        raise ValueError(f"{text!r} lies outside the years 1 to 9999 in UTC") from None


String = Annotated[str, AfterValidator(storable)]
RunId = Annotated[String, Field(min_length=1, max_length=1024)]
Progress = Annotated[
    float, Field(ge=0, le=100, allow_inf_nan=False, strict=True, description="percent")
]
Checkpoint = Annotated[
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
    started_at: Annotated[
        Checkpoint | None, Field(description="now, for a run created as running")
    ] = None
    completed_at: Annotated[
        Checkpoint | None, Field(description="now, for a run created as completed or failed")
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
            raise ValueError(
                f"name at least one field to change: {', '.join(RunPatch.model_fields)}"
            )
        if "status" in self.model_fields_set and self.status is None:
            raise ValueError("status cannot be null")
        return self


class RunQuery(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Annotated[
        list[Status], Field(max_length=100, description="one of these; repeatable")
    ] = []
    agent: Annotated[
        list[String], Field(max_length=100, description="one of these; repeatable")
    ] = []
    task_id: Annotated[
        list[String], Field(max_length=100, description="one of these; repeatable")
    ] = []
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    cursor: Annotated[str | None, Field(description="`next_cursor` of the page before")] = None


class RunList(BaseModel):
    """A page of runs in the order of their ids. It may be shorter than the limit: a page has at most 1 MiB."""

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
        return storable(run_id)
    except ValueError:
        wrong = ("cursor", "is not one that a page gave: take next_cursor as it is")
        raise Problem(422, f"cursor {cursor[:100]!r} {wrong[1]}", wrong) from None


def _only_json(request: Request) -> None:
    """A web page of somebody else's can make a browser send a form or plain text without asking; JSON it cannot."""
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise Problem(415, f"the Content-Type is {given[:100]!r}: send application/json")


# The application


Visitor: TypeAlias = Callable[[str, Headers], Hashable]
"""Who asks: of the peer's address and the headers, as guard.Policy.client_address finds it."""


def create_api(
    runs: RunRepository,
    tokens: Tokens | None = None,
    rejections: RejectionCounter | None = None,
    visitor: Visitor = lambda peer, _: peer,
) -> FastAPI:
    rejections = rejections or RejectionCounter()
    app = _Api(
        title="Brain",
        description="Runs, and every change of them. `/ws` pushes each as a `WSMessage`; `GET /api/runs` is where a client begins.",
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(_BoundedBody)
    if tokens is not None:
        app.add_middleware(_Bearer, tokens=tokens, rejections=rejections)
    # Any origin, for the guard has refused every one that may not read, and no cookie is of any use here. Outermost: a preflight
    # carries no token, and a page may read why it was refused.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "POST", "PATCH"],
        allow_headers=["Authorization", "Content-Type"],
        expose_headers=["Location", "Retry-After"],
    )
    handle(app)
    app.include_router(_routes(runs, ConcurrencyLimiter(rejections), visitor))
    return app


def _routes(runs: RunRepository, turns: ConcurrencyLimiter, visitor: Visitor) -> APIRouter:
    def turn(request: Request) -> AbstractAsyncContextManager[None]:
        peer = request.client.host if request.client is not None else ""
        return turns.take(visitor(peer, request.scope["headers"]))

    router = APIRouter(prefix="/api/runs", tags=["runs"], default_response_class=Response)
    run_id_path = Path(description="the run's id; a slash in it is written %2F")

    @router.get(
        "",
        summary="List runs",
        responses={200: {"model": RunList}, **documented(401, 403, 422, 429, 503)},
        response_model=None,
    )
    async def list_runs(request: Request, query: Annotated[RunQuery, Query()]) -> Response:
        """Runs in the order of their ids. Values of one field are alternatives; different fields narrow each other.

        To follow on from here: connect to `/ws?since=<timestamp>` with the timestamp of the first page.
        """
        for name in ("limit", "cursor"):
            if len(request.query_params.getlist(name)) > 1:
                raise Problem(422, f"{name} is given more than once", (name, "give it once"))
        grant = _grant(request)
        asked = {"agent": query.agent, "task_id": query.task_id}
        with _permitted():
            bounded = {name: grant.narrowed(name, values) for name, values in asked.items()}
        wanted: ByFields = {"status": query.status, **bounded}
        after = None if query.cursor is None else _after(query.cursor)
        async with turn(request):
            found, last, moment = await runs.page(wanted, after, query.limit)
        following = "null" if last is None else f'"{_cursor(last)}"'
        timestamp = "null" if moment is None else f'"{iso(moment)}"'
        return _json(
            f'{{"runs":[{",".join(found)}],"next_cursor":{following},"timestamp":{timestamp}}}'
        )

    @router.post(
        "",
        summary="Create a run",
        status_code=201,
        responses={201: {"model": RunData}, **documented(401, 403, 409, 413, 415, 422, 429, 503)},
        response_model=None,
        dependencies=[Depends(_only_json)],
    )
    async def create_run(request: Request, new: Annotated[RunCreate, Body()]) -> Response:
        given = new.texts(
            "id", "progress", "task_id", "agent", "started_at", "completed_at", "error"
        )
        _refuse_beyond(_grant(request), given, BOUNDS)
        async with turn(request):
            run = await runs.create(
                new.status, {name: text for name, text in given.items() if text is not None}
            )
        return _json(body(run), 201, Location=f"/api/runs/{quote(run[ID], safe='')}")

    @router.get(
        "/{run_id:path}",
        summary="Get a run",
        responses={200: {"model": RunData}, **documented(401, 403, 404, 422, 429, 503)},
        response_model=None,
    )
    async def get_run(request: Request, run_id: Annotated[RunId, run_id_path]) -> Response:
        async with turn(request):
            run = await runs.get(run_id, _grant(request).within)
        return _json(body(run))

    @router.patch(
        "/{run_id:path}",
        summary="Change a run",
        responses={
            200: {"model": RunData},
            **documented(401, 403, 404, 409, 413, 415, 422, 429, 503),
        },
        response_model=None,
        dependencies=[Depends(_only_json)],
    )
    async def change_run(
        request: Request, run_id: Annotated[RunId, run_id_path], change: Annotated[RunPatch, Body()]
    ) -> Response:
        """A queued run can become running or failed, a running one completed or failed; an end is final."""
        values = change.texts("progress", "task_id", "agent", "error")
        grant = _grant(request)
        _refuse_beyond(grant, values, values)
        async with turn(request):
            run = await runs.change(run_id, change.status, values, grant.within)
        return _json(body(run))

    return router


def _grant(request: Request) -> Grant:
    grant: Grant = request.scope.get(GRANT, OPEN)
    return grant


@contextmanager
def _permitted() -> Iterator[None]:
    try:
        yield
    except TokenError as error:
        raise Problem(error.status, str(error)) from None


def _refuse_beyond(grant: Grant, values: Mapping[str, str | None], names: Iterable[str]) -> None:
    """A run must not be made, or moved, to where the token's bearer could not make it by right."""
    for name in names:
        permitted = grant.within.get(name)
        if permitted is not None and values.get(name) not in permitted:
            raise Problem(
                403, f"the token is for other values of {name}: give one of those that it is for"
            )


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


GRANT = "brain.grant"
"""Where a request's scope (ASGI) holds what its token permits."""

WITHOUT_TOKEN = ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/ws")
"""For who runs Brain, what is no secret, and what is asked for its token elsewhere. Everything else needs one."""


class _Bearer:
    """Asks for a token, before a byte of the body is read."""

    def __init__(self, app: ASGIApp, tokens: Tokens, rejections: RejectionCounter) -> None:
        self.app = app
        self._tokens = tokens
        self._rejections = rejections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in WITHOUT_TOKEN:
            try:
                grant = await self._tokens.check(bearer(scope["headers"]))
                grant.require("read" if scope["method"] in ("GET", "HEAD") else "write")
            except TokenError as error:
                peer = str((scope["client"] or ("",))[0])
                self._rejections.note(error.rejection, peer=peer)
                problem = Problem(error.status, str(error))
                answer = problem_answer(Request(scope), problem, error.rejection.headers)
                await answer(scope, receive, send)
                return
            scope[GRANT] = grant
        await self.app(scope, receive, send)
