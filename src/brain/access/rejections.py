"""The one table of rejections: what Brain rejects, how it answers, and whether a client comes back.

The HTTP answer, the counter `brain_rejections_total`, the log line `rejected` and the table in
protocol.md derive from `REJECTIONS`. A caller says which row it is and why: `Rejection(code,
detail)`.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, get_args

import structlog

from brain.access.rate_limit import RateLimitedLogger
from brain.contract import close_codes
from brain.contract.close_codes import CloseCode, Retry

RejectionCode = Literal[
    # The access rules, checked before anything else.
    "network",
    "forwarded",
    "host_header",
    "host",
    "origin",
    "cross_site",
    # Their limits.
    "connections_per_ip",
    "handshakes",
    "connections",
    "requests",
    "turns",
    "outgoing",
    # The token, and what it permits.
    "token",
    "keys",
    "scope",
    # The request.
    "malformed",
    "url_size",
    "head_size",
    "body_size",
    "deadline",
    "path",
    "method",
    "http_version",
    "version",
    "parameter",
    # What a WebSocket client sent.
    "frame",
    "text",
    "message_size",
    "flood",
    "silence",
    # Brain itself starts, or stops.
    "unread",
    "behind",
    "closing",
]
"""The label of the metric, and `code` in the log."""

MAX_PATH: Final = 80
"""Bytes of a path in a line of the log."""

_AUTHORITY: Final = re.compile(rb"^[A-Za-z][A-Za-z0-9+.-]*://[^/]*")

REJECTION_CODES: Final[tuple[RejectionCode, ...]] = get_args(RejectionCode)


@dataclass(frozen=True, slots=True)
class RejectionType:
    """A row of the table: `status` answers a request, `close_code` ends a WebSocket."""

    meaning: str
    retry: Retry
    status: int | None = None
    close_code: CloseCode | None = None
    retry_after: int | None = None
    """Seconds."""
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What RFC 9110 and RFC 6455 require of an answer with this status."""


