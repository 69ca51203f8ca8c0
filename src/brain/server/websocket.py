"""One WebSocket after its upgrade: frames in, the close handshake, and pings.

RFC 6455 comes from the sans-I/O core of `websockets`. A connection creates it when its client sends
the first frame that is not the pong to Brain's ping, because most clients never send one. What goes
out is framed once for all clients, and the hub hands it to the transport.

`write` is the only way out of a connection. A no-op replaces it before a close frame goes out, at
EOF and on loss, so a close frame is the last frame, and a rotation that still holds the connection
does no harm. Each of these starts the timeout after which the connection is aborted:
`transport.close()` alone waits for a flush that may never complete (seen: 150 s).
"""

import asyncio
import codecs
import gc
import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

import structlog
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side, State

from brain.access.rejections import REJECTIONS, Rejection, RejectionCode, RejectionCounter
from brain.contract.close_codes import (
    ABNORMAL_CLOSURE,
    FLOOD,
    INTERNAL_ERROR,
    INVALID_TEXT,
    CloseCode,
)
from brain.contract.messages import PING, text_frame
from brain.contract.subscription import Subscription
from brain.delivery.cohorts import Client
from brain.delivery.hub import Hub
from brain.server.limits import Limits
from brain.server.uptake import is_stalled
from brain.server.work_queue import WorkQueue

log = structlog.get_logger()

PONG_TO_IT = b"\x8a\x80"
"""How the pong to the empty ping begins; a mask of four bytes follows, and no payload (RFC 6455,
5.5.3)."""

HELLO, ANSWER = b"ping", text_frame(b"pong")
"""A browser cannot send a ping of the protocol, so it sends one as text."""

STRIDE = 1024
"""Bytes parsed between two checks of the rate: a flood of small frames must not block the event
loop."""

SHARES = 100
"""Parts of a round of pings: 10 000 pings in one go would block the event loop for 20 ms and
more."""

_quiet = logging.getLogger("brain.server.websocket.protocol")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False


@lru_cache(64)
def close_frame(code: int, reason: str) -> bytes:
    """RFC 6455, section 5.5.1."""
    return Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=False)


@dataclass(slots=True)
class Connections:
    """All connections of a server, and what they share."""

    hub: Hub
    loop: asyncio.AbstractEventLoop
    timeout: float
    """Seconds after which a client that sends nothing and takes nothing counts as dead."""
    limits: Limits = field(default_factory=Limits)
    shares: list[set["Connection"]] = field(default_factory=lambda: [set() for _ in range(SHARES)])
    closing: set["Connection"] = field(default_factory=set)
    """Connections that have left the hub and are not closed yet."""
    rejections: RejectionCounter = field(default_factory=lambda: RejectionCounter(log))
    fault: Callable[[str], object] = lambda _: None
    """Called with the address of each client that broke a rule."""
    swept: list[float] = field(default_factory=lambda: [0.0] * SHARES)
    """When each share was last pinged."""
    queue: WorkQueue = field(init=False)
    _next: "itertools.cycle[int]" = field(default_factory=lambda: itertools.cycle(range(SHARES)))

    def __post_init__(self) -> None:
        self.queue = WorkQueue(self.loop)

    def place(self) -> int:
        """The share of the next connection."""
        share = next(self._next)
        if not share:
            # The collector counts objects created minus objects freed. An upgrade frees more than
            # it creates (the parser's), so under load it would run late, over 50 000 at once: 60
            # ms.
            gc.collect(1)
        return share

    def sweep(self, share: int) -> None:
        """Ping one share of the clients, and close the silent ones. Call it SHARES times per
        interval.
        """
        now = self.loop.time()
        last, self.swept[share] = self.swept[share], now
        for connection in list(self.shares[share]):
            try:
                connection.visit(now, last)
            except Exception as error:  # noqa: BLE001 - one client's failure must never end the round
                self.hub.fail(connection, error)

    def unsent(self) -> list[tuple[float, int, "Connection"]]:
        """Each client that does not keep up: when it was last heard, and its queued bytes."""
        if not self.hub.lagging and not self.closing:
            return []
        stalled = [each for each in (*self.everyone(), *self.closing) if each.paused]
        return [(each.heard, each.unsent, each) for each in stalled]

    def everyone(self) -> list["Connection"]:
        return [connection for share in self.shares for connection in share]


