"""The keys that sign tokens: one secret, or a key set (RFC 7517) in a file or at a URL.

A thread loads a key set, within a time and a size, so a slow host delays only clients that wait for
a key. It is loaded again when it is old, and when a token names an unknown key, but not for each
such token.
"""

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import jwt
import structlog

from brain.access.grants import TokenError
from brain.contract.errors import BrainError

log = structlog.get_logger()

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
"""Of a key set. Not HS256: it would use a public key, which everybody has, as a secret."""

MAX_JWKS = 256 * 1024
"""Bytes of a key set."""

LOAD_TIMEOUT = 3.0
"""Seconds to load a key set, with looking up its host."""

FRESH = 600.0
"""Seconds after which a key set is loaded again. A withdrawn key stays valid for this long, and for
as long as its host does not answer."""

RELOAD = 30.0
"""Seconds between two loads, so that tokens with invented keys do not cause a load each."""

RELOAD_FIRST = 3.0
"""Seconds between two loads while there is no key at all."""


class KeySetError(BrainError):
    """A key set that cannot be used. The text says why."""


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
    """`source` is a file, or a URL of http or https. `timeout` is the longest load, in seconds."""

    def __init__(
        self,
        source: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        timeout: float = LOAD_TIMEOUT,
    ) -> None:
        self._source = source
        self._clock = clock
        self._timeout = timeout
        self._keys: dict[str | None, tuple[Any, str]] = {}
        self._tried = self._loaded = float("-inf")
        self._loading: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{', '.join(ALGORITHMS)} by BRAIN_JWT_JWKS"

    async def begin(self) -> None:
        """Try to load them, so that a wrong setting is logged at the start."""
        with contextlib.suppress(TokenError):
            await self.find(None)

    async def find(self, name: str | None) -> tuple[Any, str]:
        """The key of this name (the only key without one) and its algorithm. Raises TokenError."""
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
            raise TokenError("keys", "the keys that sign tokens cannot be read now: try again")
        if found is None:
            raise TokenError("token", "the token is signed with an unknown key")
        return found

    def _get(self, name: str | None) -> tuple[Any, str] | None:
        if name is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(name)

    async def _load(self) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                self._keys = parse_jwks(await _in_thread(lambda: read(self._source, self._timeout)))
            self._loaded = self._clock()
            log.info("keys read", keys=len(self._keys))
        except (OSError, HTTPException, ValueError, KeySetError, TimeoutError) as error:
            detail = str(error) if isinstance(error, KeySetError) else type(error).__name__
            log.warning(
                "keys cannot be read", setting="BRAIN_JWT_JWKS", detail=detail, held=len(self._keys)
            )
        finally:
            self._loading = None


def parse_jwks(data: bytes) -> dict[str | None, tuple[Any, str]]:
    """The keys that can verify a token, by name. Raises KeySetError."""
    try:
        keys = json.loads(data)["keys"]
        given = [key for key in keys if isinstance(key, dict) and key.get("kty") != "oct"]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise KeySetError('a key set is JSON: {"keys": [...]} (RFC 7517, section 5)') from None
    found: dict[str | None, tuple[Any, str]] = {}
    for each in given:
        if each.get("use", "sig") != "sig":
            continue
        try:
            key = jwt.PyJWK(each)
        except (jwt.PyJWTError, ValueError, TypeError):
            continue  # a key set may have keys of other kinds
        if key.algorithm_name in ALGORITHMS and getattr(key.key, "key_size", 2048) >= _SHORTEST.get(
            key.key_type or "", 0
        ):
            name = each.get("kid")
            found[name if isinstance(name, str) else None] = (key.key, key.algorithm_name)
    if not found:
        raise KeySetError(f"the key set has no key for {', '.join(ALGORITHMS)}, RSA from 2048 bits")
    return found


_SHORTEST = {"RSA": 2048}


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Keys come only from the configured host."""

    def redirect_request(self, *_: object) -> None:
        return None


def read(source: str, timeout: float) -> bytes:
    """The content of a file or a URL. Blocks. Raises OSError, HTTPException, KeySetError."""
    until = time.monotonic() + timeout
    with _open(source, timeout) as opened:
        data = b""
        while part := opened.read1(65536):
            data += part
            if len(data) > MAX_JWKS:
                raise KeySetError(f"a key set has at most {MAX_JWKS} bytes")
            if time.monotonic() > until:
                raise KeySetError(f"it did not arrive within {timeout:.0f} s")
        return data


def _open(source: str, timeout: float) -> Any:
    if is_url(source):
        try:
            return urllib.request.build_opener(_NoRedirect).open(source, timeout=timeout)
        except urllib.error.HTTPError as error:
            error.close()
            raise KeySetError(f"its host answers {error.code}") from None
    return Path(source).open("rb")


def is_url(source: str) -> bool:
    return urllib.parse.urlsplit(source).scheme in ("http", "https")


def _in_thread(work: Callable[[], bytes]) -> "asyncio.Future[bytes]":
    """In a daemon thread: shutdown waits for the threads of the loop, for minutes if a name
    resolves slowly.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bytes] = loop.create_future()

    def done(result: bytes | Exception) -> None:
        if not future.done():
            future.set_exception(result) if isinstance(result, Exception) else future.set_result(
                result
            )

    def run() -> None:
        try:
            result: bytes | Exception = work()
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            result = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(done, result)

    threading.Thread(target=run, daemon=True, name="jwks").start()
    return future
