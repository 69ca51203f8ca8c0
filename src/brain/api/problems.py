"""Every error of the HTTP API as a problem document (RFC 9457): the one table of exceptions and
statuses.

libpq's own messages name the host and the user, so they are never sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import psycopg
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg import errors
from psycopg_pool import PoolTimeout
from starlette.exceptions import HTTPException
from starlette.routing import Match

from brain.access.grants import TokenError
from brain.access.rejections import status_headers
from brain.api.errors import (
    BeyondToken,
    EncodedBody,
    FieldErrors,
    IdNotComparable,
    InvalidRequest,
    NodeBehind,
    NotJSON,
    PolicyMissing,
    PreconditionFailed,
    PrivilegeMissing,
    RunConflict,
    RunError,
    RunNotFound,
    TableNotRead,
    TooManyRequests,
    postgres_message,
)
from brain.api.sentences import sentences
from brain.api.write import write
from brain.contract.problems import CONTENT_TYPE, problem_document
from brain.postgres.table import TableError

HTTP_STATUSES: Mapping[type[Exception], int] = {
    BeyondToken: 403,
    PolicyMissing: 403,
    RunNotFound: 404,
    RunConflict: 409,
    PreconditionFailed: 412,
    NotJSON: 415,
    EncodedBody: 415,
    InvalidRequest: 422,
    TooManyRequests: 429,
    TableNotRead: 503,
    NodeBehind: 503,
    IdNotComparable: 503,
    PrivilegeMissing: 503,
    TableError: 503,
}
"""Our own exceptions. A subclass has the status of its nearest base."""

UNPROCESSABLE = {"22", "23", "44", "54", "P0", "42804", "428C9", "42846"}
"""SQLSTATEs, or their classes, by which PostgreSQL rejects a value (PostgreSQL documentation,
Appendix A): 422."""


@dataclass(frozen=True, slots=True)
class Problem:
    status: int
    detail: str
    fields: FieldErrors = ()
    headers: Mapping[str, str] | None = None


def problem_of(request: Request, error: Exception) -> Problem:
    """The answer to a request that ended with this exception."""
    match error:
        case HTTPException():
            return _of_http(request, error)
        case RequestValidationError():
            fields = sentences(error.errors())
            return Problem(422, "; ".join(message for _, message in fields[:3]), fields)
        case psycopg.Error():
            return _of_database(request, error)
        case TokenError():
            return Problem(error.status, str(error))
        case RunError() | TableError():
            status = next(
                HTTP_STATUSES[kind] for kind in type(error).__mro__ if kind in HTTP_STATUSES
            )
            etag = getattr(error, "etag", None)
            headers = None if etag is None else {"ETag": f'"{etag}"'}
            return Problem(status, str(error), getattr(error, "fields", ()), headers)
    return Problem(500, "internal error: Brain's log says which")


def problem_answer(request: Request, error: Exception) -> Response:
    problem = problem_of(request, error)
    document = problem_document(
        problem.status,
        problem.detail,
        instance=quote(request.scope["path"], safe="/:@!$&'()*+,;=~"),
        errors=problem.fields,
    )
    headers = {**status_headers(problem.status), **(problem.headers or {})}
    return JSONResponse(document, problem.status, headers, CONTENT_TYPE)


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, psycopg.Error | PrivilegeMissing | TableError):
        problem = problem_of(request, error)
        if problem.status == 503:  # the value of a field makes it a 409 or a 422
            write(request).detail = problem.detail
    return problem_answer(request, error)


_HANDLED: tuple[type[Exception], ...] = (
    RunError,
    TokenError,
    TableError,
    psycopg.Error,
    HTTPException,
    RequestValidationError,
    Exception,
)


def handle_errors(app: FastAPI) -> None:
    """Answer every error of the application with a problem document, those of routing included."""
    for kind in _HANDLED:
        app.add_exception_handler(kind, _handle)


def _of_http(request: Request, error: HTTPException) -> Problem:
    match error.status_code:
        case 404:
            return Problem(404, "this path does not exist: see /docs", headers=error.headers)
        case 405:
            detail = f"{request.method} is not allowed on this path"
            return Problem(405, detail, headers={"Allow": _methods(request)})
    return Problem(error.status_code, str(error.detail), headers=error.headers)


def _methods(request: Request) -> str:
    """Those that the path allows (RFC 9110, section 10.2.1).

    Starlette names only those of the first route that has the path, and each of our routes has
    one method.
    """
    routes = request.app.routes
    scopes = {
        method: {**request.scope, "method": method}
        for method in ("GET", "POST", "PATCH", "PUT", "DELETE")
    }
    return ", ".join(
        method
        for method, scope in scopes.items()
        if any(route.matches(scope)[0] is Match.FULL for route in routes)
    )


def _of_database(request: Request, error: psycopg.Error) -> Problem:
    sqlstate = error.sqlstate or ""
    detail = postgres_message(error)
    if isinstance(error, errors.UniqueViolation):
        return Problem(409, detail)
    if sqlstate[:2] in UNPROCESSABLE or sqlstate in UNPROCESSABLE:
        column = error.diag.column_name
        return Problem(422, detail, ((column, detail),) if column else ())
    if isinstance(error, errors.InsufficientPrivilege):
        detail += ": the role that Brain connects as lacks this right"
    elif not sqlstate:
        detail = "the database does not answer: try again"
        if request.method != "GET" and not isinstance(error, PoolTimeout):
            detail = (
                "the connection to the database was lost, and the change may or may not have been "
                "made: read the run before you try again"
            )
    return Problem(503, detail)
