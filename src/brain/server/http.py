"""HTTP on one connection, up to its upgrade to a WebSocket.

uvicorn parses and serves HTTP. This subclass of its protocol applies the access rules to every
request before anything else, bounds a request in size and in time (httptools has no limit, uvicorn
no deadline for receiving), and answers an upgrade from the request that is parsed already.
uvicorn's own `ws=` hook loses a frame sent in the segment of the request, accepts HTTP/1.0 and
leaves a GET with a body unanswered. tests/unit/server/test_uvicorn.py names the private parts used
here. The methods stand in the order in which a connection needs them.
"""

import asyncio
import re
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NoReturn

import httptools
import structlog
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from brain.access.addresses import Address
from brain.access.grants import Grant, TokenError, bearer
from brain.access.limits import BODY_TOO_LARGE, Lease
from brain.access.rejections import Rejection, RequestLine
from brain.contract.subscription import Subscription
from brain.server.answers import raw_answer, reject
from brain.server.authentication import TokenConnection, permitted
from brain.server.handshake import Handshake, HandshakeError, parse_handshake
from brain.server.probes import BARE, is_probe
from brain.server.protocols import head_without_upgrade, offers_websocket, other_protocol
from brain.server.refused import Refused
from brain.server.state import BEHIND, CLOSING, UNREAD, ServerState
from brain.server.websocket import Connection

log = structlog.get_logger()

_NOT_HTTP = Rejection("malformed", "the request is not HTTP")
_NOT_A_URL = Rejection(
    "malformed",
    "a URL has ASCII characters only, and no control characters: percent-encode the others, such as"
    " é as %C3%A9",
)
_NO_PATH = re.compile(rb"^([a-z]+://[^/?#]+)(?![^?#])", re.IGNORECASE)
"""An absolute target without a path, which is that of `/` (RFC 9110, section 4.2.3)."""


