"""The keys that sign tokens: one secret, or a key set (RFC 7517) in a file or behind a URL."""

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
from typing import Any, Final, Literal

import jwt
import structlog

log = structlog.get_logger()

SHORTEST_SECRET = 32
"""Bytes (RFC 7518, section 3.2)."""

ALGORITHMS: Final = ("RS256", "PS256", "ES256", "ES384", "EdDSA")
"""Of a key set. No HS256: it would take a public key, which everybody has, for a secret."""

MAX_JWKS = 256 * 1024
"""Bytes of a key set."""

LOAD_WITHIN = 3.0
"""Seconds, names looked up and all."""

FRESH = 600.0
"""Seconds after which a key set is loaded again: a key that was withdrawn lives on for so long, at the most while its host answers."""

RELOAD = 30.0
"""Seconds between two loads, whatever tokens come: a token with a made-up key must not make us ask for each."""

RELOAD_FIRST = 3.0
"""Likewise, as long as there is no key at all."""


class TokenError(Exception):
    """A token that is not enough. 401: get another. 403: it does not permit this. 503: it cannot be judged now."""

    def __init__(self, status: Literal[401, 403, 503], text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code: Literal["token", "scope"] = "scope" if status == 403 else "token"
        self.retry_after = 1 if status == 503 else None


class KeysError(Exception):
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
            raise TokenError(
                503, "the keys that tokens are signed with cannot be read now: try again"
            )
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
            detail = str(error) if isinstance(error, KeysError) else type(error).__name__
            log.warning(
                "keys cannot be read", setting="BRAIN_JWT_JWKS", detail=detail, held=len(self._keys)
            )
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
            if len(data) > MAX_JWKS:
                raise KeysError(f"a key set has at most {MAX_JWKS} bytes")
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
            future.set_exception(result) if isinstance(result, Exception) else future.set_result(
                result
            )

    def run() -> None:
        try:
            result: bytes | Exception = work()
        except Exception as error:  # noqa: BLE001 - it is raised where it is awaited
            result = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(done, result)

    threading.Thread(target=run, daemon=True, name="jwks").start()
    return future
