"""What the protocols of all connections share, and the rules that look at all of them together."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

import structlog

from brain.access.limits import ConnectionLimiter
from brain.access.policy import Policy
from brain.access.rejections import Rejection, RejectionCounter
from brain.contract.messages import Micros
from brain.contract.subscription import Form, as_given
from brain.server.limits import Limits
from brain.server.uptake import is_stalled
from brain.server.websocket import Connection, Connections

if TYPE_CHECKING:
    from brain.access.tokens import Tokens
    from brain.server.http import HTTPProtocol

log = structlog.get_logger()

CLOSING = Rejection("closing", "the server is stopping: come back")
UNREAD = Rejection(
    "unread",
    "the table has not been read yet, so nobody knows which values its columns have: come back",
)
BEHIND = Rejection(
    "behind", "another node has sent what this one has not read yet: come back, or go to another"
)


async def _reached(_: Micros) -> bool:
    return True


@dataclass(slots=True, eq=False)
class ServerState:
    policy: Policy
    limiter: ConnectionLimiter
    connections: Connections
    closing: bool = False
    waiting: dict["HTTPProtocol", float] = field(default_factory=dict)
    """Connections without a complete request → the deadline of that request, earliest first."""
    tokens: "Tokens | None" = None
    form: Form = as_given
    """How the columns print the values of a filter."""
    is_ahead: Callable[[Micros | None], bool] = lambda _: False
    """Whether a client with this `since` has seen, on another node, what this one has not read."""
    reached: Callable[[Micros], Awaitable[bool]] = _reached
    """Wait until this node has read it. False: that is not known in time."""
    http: Collection["HTTPProtocol"] = ()
    """uvicorn's set of the connections that are not WebSockets."""

    def __post_init__(self) -> None:
        clock = self.connections.loop.time
        self.connections.fault = lambda peer: self.limiter.fault(peer, clock())

    @property
    def open(self) -> int:
        """Connections, HTTP and WebSocket."""
        return len(self.http) + self.limiter.websockets

    @property
    def limits(self) -> Limits:
        return self.connections.limits

    @property
    def rejections(self) -> RejectionCounter:
        return self.connections.rejections

    def make_room(self) -> Rejection | None:
        """For a connection just accepted: close the one idle longest, or return a rejection."""
        if self.open > self.limiter.room:
            detail = (
                f"{self.open - 1} connections are open, and this process has file descriptors "
                "for no more (ulimit -n)"
            )
        elif len(self.http) > self.limits.max_unupgraded:
            detail = f"more than {self.limits.max_unupgraded} requests are under way"
        else:
            return None
        if not self.waiting:
            return Rejection("requests", f"{detail}: try again")
        http = next(iter(self.waiting))
        del self.waiting[http]
        detail = f"{detail}, and this connection was idle longest"
        self.rejections.note(Rejection("requests", detail), peer=http.peer)
        http.abort(detail)
        return None

    def relieve(self) -> None:
        """If clients that do not read hold too many bytes together, close those silent longest."""
        unsent: list[tuple[float, int, HTTPProtocol | Connection]] = [*self.connections.unsent()]
        unsent += [(http.accepted, http.unsent, http) for http in self.http]
        total = sum(size for _, size, _ in unsent)
        if total <= self.limits.max_unsent:
            return
        detail = f"more than {self.limits.max_unsent} bytes wait for clients that do not read"
        rejection = Rejection("outgoing", detail)
        for _, size, each in sorted(unsent, key=itemgetter(0)):
            if size:
                total -= size
                self.rejections.note(rejection, peer=each.peer)
                each.abort(detail)
            if total <= self.limits.max_unsent:
                return

    def drop_unread(self) -> None:
        """Close the connections whose answer nobody reads, as `Connections.sweep` does for
        WebSockets. Call it once per interval of pings.
        """
        now, timeout = self.connections.loop.time(), self.connections.timeout
        for http in list(self.http):
            if not http.unsent:
                http.taken = None
                continue
            if http.taken is None:
                http.heard = now  # the answer waits since the last round, or not for as long
            # Its transport is open: uvicorn's set loses it when it is closed.
            if is_stalled(http, http.transport, now) and http.heard < now - timeout:
                detail = f"it took nothing of an answer for {timeout:.0f} s"
                self.rejections.note(Rejection("silence", detail), peer=http.peer)
                http.abort(detail)

    def tidy(self) -> None:
        self.rejections.lines.settle()
        self.relieve()

    def expire(self) -> None:
        """End the connections whose request is overdue."""
        now = self.connections.loop.time()
        for _ in range(self.limits.max_expired):
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
