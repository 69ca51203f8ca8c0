"""What the bearer of a token may do, and where a request carries its token. Verifies nothing.

Apart from tokens.py, because every Brain needs this, and only one that requires tokens needs PyJWT
and cryptography, whose import takes 80 ms.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from brain.access.rejections import Rejection
from brain.contract.errors import BrainError

Scope = Literal["read", "write"]


class TokenError(BrainError):
    """`token`: get another one. `scope`: it does not permit this. `keys`: it cannot be verified
    now.
    """

    def __init__(self, code: Literal["token", "scope", "keys"], detail: str) -> None:
        super().__init__(detail)
        self.code: Literal["token", "scope", "keys"] = code

    @property
    def rejection(self) -> Rejection:
        return Rejection(self.code, str(self))

    @property
    def status(self) -> int:
        """Of HTTP."""
        return self.rejection.status


@dataclass(frozen=True, slots=True)
class Grant:
    """What the bearer of a token may do."""

    expires: float = float("inf")
    """Seconds since 1970."""
    scopes: frozenset[str] = frozenset({"read", "write"})
    within: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Field of a run (agent, task_id) → the values that it permits. Other fields are not
    limited."""
    subject: str = ""
    """The token's subject (RFC 7519, 4.1.2), or "". For the log."""

    def require(self, scope: Scope) -> None:
        """Raises TokenError."""
        if scope not in self.scopes:
            raise TokenError("scope", f"the token's scope does not contain {scope!r}")

    def narrowed(self, name: str, wanted: Iterable[str]) -> frozenset[str]:
        """The wanted values of a field; if there are none, all that the token permits.

        Raises TokenError if the token does not permit all of them.
        """
        asked, permitted = frozenset(wanted), self.within.get(name)
        if permitted is None:
            return asked
        if not asked <= permitted:
            raise TokenError("scope", f"the token does not permit these values of {name}")
        return asked or permitted


OPEN = Grant()
"""Where no tokens are required."""


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The token of a request (RFC 6750, section 2.1), or of the subprotocols `bearer, <token>`,
    which a browser can send.

    Never from the URL: URLs end up in logs and histories. Raises TokenError if there are two.
    """
    found = []
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").strip().partition(" ")
            if scheme.lower() == "bearer":
                found.append(token.strip())
        elif (
            name == b"sec-websocket-protocol"
            and len(offered := _offered(value)) > 1
            and offered[0] == SUBPROTOCOL
        ):
            found.append(offered[1])
    if len(found) > 1:
        raise TokenError("token", "a request has one token")
    return found[0] if found else None


SUBPROTOCOL = "bearer"


def offers_bearer(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """A browser closes the connection if the server selects none of its subprotocols."""
    return any(
        name == b"sec-websocket-protocol" and _offered(value)[0] == SUBPROTOCOL
        for name, value in headers
    )


def _offered(value: bytes) -> list[str]:
    return [each.strip() for each in value.decode("latin-1").split(",")]
