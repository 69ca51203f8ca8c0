"""Who was refused, and why: counted by reason for /metrics, and logged, sparingly."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal, get_args

import structlog

from brain.access.rate_limit import RateLimitedLogger

RejectionCode = Literal[
    # The guard's rules, before anything else is looked at.
    "network",
    "forwarded",
    "host",
    "origin",
    "cross_site",
    # Its limits.
    "connections_per_ip",
    "handshakes",
    "connections",
    "requests",
    "turns",
    "outgoing",
    # The token, and what it permits.
    "token",
    "scope",
    # The request.
    "malformed",
    "size",
    "deadline",
    "path",
    "method",
    "version",
    "parameter",
    "content_type",
    # What a WebSocket client sent.
    "frame",
    "text",
    "message_size",
    "flood",
    "silence",
    # Brain's own end.
    "closing",
]
REJECTION_CODES: tuple[RejectionCode, ...] = get_args(RejectionCode)


class RejectionCounter:
    def __init__(self, log: Any = None) -> None:
        self.counts: Counter[str] = Counter()
        self.lines = RateLimitedLogger(log or structlog.get_logger())

    def note(self, code: RejectionCode, *, peer: str, status: int, detail: str) -> None:
        """`status` is that of HTTP or the code of a close frame; `why` holds nothing raw, and no secret, from outside."""
        self.counts[code] += 1
        self.lines.info("rejected", code, peer=peer, status=status, detail=detail)


@dataclass(frozen=True, slots=True)
class Rejection:
    status: int
    detail: str
    """A sentence that is safe to log and to send: what came from outside is quoted in ASCII, and cut."""
    code: RejectionCode
    """Which rule, as the label of a metric."""
    retry_after: int | None = None
    """Seconds."""
