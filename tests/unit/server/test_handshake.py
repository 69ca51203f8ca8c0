"""The opening handshake: what opens a WebSocket, and how everything else is rejected."""

import pytest
from websockets.utils import accept_key

from brain.access.rejections import RejectionCode
from brain.contract.subscription import Subscription
from brain.server.handshake import HandshakeError, parse_handshake

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
HEADERS = [(b"sec-websocket-key", KEY), (b"sec-websocket-version", b"13")]


def test_the_response_of_rfc_6455() -> None:
    handshake = parse_handshake(b"GET", "1.1", b"/ws", HEADERS)
    assert handshake.subscription == Subscription()
    assert handshake.response() == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept_key(KEY.decode()).encode() + b"\r\n\r\n"
    )
    assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in handshake.response(), "section 1.3"


def test_the_subprotocol_bearer_is_selected_where_it_is_offered() -> None:
    offer = [*HEADERS, (b"sec-websocket-protocol", b"bearer, abc")]
    response = parse_handshake(b"GET", "1.1", b"/ws", offer).response()
    assert response.endswith(b"\r\nSec-WebSocket-Protocol: bearer\r\n\r\n")


@pytest.mark.parametrize(
    ("code", "method", "version", "target", "headers"),
    [
        ("path", b"POST", "1.0", b"/", []),
        ("parameter", b"POST", "1.0", b"/ws?x=1", []),
        ("method", b"POST", "1.0", b"/ws", []),
        ("http_version", b"GET", "1.0", b"/ws", []),
        ("version", b"GET", "1.1", b"/ws", []),
        ("version", b"GET", "1.1", b"/ws", [HEADERS[0], (b"sec-websocket-version", b"8")]),
        ("malformed", b"GET", "1.1", b"/ws", [HEADERS[1]]),
        ("malformed", b"GET", "1.1", b"/ws", [*HEADERS, HEADERS[0]]),
        ("malformed", b"GET", "1.1", b"/ws", [*HEADERS, (b"content-length", b"5")]),
        ("malformed", b"GET", "1.1", b"/ws", [*HEADERS, (b"transfer-encoding", b"chunked")]),
    ],
)
def test_each_check_has_its_own_rejection(
    code: RejectionCode,
    method: bytes,
    version: str,
    target: bytes,
    headers: list[tuple[bytes, bytes]],
) -> None:
    with pytest.raises(HandshakeError) as caught:
        parse_handshake(method, version, target, headers)
    assert caught.value.rejection.code == code


def test_a_query_is_quoted_to_the_client_and_not_in_the_log() -> None:
    with pytest.raises(HandshakeError) as caught:
        parse_handshake(b"GET", "1.1", b"/ws?status=secret", HEADERS)
    rejection = caught.value.rejection
    assert "secret" in rejection.detail
    assert rejection.log_detail
    assert "secret" not in rejection.log_detail
