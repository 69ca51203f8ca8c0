"""Other protocols than HTTP/1.1: those that clients speak to this port by mistake, or ask for."""

from collections.abc import Iterable

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


def head_without_upgrade(
    method: bytes, target: bytes, http_version: str, headers: Iterable[tuple[bytes, bytes]]
) -> bytes:
    """The head of this request without the upgrade that Brain ignores (RFC 9110, section 7.8).
    Names of headers are in lower case.
    """
    head = [b"%s %s HTTP/%s" % (method, target, http_version.encode())]
    for name, value in headers:
        if name == b"connection":
            options = [each for each in value.split(b",") if each.strip().lower() != b"upgrade"]
            if options:
                head.append(b"%s:%s" % (name, b",".join(options)))
        elif name != b"upgrade":
            head.append(b"%s:%s" % (name, value))
    return b"\r\n".join([*head, b"", b""])
