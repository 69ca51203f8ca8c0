"""What every request passes before its route: its token, the bound of its body, its path."""

from typing import TYPE_CHECKING

from fastapi import HTTPException, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brain.access.grants import OPEN, Grant, TokenError, bearer
from brain.access.limits import BODY_TOO_LARGE, MAX_BODY
from brain.access.rejections import RejectionCounter, RequestLine
from brain.api.docs_page import ASSETS
from brain.api.problems import problem_answer
from brain.page.routes import FOLDERS as PAGE_FOLDERS
from brain.page.routes import PUBLIC as PAGE

if TYPE_CHECKING:
    from brain.access.tokens import Tokens

GRANT = "brain.grant"
"""Where the ASGI scope of a request holds what its token permits."""

DOCUMENTS = ("/docs", *ASSETS, "/openapi.json", "/asyncapi.json")

OPERATIONS = ("/healthz", "/readyz", "/metrics", *DOCUMENTS, "/ws")
"""Paths for operators, public documents, and `/ws`, whose token server/http.py checks."""

FIXED = (*OPERATIONS, "/api/runs")
"""Paths without a parameter."""


RUN = "/api/runs/"
"""What the path of a run begins with."""


def is_public(path: str) -> bool:
    """Whether a request of this path needs no token. All others need one."""
    return path in (*OPERATIONS, *PAGE) or path.startswith(PAGE_FOLDERS)


def grant(request: Request) -> Grant:
    granted: Grant = request.scope.get(GRANT, OPEN)
    return granted


class ExactPath:
    """Starlette's patterns end in `$`, which also matches before a newline: `/api/runs%0A` would be
    a list of runs.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and scope["path"].endswith("\n")
            and not scope["path"].startswith(RUN)
        ):
            await problem_answer(Request(scope), HTTPException(404))(scope, receive, send)
            return
        await self._app(scope, receive, send)


class Tolerance:
    """Serves what clients mean: a fixed path with a slash behind it, and HEAD wherever there is GET
    (RFC 9110, section 9.3.2). Without a redirect, which loses the body of a POST.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        # Only the id of a run may end with a slash.
        if path.endswith("/") and path != "/" and path.removesuffix("/") in FIXED:
            scope = {**scope, "path": path.removesuffix("/")}
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, without_body)


class BodyLimit:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY:
                # FastAPI makes a 400 of any other exception that is raised while it reads a body.
                raise HTTPException(BODY_TOO_LARGE.status, BODY_TOO_LARGE.detail)
            return message

        await self._app(scope, bounded if scope["type"] == "http" else receive, send)


class TokenCheck:
    """Rejects a request without a valid token before a byte of its body is read."""

    def __init__(self, app: ASGIApp, tokens: "Tokens", rejections: RejectionCounter) -> None:
        self._app = app
        self._tokens = tokens
        self._rejections = rejections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_public(scope["path"]):
            try:
                granted = await self._tokens.check(bearer(scope["headers"]))
                granted.require("read" if scope["method"] in ("GET", "HEAD") else "write")
            except TokenError as error:
                peer = str((scope["client"] or ("",))[0])
                target = scope.get("raw_path") or scope["path"].encode()
                line = RequestLine.of(scope["method"], target)
                self._rejections.note(error.rejection, peer=peer, request=line)
                await problem_answer(Request(scope), error)(scope, receive, send)
                return
            scope[GRANT] = granted
        await self._app(scope, receive, send)
