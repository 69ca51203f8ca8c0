"""wait(): the end of one run, which no outage hides."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from http.client import HTTPException
from typing import Any, Final, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import (
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    build_opener,
)

from pydantic import ValidationError
from websockets.datastructures import Headers, HeadersLike

from brain.client.endings import Ending, WatchError, refused
from brain.client.events import Connected, Event, Message
from brain.client.watch import TIMING, Timing, Token, headers_with, watch
from brain.contract.messages import ACTIVE, RunData, Status
from brain.contract.problems import CONTENT_TYPE

T = TypeVar("T")

MAX_BYTES: Final = 64 * 1024 * 1024
"""Of an answer of the API."""

GET_TIMEOUT: Final = 10.0
"""Seconds that the API may be silent."""


async def wait(
    url: str,
    run_id: str,
    *,
    until: Status | Iterable[Status] = (),
    timeout: float | None = None,  # noqa: ASYNC109 - asyncio.timeout() is what it becomes
    token: Token | None = None,
    additional_headers: HeadersLike | None = None,
    timing: Timing = TIMING,
    **options: Any,
) -> RunData:
    """Wait until a run has ended or has one of the statuses `until`, and return it.

    An end always counts, because no other status follows: check the `status` of the result.
    A run that does not exist yet is waited for. The other arguments are those of watch().
    `url` ends in /ws; the API is expected beside it, at /api.

    Raises TimeoutError after `timeout` seconds, and WatchError if no retry can succeed or if the
    run was deleted (its `code` is 404).
    """
    statuses = {until} if isinstance(until, str) else set(until)
    events = watch(
        url,
        run_id=run_id,
        token=token,
        additional_headers=additional_headers,
        timing=timing,
        **options,
    )
    opener, target = _opener(options), _run_url(url, run_id)

    async def get() -> RunData | None:
        headers = await headers_with(token, additional_headers)
        return await asyncio.to_thread(_get_run, opener, target, headers)

    waiter = _Waiter(run_id, statuses, timing)
    async with asyncio.timeout(timeout):
        return await _first(waiter.listen(events), waiter.ask(get, new_token=callable(token)))


class _Waiter:
    """Subscribes, then asks.

    No message reports an end that came before the subscription; the answer to the GET does. An end
    that comes after the GET is in a message.
    """

    def __init__(self, run_id: str, statuses: set[Status], timing: Timing) -> None:
        self._run_id = run_id
        self._statuses = statuses
        self._timing = timing
        self._connected = asyncio.Event()
        self._exists = False

    def _is_reached(self, run: RunData) -> bool:
        self._exists = True
        return run.status in self._statuses or run.status not in ACTIVE

    async def listen(self, events: AsyncGenerator[Event]) -> RunData:
        async with contextlib.aclosing(events):
            async for event in events:
                match event:
                    case Connected():
                        self._connected.set()
                    case Message(data=run) if run.id == self._run_id and self._is_reached(run):
                        return run
        raise AssertionError("watch() ends only by raising")

    async def ask(
        self, get: Callable[[], Awaitable[RunData | None]], *, new_token: bool
    ) -> RunData:
        """Ask after each connect, and every `ask_every` seconds: no message reports a deletion."""
        failures, pause = 0, self._timing.ask_every
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._connected.wait()
            self._connected.clear()
            # Before the request: a message may announce a new run while a 404 is on its way.
            existed = self._exists
            try:
                run = await get()
            except (HTTPException, OSError) as error:
                ending = error.ending if isinstance(error, _RefusedError) else Ending(str(error))
                ending.raise_if_final(f"run {self._run_id!r}", new_token=new_token)
                failures += 1
                pause = ending.at_least + self._timing.delay(failures)
                continue
            if run is not None and self._is_reached(run):
                return run
            if run is None and existed:
                raise WatchError(f"run {self._run_id!r} was deleted", 404)
            failures, pause = 0, self._timing.ask_every


async def _first(*work: Coroutine[Any, Any, T]) -> T:
    """The result of the first to end. The others are cancelled."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _RefusedError(OSError):
    """The API answered with another status than 200 and 404."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.reason)
        self.ending = ending


class _NoRedirects(HTTPRedirectHandler):
    """A redirect would carry the token to another server."""

    def redirect_request(self, *_: object) -> None:
        return None


def _opener(options: dict[str, Any]) -> OpenerDirector:
    """What sends a GET by the same TLS settings and proxy as the WebSocket."""
    proxy, context = options.get("proxy", True), options.get("ssl")
    proxies = None if proxy is True else {} if proxy is None else {"http": proxy, "https": proxy}
    return build_opener(
        _NoRedirects,
        ProxyHandler(proxies),
        HTTPSHandler(context=context if isinstance(context, ssl.SSLContext) else None),
    )


def _get_run(opener: OpenerDirector, url: str, headers: Headers) -> RunData | None:
    """The run, or None if it does not exist. Raises _RefusedError, OSError and HTTPException."""
    request = Request(url, headers=dict(headers.raw_items()))  # noqa: S310 - http or https
    try:
        response = opener.open(request, timeout=GET_TIMEOUT)
    except HTTPError as error:
        response = error
    with response:
        status, fields, body = response.status, response.headers, response.read(MAX_BYTES)
    if status == 200:
        try:
            return RunData.model_validate_json(body)
        except ValidationError as error:
            raise WatchError(f"{url} is not a run of Brain: {body[:80]!r}") from error
    if status == 404 and fields.get("Content-Type", "").startswith(CONTENT_TYPE):
        return None
    raise _RefusedError(refused(status, body, fields.get("Retry-After", "")))


def _run_url(url: str, run_id: str) -> str:
    parts = urlsplit(url)
    scheme = "https" if parts.scheme == "wss" else "http"
    host = parts.netloc.rpartition("@")[2]
    path = parts.path.removesuffix("/").removesuffix("/ws")
    return f"{scheme}://{host}{path}/api/runs/{quote(run_id, safe='')}"