class HTTPProtocol(HttpToolsProtocol):
    def __init__(self, state: ServerState, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self._state = state
        self._limits = state.limits
        self._lease: Lease | None = None
        self._rejection: Rejection | None = None
        """Set if no slot was free when the connection was accepted: the answer to its requests."""
        self._begun = False  # the first byte of a request has arrived, not yet its last
        self._in_head = True
        self._room = self._limits.max_head
        """Bytes that may still arrive of the head, or of what follows it."""
        self._cycles: list[RequestResponseCycle] = []
        """Requests that were handed to the application, the unanswered ones and perhaps others."""
        self._receiving: RequestResponseCycle | None = None
        """The one of `_cycles` whose body is still arriving."""
        self._is_upgrade: bool | None = None
        self._parse_error = _NOT_HTTP  # or why a callback has stopped the parser
        self._upgrade_task: asyncio.Task[None] | None = None
        self._unread = b""  # what waits in the work queue
        self.peer = ""
        self.accepted = 0.0
        self.heard = 0.0  # when it was last seen to read, or to have nothing to read
        self.taken: int | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # uvicorn's own method makes a socket object to ask for both addresses. That is a fifth of
        # the cost of an upgrade.
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
        self.accepted = self.heard = self.loop.time()
        if peer is None:
            transport.abort()  # it has reset the connection while Brain was busy
        else:
            self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.waiting.pop(self, None)
        if self._upgrade_task is not None:
            self._upgrade_task.cancel()
        if self._lease is not None:
            self._state.limiter.leave(self._lease)
        super().connection_lost(exc)
        # uvicorn does this only at an orderly end. The timer would keep this object for 5 s.
        self._unset_keepalive_if_required()
        for cycle in self._cycles:
            # uvicorn does this only for the last; an earlier one would write to a closed transport.
            cycle.disconnected = True
            cycle.message_event.set()

    def _expect_request(self) -> None:
        """Start the deadline of a request. The dict is in the order of deadlines."""
        self._state.waiting.pop(self, None)
        self._state.waiting[self] = self.loop.time() + self._limits.request_deadline

    def expire(self) -> None:
        """The deadline has passed."""
        seconds = self._limits.request_deadline
        if self._unread:
            self._expect_request()  # it has arrived, and this server is late
        elif self._begun:
            detail = f"a request must be complete within {seconds:.0f} s"
            self._refuse(Rejection("deadline", detail))
        else:
            # Without a byte of a request there is nothing to answer.
            self._note(Rejection("deadline", f"no request began within {seconds:.0f} s"))
            self.transport.abort()

    @property
    def unsent(self) -> int:
        """Bytes of answers that the client has not read."""
        return self.transport.get_write_buffer_size()

    def abort(self, _reason: str) -> None:
        self.transport.abort()

    # Bytes, to the parser

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        is_first = not self._unread
        self._unread += data
        if len(self._unread) > self._limits.max_head:
            self._read()  # a flood must not gather
        elif is_first:
            self._state.connections.queue.add(self._read)

    def eof_received(self) -> None:
        self._read()  # the transport closes when this returns

    def _read(self) -> None:
        data, self._unread = self._unread, b""
        if not data or self.transport.is_closing():
            return
        try:
            self._parse(data)
        except Exception as error:  # noqa: BLE001 - whatever a client sends ends only that client
            self._fail(error)

    def shutdown(self) -> None:
        if self._unread:
            self._state.connections.queue.add(self.shutdown)  # behind `_read`
        else:
            super().shutdown()

    def _fail(self, error: Exception) -> None:
        """By a bug in Brain. Nobody would see this connection end."""
        log.error("connection failed", error=repr(error), exc_info=error)
        self.transport.abort()

    def _parse(self, data: bytes) -> None:
        if self not in self._state.waiting and not self._unanswered():
            # Before the parser reports that a request begins: an empty line before it begins none.
            self._expect_request()
        while data and not self.transport.is_closing():
            if self._room <= 0:
                self._refuse(self._too_large())
                return
            # At most the length of a head at a time: a callback that sets a bound is in time.
            size = min(self._room, self._limits.max_head)
            part, data = data[:size], data[size:]
            self._room -= len(part)
            try:
                self.parser.feed_data(part)
            except httptools.HttpParserUpgrade as upgrade:
                data = part[upgrade.args[0] :] + data
                if self._should_upgrade():
                    self._upgrade(data)
                    return
                data = self._without_upgrade() + data
            except httptools.HttpParserError as error:
                is_url = isinstance(error, httptools.HttpParserInvalidURLError)
                reason = _NOT_A_URL if is_url else self._parse_error
                self._refuse(other_protocol(part) or reason)
                return

    def _without_upgrade(self) -> bytes:
        """The head just parsed, for a new parser: the old one would not parse a body behind it."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        head = head_without_upgrade(method, self.url, version, self.headers)
        self.parser = httptools.HttpRequestParser(self)
        # As uvicorn does, for what a client sends behind a request with `Connection: close`.
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._in_head, self._room = True, self._limits.max_head
        return head

    def _too_large(self) -> Rejection:
        detail = f"the head of a request has at most {self._limits.max_head} bytes"
        return Rejection("head_size", detail) if self._in_head else BODY_TOO_LARGE

    # A request, from the parser

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_upgrade = None
        if not self._begun:  # the parser meets a head with an ignored upgrade a second time
            self._begun = True
            self._expect_request()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.max_url:
            self._stop_parser("url_size", f"a URL has at most {self._limits.max_url} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        # A trailer is dropped (RFC 9110, section 6.5.1): it must not change what was judged.
        if self._in_head:
            # The parser leaves the spaces behind it, which are no part of it (RFC 9112, section 5).
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        self._in_head, self._room = False, self._limits.max_behind_head
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                self._stop_parser("malformed", "CONNECT is for proxies, and this server is none")
            return  # `_upgrade` judges it, or the next parser has it without its upgrade
        if not self.url.startswith(b"/"):
            self.url = _NO_PATH.sub(rb"\1/", self.url)  # uvicorn wants one
        self._cycles = self._unanswered()
        if len(self._cycles) >= self._limits.max_pipelined:
            detail = f"a connection has at most {self._limits.max_pipelined} unanswered requests"
            self._stop_parser("malformed", detail)
        client = self._check()
        if isinstance(client, Rejection) and client.code in ("host", "host_header"):
            client = self._check_probe(client)
        if isinstance(client, Rejection):
            self._note(client)
            self.app = partial(reject, client)
        else:
            self.app = self.config.loaded_app
            if str(client) != self.peer:
                # As uvicorn's own middleware does it: an address that a proxy gives has no port.
                self.scope["client"] = (str(client), 0)
        super().on_headers_complete()
        self._receiving = self.cycle
        self._cycles.append(self.cycle)
        if self._rejection is not None:
            self.cycle.keep_alive = False  # a probe: it has its answer, and no slot

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._begun, self._in_head, self._receiving = False, True, None
        self._room = self._limits.max_head
        self._state.waiting.pop(self, None)

    def _stop_parser(self, code: Literal["url_size", "malformed"], detail: str) -> NoReturn:
        """Called from a callback: `feed_data` raises, and the rejection is answered."""
        self._parse_error = Rejection(code, detail)
        raise ValueError(detail)

    def _should_upgrade(self) -> bool:
        """The parser looks at all Connection headers; uvicorn would look only at the last."""
        if self._is_upgrade is None:
            self._is_upgrade = self.parser.should_upgrade() and offers_websocket(self.headers)
        return self._is_upgrade

    def _check(self) -> Address | Rejection:
        """The client's address, if the access rules permit the request."""
        if self._rejection is not None and (self.parser.should_upgrade() or not self._is_probe()):
            return self._rejection
        return self._state.policy.check(self.peer, self.headers, self.url)

    def _is_probe(self) -> bool:
        return is_probe(self.parser.get_method(), self.url)

    def _check_probe(self, rejection: Rejection) -> Address | Rejection:
        """Instead of a rejection for its Host, a probe gets the bare verdict."""
        if not self._is_probe():
            return rejection
        self.scope[BARE] = True  # type: ignore[typeddict-unknown-key]
        return self._state.policy.check_probe(self.peer, self.headers, self.url)

    def _unanswered(self) -> list[RequestResponseCycle]:
        return [cycle for cycle in self._cycles if not cycle.response_complete]

    # The upgrade

    def _upgrade(self, rest: bytes) -> None:
        """The upgrade is complete; `rest` followed it. What costs little is checked first."""
        self._state.waiting.pop(self, None)
        if self._unanswered():
            # The answer to an earlier request would land in the stream of the WebSocket.
            self.transport.abort()
            return
        client = self._check()
        if isinstance(client, Rejection):
            self._refuse(client)
            return
        try:
            handshake = parse_handshake(
                self.parser.get_method(), self.parser.get_http_version(), self.url, self.headers
            )
        except HandshakeError as error:
            self._refuse(error.rejection)
            return
        if self._state.closing:
            self._refuse(CLOSING)
            return
        filter_ = handshake.subscription.filter.printed(self._state.form)
        if filter_ is None:
            self._refuse(UNREAD)
            return
        subscription = handshake.subscription
        if filter_ is not subscription.filter:
            subscription = replace(subscription, filter=filter_)
        wait = self._state.limiter.wait(client, self.loop.time())
        if isinstance(wait, Rejection):
            self._refuse(wait)
        elif wait or self._state.tokens is not None or self._state.is_ahead(subscription.since):
            self.transport.pause_reading()
            self._upgrade_task = self.loop.create_task(
                self._upgrade_or_abort(handshake, subscription, rest, client, wait), name="upgrade"
            )
        else:
            self._switch(handshake, subscription, rest, client, None)

    async def _upgrade_or_abort(self, *upgrade: Any) -> None:
        try:
            await self._upgrade_later(*upgrade)
        except Exception as error:  # noqa: BLE001 - as in `_read`
            self._fail(error)

    async def _upgrade_later(
        self,
        handshake: Handshake,
        subscription: Subscription,
        rest: bytes,
        client: Address,
        wait: float,
    ) -> None:
        """Wait as long as the rate limit of the address demands, and until this node knows what the
        client does; verify the token.
        """
        await asyncio.sleep(wait)
        if subscription.since is not None and not await self._state.reached(subscription.since):
            self._upgrade_task = None
            self._refuse(BEHIND)
            return
        grant = None
        tokens = self._state.tokens
        try:
            if tokens is not None and (token := bearer(self.headers)) is not None:
                grant = await tokens.check(token)
                subscription = permitted(subscription, grant)
        except TokenError as error:
            self._upgrade_task = None
            self._refuse(error.rejection)
            return
        self._upgrade_task = None
        if not self.transport.is_closing():
            self.transport.resume_reading()
            self._switch(handshake, subscription, rest, client, grant)

    def _switch(
        self,
        handshake: Handshake,
        subscription: Subscription,
        rest: bytes,
        client: Address,
        grant: Grant | None,
    ) -> None:
        assert self._lease is not None, "a connection without a lease is refused by _check"
        if self._state.closing:  # since `_upgrade` looked
            self._refuse(CLOSING)
            return
        rejection = self._state.limiter.upgrade(self._lease, client)
        if rejection is not None:
            self._refuse(rejection)
            return
        self.transport.write(handshake.response())
        connection = self._connection(str(client), self._lease, grant)
        self.connections.discard(self)  # uvicorn's shutdown must not wait for it
        # It refers to us: without this, every upgrade would leave a cycle to the collector.
        self.parser = None  # type: ignore[assignment]
        self.transport.set_protocol(connection)
        self._state.rejections.lines.info(
            "client connected",
            peer=connection.peer,
            snapshot=subscription.snapshot,
            since=subscription.since is not None,
        )
        connection.start(subscription, full=self.flow.write_paused)
        if rest:
            connection.data_received(rest)

    def _connection(self, client: str, lease: Lease, grant: Grant | None) -> Connection:
        everyone, lost = self._state.connections, partial(self._state.limiter.leave, lease)
        tokens = self._state.tokens
        if tokens is None:
            return Connection(everyone, self.transport, client, lost)
        return TokenConnection(everyone, self.transport, client, lost, tokens=tokens, grant=grant)

    # A rejection

    def _note(self, rejection: Rejection) -> None:
        self._state.rejections.note(rejection, peer=self.peer, request=self._request_line())

    def _request_line(self) -> RequestLine | None:
        """That of the request that is arriving. Before its target, the parser has no method."""
        if not (self._begun and self.url):
            return None
        return RequestLine.of(self.parser.get_method().decode("ascii"), self.url)

    def _refuse(self, rejection: Rejection) -> None:
        """Answer and close, or only close where another request would seem to get the answer."""
        self._note(rejection)
        self._state.waiting.pop(self, None)
        if self.transport.is_closing() or not self._is_next():
            self.transport.abort()
            return
        self.transport.write(raw_answer(rejection))
        self.transport.write_eof()
        self.transport.set_protocol(Refused(self, self._limits.max_discarded))

    def _is_next(self) -> bool:
        """Whether the next answer on this connection answers the request that is arriving.

        If so, the application no longer answers that request.
        """
        receiving = self._receiving
        if receiving is None:
            return not self._unanswered()
        if self._unanswered() != [receiving] or receiving.response_started:
            return False
        receiving.disconnected = True
        receiving.message_event.set()
        return True
