"""The HTTP API: `/api/runs`, `/docs` and `/openapi.json`.

It only reads and writes rows. What it writes is pushed because it was committed, like any other
change.
"""

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from fastapi import APIRouter, Body, Depends, FastAPI, Path, Query, Request, Response
from fastapi.middleware.cors import CORSMiddleware

from brain import __version__
from brain.access.rejections import RejectionCounter
from brain.access.tokens import BOUNDS, Grant, Tokens
from brain.api.concurrency import ConcurrencyLimiter
from brain.api.errors import BeyondToken, NotJSON, ParameterRepeated
from brain.api.middleware import BodyLimit, TokenCheck, Tolerance, grant
from brain.api.models import RunCreate, RunId, RunList, RunPatch, RunQuery
from brain.api.openapi import API, problems
from brain.api.pages import decode_cursor
from brain.api.problems import handle_errors
from brain.api.repository import RunRepository
from brain.contract.messages import ID, RunData, body

if TYPE_CHECKING:
    from brain.api.queries import ByFields


def create_api(
    runs: RunRepository,
    tokens: Tokens | None = None,
    rejections: RejectionCounter | None = None,
) -> FastAPI:
    rejections = rejections or RejectionCounter()
    app = API(
        title="Brain",
        version=__version__,
        description="Runs and their changes. A client first loads `GET /api/runs`; "
        "then `/ws` pushes each change as a `WSMessage`.",
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(BodyLimit)
    if tokens is not None:
        app.add_middleware(TokenCheck, tokens=tokens, rejections=rejections)
    # Any origin, because the access rules have rejected those that may not read, and Brain uses
    # no cookies. Outermost, because a preflight carries no token, and a page may read why its
    # request was rejected.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "POST", "PATCH"],
        allow_headers=["Authorization", "Content-Type"],
        expose_headers=["Location", "Retry-After"],
        # A page of the internet that the rules permit asks so before it calls a private address.
        allow_private_network=True,
    )
    app.add_middleware(Tolerance)
    handle_errors(app)
    app.include_router(_router(runs, ConcurrencyLimiter(rejections)))
    return app


def _router(runs: RunRepository, limiter: ConcurrencyLimiter) -> APIRouter:
    def place(request: Request) -> AbstractAsyncContextManager[None]:
        # Behind a trusted proxy, server/http.py has put the client's own address here.
        return limiter.take("" if request.client is None else request.client.host)

    router = APIRouter(prefix="/api/runs", tags=["runs"], default_response_class=Response)
    run_id_path = Path(description="the run's id; a slash in it is written %2F")

    @router.get(
        "",
        summary="List runs",
        responses={200: {"model": RunList}, **problems(401, 403, 422, 429, 503)},
        response_model=None,
    )
    async def list_runs(request: Request, query: Annotated[RunQuery, Query()]) -> Response:
        """Runs in the order of their ids. Several values of a field are alternatives; a run must
        match every field.

        To receive the changes from here on, connect to `/ws?since=<timestamp>` with the timestamp
        of the first page.
        """
        for name in ("limit", "cursor"):
            if len(request.query_params.getlist(name)) > 1:
                raise ParameterRepeated(name)
        granted = grant(request)
        wanted: ByFields = {
            "status": query.status,
            "agent": granted.narrowed("agent", query.agent),
            "task_id": granted.narrowed("task_id", query.task_id),
        }
        after = None if query.cursor is None else decode_cursor(query.cursor)
        async with place(request):
            page = await runs.page(wanted, after, query.limit)
        return _json(page.json())

    @router.post(
        "",
        summary="Create a run",
        status_code=201,
        responses={201: {"model": RunData}, **problems(401, 403, 409, 413, 415, 422, 429, 503)},
        response_model=None,
        dependencies=[Depends(_require_json)],
    )
    async def create_run(request: Request, new: Annotated[RunCreate, Body()]) -> Response:
        given = new.texts(
            "id", "progress", "task_id", "agent", "started_at", "completed_at", "error"
        )
        _check_bounds(grant(request), given, BOUNDS)
        values = {name: text for name, text in given.items() if text is not None}
        async with place(request):
            run = await runs.create(new.status, values)
        return _json(body(run), 201, Location=f"/api/runs/{quote(run[ID], safe='')}")

    @router.get(
        "/{run_id:path}",
        summary="Get a run",
        responses={200: {"model": RunData}, **problems(401, 403, 404, 422, 429, 503)},
        response_model=None,
    )
    async def get_run(request: Request, run_id: Annotated[RunId, run_id_path]) -> Response:
        async with place(request):
            run = await runs.get(run_id, grant(request).within)
        return _json(body(run))

    @router.patch(
        "/{run_id:path}",
        summary="Change a run",
        responses={
            200: {"model": RunData},
            **problems(401, 403, 404, 409, 413, 415, 422, 429, 503),
        },
        response_model=None,
        dependencies=[Depends(_require_json)],
    )
    async def change_run(
        request: Request, run_id: Annotated[RunId, run_id_path], change: Annotated[RunPatch, Body()]
    ) -> Response:
        """A queued run can become running or failed, a running one completed or failed.

        An ended run stays ended.
        """
        values = change.texts("progress", "task_id", "agent", "error")
        granted = grant(request)
        _check_bounds(granted, values, values)
        async with place(request):
            run = await runs.change(run_id, change.status, values, granted.within)
        return _json(body(run))

    return router


def _require_json(request: Request) -> None:
    # Another site's page can make a browser send a form or plain text without a preflight, but not
    # JSON.
    given = request.headers.get("content-type", "")
    if given.partition(";")[0].strip().lower() != "application/json":
        raise NotJSON(given)


def _check_bounds(granted: Grant, values: Mapping[str, str | None], names: Iterable[str]) -> None:
    """The request must not make a run that its token does not cover. Raises BeyondToken."""
    for name in names:
        permitted = granted.within.get(name)
        if permitted is not None and values.get(name) not in permitted:
            raise BeyondToken(name)


def _json(text: str, status: int = 200, **headers: str) -> Response:
    return Response(text, status, headers, media_type="application/json")
