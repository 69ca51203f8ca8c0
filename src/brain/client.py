"""A client of /ws that does it right: it comes back after any drop, resumes where it was, and says what it could not bridge.

    runs = {}
    async for event in watch("ws://localhost:5221/ws", snapshot=True, agent="agent-1"):
        match event:
            case Connected(anew=True):
                runs.clear()  # what was told before is void: the current state follows
            case Message(data=run):
                runs[run.id] = run
            case Away(reason=reason):
                print("what is shown may be old:", reason)

docs/client.md shows the same in a browser, docs/protocol.md what both rely on.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.datastructures import Headers, HeadersLike
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from brain.contract.messages import RunData, Status, Type, WSMessage, iso, micros

BACK_OFF_FIRST, MAX_BACK_OFF = 0.1, 5.0
"""Seconds. Each wait is a random time up to a bound that doubles ("full jitter"): a crowd that was dropped at once is spread."""

STEADY = 5.0
"""Seconds after which a connection that is lost is no failure to back off from."""

MAX_ASKED = 60.0
"""Seconds of a `Retry-After` that are heeded: a proxy's odd page must not take a client away for a day."""

MAX_BYTES = 64 * 1024 * 1024
"""Of a message: more than the longest texts that BRAIN_MAX_TEXT allows."""

BEGIN_ANEW = 4410
"""The server's memory does not reach back to `since`."""

FINAL_CODES = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
"""Close codes that would come again, with 4400 to 4499 but BEGIN_ANEW: a bug of this client's, or no right to be here."""

UNAUTHORISED = frozenset({401, 4401})
"""HTTP status and close code: the token was not valid, or is not any more."""

PASSING_STATUSES = frozenset({408, 425, 429})
FINAL_STATUSES = frozenset({501, 505})
"""Of the HTTP statuses below 500, those that another time may not come; and of the others, those that will."""


CURRENT = [("snapshot", "true")]
OPTIONS: dict[str, Any] = {
    "compression": None,
    "max_size": MAX_BYTES,
    "ping_interval": None,  # it counts no message as life
    "close_timeout": 1,
}


