"""watch(): the messages of /ws, over every drop of the connection."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers, HeadersLike
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from brain.client.connection import Connection
from brain.client.endings import classify
from brain.client.events import Away, Connected, Event, Received, received
from brain.client.proxies import is_loopback
from brain.contract.back_off import BackOff
from brain.contract.close_codes import Retry
from brain.contract.include import Include
from brain.contract.messages import Status, iso, micros

MAX_BYTES: Final = 64 * 1024 * 1024
"""Of a message: more than the longest texts that BRAIN_MAX_TEXT allows."""

SNAPSHOT: Final = [("snapshot", "true")]
OPTIONS: Final[dict[str, Any]] = {
    "compression": None,
    "create_connection": Connection,
    "max_size": MAX_BYTES,
    "ping_interval": None,  # the keepalive of `websockets` ignores messages: see _receive
    "close_timeout": 1,
}

Token: TypeAlias = str | Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When to retry and when to ping. The defaults suit every use but a test."""

    delay: Callable[[int], float] = BackOff(first=0.1, longest=5.0).delay
    """Seconds to wait after this many failures in a row."""
    steady: float = 5.0
    """Seconds after which the loss of a connection counts as a first failure again."""
    ping_after: float | None = None
    """Seconds of silence before a ping. None: half of the deadline."""
    ask_every: float = 30.0
    """Seconds between two requests of wait() to the API."""


TIMING: Final = Timing()


class _Query:
    """The query of the next connection: the filters, and where its messages begin."""

    def __init__(
        self, filters: list[tuple[str, str]], *, snapshot: bool, since: datetime | None
    ) -> None:
        given = {name: value for name, value in filters if name in ("snapshot", "since")}
        self._filters = [pair for pair in filters if pair[0] not in given]
        self._beginning = [(name, given[name]) for name in given if name == "snapshot"]
        if snapshot:
            self._beginning = SNAPSHOT
        self._since = iso(micros(since)) if since is not None else given.get("since")

    @property
    def resets(self) -> bool:
        """Whether Brain cannot say what changed before this connection."""
        return self._since is None

    def __str__(self) -> str:
        beginning = self._beginning if self._since is None else [("since", self._since)]
        return urlencode(self._filters + beginning)

    def connected(self) -> None:
        """From now on messages may be missed: without one to resume from, take a snapshot."""
        self._beginning = SNAPSHOT

    def received(self, event: Received) -> None:
        self._since = iso(micros(event.timestamp))

    def reset(self) -> None:
        self._since, self._beginning = None, SNAPSHOT


async def watch(
    url: str,
    *,
    snapshot: bool = False,
    since: datetime | None = None,
    run_id: str | Iterable[str] = (),
    task_id: str | Iterable[str] = (),
    agent: str | Iterable[str] = (),
    status: Status | Iterable[Status] = (),
    include: Include | Iterable[Include] = (),
    token: Token | None = None,
    deadline: float = 40.0,
    additional_headers: HeadersLike | None = None,
    timing: Timing = TIMING,
    **options: Any,
) -> AsyncGenerator[Event]:
    """Yield the events of /ws until you stop iterating. Raises WatchError if no retry can succeed.

    `url` may have a query. `since` is the timestamp of the last message of an earlier watch.
    `include` asks for events beyond Message: Deleted, Ready and Source.
    `token` is for a Brain that requires tokens. A string is valid until it expires. A function is
    called before each connection, so the watch continues after a token has expired; the function
    raises OSError if it cannot get a token now.
    A connection is dead if nothing is received for `deadline` seconds, not even the answer to a
    ping. `options` go to `websockets.asyncio.client.connect`: `ssl`, `proxy`. By default, the proxy
    of the environment is used, but not to this machine (localhost).
    Use contextlib.aclosing() if the connection must be closed when your code continues.
    """
    loop = asyncio.get_running_loop()
    if is_loopback(url):
        options = {"proxy": None} | options
    address, given = _split(url)
    filters = given + _pairs(
        run_id=run_id, task_id=task_id, agent=agent, status=status, include=include
    )
    query = _Query(filters, snapshot=snapshot, since=since)
    ping_after = deadline / 2 if timing.ping_after is None else timing.ping_after
    failures, away, new_token = 0, False, False
    while True:
        resets, opened_at = query.resets, None
        try:
            socket = await connect(
                f"{address}?{query}",
                additional_headers=await headers_with(token, additional_headers),
                **(OPTIONS | options),
            )
            try:
                opened_at = loop.time()
                # The upgrade proves nothing: Brain refuses a `since` after it.
                text = await _receive(socket, 0, deadline)
                away = False
                new_token = callable(token)  # it gave a valid token, and will again
                query.connected()
                yield Connected(resets)
                while True:
                    if text is not None:
                        event = received(url, text)
                        query.received(event)
                        yield event
                    text = await _receive(socket, ping_after, deadline - ping_after)
            finally:
                # Not `async with`: that closes with 1011 when the iteration ends here.
                await socket.close()
        except (ConnectionClosed, InvalidHandshake, OSError) as error:  # with TimeoutError
            ending = classify(error)
            ending.raise_if_final(url, new_token=new_token)
        if ending.retry is Retry.RESET:
            query.reset()
            if not resets:
                continue
        if not away:
            away = True
            yield Away(ending.reason)
        steady = opened_at is not None and loop.time() - opened_at > timing.steady
        failures = 1 if steady else failures + 1
        await asyncio.sleep(ending.at_least + timing.delay(failures))


async def _receive(socket: ClientConnection, ping_after: float, deadline: float) -> str | None:
    """The next message, or None if the server answers a ping sent after `ping_after` seconds.

    Raises TimeoutError `deadline` seconds after the ping, and ConnectionClosed. Time counts only
    in here, so a slow consumer of messages does not end a live connection.
    """
    try:
        async with asyncio.timeout(ping_after):
            return await socket.recv(decode=True)
    except TimeoutError:
        pong = asyncio.ensure_future(await socket.ping())
    receiving = asyncio.ensure_future(socket.recv(decode=True))
    try:
        # A message proves life too: a server whose send buffer is full cannot answer a ping.
        await asyncio.wait({receiving, pong}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        if receiving.done() or (pong.done() and pong.exception()):
            return await receiving
        if not pong.done():
            socket.transport.abort()
            raise TimeoutError(f"nothing was received for {ping_after + deadline:.0f} s")
    finally:
        receiving.cancel()  # loses no message: `websockets` guarantees that for recv()
        await asyncio.wait({receiving})
        if not receiving.cancelled():
            receiving.exception()  # the next recv() raises the same
        pong.cancel()
    return None


async def headers_with(token: Token | None, additional: HeadersLike | None) -> Headers:
    headers = Headers(additional or ())
    if token is not None:
        headers["Authorization"] = f"Bearer {await token() if callable(token) else token}"
    return headers


def _split(url: str) -> tuple[str, list[tuple[str, str]]]:
    """The URL without its query, and the query."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    return parts._replace(query="", fragment="").geturl(), query


def _pairs(**filters: str | Iterable[str]) -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, values in filters.items()
        for value in ([values] if isinstance(values, str) else values)
    ]
