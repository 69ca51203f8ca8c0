"""Every close code that a client of `/ws` may see: what it means, and whether to come back.

RFC 6455, section 7.4.1, and Brain's own from 4400 on, which read like HTTP's 400 to 499. The
server, `brain.client` and the table in docs/reference/protocol.md derive from this one.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Retry(StrEnum):
    """What a client does after a connection ended."""

    BACK_OFF = "yes, with back-off"
    RESET = (
        "yes, without `since`, at once (with back-off if this connection had none): "
        "discard your local data, Brain cannot say what changed"
    )
    NEW_TOKEN = "no, unless you get a new token first"  # noqa: S105 - a sentence
    NEVER = "no"


@dataclass(frozen=True, slots=True)
class CloseCode:
    code: int
    meaning: str
    retry: Retry
    reason: str = ""
    """What the close frame says, where it is always the same."""
    sent: bool = True
    """Brain sends it. The others are what a client may see of a proxy or of a broken connection."""


NORMAL: Final = CloseCode(1000, "the client closed", Retry.BACK_OFF, sent=False)
GOING_AWAY: Final = CloseCode(1001, "a proxy is going away", Retry.BACK_OFF, sent=False)
PROTOCOL_ERROR: Final = CloseCode(1002, "the client broke RFC 6455", Retry.NEVER)
UNSUPPORTED_DATA: Final = CloseCode(
    1003, "not sent by Brain; by RFC 6455 the client's fault", Retry.NEVER, sent=False
)
ABNORMAL_CLOSURE: Final = CloseCode(
    1006, "no close frame: the connection broke", Retry.BACK_OFF, sent=False
)
INVALID_TEXT: Final = CloseCode(1007, "the client sent text that is not UTF-8", Retry.NEVER)
FLOOD: Final = CloseCode(
    1008, "the client sent more than 20 frames, or KiB, a second for long", Retry.NEVER
)
MESSAGE_TOO_BIG: Final = CloseCode(
    1009, "the client sent a message of more than 4096 bytes", Retry.NEVER
)
MANDATORY_EXTENSION: Final = CloseCode(
    1010, "not sent by Brain; by RFC 6455 the client's fault", Retry.NEVER, sent=False
)
INTERNAL_ERROR: Final = CloseCode(
    1011, "an error in the server, which logs it", Retry.BACK_OFF, "an error in the server"
)
SERVICE_RESTART: Final = CloseCode(
    1012, "the server stops or restarts", Retry.BACK_OFF, "the server is stopping: come back"
)
TRY_AGAIN_LATER: Final = CloseCode(
    1013,
    "the database has not been read yet, or the keys that sign tokens cannot be read now",
    Retry.BACK_OFF,
    "the database has not been read yet: try again",
)
UNAUTHORIZED: Final = CloseCode(
    4401,
    "tokens are required: none came within 5 s, it was not valid, or it has expired",
    Retry.NEW_TOKEN,
)
FORBIDDEN: Final = CloseCode(4403, "the token does not permit this", Retry.NEVER)
GAP: Final = CloseCode(
    4410,
    "Brain's memory does not reach back to `since`, or (with `include=deleted`) nobody can name "
    "the runs that were deleted",
    Retry.RESET,
    "too far behind: load GET /api/runs and come back",
)

CLOSE_CODES: Final = {
    each.code: each
    for each in (
        NORMAL,
        GOING_AWAY,
        PROTOCOL_ERROR,
        UNSUPPORTED_DATA,
        ABNORMAL_CLOSURE,
        INVALID_TEXT,
        FLOOD,
        MESSAGE_TOO_BIG,
        MANDATORY_EXTENSION,
        INTERNAL_ERROR,
        SERVICE_RESTART,
        TRY_AGAIN_LATER,
        UNAUTHORIZED,
        FORBIDDEN,
        GAP,
    )
}


def retry(code: int) -> Retry:
    """What to do after any close code, also one that is in no table."""
    if found := CLOSE_CODES.get(code):
        return found.retry
    return Retry.NEVER if 4400 <= code <= 4499 else Retry.BACK_OFF
