"""One connection, from the moment when it has been upgraded: frames in, a close handshake, and life by pings.

RFC 6455 comes from the sans-I/O core of `websockets`: made when a client sends its first frame that is not the pong to our
ping, for most clients never send one. What goes out was framed once, for all, and is handed to the transport by the hub.
The handshake alone is ours: `ServerProtocol.accept` wants a Request of its own, and took most of the time of an upgrade.

`write` is the one way out of a connection. It is replaced by a no-op before a close frame goes out, at EOF and on loss, so a
close frame is the last frame, and a sweep that still knows the connection does no harm. Each of these starts the deadline
after which the connection is aborted: `transport.close()` alone waits for a flush that may never come (seen: 150 s).
"""

import asyncio
import codecs
import gc
import itertools
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import structlog
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.protocol import Protocol, Side, State
from websockets.utils import accept_key

from brain.access.rejections import RejectionCode, RejectionCounter
from brain.contract.messages import text_frame
from brain.contract.subscription import Subscription
from brain.delivery.cohorts import Client
from brain.delivery.hub import Hub

log = structlog.get_logger()

PING = Frame(Opcode.PING, b"").serialize(mask=False)
PONG_TO_IT = b"\x8a\x80"
"""How the pong to our empty ping begins; a mask of four bytes follows, and nothing (RFC 6455, section 5.5.3)."""

HELLO, ANSWER = b"ping", text_frame(b"pong")
"""A browser cannot send a ping of the protocol: it says so in text."""

MAX_BYTES = 4096
"""Of a client's message. Nothing that a client may say is longer."""

BURST, RATE = 100, 20.0
"""Frames that a client may send at once, and per second in the long run; one of several KiB counts as so many."""

STRIDE = 1024
"""Bytes that are parsed between two looks at the allowance: a flood of small frames must not hold the event loop."""

MAX_UNHEARD = 64 * 1024
"""Bytes that are read of a client that is closing, to see it close: its goodbye, and what was under way. Of ten that flooded on, Brain
read 10 GB in 8 s to throw it away, and new clients waited for 0.1 s.
"""

LAST_LOOK = 0.25
"""Seconds that such a client has to read why. A reset may overtake what it was told."""

GRACE = 3.0
"""Seconds that a closing connection may take to flush and to say goodbye."""

SHARES = 100
"""Parts of the round of pings: 10 000 pings in one go would hold the event loop for 20 ms and more."""

KEY = re.compile(rb"[A-Za-z0-9+/]{22}==")
"""16 bytes in base64 (RFC 6455, section 4.1)."""

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "

_quiet = logging.getLogger("brain.server.websocket.protocol")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


@lru_cache(64)
def close_frame(code: int, reason: str) -> bytes:
    """RFC 6455, section 5.5.1."""
    return Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=False)


class HandshakeError(ValueError):
    """A request that does not open a WebSocket; the text says why."""


class VersionError(HandshakeError):
    """It asks for a version of the protocol other than 13: 426 (RFC 6455, section 4.4)."""


