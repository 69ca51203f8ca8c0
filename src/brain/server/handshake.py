"""The opening handshake (RFC 6455, section 4): what an upgrade asks for, and the 101 that answers
it.

`ServerProtocol.accept` of `websockets` wants a Request of its own, and took most of the time of an
upgrade.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import parse_qsl, unquote

import httptools
from websockets.utils import accept_key

from brain.access.grants import SUBPROTOCOL, offers_bearer
from brain.access.rejections import Rejection, RejectionCode
from brain.contract.errors import BrainError
from brain.contract.subscription import FilterError, Subscription, parse_subscription

PATH = "/ws"

KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
"""16 bytes in base64 (RFC 6455, section 4.1)."""

_SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Upgrade: websocket\r\n"
    b"Connection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: "
)
_BEARER = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n".encode()


class HandshakeError(BrainError):
    """A request that does not open a WebSocket."""

    def __init__(self, code: RejectionCode, detail: str, log_detail: str = "") -> None:
        super().__init__(detail)
        self.rejection = Rejection(code, detail, log_detail)


@dataclass(slots=True)
class Handshake:
    subscription: Subscription
    key: bytes
    bearer: bool
    """The client offers the subprotocol `bearer`. A browser fails if none of its offers is
    answered."""

    def response(self) -> bytes:
        accept = accept_key(self.key.decode()).encode()
        return b"%s%s\r\n%s\r\n" % (_SWITCHING, accept, _BEARER if self.bearer else b"")


def parse_handshake(
    method: bytes, http_version: str, target: bytes, headers: Collection[tuple[bytes, bytes]]
) -> Handshake:
    """Of an upgrade to `websocket`. Names of headers are in lower case. Raises HandshakeError."""
    keys: list[bytes] = []
    versions: list[bytes] = []
    for name, value in headers:
        if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
            raise HandshakeError("malformed", "an upgrade has no body")
        if name == b"sec-websocket-key":
            keys.append(value)
        elif name == b"sec-websocket-version":
            versions.append(value)
    subscription = parse_target(target)
    if method != b"GET":
        raise HandshakeError("method", "an upgrade is a GET")
    if http_version != "1.1":
        raise HandshakeError("http_version", "an upgrade needs HTTP/1.1")
    if versions != [b"13"]:
        raise HandshakeError("version", "this server supports WebSocket version 13")
    if len(keys) != 1 or not KEY.fullmatch(keys[0]):
        raise HandshakeError(
            "malformed", "an upgrade has one Sec-WebSocket-Key, of 16 bytes in base64"
        )
    return Handshake(subscription, keys[0], offers_bearer(headers))


def target_path(target: bytes) -> str | None:
    """The decoded path of a request target, as uvicorn has it. None if it is not a URL."""
    try:
        return unquote((httptools.parse_url(target).path or b"/").decode("latin-1"))
    except httptools.HttpParserInvalidURLError:
        return None


@lru_cache(1024)
def parse_target(target: bytes) -> Subscription:
    """Cached: clients repeat themselves. Raises HandshakeError."""
    path = target_path(target)
    if path is None:
        raise HandshakeError("malformed", "the target of the request is not a URL")
    if path not in (PATH, f"{PATH}/"):
        raise HandshakeError("path", f"the path of the WebSocket is {PATH}")
    try:
        query = (httptools.parse_url(target).query or b"").decode("ascii")
        return parse_subscription(parse_qsl(query, keep_blank_values=True, errors="strict"))
    except FilterError as error:
        # The text may quote the query, which may hold a secret: only the client sees it.
        log_detail = "the query is not valid for /ws"
        raise HandshakeError("parameter", str(error), log_detail) from None
    except ValueError:
        raise HandshakeError("parameter", "the query is not percent-encoded UTF-8") from None
