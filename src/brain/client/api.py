"""The HTTP API beside a /ws: asked with the standard library, each request in a thread."""

import asyncio
import contextlib
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, Final, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlencode, urlsplit
from urllib.request import (
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from pydantic import BaseModel, ValidationError
from websockets.datastructures import Headers, HeadersLike

from brain.client.clock import DatabaseClock
from brain.client.endings import Ending, WatchError, detail, is_about_a_field, refused
from brain.client.proxies import is_loopback
from brain.client.watch import Token, headers_with
from brain.contract.messages import RunData
from brain.contract.problems import CONTENT_TYPE

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

MAX_BYTES: Final = 64 * 1024 * 1024
"""Of an answer."""

SILENCE: Final = 10.0
"""Seconds that the server may send nothing."""

DEADLINE: Final = 60.0
"""Seconds of one request: a server that sends a byte a second is never silent."""


class Unanswered(OSError):  # noqa: N818 - an answer may come later, or never: `ending` says which
    """The API gave no answer, or another one than a run and "there is no such run"."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


@dataclass(frozen=True, slots=True)
class NoRun:
    """There is no run of this id."""

    detail: str = ""
    """Why the row of this id is none, if there is such a row."""


class API:
    """The arguments are those of watch(), `options` too: the same token, TLS settings and proxy.

    `clock` hears the Date of each answer.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token | None,
        additional_headers: HeadersLike | None,
        options: dict[str, Any],
        clock: DatabaseClock | None = None,
    ) -> None:
        self._base, user = _base(url)
        self._basic = f"Basic {b64encode(user.encode()).decode()}" if user else None
        self._token = token
        self._additional = additional_headers
        self._clock = clock
        self._opener = _opener({"proxy": None} | options if is_loopback(url) else options)

    async def get_run(self, run_id: str) -> RunData | NoRun:
        """Raises Unanswered and WatchError."""
        url = f"{self._base}/api/runs/{quote(run_id, safe='')}"
        status, headers, body = await self._get(url)
        if status == 200:
            return _decoded(url, body, RunData, "a run")
        if status == 404 and headers.get("Content-Type", "").startswith(CONTENT_TYPE):
            return NoRun(detail(body) if is_about_a_field(body) else "")
        raise Unanswered(refused(status, body, headers.get("Retry-After", "")))

    async def get(self, path: str, query: Sequence[tuple[str, str]], model: type[M]) -> M:
        """Raises Unanswered and WatchError."""
        url = f"{self._base}{path}?{urlencode(query)}"
        status, headers, body = await self._get(url)
        if status != 200:
            raise Unanswered(refused(status, body, headers.get("Retry-After", "")))
        return _decoded(url, body, model, "an answer")

    async def ask_time(self) -> None:
        """Tell the clock what time the server has. Without an answer, it stays as it is."""
        with contextlib.suppress(Unanswered):
            await self._get(f"{self._base}/healthz")

    async def _get(self, url: str) -> tuple[int, Headers, bytes]:
        try:
            headers = await headers_with(self._token, self._additional)
            if self._basic and "Authorization" not in headers:
                headers["Authorization"] = self._basic
            async with asyncio.timeout(DEADLINE):
                answer = await _in_thread(lambda: _get(self._opener, url, headers))
        except (HTTPException, OSError) as error:
            raise Unanswered(Ending(str(error) or type(error).__name__)) from error
        if self._clock is not None and (date := _date(answer[1])) is not None:
            self._clock.ask(date)
        return answer


def _date(headers: Headers) -> datetime | None:
    """By the server's clock, to the second. None if it says none."""
    try:
        return parsedate_to_datetime(headers["Date"]).astimezone(UTC)
    except (LookupError, ValueError, TypeError, OverflowError):
        return None


def _decoded(url: str, body: bytes, model: type[M], what: str) -> M:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise WatchError(f"{url} is not {what} of Brain: {body[:80]!r}") from error


async def _in_thread(function: Callable[[], T]) -> T:
    """Not asyncio.to_thread: a program would end only after a request that nobody waits for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(act: Callable[..., None], value: Any) -> None:
        if not future.done():
            act(value)

    def work() -> None:
        act: Callable[..., None]
        value: Any
        try:
            act, value = future.set_result, function()
        except BaseException as error:  # noqa: BLE001 - it is raised where the future is awaited
            act, value = future.set_exception, error
        try:
            loop.call_soon_threadsafe(settle, act, value)
        except RuntimeError:  # the loop is closed by now
            return

    threading.Thread(target=work, name="brain api", daemon=True).start()
    return await future


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would carry the token to another server."""

    def redirect_request(self, *_: object) -> None:
        return None


def _opener(options: dict[str, Any]) -> OpenerDirector:
    proxy, context = options.get("proxy", True), options.get("ssl")
    proxies = None if proxy is True else {} if proxy is None else {"http": proxy, "https": proxy}
    return build_opener(
        _NoRedirects,
        ProxyHandler(proxies),
        HTTPSHandler(context=context if isinstance(context, ssl.SSLContext) else None),
    )


def _get(opener: OpenerDirector, url: str, headers: Headers) -> tuple[int, Headers, bytes]:
    request = Request(url, headers=dict(headers.raw_items()))  # noqa: S310 - http or https
    try:
        response = opener.open(request, timeout=SILENCE)
    except HTTPError as error:
        response = error
    with response:
        body = response.read(MAX_BYTES)
        if response.length:  # a read with a bound raises nothing
            raise HTTPException(f"{response.length} bytes of the answer are missing")
        return response.status, Headers(response.headers.items()), body


def _base(url: str) -> tuple[str, str]:
    """Where the API is beside `url`, which ends in /ws; and `user:password`, if it names them."""
    parts = urlsplit(url)
    scheme = "https" if parts.scheme == "wss" else "http"
    user, _, host = parts.netloc.rpartition("@")
    host = host if host.isascii() else host.encode("idna").decode()
    path = quote(parts.path.removesuffix("/").removesuffix("/ws"), safe="/%:@!$&'()*+,;=")
    return f"{scheme}://{host}{path}", unquote(user)
