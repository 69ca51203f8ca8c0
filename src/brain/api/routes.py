"""The HTTP API: `/api/runs`, `/docs` and `/openapi.json`.

It only reads and writes rows. What it writes is pushed because it was committed, like any other
change.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated
from urllib.parse import parse_qsl, quote, unquote

from fastapi import APIRouter, Depends, FastAPI, Path, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from starlette.convertors import PathConvertor, register_url_convertor

from brain import __version__
from brain.access.grants import Grant
from brain.access.rejections import RejectionCounter, RequestLine
from brain.api.asyncapi import add_asyncapi
from brain.api.body import read
from brain.api.concurrency import ConcurrencyLimiter
from brain.api.docs_page import add_docs_page
from brain.api.errors import (
    BeyondToken,
    EncodedBody,
    InvalidRequest,
    NotJSON,
    PreconditionFailed,
    RunNotFound,
    TableNotRead,
)
from brain.api.latest import Position
from brain.api.middleware import BodyLimit, ExactPath, TokenCheck, Tolerance, grant
from brain.api.models import RunCreate, RunId, RunList, RunPatch
from brain.api.openapi import (
    API,
    ETAG,
    FILTER,
    IF_MATCH,
    IF_NONE_MATCH,
    ORDERS,
    PAGE,
    problems,
    request_body,
)
from brain.api.pages import decode_cursor
from brain.api.preconditions import Preconditions
from brain.api.problems import handle_errors
from brain.api.repository import RunRepository, Version
from brain.api.sentences import field_name
from brain.api.write import write
from brain.api.write_log import WriteLog
from brain.contract.messages import ID, STATUS, RunData, body, shown
from brain.contract.subscription import (
    BOUNDS,
    Filter,
    FilterError,
    Form,
    as_given,
    parse_filter,
)

if TYPE_CHECKING:
    from brain.access.tokens import Tokens
    from brain.api.queries import ByFields


MAX_LIMIT = 1000
"""Runs of a page."""

MERGE_PATCH = "application/merge-patch+json"


class AnyText(PathConvertor):
    """The rest of a path, newlines included: every text can be an id."""

    regex = "(?s:.*)"


register_url_convertor("text", AnyText())


def create_api(
    runs: RunRepository,
    tokens: "Tokens | None" = None,
    rejections: RejectionCounter | None = None,
    form: Form = as_given,
) -> FastAPI:
    """`form` says how the columns print the values of a request."""
    rejections = rejections or RejectionCounter()
    app = API(
        title="Brain",
        version=__version__,
        description="Runs and their changes. A client first loads `GET /api/runs`; "
        "then `/ws` pushes each change as a `WSMessage` ([AsyncAPI](/asyncapi.json)).",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(ExactPath)
    app.add_middleware(BodyLimit)
    app.add_middleware(WriteLog, lines=rejections.lines)
    if tokens is not None:
        app.requires_token = True
        app.add_middleware(TokenCheck, tokens=tokens, rejections=rejections)
    # Any origin, because the access rules have rejected those that may not read, and Brain uses
    # no cookies. Outermost, because a preflight carries no token, and a page may read why its
    # request was rejected.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "POST", "PATCH"],
        # Programs that trace the requests of a page add headers of their own to them.
        allow_headers=["*"],
        expose_headers=["Date", "ETag", "Location", "Retry-After"],
        # A page of the internet that the rules permit asks so before it calls a private address.
        allow_private_network=True,
    )
    app.add_middleware(Tolerance)
    handle_errors(app)
    add_docs_page(app)
    add_asyncapi(app, requires_token=tokens is not None)
    app.include_router(_router(runs, ConcurrencyLimiter(rejections), form))
    return app


def _router(runs: RunRepository, limiter: ConcurrencyLimiter, form: Form) -> APIRouter:
    """`form` makes a request's values comparable with a token's and with the board's."""

    def limited(request: Request) -> AbstractAsyncContextManager[None]:
        # Behind a trusted proxy, server/http.py has put the client's own address here.
        return limiter.take(
            "" if request.client is None else request.client.host,
            RequestLine.of(request.method, request.scope.get("raw_path", b"")),
        )

    router = APIRouter(prefix="/api/runs", tags=["runs"], default_response_class=Response)
    run_id_path = Path(description="the run's id; a slash in it is written %2F")

    @router.get(
        "",
        summary="List runs",
        responses={200: {"model": RunList}, **problems(401, 403, 422, 429, 503)},
        response_model=None,
        openapi_extra={"parameters": [*FILTER, *PAGE]},
    )
    async def list_runs(request: Request) -> Response:
        """Runs in the order of their ids or, with `order=changed`, those that changed last. The
        filters are those of `/ws`: several values of a field are alternatives, and a run must match
        every field.

        To receive the changes from here on, connect to `/ws?since=<timestamp>` with the timestamp
        of the first page.
        """
        filter_, once = _query(request)
        printed = filter_.printed(form)
        filter_ = printed or filter_
        granted = grant(request)
        wanted: ByFields = {
            "run_id": filter_.run_id,
            "status": filter_.status,
            "agent": granted.narrowed("agent", filter_.agent),
            "task_id": granted.narrowed("task_id", filter_.task_id),
        }
        limit = _limit(once.get("limit", "100"))
        if _order(once) == "changed":
            if printed is None:
                raise TableNotRead
            position = Position.parse(once["cursor"]) if "cursor" in once else None
            async with limited(request):
                latest = await runs.latest(wanted, limit, position)
                return _json(latest.json(await runs.total(wanted)))
        after = decode_cursor(once["cursor"]) if "cursor" in once else None
        async with limited(request):
            page = await runs.page(wanted, after, limit)
        return _json(page.json())

    @router.post(
        "",
        summary="Create a run",
        status_code=201,
        responses={
            201: {"model": RunData, "headers": ETAG},
            **problems(401, 403, 409, 413, 415, 422, 429, 503),
        },
        response_model=None,
        dependencies=[Depends(_require_json)],
        openapi_extra={"requestBody": request_body(RunCreate)},
    )
    async def create_run(request: Request) -> Response:
        new = await read(request, RunCreate)
        given = new.texts(
            "id", "progress", "task_id", "agent", "started_at", "completed_at", "error"
        )
        _check_bounds(grant(request), given, BOUNDS, form)
        values = {name: text for name, text in given.items() if text is not None}
        written = write(request)
        written.run = values.get("id", "")
        async with limited(request):
            version = await runs.create(new.status, values)
        written.run, written.now = version.run[ID], version.run[STATUS]
        return _run(version, 201, Location=f"/api/runs/{_escaped(version.run[ID])}")

    @router.get(
        "/{run_id:text}",
        summary="Get a run",
        responses={
            200: {"model": RunData, "headers": ETAG},
            304: {"description": "The run is as If-None-Match says", "headers": ETAG},
            **problems(401, 403, 404, 409, 412, 422, 429, 503),
        },
        response_model=None,
        dependencies=[Depends(_require_utf8)],
        openapi_extra={"parameters": [IF_NONE_MATCH]},
    )
    async def get_run(request: Request, run_id: Annotated[RunId, run_id_path]) -> Response:
        preconditions = Preconditions.parse(request)
        async with limited(request):
            version = await runs.get(run_id, grant(request).within)
        if not preconditions.match(version.etag):
            raise PreconditionFailed(run_id, version.etag)
        if preconditions.is_known(version.etag):
            return Response(status_code=304, headers=_etag(version))
        return _run(version)

    @router.patch(
        "/{run_id:text}",
        summary="Change a run",
        responses={
            200: {"model": RunData, "headers": ETAG},
            **problems(401, 403, 404, 409, 412, 413, 415, 422, 429, 503),
        },
        response_model=None,
        dependencies=[Depends(_require_utf8), Depends(_require_json)],
        openapi_extra={
            "requestBody": request_body(RunPatch),
            "parameters": [IF_MATCH],
        },
    )
    async def change_run(request: Request, run_id: Annotated[RunId, run_id_path]) -> Response:
        """A queued run can become running or failed, a running one completed or failed.

        An end is final: a change of an ended run is a 409, unless it repeats what is true. To claim
        a run, send its ETag in If-Match: of several such requests one gets 200, the others 412.
        """
        written = write(request)
        written.run, written.was = run_id, runs.last_status(run_id, form)
        preconditions = Preconditions.parse(request)
        change = await read(request, RunPatch)
        values = change.texts("progress", "task_id", "agent", "error")
        granted = grant(request)
        _check_bounds(granted, values, values, form)
        async with limited(request):
            version = await runs.change(
                run_id, change.status, values, granted.within, preconditions
            )
        written.now = version.run[STATUS]
        return _run(version)

    return router


