"""Tokens: a JWT (RFC 7519) in, what its bearer may do out. Off unless a secret or a key set is configured.

Algorithms are pinned by the key, never taken from the token (RFC 8725, section 3.1): HS256 for the secret, and for a key of a
key set the one that it names or, without a name, the usual one of its type. No text here holds a token or a part of one.

A key set (RFC 7517) is loaded by a thread, within a deadline and a bound, so that a slow host holds up who waits for it and
nobody else. It is loaded again when it has aged, and when a token names a key that it lacks, though not for every such token.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import jwt
import structlog

from brain.access.jwks import KeySet, Secret, TokenError
from brain.contract.messages import storable
from brain.contract.subscription import MAX_CHARACTERS, MAX_VALUES

log = structlog.get_logger()

Scope = Literal["read", "write"]

BOUNDS = ("agent", "task_id")
"""Claims that bound what a token is for, as the fields of a run that they are about."""

MAX_TOKEN = 4096
"""Characters: what fits into a client's message, and into a head beside the rest."""

SKEW = 10
"""Seconds by which the clock of who issues tokens may be ahead of ours."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What the bearer of a token may do."""

    expires: float = float("inf")
    """Seconds since 1970."""
    scopes: frozenset[str] = frozenset({"read", "write"})
    within: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    """Field of a run (agent, task_id) → the values that its runs have. A field that is not here is free."""

    def require(self, scope: Scope) -> None:
        """Raises TokenError."""
        if scope not in self.scopes:
            raise TokenError(403, f"the token's scope does not hold {scope!r}")

    def narrowed(self, name: str, wanted: Iterable[str]) -> frozenset[str]:
        """What is wanted of a field, or, where that is nothing in particular, what is permitted. Raises TokenError beyond it."""
        asked, permitted = frozenset(wanted), self.within.get(name)
        if permitted is None:
            return asked
        if not asked <= permitted:
            raise TokenError(403, f"the token is for other values of {name} than are asked for")
        return asked or permitted


OPEN = Grant()
"""Where no tokens are asked for."""


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The token of a request (RFC 6750, section 2.1), or of the subprotocols `bearer, <token>`, which is what a browser can send.

    Never the URL's: URLs are logged and remembered everywhere. Raises TokenError if there are two.
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
        raise TokenError(401, "a request has one token")
    return found[0] if found else None


SUBPROTOCOL = "bearer"


def offers_bearer(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """A browser ends the connection if none of the subprotocols that it offered is answered."""
    return any(
        name == b"sec-websocket-protocol" and _offered(value)[0] == SUBPROTOCOL
        for name, value in headers
    )


def _offered(value: bytes) -> list[str]:
    return [each.strip() for each in value.decode("latin-1").split(",")]


class Tokens:
    def __init__(
        self,
        keys: Secret | KeySet,
        *,
        audience: str | None = None,
        issuer: str | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.keys = keys
        self.now = now
        self._audience = audience
        self._issuer = issuer

    async def check(self, token: str | None) -> Grant:
        """Raises TokenError."""
        if not token:
            raise TokenError(401, "a token is asked for: send it as Authorization: Bearer")
        if len(token) > MAX_TOKEN or not token.isascii():
            raise TokenError(401, f"a token is a JWT of at most {MAX_TOKEN} characters")
        try:
            header = jwt.get_unverified_header(token)
            name = header.get("kid")
            key, algorithm = await self.keys.find(name if isinstance(name, str) else None)
            if header.get("alg") != algorithm:
                raise TokenError(
                    401, f"the token is not signed by {algorithm}, which is what its key is for"
                )
            claims = jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=SKEW,
                options={"require": ["exp"], "verify_aud": self._audience is not None},
            )
            expires = float(claims["exp"])
        except jwt.PyJWTError as error:
            raise TokenError(401, _SAID.get(type(error), "the token is not valid")) from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise TokenError(401, "the token is no JWT") from None
        if not expires > self.now():
            raise TokenError(401, _SAID[jwt.ExpiredSignatureError])
        scope = claims.get("scope", "read")
        within = {name: _values(name, claims[name]) for name in BOUNDS if name in claims}
        return Grant(
            expires,
            frozenset(_texts("scope", scope.split() if isinstance(scope, str) else scope)),
            within,
        )


_SAID: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidSignatureError: "the token's signature is not that of its key",
    jwt.InvalidAudienceError: "the token is for another audience than BRAIN_JWT_AUDIENCE",
    jwt.InvalidIssuerError: "the token is not of BRAIN_JWT_ISSUER",
    jwt.MissingRequiredClaimError: "the token lacks a claim: exp, and aud and iss if they are configured",
}


def _texts(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TokenError(401, f"the token's claim {name} is a text or a list of texts")
    return value


def _values(name: str, value: object) -> frozenset[str]:
    values = frozenset(_texts(name, [value] if isinstance(value, str) else value))
    if not 0 < len(values) <= MAX_VALUES or not all(
        0 < len(each) <= MAX_CHARACTERS for each in values
    ):
        raise TokenError(
            401,
            f"the token's claim {name} holds 1 to {MAX_VALUES} texts of 1 to {MAX_CHARACTERS} characters",
        )
    try:
        return frozenset(map(storable, values))
    except ValueError as error:
        raise TokenError(401, f"the token's claim {name} {error}") from error
