"""Which exception is answered with which problem document."""

import json
from collections.abc import Iterator

import psycopg
import pytest
from fastapi import Request
from psycopg import errors
from psycopg_pool import PoolTimeout

from brain.access.grants import TokenError
from brain.api.errors import (
    ColumnNotWritable,
    PrivilegeMissing,
    RowRejected,
    RunError,
    RunNotFound,
    TransitionNotAllowed,
)
from brain.api.openapi import DESCRIPTIONS
from brain.api.problems import HTTP_STATUSES, problem_answer, problem_of
from brain.contract.messages import TRANSITIONS, Status
from brain.postgres.table import TableError


def request(method: str = "GET") -> Request:
    return Request({"type": "http", "method": method, "path": "/api/runs/ü?", "headers": []})


def kinds(base: type[RunError]) -> Iterator[type[RunError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from kinds(kind)


@pytest.mark.parametrize("kind", [*kinds(RunError)])
def test_each_run_error_has_a_status(kind: type[RunError]) -> None:
    assert HTTP_STATUSES.keys() & set(kind.__mro__)


def test_each_status_is_described() -> None:
    assert {*HTTP_STATUSES.values(), 401} <= DESCRIPTIONS.keys()


@pytest.mark.parametrize(
    ("error", "method", "status", "detail"),
    [
        (RunNotFound("a"), "GET", 404, "there is no run 'a'"),
        (TransitionNotAllowed("a", "failed", "queued"), "PATCH", 409, "failed is final"),
        (RowRejected(), "POST", 409, "trigger"),
        (TableError("no table"), "GET", 503, "no table"),
        (TokenError("token", "no token"), "GET", 401, "no token"),
        (TokenError("scope", "not this"), "GET", 403, "not this"),
        (errors.InvalidTextRepresentation("12.5"), "PATCH", 422, "12.5"),
        (errors.CheckViolation("check"), "PATCH", 422, "check"),
        (errors.RaiseException("not today"), "PATCH", 422, "not today"),
        (errors.UniqueViolation("twice"), "POST", 409, "twice"),
        (errors.InsufficientPrivilege("denied"), "GET", 503, "denied: the role that Brain"),
        (PrivilegeMissing("denied", ["GRANT x;"]), "GET", 503, "denied: run GRANT x;"),
        (errors.LockNotAvailable("lock timeout"), "GET", 503, "lock timeout"),
        (psycopg.OperationalError("host=secret"), "GET", 503, "does not answer"),
        (psycopg.OperationalError("host=secret"), "PATCH", 503, "may or may not have been made"),
        (PoolTimeout("host=secret"), "PATCH", 503, "does not answer"),
        (ZeroDivisionError("secret"), "GET", 500, "log"),
    ],
)
def test_an_error_is_answered_with_its_status(
    error: Exception, method: str, status: int, detail: str
) -> None:
    answer = problem_answer(request(method), error)
    document = json.loads(bytes(answer.body))
    assert (answer.status_code, document["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"
    assert detail in document["detail"]
    assert "secret" not in document["detail"]
    assert document["instance"] == "/api/runs/%C3%BC%3F"
    assert "errors" not in document
    assert answer.headers.get("retry-after") == ("1" if status in (429, 503) else None)
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)


def test_an_error_of_a_request_names_its_fields() -> None:
    wrong = [("agent", "no such column"), ("error", "computed")]
    problem = problem_of(request("PATCH"), ColumnNotWritable(wrong))
    assert problem.status == 422
    assert problem.fields == tuple(wrong)
    assert problem.detail == "agent cannot be set: no such column"


@pytest.mark.parametrize("present", [*TRANSITIONS])
def test_a_transition_that_is_not_allowed_names_those_that_are(present: Status) -> None:
    detail = str(TransitionNotAllowed("a", present, "queued")).partition(": ")[2]
    others = TRANSITIONS[present] - {present}
    assert all(other in detail for other in others)
    assert ("is final" in detail) == (not others)