def _query(request: Request) -> tuple[Filter, Mapping[str, str]]:
    """The filter, and the parameters that may be given once. Raises InvalidRequest."""
    text = request.scope["query_string"].decode("latin-1")
    try:
        query = parse_qsl(text, keep_blank_values=True, errors="strict")
    except ValueError:
        message = f"the query is percent-encoded UTF-8, not {shown(text)}"
        raise InvalidRequest(message, ("query", message)) from None
    try:
        return parse_filter(query, ("order", "limit", "cursor"), "/api/runs")
    except FilterError as error:
        raise InvalidRequest(str(error), (field_name(error.field), str(error))) from None


def _order(once: Mapping[str, str]) -> str:
    order = once.get("order", "id")
    if order not in ORDERS:
        message = f"order is {' or '.join(ORDERS)}, not {shown(order)}"
        raise InvalidRequest(message, ("order", message))
    return order


def _limit(text: str) -> int:
    limit = int(text) if text.isascii() and text.isdigit() and len(text) <= 4 else 0
    if not 1 <= limit <= MAX_LIMIT:
        message = f"limit is a whole number from 1 to {MAX_LIMIT}, not {shown(text)}"
        raise InvalidRequest(message, ("limit", message))
    return limit


def _require_utf8(request: Request) -> None:
    """Uvicorn reads other bytes as U+FFFD, which another run may have in its id."""
    path = request.scope.get("raw_path", b"").decode("latin-1")
    try:
        unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise RunNotFound(path.removeprefix("/api/runs/")) from None


