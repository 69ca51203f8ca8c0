"""Tokens: a JWT (RFC 7519) in, what its bearer may do out. Off unless a secret or a key set is configured.

Algorithms are pinned by the key, never taken from the token (RFC 8725, section 3.1): HS256 for the secret, and for a key of a
key set the one that it names or, without a name, the usual one of its type. No text here holds a token or a part of one.

A key set (RFC 7517) is loaded by a thread, within a deadline and a bound, so that a slow host holds up who waits for it and
nobody else. It is loaded again when it has aged, and when a token names a key that it lacks, though not for every such token.
"""

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import jwt
import structlog

from brain.contract.messages import storable
from brain.contract.subscription import MOST_CHARACTERS, MOST_VALUES

log = structlog.get_logger()

Scope = Literal["read", "write"]

BOUNDS = ("agent", "task_id")
"""Claims that bound what a token is for, as the fields of a run that they are about."""

MOST_TOKEN = 4096
"""Characters: what fits into a client's message, and into a head beside the rest."""

SHORTEST_SECRET = 32
"""Bytes (RFC 7518, section 3.2)."""

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
"""Of a key set. No HS256: it would take a public key, which everybody has, for a secret."""

MOST_JWKS = 256 * 1024
"""Bytes of a key set."""

LOAD_WITHIN = 3.0
"""Seconds, names looked up and all."""

FRESH = 600.0
"""Seconds after which a key set is loaded again: a key that was withdrawn lives on for so long, at the most while its host answers."""

RELOAD = 30.0
"""Seconds between two loads, whatever tokens come: a token with a made-up key must not make us ask for each."""

RELOAD_FIRST = 3.0
"""Likewise, as long as there is no key at all."""

SKEW = 10
"""Seconds by which the clock of who issues tokens may be ahead of ours."""


class TokenError(Exception):
    """A token that is not enough. 401: get another. 403: it does not permit this. 503: it cannot be judged now."""

    def __init__(self, status: Literal[401, 403, 503], text: str) -> None:
        super().__init__(text)
        self.status = status
        self.kind: Literal["token", "scope"] = "scope" if status == 403 else "token"
        self.retry_after = 1 if status == 503 else None


class KeysError(Exception):
    """A key set that cannot be used. The text says why."""


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
        name == b"sec-websocket-protocol" and _offered(value)[0] == SUBPROTOCOL for name, value in headers
    )


def _offered(value: bytes) -> list[str]:
    return [each.strip() for each in value.decode("latin-1").split(",")]