def handshake(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The answer to an upgrade to `websocket` (RFC 6455, section 4.2), of a GET by HTTP/1.1. Names are in lower case."""
    keys: list[bytes] = []
    versions: list[bytes] = []
    for name, value in headers:
        if name == b"sec-websocket-key":
            keys.append(value)
        elif name == b"sec-websocket-version":
            versions.append(value)
    if versions != [b"13"]:
        raise VersionError("this server speaks WebSocket version 13")
    if len(keys) != 1 or not KEY.fullmatch(keys[0]):
        raise HandshakeError("Sec-WebSocket-Key has to be there once, and be 16 bytes in base64")
    return SWITCHING + accept_key(keys[0].decode()).encode() + b"\r\n\r\n"


@dataclass(slots=True)
class Connections:
    """All connections of a server, and what they share. `lost` is called once for each, when it is gone."""

    hub: Hub
    loop: asyncio.AbstractEventLoop
    timeout: float
    """Seconds without any byte from a client after which it is taken for dead."""
    shares: list[set["Connection"]] = field(default_factory=lambda: [set() for _ in range(SHARES)])
    closing: set["Connection"] = field(default_factory=set)
    """Left the hub, and not yet gone."""
    rejections: RejectionCounter = field(default_factory=lambda: RejectionCounter(log))
    fault: Callable[[str], object] = lambda _: None
    """Told the address of a client that was cut off for what it sent."""
    _next: "itertools.cycle[int]" = field(default_factory=lambda: itertools.cycle(range(SHARES)))

    def place(self) -> int:
        """The share of the next connection."""
        share = next(self._next)
        if not share:
            # The collector counts objects made less objects freed. An upgrade frees more than it makes, the parser's, so in
            # a storm it would come late, and find 50 000 at once: 60 ms.
            gc.collect(1)
        return share

    def sweep(self, share: int) -> None:
        """Ping one share of the clients, and drop those that have not been heard. To be called SHARES times per interval."""
        oldest = self.loop.time() - self.timeout
        for connection in list(self.shares[share]):
            if connection.heard < oldest:
                detail = f"nothing was heard for {self.timeout:.0f} s"
                self.rejections.note(
                    "silence",
                    peer=connection.peer,
                    status=CloseCode.ABNORMAL_CLOSURE,
                    detail=detail,
                )
                connection.abort(detail)
            elif not connection.paused:
                try:
                    connection.write(PING)
                except Exception as error:  # noqa: BLE001 - one client's failure must never end the round
                    connection.drop(error)

    def unsent(self) -> list[tuple[float, int, "Connection"]]:
        """Of those who do not keep up: when they were last heard, and the bytes that wait for them."""
        if not self.hub.lagging and not self.closing:
            return []
        stalled = [each for each in (*self.everyone(), *self.closing) if each.paused]
        return [(each.heard, each.unsent, each) for each in stalled]

    def everyone(self) -> list["Connection"]:
        return [connection for share in self.shares for connection in share]


class Connection(Client, asyncio.Protocol):
    """Made when the answer to the upgrade has been written; `start` makes it known to the hub."""

    __slots__ = (
        "_all",
        "_allowance",
        "_code",
        "_deadline",
        "_lost",
        "_message",
        "_opened",
        "_protocol",
        "_reason",
        "_refilled",
        "_share",
        "_transport",
        "_unheard",
        "heard",
        "peer",
    )

    def __init__(
        self, all_: Connections, transport: asyncio.Transport, peer: str, lost: Callable[[], None]
    ) -> None:
        self._all = all_
        self._transport = transport
        self._lost = lost
        self._protocol: Protocol | None = None
        self._message: Message | None = None
        self._allowance = float(BURST)
        self._refilled = self._opened = self.heard = all_.loop.time()
        self._code, self._reason = int(CloseCode.ABNORMAL_CLOSURE), ""
        self._deadline: asyncio.TimerHandle | None = None
        self._share = all_.place()
        self._unheard = 0
        self.peer = peer
        self.paused = False
        self.cohort = None
        self.write = transport.write

    def start(self, wish: Subscription, *, full: bool = False) -> None:
        """`full`: the transport is, of the answer to an earlier request, and has said so to who sent that."""
        self._all.shares[self._share].add(self)
        self._all.hub.join(self, wish)
        if full:
            self._all.hub.pause(self)

    # From the transport.

    def data_received(self, data: bytes) -> None:
        self.heard = self._all.loop.time()
        if self._protocol is None and len(data) == 6 and data.startswith(PONG_TO_IT):
            return
        if self.write is _nowhere:
            self._unheard += len(data)
            if self._unheard > MAX_UNHEARD and not self._transport.is_closing():
                self._transport.pause_reading()  # nothing matters now but the end, and that is not to come
                assert self._deadline is not None
                self._deadline.cancel()
                self._deadline = self._all.loop.call_later(LAST_LOOK, self._transport.abort)
            return
        try:
            self._parse(data)
        except Exception as error:  # noqa: BLE001 - whatever one client sends ends that client alone
            self.drop(error)

    def eof_received(self) -> None:
        """The client will say nothing more. Returning None closes the transport, once it has flushed."""
        self._leave(self._code, self._reason)

    def pause_writing(self) -> None:
        self._all.hub.pause(self)

    def resume_writing(self) -> None:
        self.heard = self._all.loop.time()  # what drained was acknowledged by somebody
        self._all.hub.resume(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave(self._code, self._reason or (str(exc) if exc else ""))
        if self._deadline is not None:
            self._deadline.cancel()
        self._all.closing.discard(self)
        if self._protocol is not None:
            # It and its parser, a generator, refer to each other, as do it and the traceback of what has ended that. Some of such
            # cycles grow old before the collector sees them: 7 500 of 250 000 connections were left.
            self._protocol.parser.close()
            self._protocol.parser_exc = None
            self._protocol = None
        self._lost()
        self._all.rejections.lines.info(
            "client left",
            peer=self.peer,
            code=self._code,
            **({"detail": self._reason} if self._reason else {}),
            seconds=round(self._all.loop.time() - self._opened, 1),
        )

    # From the hub and the server.

    def end(self, code: int, reason: str) -> None:
        write = self.write
        if write is _nowhere:
            return
        self._leave(code, reason)
        try:
            write(close_frame(code, reason))
            # A half-close: the client reads the close frame and the end, answers, and closes. To close both ways at once
            # would answer what it still has under way by a reset, which may overtake the close frame.
            self._transport.write_eof()
        except Exception:  # noqa: BLE001 - its transport is broken, and that must not end who ends many
            self._transport.abort()

    @property
    def unsent(self) -> int:
        """Bytes that wait for this client to read."""
        return self._transport.get_write_buffer_size()

    def drop(self, error: Exception) -> None:
        log.error("client failed", peer=self.peer, error=repr(error), exc_info=error)
        self.end(CloseCode.INTERNAL_ERROR, "an error of the server's")

    def abort(self, reason: str) -> None:
        self._leave(CloseCode.ABNORMAL_CLOSURE, reason)
        self._transport.abort()

    def _leave(self, code: int, reason: str) -> None:
        """No more is written. What is left is to be gone, within GRACE."""
        if self.write is _nowhere:
            return
        self.write = _nowhere
        self._code, self._reason = code, reason
        self._all.hub.leave(self)
        self._all.shares[self._share].discard(self)
        self._all.closing.add(self)
        self._deadline = self._all.loop.call_later(GRACE, self._transport.abort)

    # What the client says.

    def _parse(self, data: bytes) -> None:
        protocol = self._protocol
        if protocol is None:
            protocol = self._protocol = Protocol(
                Side.SERVER, state=State.OPEN, max_size=MAX_BYTES, logger=_quiet
            )
        for at in range(0, len(data), STRIDE):
            protocol.receive_data(data[at : at + STRIDE])
            if protocol.state is State.OPEN:
                # A pong does not wait for what its client says next to be answered (Autobahn, cases 5.6 and 5.19).
                answer = b"".join(protocol.data_to_send())
                if answer and not self.paused:
                    self.write(answer)
            for event in protocol.events_received():
                assert isinstance(event, Frame)
                if not self._allowed(len(event.data)):
                    protocol.fail(
                        CloseCode.POLICY_VIOLATION, f"more than {RATE:.0f} frames or KiB a second"
                    )
                    break
                try:
                    self._frame(event)
                except UnicodeDecodeError:
                    # What came behind it in the same bytes is not looked at (RFC 6455, section 7.1.7).
                    protocol.fail(CloseCode.INVALID_DATA, "invalid UTF-8")
                    break
            if protocol.state is not State.OPEN:
                self._finish(protocol, b"".join(protocol.data_to_send()))
                return

    def _finish(self, protocol: Protocol, farewell: bytes) -> None:
        """The client has closed, or broken a rule: the close frame that answers it is the last."""
        write = self.write
        close = protocol.close_rcvd or protocol.close_sent
        if protocol.close_rcvd is None and (fault := protocol.close_sent) and fault.code in _FAULTS:
            reason = ascii(fault.reason)[1:-1]
            self._all.rejections.note(
                _FAULTS[fault.code], peer=self.peer, status=fault.code, detail=reason
            )
            self._all.fault(self.peer)
        if close is not None:
            self._leave(
                int(close.code), ascii(close.reason)[1:-1]
            )  # it may be the client's, and will be logged
        else:
            self._leave(CloseCode.ABNORMAL_CLOSURE, "")
        write(farewell)
        self._transport.write_eof()

    def _frame(self, frame: Frame) -> None:
        """Raises UnicodeDecodeError."""
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._message = Message(text=frame.opcode is Opcode.TEXT)
        elif frame.opcode is not Opcode.CONT:
            return
        message = self._message
        assert message is not None, "a continuation without a beginning is refused by the protocol"
        message.add(bytes(frame.data), last=frame.fin)
        if frame.fin:
            self._message = None
            self.received(message)

    def received(self, message: "Message") -> None:
        """A whole message. Brain listens to none but this one."""
        if message.text and message.data == HELLO and not self.paused:
            self.write(ANSWER)

    def _allowed(self, size: int) -> bool:
        """A token bucket: one token a frame, and one a KiB of a larger one."""
        now = self.heard
        self._allowance = min(BURST, self._allowance + RATE * (now - self._refilled)) - max(
            1, size / 1024
        )
        self._refilled = now
        return self._allowance >= 0


class Message:
    """A message as its fragments come in; a text is checked as it comes (RFC 6455, section 8.1)."""

    __slots__ = ("_check", "data", "text")

    def __init__(self, *, text: bool) -> None:
        self.text = text
        self.data = b""
        self._check = codecs.getincrementaldecoder("utf-8")() if text else None

    def add(self, data: bytes, *, last: bool) -> None:
        """Raises UnicodeDecodeError."""
        if self._check is not None:
            self._check.decode(data, last)
        self.data += data


_FAULTS: dict[int, RejectionCode] = {
    CloseCode.PROTOCOL_ERROR: "frame",
    CloseCode.INVALID_DATA: "text",
    CloseCode.POLICY_VIOLATION: "flood",
    CloseCode.MESSAGE_TOO_BIG: "message_size",
}
"""Why Brain closes on a client."""


def _nowhere(_: bytes) -> None:
    """The write of a connection that writes nothing more."""
