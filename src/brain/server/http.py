"""The seam: HTTP on one connection, up to where it becomes a WebSocket.

uvicorn parses and serves HTTP. A subclass of its protocol class asks the guard about every request before anything else is
done with it, bounds a request in size and in time (httptools has no limit, uvicorn no deadline for receiving), and
answers the upgrade from the request that was parsed already. Only the override of the upgrade does it right: uvicorn's `ws=`
hook loses a frame that came in the request's own segment, accepts HTTP/1.0 and leaves a GET with a body unanswered.
"""

import asyncio
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import lru_cache, partial
from http import HTTPStatus
from operator import itemgetter
from typing import Any
from urllib.parse import parse_qsl, unquote

import httptools
import structlog
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from websockets.frames import CloseCode

from brain.access.addresses import Address
from brain.access.jwks import TokenError
from brain.access.limits import ConnectionLimiter, Lease
from brain.access.policy import Policy
from brain.access.rejections import Rejection, RejectionCode, RejectionCounter
from brain.access.tokens import SUBPROTOCOL, Grant, Tokens, bearer, offers_bearer
from brain.api.problems import MAX_BODY
from brain.contract.subscription import FilterError, Subscription, parse_subscription
from brain.server.authentication import TokenConnection, permitted
from brain.server.websocket import (
    MAX_UNHEARD,
    Connection,
    Connections,
    HandshakeError,
    VersionError,
    handshake,
)

log = structlog.get_logger()

PATH = "/ws"
MAX_HEAD = 16 * 1024
MAX_URL = 8 * 1024
MAX_BEHIND = 2 * MAX_BODY
"""Bytes behind a head: the body, how it is cut into chunks, and trailers. The API itself answers 413 to more than MAX_BODY."""
MAX_PIPELINED = 32
"""Requests on one connection that wait for their answers (20 000 in one go held everybody up for 2 s)."""
REQUEST_DEADLINE = 5.0
"""Seconds from accept, or from a request's first byte, until the request is complete."""
MAX_EXPIRED = 200
"""Connections that are let go of in one look. Who came together would be let go of together, and come back together: to take 3 000 in
one go held everybody up for 0.3 s."""
MAX_UNUPGRADED = 16_384
"""Connections that are no WebSockets, in all; beyond it the longest silent one gives way. Each costs 6 KB. More than
BRAIN_MAX_CONNECTIONS, so that a whole crowd may come back in one moment."""
MAX_UNSENT = 256 * 1024 * 1024
"""Bytes that wait for clients who do not read, in all; beyond it those go who have been silent longest. Bytes that several
wait for count for each, though they are held once."""


@dataclass(slots=True, eq=False)
class ServerState:
    """What the seam of every connection shares."""

    policy: Policy
    limiter: ConnectionLimiter
    connections: Connections
    closing: bool = False
    waiting: dict["HTTPProtocol", float] = field(default_factory=dict)
    """Connections that owe a complete request → when it is due; the earliest first."""
    tokens: Tokens | None = None
    http: Collection["HTTPProtocol"] = ()
    """uvicorn's set of the connections that are no WebSockets."""

    def __post_init__(self) -> None:
        clock = self.connections.loop.time
        self.connections.fault = lambda peer: self.limiter.fault(peer, clock())

    @property
    def rejections(self) -> RejectionCounter:
        return self.connections.rejections

    def make_room(self) -> Rejection | None:
        """One more connection has come. If there is no room, who has been silent longest gives way; or else it is refused."""
        everybody = len(self.http) + self.limiter.websockets
        if everybody > self.limiter.room:
            log_detail = f"{everybody - 1} connections are all that this process has file descriptors for (ulimit -n)"
        elif len(self.http) > MAX_UNUPGRADED:
            log_detail = f"more than {MAX_UNUPGRADED} requests are under way"
        else:
            return None
        if not self.waiting:
            return Rejection(503, f"{log_detail}: try again", "requests", 1)
        http = next(iter(self.waiting))
        del self.waiting[http]
        log_detail = f"{log_detail}, and it was silent longest"
        self.rejections.note("requests", peer=http.peer, status=503, detail=log_detail)
        http.abort(log_detail)
        return None

    def relieve(self) -> None:
        """Let go of those who do not read, if together they hold up too many bytes: who has been silent longest first."""
        unsent: list[tuple[float, int, HTTPProtocol | Connection]] = [*self.connections.unsent()]
        unsent += [(http.accepted, http.unsent, http) for http in self.http]
        total = sum(size for _, size, _ in unsent)
        if total <= MAX_UNSENT:
            return
        detail = f"more than {MAX_UNSENT} bytes wait for clients who do not read"
        for _, size, who in sorted(unsent, key=itemgetter(0)):
            if size:
                total -= size
                self.rejections.note(
                    "outgoing", peer=who.peer, status=CloseCode.ABNORMAL_CLOSURE, detail=detail
                )
                who.abort(detail)
            if total <= MAX_UNSENT:
                return

    def tidy(self) -> None:
        self.rejections.lines.settle()
        self.relieve()

    def expire(self) -> None:
        now = self.connections.loop.time()
        for _ in range(MAX_EXPIRED):
            if not self.waiting:
                return
            http, due = next(iter(self.waiting.items()))
            if due > now:
                return
            del self.waiting[http]
            try:
                http.expire()
            except Exception as error:
                log.exception("connection failed", error=repr(error))
                http.transport.abort()