def _require_json(request: Request) -> None:
    # Another site's page can make a browser send a form or plain text without a preflight, but not
    # JSON.
    given = request.headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    # What PATCH does is a JSON merge patch (RFC 7396), so some clients call it that.
    if kind != "application/json" and (request.method, kind) != ("PATCH", MERGE_PATCH):
        raise NotJSON(given)
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise EncodedBody(encoding)


def _check_bounds(
    granted: Grant, values: Mapping[str, str | None], names: Iterable[str], form: Form
) -> None:
    """The request must not make a run that its token does not cover. Raises BeyondToken."""
    for name in names:
        permitted = granted.within.get(name)
        if permitted is None:
            continue
        value = values.get(name)
        if value is None or not permitted >= (form(name, [value]) or {value}):
            raise BeyondToken(name)


def _escaped(run_id: str) -> str:
    """The id as a segment of a path. Many clients take `.` and `..` for steps in it."""
    return quote(run_id, safe="") if run_id.strip(".") else run_id.replace(".", "%2E")


def _run(version: Version, status: int = 200, **headers: str) -> Response:
    return _json(body(version.run), status, **_etag(version), **headers)


def _etag(version: Version) -> dict[str, str]:
    return {"ETag": f'"{version.etag}"'}


def _json(text: str, status: int = 200, **headers: str) -> Response:
    return Response(text, status, headers, media_type="application/json")
