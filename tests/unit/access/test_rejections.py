"""Each row of the table of rejections, as it is answered, counted and logged."""

import json
from http import HTTPStatus
from typing import Any

import pytest
from structlog.testing import CapturingLogger

from brain.access.rejections import (
    REJECTION_CODES,
    REJECTIONS,
    Rejection,
    RejectionCode,
    RejectionCounter,
    RequestLine,
)
from brain.server.answers import answer, raw_answer, reject

ANSWERED = [code for code in REJECTION_CODES if REJECTIONS[code].status is not None]
REQUIRED = {
    401: {"www-authenticate": "Bearer"},
    405: {"allow": "GET"},
    426: {"upgrade": "websocket", "sec-websocket-version": "13"},
    429: {"retry-after": "1"},
    503: {"retry-after": "1"},
}
"""Headers that a status needs: RFC 9110, and RFC 6455, section 4.4, for 426."""


def parsed(data: bytes) -> tuple[str, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.decode().split("\r\n")
    return line, {name.lower(): value for name, value in (f.split(": ", 1) for f in fields)}, body


@pytest.mark.parametrize("code", ANSWERED)
async def test_both_ways_of_answering_give_the_same_problem_document(code: RejectionCode) -> None:
    status = HTTPStatus(REJECTIONS[code].status or 0)
    line, headers, body = parsed(raw_answer(Rejection(code, "why", log_detail="secret")))
    assert line == f"HTTP/1.1 {status.value} {status.phrase}"
    document = {"type": "about:blank", "title": status.phrase, "status": status, "detail": "why"}
    assert json.loads(body) == document
    connection = {"connection": "Upgrade, close" if status == 426 else "close"}
    content = {"content-type": "application/problem+json", "content-length": str(len(body))}
    assert headers == content | connection | REQUIRED.get(status, {})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await reject(Rejection(code, "why"), {}, None, send)
    start, content_ = sent
    assert (start["status"], content_["body"]) == (status, body)
    assert {name.decode().lower(): value.decode() for name, value in start["headers"]} == headers


def test_an_answer_may_leave_the_connection_open() -> None:
    assert "Connection" not in answer(Rejection("path", "why"), close=False)[0]
    assert answer(Rejection("version", "why"), close=False)[0]["Connection"] == "Upgrade"


@pytest.mark.parametrize("code", REJECTION_CODES)
def test_a_rejection_is_counted_and_logged_by_its_code(code: RejectionCode) -> None:
    log = CapturingLogger()
    counter = RejectionCounter(log)
    row = REJECTIONS[code]
    counter.note(Rejection(code, "why"), peer="10.0.0.1")
    counter.note(
        Rejection(code, "why", log_detail="safe"), peer="10.0.0.1", close_code=row.close_code
    )
    assert counter.counts == {code: 2}
    closed = None if row.close_code is None else row.close_code.code
    logged = {"code": code, "peer": "10.0.0.1"}
    assert [call.args for call in log.calls] == [("rejected",)] * 2
    assert [call.kwargs for call in log.calls] == [
        {**logged, "status": row.status or closed, "detail": "why"},
        {**logged, "status": closed or row.status, "detail": "safe"},
    ]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/ws?token=secret", "/ws"),
        (b"/api/runs#secret", "/api/runs"),
        (b"http://user:secret@brain.example:80/api/runs?secret", "/api/runs"),
        (b"*", "*"),
        (b"/a\x1b[31m\xff\n", "/a\\x1b[31m\\xff\\n"),
        (b"/" + b"x" * 80, "/" + "x" * 79 + "..."),
    ],
)
def test_a_line_of_the_log_has_the_path_of_a_request_and_no_secret(
    target: bytes, path: str
) -> None:
    log = CapturingLogger()
    RejectionCounter(log).note(
        Rejection("network", "why"), peer="10.0.0.1", request=RequestLine.of("GET", target)
    )
    (call,) = log.calls
    assert (call.kwargs["method"], call.kwargs["path"]) == ("GET", path)
    assert "secret" not in str(call)