REJECTIONS: Final[Mapping[RejectionCode, RejectionType]] = {
    "network": RejectionType("the client's network may not connect", Retry.NEVER, 403),
    "forwarded": RejectionType(
        "a trusted proxy's `X-Forwarded-For` does not give the client's address", Retry.NEVER, 400
    ),
    "host_header": RejectionType(
        "the request has no valid Host, or more than one", Retry.NEVER, 400
    ),
    "host": RejectionType("the Host is not a name of this server", Retry.NEVER, 421),
    "origin": RejectionType("the page's Origin may not connect", Retry.NEVER, 403),
    "cross_site": RejectionType("a page of another site caused the request", Retry.NEVER, 403),
    "connections_per_ip": RejectionType(
        "the address has too many connections", Retry.BACK_OFF, 429, retry_after=1
    ),
    "handshakes": RejectionType(
        "the address opens connections too fast", Retry.BACK_OFF, 429, retry_after=1
    ),
    "connections": RejectionType(
        "too many clients are connected", Retry.BACK_OFF, 503, retry_after=1
    ),
    "requests": RejectionType(
        "too many connections are not WebSockets", Retry.BACK_OFF, 503, retry_after=1
    ),
    "turns": RejectionType(
        "HTTP API: too many requests of the address are at the database",
        Retry.BACK_OFF,
        429,
        retry_after=1,
    ),
    "outgoing": RejectionType(
        "too many bytes wait for clients that do not read",
        Retry.BACK_OFF,
        close_code=close_codes.ABNORMAL_CLOSURE,
    ),
    "token": RejectionType(
        "a token is required, and the request has no valid one",
        Retry.NEW_TOKEN,
        401,
        close_codes.UNAUTHORIZED,
        headers=MappingProxyType({"WWW-Authenticate": "Bearer"}),
    ),
    "keys": RejectionType(
        "the keys that sign tokens cannot be read now",
        Retry.BACK_OFF,
        503,
        close_codes.TRY_AGAIN_LATER,
        retry_after=1,
    ),
    "scope": RejectionType(
        "the token does not permit this", Retry.NEVER, 403, close_codes.FORBIDDEN
    ),
    "malformed": RejectionType(
        "the request is not HTTP, or it is an upgrade with a body or without a valid key",
        Retry.NEVER,
        400,
    ),
    "url_size": RejectionType("the URL is longer than 8 KiB", Retry.NEVER, 414),
    "head_size": RejectionType("the head is larger than 16 KiB", Retry.NEVER, 431),
    "body_size": RejectionType("the body is larger than 1 MiB", Retry.NEVER, 413),
    "deadline": RejectionType("the request was not complete within 5 s", Retry.BACK_OFF, 408),
    "path": RejectionType("an upgrade of another path than `/ws`", Retry.NEVER, 404),
    "method": RejectionType(
        "an upgrade that is not a GET",
        Retry.NEVER,
        405,
        headers=MappingProxyType({"Allow": "GET"}),
    ),
    "http_version": RejectionType(
        "an upgrade over another version than HTTP/1.1", Retry.NEVER, 505
    ),
    "version": RejectionType(
        "a plain GET of `/ws`, or a WebSocket version other than 13",
        Retry.NEVER,
        426,
        headers=MappingProxyType({"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}),
    ),
    "parameter": RejectionType("an unknown query parameter or value", Retry.NEVER, 400),
    "frame": RejectionType(
        "a frame that breaks RFC 6455", Retry.NEVER, close_code=close_codes.PROTOCOL_ERROR
    ),
    "text": RejectionType(
        "a text that is not UTF-8", Retry.NEVER, close_code=close_codes.INVALID_TEXT
    ),
    "message_size": RejectionType(
        "a message that is too long", Retry.NEVER, close_code=close_codes.MESSAGE_TOO_BIG
    ),
    "flood": RejectionType(
        "too many frames or bytes a second", Retry.NEVER, close_code=close_codes.FLOOD
    ),
    "silence": RejectionType(
        "the client sent and took nothing for `BRAIN_PING_TIMEOUT`",
        Retry.BACK_OFF,
        close_code=close_codes.ABNORMAL_CLOSURE,
    ),
    "unread": RejectionType(
        "a filter by `run_id`, `task_id` or `agent`, and the table has not been read yet",
        Retry.BACK_OFF,
        503,
        retry_after=1,
    ),
    "behind": RejectionType(
        "a `since` that another node has sent, and this one cannot read what that node has read",
        Retry.BACK_OFF,
        503,
        retry_after=1,
    ),
    "closing": RejectionType(
        "the server is stopping or restarting", Retry.BACK_OFF, 503, retry_after=1
    ),
}


def status_headers(status: int) -> dict[str, str]:
    """The headers that an answer with this status needs, whatever the reason for it."""
    for row in REJECTIONS.values():
        if row.status == status:
            after = {} if row.retry_after is None else {"Retry-After": str(row.retry_after)}
            return {**row.headers, **after}
    return {}


@dataclass(frozen=True, slots=True)
class Rejection:
    code: RejectionCode
    detail: str
    """A sentence that is safe to send: what came from outside is quoted in ASCII, and cut."""
    log_detail: str = ""
    """What the log says instead, where `detail` may quote a secret of the request."""

    @property
    def status(self) -> int:
        """The HTTP status, or the close code if only a WebSocket is rejected so."""
        row = REJECTIONS[self.code]
        if row.status is not None:
            return row.status
        assert row.close_code is not None, "a row has a status or a close code"
        return row.close_code.code


class RequestLine(NamedTuple):
    """What the log says of a request (RFC 9112, section 3): never its query, nor the user and the
    password that an absolute target may hold.
    """

    method: str
    path: str

    @classmethod
    def of(cls, method: str, target: bytes) -> "RequestLine":
        path = _AUTHORITY.sub(b"", target.partition(b"?")[0].partition(b"#")[0])
        shown = ascii(path[:MAX_PATH].decode("latin-1"))[1:-1]
        return cls(method, f"{shown}..." if len(path) > MAX_PATH else shown)


class RejectionCounter:
    def __init__(self, log: Any = None) -> None:
        self.counts: Counter[str] = Counter()
        self.lines = RateLimitedLogger(log or structlog.get_logger())

    def note(
        self,
        rejection: Rejection,
        *,
        peer: str,
        close_code: CloseCode | None = None,
        request: RequestLine | None = None,
    ) -> None:
        """`close_code`: the rejection ended a WebSocket; by default it answered a request.

        `request`: the one that is rejected, as far as it has arrived.
        """
        self.counts[rejection.code] += 1
        self.lines.info(
            "rejected",
            rejection.code,
            peer=peer,
            **({} if request is None else request._asdict()),
            status=rejection.status if close_code is None else close_code.code,
            detail=rejection.log_detail or rejection.detail,
        )
