"""How a connection to Brain ended, and whether to connect again."""

import json
from dataclasses import dataclass
from typing import Final

from websockets.exceptions import ConnectionClosed, InvalidStatus

from brain.contract.close_codes import ABNORMAL_CLOSURE, Retry, retry
from brain.contract.errors import BrainError

MAX_RETRY_AFTER: Final = 60.0
"""Seconds of a `Retry-After` that are respected: a proxy's error page must not stop a client for a
day."""

MAX_DOCUMENT: Final = 64 * 1024
"""Bytes of a refusal that are read."""

MAX_DETAIL: Final = 2000
"""Characters of its sentence."""

UNAUTHORIZED: Final = 401
TEMPORARY: Final = frozenset({408, 425, 429})
PERMANENT: Final = frozenset({501, 505})
"""HTTP statuses below 500 after which a retry may succeed; and others, after which it cannot."""


class WatchError(BrainError):
    """Brain would refuse every retry, so the watch has ended.

    `code` is the close code or the HTTP status that ended it, or None.
    """

    def __init__(self, message: str = "", code: int | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Ending:
    """How a connection or an HTTP request ended, and what to do next."""

    reason: str
    retry: Retry = Retry.BACK_OFF
    code: int | None = None
    """The close code or the HTTP status."""
    at_least: float = 0.0
    """Seconds to wait besides the back-off."""

    def raise_if_final(self, url: str, *, new_token: bool) -> None:
        """Raise WatchError if a retry cannot succeed. `new_token`: the retry has another token."""
        if self.retry is Retry.NEVER or (self.retry is Retry.NEW_TOKEN and not new_token):
            raise WatchError(f"{url}: {self.reason}", self.code)


def classify(error: Exception) -> Ending:
    """How the connection ended that `error` ended: an OSError, or an exception of `websockets`."""
    match error:
        case ConnectionClosed(rcvd=None):
            return Ending("the connection broke", code=ABNORMAL_CLOSURE.code)
        case ConnectionClosed(rcvd=close) if close is not None:
            return Ending(
                f"closed with {close.code}: {close.reason}", retry(close.code), close.code
            )
        case InvalidStatus(response=response):
            retry_after = response.headers.get("Retry-After", "")
            return refused(response.status_code, bytes(response.body or b""), retry_after)
        case _:
            return Ending(str(error) or type(error).__name__)


def refused(status: int, body: bytes, retry_after: str) -> Ending:
    if status == UNAUTHORIZED:
        again = Retry.NEW_TOKEN
    elif status in PERMANENT or (status < 500 and status not in TEMPORARY):
        again = Retry.NEVER
    else:
        again = Retry.BACK_OFF
    seconds = min(MAX_RETRY_AFTER, float(retry_after)) if retry_after.isdecimal() else 0.0
    return Ending(f"refused with {status}: {detail(body)}", again, status, seconds)


def detail(body: bytes) -> str:
    """The `detail` of a problem document (RFC 9457), or the beginning of another answer."""
    text = body[:MAX_DOCUMENT].decode(errors="replace")
    try:
        return str(json.loads(text)["detail"])[:MAX_DETAIL]
    except (ValueError, TypeError, KeyError, RecursionError):
        return text[:200].strip()


def is_about_a_field(body: bytes) -> bool:
    """Whether the problem document names a field of a row that is there."""
    try:
        return bool(json.loads(body[:MAX_DOCUMENT].decode(errors="replace"))["errors"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
