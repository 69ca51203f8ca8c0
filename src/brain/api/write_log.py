"""One line of the log for each POST and PATCH of a run: the client, the run, its status before and
after, and the answer.

Never a value of the request but its id: the others may be secrets, and so may a query.
"""

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from brain.access.grants import OPEN, Grant
from brain.access.rate_limit import RateLimitedLogger
from brain.api.middleware import GRANT, RUN
from brain.api.write import WRITE, Write

log = structlog.get_logger()

METHODS = ("POST", "PATCH")

MAX_SHOWN = 80
"""Characters of an id or a subject in a line."""

MAX_DETAIL = 400
"""Characters of a detail."""


class WriteLog:
    """Each change has its line: it costs the database more than the log. Of what is rejected, a
    client can send more than a disk holds: those lines are limited, and the number left out is
    logged.
    """

    def __init__(self, app: ASGIApp, lines: RateLimitedLogger) -> None:
        self._app = app
        self._lines = lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] not in METHODS
            or not f"{scope['path']}/".startswith(RUN)
        ):
            await self._app(scope, receive, send)
            return
        written, answer = Write(), 0

        async def answered(message: Message) -> None:
            nonlocal answer
            if message["type"] == "http.response.start":
                answer = message["status"]
            await send(message)

        try:
            await self._app({**scope, WRITE: written}, receive, answered)
        except Exception:
            answer = 500  # which is sent behind this
            raise
        finally:  # a client may go before it has its answer
            self._note(scope, written, answer)

    def _note(self, scope: Scope, written: Write, answer: int) -> None:
        granted: Grant = scope.get(GRANT, OPEN)
        fields: dict[str, object] = {"method": scope["method"]}
        for name, value in (("run", written.run), ("was", written.was), ("now", written.now)):
            if value:
                fields[name] = _shown(value)
        fields |= {"answer": answer or "none", "peer": str((scope["client"] or ("",))[0])}
        if granted.subject:
            fields["subject"] = _shown(granted.subject)
        if written.detail:
            fields["detail"] = _shown(written.detail, MAX_DETAIL)
        if 200 <= answer < 300:
            log.info("write", **fields)
        else:
            self._lines.info("write", **fields)


def _shown(text: str, size: int = MAX_SHOWN) -> str:
    """On one line, in printable ASCII."""
    return ascii(text[:size])[1:-1] + ("..." if len(text) > size else "")
