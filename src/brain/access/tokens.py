"""Tokens: a JWT (RFC 7519) in, what its bearer may do out. Off unless a secret or a key set is set.

The key determines the algorithm, never the token (RFC 8725, section 3.1): HS256 for the secret, and
for a key of a key set the one that it names or, without a name, the usual one of its type. No text
here contains a token or a part of one.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jwt

from brain.access.grants import Grant, TokenError
from brain.contract.messages import storable
from brain.contract.subscription import BOUNDS, MAX_CHARACTERS, MAX_VALUES, Form, as_given

MAX_TOKEN = 4096
"""Characters: it must fit into a message of a client, and into a head with everything else."""

SKEW = 10
"""Seconds that the issuer's clock may be ahead of this one."""


class Keys(Protocol):
    """The keys that sign tokens."""

    async def begin(self) -> None:
        """Read them, if they are not given. Never raises: a problem is logged."""

    async def find(self, name: str | None) -> tuple[Any, str]:
        """The key of this name, and its algorithm. Raises TokenError."""


class Tokens:
    def __init__(
        self,
        keys: Keys,
        *,
        audience: str | None = None,
        issuer: str | None = None,
        now: Callable[[], float] = time.time,
        form: Form = as_given,
    ) -> None:
        self.keys = keys
        self._form = form
        self.now = now
        self._audience = audience
        self._issuer = issuer

    async def check(self, token: str | None) -> Grant:
        """Raises TokenError."""
        if not token:
            raise TokenError("token", "a token is required: send it as Authorization: Bearer")
        if len(token) > MAX_TOKEN or not token.isascii():
            raise TokenError("token", f"a token is a JWT of at most {MAX_TOKEN} characters")
        try:
            header = jwt.get_unverified_header(token)
            name = header.get("kid")
            key, algorithm = await self.keys.find(name if isinstance(name, str) else None)
            if header.get("alg") != algorithm:
                raise TokenError(
                    "token", f"the token is not signed with {algorithm}, the algorithm of its key"
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
            raise TokenError("token", _DETAILS.get(type(error), "the token is not valid")) from None
        except (ValueError, TypeError, OverflowError, RecursionError):
            raise TokenError("token", "the token is not a JWT") from None
        if not expires > self.now():
            raise TokenError("token", _DETAILS[jwt.ExpiredSignatureError])
        scope = claims.get("scope", "read")
        within = {
            name: self.printed(name, _values(name, claims[name]))
            for name in BOUNDS
            if name in claims
        }
        return Grant(
            expires,
            frozenset(_texts("scope", scope.split() if isinstance(scope, str) else scope)),
            within,
            str(claims.get("sub", "")),
        )

    def printed(self, name: str, values: Iterable[str]) -> frozenset[str]:
        """The values as the column prints them; as they are, before the table has been read."""
        given = frozenset(values)
        found = self._form(name, given)
        return given if found is None else found


_DETAILS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "the token has expired",
    jwt.ImmatureSignatureError: "the token is not valid yet",
    jwt.InvalidSignatureError: "the token's signature is not valid",
    jwt.InvalidAudienceError: "the token is for another audience than BRAIN_JWT_AUDIENCE",
    jwt.InvalidIssuerError: "the token's issuer is not BRAIN_JWT_ISSUER",
    jwt.MissingRequiredClaimError: (
        "the token lacks a claim: exp, and aud and iss if they are configured"
    ),
}


def _texts(name: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise TokenError("token", f"the token's claim {name} is a text or a list of texts")
    return value


def _values(name: str, value: object) -> frozenset[str]:
    values = frozenset(_texts(name, [value] if isinstance(value, str) else value))
    if not 0 < len(values) <= MAX_VALUES or not all(
        0 < len(each) <= MAX_CHARACTERS for each in values
    ):
        raise TokenError(
            "token",
            f"the token's claim {name} has 1 to {MAX_VALUES} texts "
            f"of 1 to {MAX_CHARACTERS} characters",
        )
    try:
        return frozenset(map(storable, values))
    except ValueError as error:
        raise TokenError("token", f"the token's claim {name} {error}") from error