class WatchError(Exception):
    """To come back would be answered likewise, so the watch has ended. `code` is the close code or HTTP status, if that was it."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """A message of /ws: the state of one run. Replace what is held of the run by it."""

    type: Type
    data: RunData
    timestamp: datetime
    text: str
    """As it came."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The server answers. `anew`: drop what you hold, for nothing tells what became of it; what is queued and running follows,
    unless this is the beginning of a watch that did not ask for it. Not `anew`: what changed meanwhile follows.
    """

    anew: bool


@dataclass(frozen=True, slots=True)
class Away:
    """The connection is lost, or was never had. Said once, until it is back."""

    reason: str


Event: TypeAlias = Message | Connected | Away


async def watch(
    url: str,
    *,
    snapshot: bool = False,
    since: datetime | None = None,
    run_id: str | Iterable[str] = (),
    task_id: str | Iterable[str] = (),
    agent: str | Iterable[str] = (),
    status: Status | Iterable[Status] = (),
    token: str | Callable[[], Awaitable[str]] | None = None,
    deadline: float = 40.0,
    additional_headers: HeadersLike | None = None,
    **options: Any,
) -> AsyncGenerator[Event]:
    """Watch until you stop iterating, or to come back would be in vain: then WatchError is raised.

    `url` may have a query of its own. `since` is the timestamp of the last message seen, where a former watch ended.
    `token` is for a Brain that asks for one. A text is good until it expires. A function is asked for one before each connection, so
    the watch goes on when one has expired; where it cannot have one now, it raises OSError.
    A connection on which for `deadline` seconds nothing came, not even an answer to a ping, is taken for dead. `options` go to
    `websockets.asyncio.client.connect`: `ssl`, `proxy`. Use contextlib.aclosing() around it if the
    connection must be closed by the time when you go on.
    """
    loop = asyncio.get_running_loop()
    address, query = _split(url)
    query += _query(run_id=run_id, task_id=task_id, agent=agent, status=status)
    given = {name: value for name, value in query if name in ("snapshot", "since")}
    query = [pair for pair in query if pair[0] not in given]
    beginning = (
        [("snapshot", "true" if snapshot else given["snapshot"])]
        if snapshot or "snapshot" in given
        else []
    )
    resume = iso(micros(since)) if since is not None else given.get("since")
    failures, told, renewed = 0, True, False
    while True:
        anew = resume is None
        wish = beginning if resume is None else [("since", resume)]
        opened, at_least = None, 0.0
        try:
            headers = Headers(additional_headers or ())
            if token is not None:
                headers["Authorization"] = f"Bearer {await token() if callable(token) else token}"
            socket = await connect(
                f"{address}?{urlencode(query + wish)}",
                additional_headers=headers,
                **(OPTIONS | options),
            )
            try:
                opened = loop.time()
                # The upgrade alone promises nothing: a `since` that cannot be answered is refused behind it.
                text = await _hear(socket, 0, deadline)
                told = True
                renewed = callable(token)  # it gave one that was good, and will again
                # From now on something may be missed: without a message to resume from, only the current state will do.
                beginning = CURRENT
                yield Connected(anew)
                while True:
                    if text is not None:
                        message = _message(url, text)
                        resume = iso(micros(message.timestamp))
                        yield message
                    text = await _hear(socket, deadline / 2, deadline / 2)
            finally:
                await socket.close()  # its own context manager would take the end of an iteration for an error, and say 1011
        except ConnectionClosed as closed:
            code, said = (
                (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, str(closed))
            )
            if is_final_code(code) and not (renewed and code in UNAUTHORISED):
                raise WatchError(f"{url} ended with {code}: {said}", code) from closed
            reason = f"closed with {code}: {said}" if closed.rcvd else "the connection broke"
            if code == BEGIN_ANEW:
                resume, beginning = None, CURRENT
                if not anew:
                    continue
        except InvalidStatus as refused:
            code, said = refused.response.status_code, _said(refused.response.body)
            if is_final_status(code) and not (renewed and code in UNAUTHORISED):
                raise WatchError(f"{url} refuses with {code}: {said}", code) from refused
            reason = f"refused with {code}: {said}"
            at_least = _retry_after(refused.response.headers.get("Retry-After", ""))
        except (OSError, InvalidHandshake) as error:  # TimeoutError is an OSError
            reason = str(error) or type(error).__name__
        if told:
            told = False
            yield Away(reason)
        failures = 1 if opened is not None and loop.time() - opened > STEADY else failures + 1
        await asyncio.sleep(at_least + back_off(failures))


def is_final_code(code: int) -> bool:
    """Whether to come back after this close code would be in vain."""
    return code in FINAL_CODES or (4400 <= code <= 4499 and code != BEGIN_ANEW)


def is_final_status(status: int) -> bool:
    """Likewise for an HTTP status in place of an upgrade."""
    return (status < 500 and status not in PASSING_STATUSES) or status in FINAL_STATUSES


def back_off(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return random.uniform(0, min(MAX_BACK_OFF, BACK_OFF_FIRST * 2 ** min(failures - 1, 10)))


async def _hear(socket: ClientConnection, patience: float, deadline: float) -> str | None:
    """The next message. None: none came, but the server answers a ping, which it is sent after `patience` seconds.

    Raises TimeoutError if it does not for `deadline` seconds more, and ConnectionClosed. Only what is waited for is timed: who
    takes long between two messages is not told that the server is dead.
    """
    try:
        async with asyncio.timeout(patience):
            return await socket.recv(decode=True)
    except TimeoutError:
        pong = asyncio.ensure_future(await socket.ping())
    receiving = asyncio.ensure_future(socket.recv(decode=True))
    try:
        # Messages count as life too: a server does not answer the ping of a client whose socket it has filled.
        await asyncio.wait({receiving, pong}, timeout=deadline, return_when=asyncio.FIRST_COMPLETED)
        if receiving.done() or (pong.done() and pong.exception()):
            return await receiving
        if not pong.done():
            socket.transport.abort()
            raise TimeoutError(f"nothing was heard for {patience + deadline:.0f} s")
    finally:
        receiving.cancel()  # loses no message: `websockets` promises it of recv()
        await asyncio.wait({receiving})
        if not receiving.cancelled():
            receiving.exception()  # it ended just now: the next recv() says the same
        pong.cancel()
    return None


def _message(url: str, text: str) -> Message:
    try:
        found = WSMessage.model_validate_json(text)
    except ValidationError as error:
        raise WatchError(f"{url} sends what is no message of Brain's: {text[:80]!r}") from error
    return Message(found.type, found.data, found.timestamp, text)


def _split(url: str) -> tuple[str, list[tuple[str, str]]]:
    parts = urlsplit(url)
    return parts._replace(query="", fragment="").geturl(), parse_qsl(
        parts.query, keep_blank_values=True
    )


def _query(**filters: str | Iterable[str]) -> list[tuple[str, str]]:
    return [
        (name, value)
        for name, values in filters.items()
        for value in ([values] if isinstance(values, str) else values)
    ]


def _said(body: bytes | bytearray | None) -> str:
    """The sentence of a problem document (RFC 9457), or how another answer begins."""
    text = bytes(body or b"").decode(errors="replace")
    try:
        return str(json.loads(text)["detail"])
    except (ValueError, TypeError, KeyError):
        return text[:200].strip()


def _retry_after(value: str) -> float:
    return min(MAX_ASKED, float(value)) if value.isdecimal() else 0.0