class Connection(Client, asyncio.Protocol):
    """Created when the 101 has been written; `start` joins the hub. `lost` is called at the end,
    perhaps twice.
    """

    __slots__ = (
        "_all",
        "_bucket_full",
        "_code",
        "_deadline",
        "_discarded",
        "_left",
        "_lost",
        "_message",
        "_opened",
        "_protocol",
        "_reason",
        "_share",
        "_transport",
        "_unread",
        "heard",
        "peer",
        "taken",
    )

    def __init__(
        self, all_: Connections, transport: asyncio.Transport, peer: str, lost: Callable[[], None]
    ) -> None:
        self._all = all_
        self._transport = transport
        self._lost = lost
        self._protocol: Protocol | None = None
        self._message: IncomingMessage | None = None
        self._bucket_full = self._opened = self.heard = all_.loop.time()
        self._code, self._reason = ABNORMAL_CLOSURE.code, ""
        self._deadline: asyncio.TimerHandle | None = None
        self._share = all_.place()
        self._discarded = 0
        self._left = False
        self._unread = b""
        self.taken: int | None = None
        self.peer = peer
        self.paused = False
        self.pinged = False  # also before it joins: a client that still owes a token is pinged
        self.cohort = None
        self.write = transport.write

    def start(self, subscription: Subscription, *, full: bool = False) -> None:
        """`full`: the write buffer was already over its high-water mark."""
        self._all.shares[self._share].add(self)
        self._all.hub.join(self, subscription)
        if full:
            self._all.hub.pause(self)

    # From the transport.

    def data_received(self, data: bytes) -> None:
        self.heard = self._all.loop.time()
        if self._left:
            self._discard(len(data))
            return
        is_first = not self._unread
        if is_first and self._protocol is None and len(data) == 6 and data.startswith(PONG_TO_IT):
            return
        self._unread += data
        if len(self._unread) > self._all.limits.max_message:
            self._read()  # a flood must not gather
        elif is_first:
            self._all.queue.add(self._read)

    def _read(self) -> None:
        data, self._unread = self._unread, b""
        if not data:
            return
        if self._left:  # Brain has ended it meanwhile
            self._discard(len(data))
            return
        try:
            self._parse(data)
        except Exception as error:  # noqa: BLE001 - whatever a client sends ends only that client
            self._all.hub.fail(self, error)

    def _discard(self, size: int) -> None:
        """A closing client sent more, and only its end of stream matters now. A flood is not read
        on.
        """
        limits = self._all.limits
        self._discarded += size
        if self._discarded > limits.max_discarded and not self._transport.is_closing():
            self._transport.pause_reading()
            assert self._deadline is not None, "_leave has started it"
            self._deadline.cancel()
            self._deadline = self._all.loop.call_later(
                limits.discard_timeout, self._transport.abort
            )

    def eof_received(self) -> bool:
        """The client sends nothing more. True: it is not the transport that closes itself."""
        if not self._unread:  # otherwise it may wait for an answer
            self.write = _nowhere
        if not self.unsent:
            # Its socket is about to be closed: the client that comes back now finds its place free.
            self._lost()
        self._all.queue.add(self._close)
        return True

    def _close(self) -> None:
        """Close the transport after its flush."""
        self._leave(self._code, self._reason)
        self._transport.close()

    def pause_writing(self) -> None:
        self._all.hub.pause(self)

    def resume_writing(self) -> None:
        self.heard = self._all.loop.time()  # the client's kernel acknowledged what drained
        self._all.hub.resume(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.write = _nowhere
        self._lost()
        self._all.queue.add(partial(self._gone, exc))

    def _gone(self, exc: Exception | None) -> None:
        self._leave(self._code, self._reason or (str(exc) if exc else ""))
        if self._deadline is not None:
            self._deadline.cancel()
        self._all.closing.discard(self)
        if self._protocol is not None:
            # It and its parser, a generator, refer to each other, and so do it and the traceback of
            # the parser's error. Some of these cycles reach the oldest generation: 7 500 of 250 000
            # connections were left.
            self._protocol.parser.close()
            self._protocol.parser_exc = None
            self._protocol = None
        self._all.rejections.lines.info(
            "client disconnected",
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
            # A half-close: the client reads the close frame and EOF, answers, and closes. Closing
            # both ways would answer what it still has in flight with a reset, which may overtake
            # the frame.
            self._transport.write_eof()
        except Exception:  # noqa: BLE001 - a broken transport must not stop a caller that ends many
            self._transport.abort()

    @property
    def unsent(self) -> int:
        """Bytes that the client has not read."""
        return self._transport.get_write_buffer_size()

    def visit(self, now: float, last: float) -> None:
        """Ping this client, or end it if it is dead. `last` is when its share was pinged before."""
        if self.write is _nowhere:
            return  # it has ended, and waits to be taken down: its socket may be closed
        timeout = self._all.timeout
        if self.heard > last:
            self.taken = None  # it answered the last ping, so its socket need not tell
        elif is_stalled(self, self._transport, now) and self.heard < now - timeout:
            detail = f"it sent and took nothing for {timeout:.0f} s"
            self._all.rejections.note(Rejection("silence", detail), peer=self.peer)
            self.abort(detail)
            return
        if self.pinged:
            self.pinged = False
        elif not self.paused:
            self.write(PING)

    def drop(self, error: Exception) -> None:
        log.error("client failed", peer=self.peer, error=repr(error), exc_info=error)
        self.end(INTERNAL_ERROR.code, INTERNAL_ERROR.reason)

    def abort(self, reason: str) -> None:
        self._leave(ABNORMAL_CLOSURE.code, reason)
        self._transport.abort()

    def _leave(self, code: int, reason: str) -> None:
        """Write nothing more, and abort at `close_timeout` if the client does not close."""
        if self._left:
            return
        self._left = True
        self.write = _nowhere
        self._code, self._reason = code, reason
        self._all.hub.leave(self)
        self._all.shares[self._share].discard(self)
        self._all.closing.add(self)
        self._deadline = self._all.loop.call_later(
            self._all.limits.close_timeout, self._transport.abort
        )

    # What the client says.

    def _parse(self, data: bytes) -> None:
        protocol = self._protocol
        if protocol is None:
            protocol = self._protocol = Protocol(
                Side.SERVER, state=State.OPEN, max_size=self._all.limits.max_message, logger=_quiet
            )
        for at in range(0, len(data), STRIDE):
            protocol.receive_data(data[at : at + STRIDE])
            if protocol.state is State.OPEN:
                # A pong goes out before the answer to what follows its ping (Autobahn, cases 5.6
                # and 5.19).
                answer = b"".join(protocol.data_to_send())
                if answer and not self.paused:
                    self.write(answer)
            for event in protocol.events_received():
                assert isinstance(event, Frame)
                if not self._allowed(len(event.data)):
                    rate = self._all.limits.frames.rate
                    protocol.fail(FLOOD.code, f"more than {rate:.0f} frames or KiB a second")
                    break
                try:
                    self._frame(event)
                except UnicodeDecodeError:
                    # The frames behind it in the same bytes are ignored (RFC 6455, section 7.1.7).
                    protocol.fail(INVALID_TEXT.code, "invalid UTF-8")
                    break
            if protocol.state is not State.OPEN:
                self._finish(protocol, b"".join(protocol.data_to_send()))
                return

    def _finish(self, protocol: Protocol, close_bytes: bytes) -> None:
        """The client has closed, or broken a rule; `close_bytes` is the last that it is sent."""
        write = self.write
        close = protocol.close_rcvd or protocol.close_sent
        if protocol.close_rcvd is None and (fault := protocol.close_sent) and fault.code in _FAULTS:
            rejection = Rejection(_FAULTS[fault.code], ascii(fault.reason)[1:-1])
            self._all.rejections.note(rejection, peer=self.peer)
            self._all.fault(self.peer)
        if close is not None:
            # In ASCII: the reason may be the client's, and is logged.
            self._leave(int(close.code), ascii(close.reason)[1:-1])
        else:
            self._leave(ABNORMAL_CLOSURE.code, "")
        if not self._transport.is_closing():
            write(close_bytes)
            self._transport.write_eof()

    def _frame(self, frame: Frame) -> None:
        """Raises UnicodeDecodeError."""
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._message = IncomingMessage(text=frame.opcode is Opcode.TEXT)
        elif frame.opcode is not Opcode.CONT:
            return
        message = self._message
        assert message is not None, "the protocol rejects a continuation of nothing"
        message.add(bytes(frame.data), last=frame.fin)
        if frame.fin:
            self._message = None
            self.received(message)

    def received(self, message: "IncomingMessage") -> None:
        """A whole message. Brain ignores all but this one."""
        if message.text and message.data == HELLO and not self.paused:
            self.write(ANSWER)

    def _allowed(self, size: int) -> bool:
        """One token for a frame, and one for each KiB of a larger one."""
        frames = self._all.limits.frames
        self._bucket_full = frames.after(self._bucket_full, self.heard, max(1.0, size / 1024))
        return not frames.wait(self._bucket_full, self.heard)


class IncomingMessage:
    """A message as its fragments arrive, a text validated at once (RFC 6455, section 8.1)."""

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


def _close_code(code: RejectionCode) -> CloseCode:
    found = REJECTIONS[code].close_code
    assert found is not None
    return found


_FRAME_REJECTIONS: tuple[RejectionCode, ...] = ("frame", "text", "flood", "message_size")
_FAULTS = {_close_code(code).code: code for code in _FRAME_REJECTIONS}
"""Close codes for what a client sent → the rejection."""


def _nowhere(_: bytes) -> None:
    """`write` of a connection that writes nothing more."""