class Tokens:
    def __init__(
        self,
        keys: "Secret | KeySet",
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
        if len(token) > MOST_TOKEN or not token.isascii():
            raise TokenError(401, f"a token is a JWT of at most {MOST_TOKEN} characters")
        try:
            header = jwt.get_unverified_header(token)
            name = header.get("kid")
            key, algorithm = await self.keys.find(name if isinstance(name, str) else None)
            if header.get("alg") != algorithm:
                raise TokenError(401, f"the token is not signed by {algorithm}, which is what its key is for")
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
            expires, frozenset(_texts("scope", scope.split() if isinstance(scope, str) else scope)), within
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
    if not 0 < len(values) <= MOST_VALUES or not all(0 < len(each) <= MOST_CHARACTERS for each in values):
        raise TokenError(
            401,
            f"the token's claim {name} holds 1 to {MOST_VALUES} texts of 1 to {MOST_CHARACTERS} characters",
        )
    try:
        return frozenset(map(storable, values))
    except ValueError as error:
        raise TokenError(401, f"the token's claim {name} {error}") from error


class Secret:
    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def find(self, _name: str | None) -> tuple[Any, str]:
        return self._secret, "HS256"

    async def begin(self) -> None:
        pass

    def __str__(self) -> str:
        return "HS256 by BRAIN_JWT_SECRET"


class KeySet:
    """`source` is a file or a URL of http or https."""

    def __init__(self, source: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock = clock
        self._keys: dict[str | None, tuple[Any, str]] = {}
        self._tried = self._loaded = float("-inf")
        self._loading: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{', '.join(ALGORITHMS)} by BRAIN_JWT_JWKS"

    async def begin(self) -> None:
        """Try to load them: what is wrong with the setting is logged at the start. A host that is away is asked again later."""
        with contextlib.suppress(TokenError):
            await self.find(None)

    async def find(self, name: str | None) -> tuple[Any, str]:
        """The key of this name, and the algorithm that it is for. A token that names none takes the only one. Raises TokenError."""
        now = self._clock()
        pause = RELOAD if self._keys else RELOAD_FIRST
        if (
            self._loading is None
            and now - self._tried >= pause
            and (self._get(name) is None or now - self._loaded >= FRESH)
        ):
            self._tried = now
            self._loading = asyncio.get_running_loop().create_task(self._load(), name="jwks")
        if self._loading is not None and self._get(name) is None:
            await asyncio.shield(self._loading)
        found = self._get(name)
        if found is None and not self._keys:
            raise TokenError(503, "the keys that tokens are signed with cannot be read now: try again")
        if found is None:
            raise TokenError(401, "the token is signed with a key that is not known")
        return found

    def _get(self, name: str | None) -> tuple[Any, str] | None:
        if name is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(name)

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(LOAD_WITHIN):
                self._keys = parse_jwks(await _in_thread(lambda: read(self._source)))
            self._loaded = self._clock()
            log.info("keys read", keys=len(self._keys))
        except (OSError, HTTPException, ValueError, KeysError, TimeoutError) as error:
            why = str(error) if isinstance(error, KeysError) else type(error).__name__
            log.warning("keys cannot be read", setting="BRAIN_JWT_JWKS", why=why, held=len(self._keys))
        finally:
            self._loading = None


def parse_jwks(data: bytes) -> dict[str | None, tuple[Any, str]]:
    """The keys that can verify a token, by name. Raises KeysError."""
    try:
        keys = json.loads(data)["keys"]
        given = [key for key in keys if isinstance(key, dict) and key.get("kty") != "oct"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise KeysError('a key set is JSON: {"keys": [...]} (RFC 7517, section 5)') from None
    found: dict[str | None, tuple[Any, str]] = {}
    for each in given:
        if each.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(each)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue  # another's kind of key stands beside ours
        if key.algorithm_name in ALGORITHMS and getattr(key.key, "key_size", 2048) >= _SHORTEST.get(
            key.key_type or "", 0
        ):
            name = each.get("kid")
            found[name if isinstance(name, str) else None] = (key.key, key.algorithm_name)
    if not found:
        raise KeysError(f"the key set holds no key for {', '.join(ALGORITHMS)}, RSA from 2048 bits")
    return found


_SHORTEST = {"RSA": 2048}


class _Straight(urllib.request.HTTPRedirectHandler):
    """Keys come from the host that is configured, and from no other that it names."""

    def redirect_request(self, *_: object) -> None:
        return None


def read(source: str) -> bytes:
    """What a file or a URL holds. Blocks. Raises OSError, HTTPException, KeysError."""
    until = time.monotonic() + LOAD_WITHIN
    with _open(source) as opened:
        data = b""
        while part := opened.read1(65536):
            data += part
            if len(data) > MOST_JWKS:
                raise KeysError(f"a key set has at most {MOST_JWKS} bytes")
            if time.monotonic() > until:
                raise KeysError(f"it did not come within {LOAD_WITHIN:.0f} s")
        return data


def _open(source: str) -> Any:
    if is_url(source):
        try:
            return urllib.request.build_opener(_Straight).open(source, timeout=LOAD_WITHIN)
        except urllib.error.HTTPError as error:
            error.close()
            raise KeysError(f"its host answers {error.code}") from None
    return Path(source).open("rb")


def is_url(source: str) -> bool:
    return urllib.parse.urlsplit(source).scheme in ("http", "https")


def _in_thread(work: Callable[[], bytes]) -> "asyncio.Future[bytes]":
    """A daemon: the loop's own threads would be waited for at the end, a look-up of a name for minutes."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def done(result: bytes | Exception) -> None:
        if not future.done():
            future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)

    def run() -> None:
        try:
            result: bytes | Exception = work()
        except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
            result = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(done, result)

    threading.Thread(target=run, daemon=True, name="jwks").start()
    return future
