"""The HTTP answer to a rejection: a problem document (RFC 9457), and the headers of its row."""

import json
from http import HTTPStatus
from typing import Any

from brain.access.rejections import Rejection, status_headers
from brain.contract.problems import CONTENT_TYPE, problem_document


def answer(rejection: Rejection, *, close: bool = True) -> tuple[dict[str, str], bytes]:
    """Headers and body. `close`: the connection ends behind it."""
    body = json.dumps(problem_document(rejection.status, rejection.detail)).encode()
    headers = {
        "Content-Type": CONTENT_TYPE,
        "Content-Length": str(len(body)),
        **status_headers(rejection.status),
    }
    # A sender of Upgrade says so in Connection (RFC 9110, section 7.8).
    options = [*(["Upgrade"] if "Upgrade" in headers else []), *(["close"] if close else [])]
    if options:
        headers["Connection"] = ", ".join(options)
    return headers, body


def raw_answer(rejection: Rejection) -> bytes:
    """For a connection that the application does not write to."""
    headers, body = answer(rejection)
    status = HTTPStatus(rejection.status)
    lines = [f"HTTP/1.1 {status.value} {status.phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def reject(rejection: Rejection, _scope: Any, _receive: Any, send: Any) -> None:
    """An ASGI application: uvicorn keeps pipelined answers in their order."""
    headers, body = answer(rejection)
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": rejection.status, "headers": fields})
    await send({"type": "http.response.body", "body": body})
