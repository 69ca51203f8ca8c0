"""Other protocols than HTTP/1.1, which clients speak to this port by mistake."""

from brain.access.rejections import Rejection

_BEGINNINGS = {
    b"\x16\x03": "the client speaks TLS, and this port does not: use http:// and ws://",
    b"PRI * HTTP/2.0\r\n": "the client speaks HTTP/2, and this port speaks HTTP/1.1",
}
"""How a connection begins (RFC 8446, section 5.1; RFC 9113, section 3.4)."""


def other_protocol(data: bytes) -> Rejection | None:
    """The answer to a request that begins like this and is not HTTP/1.1."""
    for beginning, detail in _BEGINNINGS.items():
        if data.startswith(beginning):
            return Rejection("malformed", detail)
    return None