def http_answer(
    status: int, detail: str, **headers: str
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """A problem document (RFC 9457), as headers and body."""
    title = HTTPStatus(status).phrase
    body = json.dumps(
        {"type": "about:blank", "title": title, "status": status, "detail": detail}
    ).encode()
    fields = {
        "Content-Type": "application/problem+json",
        "Content-Length": str(len(body)),
        **headers,
    }
    return [
        (name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()
    ], body


class TargetError(ValueError):
    """A request target that opens no WebSocket."""

    def __init__(self, status: int, log_detail: str, code: RejectionCode) -> None:
        super().__init__(log_detail)
        self.status = status
        self.code = code


@lru_cache(1024)
def _wish(target: bytes) -> Subscription:
    """What is asked for by the target of an upgrade. Clients repeat themselves. Raises TargetError."""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise TargetError(400, "the target of the request is not a URL", "malformed") from None
    if unquote((url.path or b"/").decode("latin-1")) != PATH:
        raise TargetError(404, f"WebSockets are spoken at {PATH}", "path")
    try:
        query = (url.query or b"").decode("ascii")
        return parse_subscription(parse_qsl(query, keep_blank_values=True, errors="strict"))
    except FilterError as error:
        raise TargetError(400, str(error), "parameter") from None
    except ValueError:
        raise TargetError(400, "the query is not percent-encoded UTF-8", "parameter") from None


class HTTPProtocol(HttpToolsProtocol):
    """HTTP on one connection, up to its upgrade."""

    def __init__(self, state: ServerState, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._state = state
        self._lease: Lease | None = None
        self._rejection: Rejection | None = None
        self._begun = False
        """The first byte of a request has come, and its last has not."""
        self._in_head = True
        self._room = MAX_HEAD
        """Bytes that what is coming, a head or what is behind one, may still have."""
        self._cycles: list[RequestResponseCycle] = []
        """Requests that were handed to the application, all that are unanswered among them."""
        self._present: RequestResponseCycle | None = None
        """That of them whose body is still coming."""
        self._is_upgrade: bool | None = None
        self._answer = (400, "the request is not HTTP")
        self._admitting: asyncio.Task[None] | None = None
        self.peer = ""
        self.accepted = 0.0

    # From the transport.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # In place of uvicorn's, which makes a socket object to ask for both addresses: a fifth of what an upgrade costs.
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        self.scheme = "http"
        peer = transport.get_extra_info("peername")
        self.client = None if peer is None else (peer[0], peer[1])
        self.peer = "" if peer is None else peer[0]
        entered = self._state.limiter.enter(self.peer)
        full = self._state.make_room()
        if isinstance(entered, Lease):
            self._lease, self._rejection = entered, full
        else:
            self._rejection = entered
        self.accepted = self.loop.time()
        self._owe()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.waiting.pop(self, None)
        if self._admitting is not None:
            self._admitting.cancel()
        self._leave()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn does so behind an orderly end alone, and the timer would hold us for 5 s
        for cycle in self._cycles:
            # uvicorn tells the last one only, and an earlier one would write to a transport that is gone.
            cycle.disconnected = True
            cycle.message_event.set()

    def _leave(self) -> None:
        if self._lease is not None:
            self._state.limiter.leave(self._lease)

    def _owe(self) -> None:
        """A complete request is due. Put at the end, where the latest belongs."""
        self._state.waiting.pop(self, None)
        self._state.waiting[self] = self.loop.time() + REQUEST_DEADLINE

    @property
    def unsent(self) -> int:
        """Bytes of answers that wait for the client to read."""
        return self.transport.get_write_buffer_size()

    def abort(self, _reason: str) -> None:
        self.transport.abort()

    def _unanswered(self) -> list[RequestResponseCycle]:
        return [cycle for cycle in self._cycles if not cycle.response_complete]

    def expire(self) -> None:
        if self._begun:
            self._refuse(408, f"a request has to be complete within {REQUEST_DEADLINE:.0f} s")
        else:
            self._note("deadline", 408, "it was silent")
            self.transport.abort()  # it has said nothing, and is owed nothing

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self not in self._state.waiting and not self._unanswered():
            self._owe()  # before the parser sees a request begin: an empty line before one begins none
        while data and not self.transport.is_closing():
            if self._room <= 0:
                if self._in_head:
                    self._refuse(431, f"the head of a request has at most {MAX_HEAD} bytes")
                else:
                    self._refuse(413, f"a request has at most {MAX_BEHIND} bytes behind its head")
                return
            # Fed by no more than a head may have, so that a bound that is set in the middle is not overrun by far.
            size = min(self._room, MAX_HEAD)
            part, data = data[:size], data[size:]
            self._room -= len(part)
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade as upgrade:
                self._upgrade(part[upgrade.args[0] :] + data)
                return
            except httptools.HttpParserError:
                self._refuse(*self._answer)
                return

    # From the parser.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_upgrade = None
        self._begun = True
        self._owe()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self._answer = (414, f"a URL has at most {MAX_URL} bytes")
            raise ValueError(self._answer)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:
            super().on_header(name, value)
        # A trailer is dropped (RFC 9110, section 6.5.1): it must not change what has been judged, nor has it a bound of its own.

    def on_headers_complete(self) -> None:
        self._in_head, self._room = False, MAX_BEHIND
        if self._should_upgrade():
            return
        self._cycles = self._unanswered()
        if len(self._cycles) >= MAX_PIPELINED:
            raise ValueError(MAX_PIPELINED)
        rejection = self._check()
        if rejection is not None:
            self._note(rejection.code, rejection.status, rejection.detail)
        self.app = (
            partial(_rejected, rejection) if rejection is not None else self.config.loaded_app
        )
        super().on_headers_complete()
        self._present = self.cycle
        self._cycles.append(self.cycle)
        if self.parser.should_upgrade():
            self.cycle.keep_alive = (
                False  # h2c and the like: answered in HTTP/1.1, and that is the end
            )

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._begun, self._in_head, self._room, self._present = False, True, MAX_HEAD, None
        self._state.waiting.pop(self, None)

    def _should_upgrade(self) -> bool:
        """The parser has seen `upgrade` in one of the Connection headers; uvicorn would look at the last of them alone."""
        if self._is_upgrade is None:
            self._is_upgrade = self.parser.should_upgrade() and [
                value.lower() for name, value in self.headers if name == b"upgrade"
            ] == [b"websocket"]
        return self._is_upgrade

    def _check(self) -> Rejection | None:
        return self._rejection or self._state.policy.check(self.peer, self.headers, self.url)

    def _note(self, code: RejectionCode, status: int, log_detail: str) -> None:
        self._state.rejections.note(code, peer=self.peer, status=status, detail=log_detail)

    # The upgrade.

    def _upgrade(self, rest: bytes) -> None:
        """The request is an upgrade, and complete; `rest` came behind it."""
        self._state.waiting.pop(self, None)
        if not self._should_upgrade():
            return
        if self._unanswered():
            self.transport.abort()  # the answer to an earlier request would land in the WebSocket's stream
            return
        rejection = self._check()
        if rejection is not None:
            self._refuse(
                rejection.status, rejection.detail, rejection.retry_after, code=rejection.code
            )
            return
        for name, value in self.headers:
            if name == b"transfer-encoding" or (name == b"content-length" and value != b"0"):
                self._refuse(400, "an upgrade has no body")
                return
        try:
            wish = _wish(self.url)
        except TargetError as error:
            # It may quote the query, in which a secret may stand: to the client alone.
            log_detail = "the query is not one of /ws" if error.code == "parameter" else None
            self._refuse(error.status, str(error), code=error.code, log_detail=log_detail)
            return
        client = self._state.policy.client_address(self.peer, self.headers)
        assert client is not None, "who has no address is refused by now"
        wait = self._state.limiter.wait(client, self.loop.time())
        if isinstance(wait, Rejection):
            self._refuse(wait.status, wait.detail, wait.retry_after, code=wait.code)
        elif wait or self._state.tokens is not None:
            self.transport.pause_reading()
            self._admitting = self.loop.create_task(
                self._admit(wish, rest, client, wait), name="admit"
            )
        else:
            self._switch(wish, rest, client, None)

    async def _admit(self, wish: Subscription, rest: bytes, client: Address, wait: float) -> None:
        """The upgrade of one who waits for the turn of its address, or whose token is to be checked."""
        await asyncio.sleep(wait)
        grant: Grant | None = None
        tokens = self._state.tokens
        try:
            if tokens is not None and (token := bearer(self.headers)) is not None:
                grant = await tokens.check(token)
                wish = permitted(wish, grant)
        except TokenError as error:
            self._admitting = None
            self._refuse(error.status, str(error), error.retry_after, code=error.code)
            return
        self._admitting = None
        if not self.transport.is_closing():
            self.transport.resume_reading()
            self._switch(wish, rest, client, grant)

    def _switch(
        self, wish: Subscription, rest: bytes, client: Address, grant: Grant | None
    ) -> None:
        if self.parser.get_method() != b"GET":
            self._refuse(405, "an upgrade is a GET")
            return
        if self.parser.get_http_version() != "1.1":
            self._refuse(505, "an upgrade is of HTTP/1.1")
            return
        try:
            answer = handshake(self.headers)
        except HandshakeError as error:
            self._refuse(426 if isinstance(error, VersionError) else 400, str(error))
            return
        assert self._lease is not None, "who was not let in is refused by now"
        if self._state.closing:
            rejection: Rejection | None = Rejection(
                503, "the server is going down: come back", "closing", 1
            )
        else:
            rejection = self._state.limiter.upgrade(self._lease, client)
        if rejection is not None:
            self._refuse(
                rejection.status, rejection.detail, rejection.retry_after, code=rejection.code
            )
            return
        if offers_bearer(self.headers):
            answer = b"%sSec-WebSocket-Protocol: %s\r\n\r\n" % (answer[:-2], SUBPROTOCOL.encode())
        self.transport.write(answer)
        everyone, lost = self._state.connections, partial(self._state.limiter.leave, self._lease)
        if self._state.tokens is None:
            connection = Connection(everyone, self.transport, str(client), lost)
        else:
            connection = TokenConnection(
                everyone, self.transport, str(client), lost, tokens=self._state.tokens, grant=grant
            )
        self.connections.discard(self)  # uvicorn's shutdown must not wait for it
        # It refers to us: without this, every upgrade would leave a cycle to the collector.
        self.parser = None  # type: ignore[assignment]
        self.transport.set_protocol(connection)
        self._state.rejections.lines.info(
            "client came",
            peer=connection.peer,
            snapshot=wish.snapshot,
            since=wish.since is not None,
        )
        connection.start(wish, full=self.flow.write_paused)
        if rest:
            connection.data_received(rest)

    def _refuse(
        self,
        status: int,
        detail: str,
        retry_after: int | None = None,
        *,
        code: RejectionCode | None = None,
        log_detail: str | None = None,
    ) -> None:
        """Answer, and close. Where the answer would be taken for that to another request, just close. `why` is for the log."""
        self._note(code or _KINDS[status], status, log_detail or detail)
        self._state.waiting.pop(self, None)
        if self.transport.is_closing() or not self._is_next():
            self.transport.abort()
            return
        headers: dict[str, str] = {"Connection": "close"}
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        if status == HTTPStatus.UPGRADE_REQUIRED:
            headers |= {
                "Upgrade": "websocket",
                "Connection": "Upgrade, close",
                "Sec-WebSocket-Version": "13",
            }
        if status == HTTPStatus.UNAUTHORIZED:
            headers["WWW-Authenticate"] = "Bearer"
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers["Allow"] = "GET"
        fields, body = http_answer(status, detail, **headers)
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        lines += [name + b": " + value for name, value in fields]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        # Closed only when the client has closed or the deadline has passed: a reset, which unread bytes would
        # cause, may overtake the answer.
        self.transport.write_eof()
        self.transport.set_protocol(_Deaf(self))

    def _is_next(self) -> bool:
        """Whether the next answer on this connection is that to the present request; it is taken from the application then."""
        present = self._present
        if present is None:
            return not self._unanswered()
        if self._unanswered() != [present] or present.response_started:
            return False
        present.disconnected = True
        present.message_event.set()
        return True


_KINDS: dict[int, RejectionCode] = {
    400: "malformed",
    405: "method",
    408: "deadline",
    413: "size",
    414: "size",
    426: "version",
    431: "size",
    505: "version",
}
"""What is wrong with a request, by the status that says so."""


class _Deaf(asyncio.Protocol):
    """Behind a refusal: nothing that comes is read, and the end is near."""

    def __init__(self, http: HTTPProtocol) -> None:
        self._http = http
        self._deadline = http.loop.call_later(1.0, http.transport.abort)
        self._unheard = 0

    def data_received(self, data: bytes) -> None:
        self._unheard += len(data)
        if self._unheard > MAX_UNHEARD and not self._http.transport.is_closing():
            self._http.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        self._http.connection_lost(exc)


async def _rejected(rejection: Rejection, scope: Any, receive: Any, send: Any) -> None:
    """An ASGI application that answers one refusal. Through uvicorn, so that pipelined answers keep their order."""
    del scope, receive
    retry = {} if rejection.retry_after is None else {"Retry-After": str(rejection.retry_after)}
    headers, body = http_answer(rejection.status, rejection.detail, Connection="close", **retry)
    await send({"type": "http.response.start", "status": rejection.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
