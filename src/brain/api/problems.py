"""Problem documents (RFC 9457): what a client of the HTTP API is told when things go wrong, and of what."""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg import errors
from psycopg_pool import PoolTimeout
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.routing import Match

from brain.postgres.table import TableError

MAX_BODY = 1024 * 1024
"""Bytes of a request's body."""


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """What the client is told instead of an answer. `wrong` are pairs of a field and what is wrong with it."""

    def __init__(self, status: int, detail: str, *wrong: tuple[str, str]) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.wrong = wrong


class FieldError(BaseModel):
    field: str
    message: str


class ProblemDocument(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str
    errors: list[FieldError] = []


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"$ref": "#/components/schemas/ProblemDocument"}
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {"application/problem+json": {"schema": schema}},
        }
        for status in statuses
    }


_MEANINGS = {
    401: "Tokens are asked for, and there is none, or none that is valid",
    403: "Who asks may not, or not this: `detail` says by which rule",
    404: "There is no such run",
    409: "The run exists already, or its status does not allow the change",
    413: f"The body is larger than {MAX_BODY} bytes",
    415: "The Content-Type is not application/json",
    422: "The request, or a value that the table refuses",
    429: "Too many requests of this address are under way: `detail` says which rule",
    503: "The database is away, or the table is not as Brain needs it: `detail` says what to do",
}


def problem_answer(
    request: Request, problem: Problem, headers: Mapping[str, str] | None = None
) -> Response:
    document: dict[str, object] = {
        "type": "about:blank",
        "title": HTTPStatus(problem.status).phrase,
        "status": int(problem.status),
        "detail": problem.detail,
        "instance": quote(request.scope["path"], safe="/:@!$&'()*+,;=~"),
    }
    if problem.wrong:
        document["errors"] = [
            {"field": name, "message": message} for name, message in problem.wrong
        ]
    more = {"Retry-After": "1"} if problem.status in (429, 503) else {}
    return JSONResponse(
        document, problem.status, {**(headers or {}), **more}, "application/problem+json"
    )


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return problem_answer(request, error)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    match error.status_code:
        case (
            400
        ):  # FastAPI's word for bytes that are no text, where it says 422 to a text that is no JSON
            return problem_answer(
                request, Problem(422, "body: is not UTF-8", ("body", "is not UTF-8"))
            )
        case 404:
            return problem_answer(
                request, Problem(404, "there is nothing here: see /docs"), error.headers
            )
        case 405:
            detail = f"{request.method} is not for this path"
            return problem_answer(request, Problem(405, detail), {"Allow": _methods(request)})
    return problem_answer(request, Problem(error.status_code, str(error.detail)), error.headers)


def _methods(request: Request) -> str:
    """Those of the path (RFC 9110, section 10.2.1). Starlette names those of its first route alone, and each method has one."""
    routes = request.app.routes
    asked = {
        method: {**request.scope, "method": method}
        for method in ("GET", "POST", "PATCH", "PUT", "DELETE")
    }
    return ", ".join(
        method
        for method, scope in asked.items()
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    )


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong = [_wrong(each) for each in error.errors()]
    return problem_answer(
        request, Problem(422, "; ".join(": ".join(each) for each in wrong[:3]), *wrong)
    )


def _wrong(error: Mapping[str, Any]) -> tuple[str, str]:
    where, *place = error["loc"]
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        return "body", f"is not JSON: {error['ctx']['error']} at {place[0]}"
    return ".".join(map(str, place)) or str(where), message


async def _on_table(request: Request, error: Exception) -> Response:
    return problem_answer(request, Problem(503, str(error)))


async def _on_database(request: Request, error: Exception) -> Response:
    assert isinstance(error, psycopg.Error)
    sqlstate = error.sqlstate or ""
    detail = said(error)
    if isinstance(error, errors.UniqueViolation):
        return problem_answer(request, Problem(409, detail))
    if sqlstate[:2] in _REFUSALS or sqlstate in _REFUSALS:
        column = error.diag.column_name
        return problem_answer(
            request, Problem(422, detail, *([(column, detail)] if column else []))
        )
    if isinstance(error, errors.InsufficientPrivilege):
        detail += ": GRANT SELECT, INSERT, UPDATE on it to the role that Brain connects as"
    elif not sqlstate:  # libpq's own words name the host and the user
        detail = "the database does not answer: try again"
        if request.method != "GET" and not isinstance(error, PoolTimeout):
            detail = "the database went away: whether the change was made is not known, so look before you try again"
    return problem_answer(request, Problem(503, detail))


_REFUSALS = {"22", "23", "44", "54", "P0", "42804", "428C9", "42846"}
"""What a table says to a value that it does not take, by SQLSTATE or its class (PostgreSQL documentation, Appendix A)."""


async def _on_anything(request: Request, _error: Exception) -> Response:
    return problem_answer(request, Problem(500, "Brain made a mistake, and its log says which"))


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    Problem: _on_problem,
    HTTPException: _on_http,
    RequestValidationError: _on_invalid,
    TableError: _on_table,
    psycopg.Error: _on_database,
    Exception: _on_anything,
}


def handle(app: FastAPI) -> None:
    """Every error of the application's is answered with a problem document, those of routing included."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


def said(error: psycopg.Error) -> str:
    """PostgreSQL's message; with its detail where that names keys and not a whole row."""
    parts = [error.diag.message_primary or str(error)]
    if error.diag.message_detail and (error.sqlstate or "") in ("23503", "23505"):
        parts.append(error.diag.message_detail)
    return ": ".join(parts)
