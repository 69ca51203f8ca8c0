"""How many connections an address, and all together, may have; and how fast they may open."""

import sys
from dataclasses import dataclass

from brain.access.addresses import Address, address
from brain.access.policy import Policy
from brain.access.rate_limit import RateLimit
from brain.access.rejections import Rejection

HANDSHAKES = RateLimit(burst=1000, rate=500)
"""Per address. Handshakes beyond it wait for their turn: a crowd is late, a flood is slow."""

FAULT = 20
"""Handshakes that a client counts as after Brain closed it for what it sent. A client that floods,
is closed and reconnects took 64 % of a core without this; with it, it reconnects 25 times a
second."""

MAX_BODY = 1024 * 1024
"""Bytes of a request's body."""

MAX_BEHIND_HEAD = 2 * MAX_BODY
"""Bytes of a body as it is sent: with its chunk headers and trailers."""

BODY_TOO_LARGE = Rejection(
    "body_size",
    f"the body of a request has at most {MAX_BODY} bytes, "
    f"and at most {MAX_BEHIND_HEAD} with chunk headers and trailers",
)

MAX_REMEMBERED = 4096
"""Addresses whose handshakes are remembered. Beyond it those whose bucket is full are forgotten."""

MAX_WAIT = 2.0
"""Seconds that a handshake may wait for its turn."""


@dataclass(slots=True)
class Lease:
    """How a connection is counted."""

    address: Address | None = None
    websocket: bool = False


class ConnectionLimiter:
    """Counts connections by address, from accept on, and all WebSockets. A limit of 0 means no
    limit.

    By the whole address, not by its /64: in a private network a /64 is the whole office.
    """

    def __init__(
        self, policy: Policy, *, max_connections: int, max_connections_per_ip: int
    ) -> None:
        self.room = sys.maxsize
        """Connections that this process has file descriptors for."""
        self.connections: dict[Address, int] = {}
        self.websockets = 0
        self._handshakes: dict[Address, float] = {}
        """Address → when its bucket of HANDSHAKES will be full again."""
        self._policy = policy
        self.max_connections = max_connections
        self._max_per_ip = max_connections_per_ip

    def enter(self, peer: str) -> Lease | Rejection:
        """Count a connection just accepted. A rejected one is not counted: answer its first request
        with the rejection, and close it.
        """
        lease = Lease()
        # A proxy's address stands for many clients: each is counted at its upgrade, by its own
        # address.
        client, is_proxy = self._policy.identify(peer)
        return lease if client is None or is_proxy else self._count(lease, client) or lease

    def upgrade(self, lease: Lease, client: Address | None) -> Rejection | None:
        """Count the connection as a WebSocket of `client`; a rejected one counts as before."""
        assert not lease.websocket, "a connection becomes a WebSocket once"
        if self.websockets >= self.room or self.websockets >= self.max_connections > 0:
            which = (
                "BRAIN_MAX_CONNECTIONS allows"
                if self.websockets < self.room
                else "there are file descriptors for"
            )
            detail = f"{self.websockets} clients are connected, as many as {which}: come back later"
            return Rejection("connections", detail)
        if (
            lease.address is None
            and client is not None
            and (rejection := self._count(lease, client))
        ):
            return rejection
        self.websockets += 1
        lease.websocket = True
        return None

    def wait(self, client: Address, now: float) -> float | Rejection:
        """Seconds until the address may make this handshake, which counts unless it is rejected.

        With BRAIN_MAX_CONNECTIONS_PER_IP=0 an address may stand for many clients, and does not
        wait.
        """
        if not self._max_per_ip:
            return 0.0
        full = HANDSHAKES.after(self._handshakes.get(client, now), now)
        wait = HANDSHAKES.wait(full, now)
        if wait > MAX_WAIT:
            detail = (
                f"{client} opens more than {HANDSHAKES.rate:.0f} WebSockets a second: "
                "come back later"
            )
            return Rejection("handshakes", detail)
        if len(self._handshakes) >= MAX_REMEMBERED:
            self._handshakes = {each: at for each, at in self._handshakes.items() if at > now}
        self._handshakes[client] = full
        return wait

    def fault(self, client: str, now: float) -> None:
        """Brain closed a client of this address for what it sent: slow down its handshakes."""
        found = address(client)
        if found is not None and self._max_per_ip:
            full = self._handshakes.get(found, now)
            self._handshakes[found] = max(full, now) + FAULT / HANDSHAKES.rate

    def leave(self, lease: Lease) -> None:
        """The connection is closed and no longer counts. May be called twice."""
        if lease.websocket:
            self.websockets -= 1
            lease.websocket = False
        if lease.address is not None:
            count = self.connections.pop(lease.address) - 1
            if count:
                self.connections[lease.address] = count
            lease.address = None

    def _count(self, lease: Lease, client: Address) -> Rejection | None:
        count = self.connections.get(client, 0)
        if count >= self._max_per_ip > 0:
            detail = (
                f"{client} has {count} connections, as many as "
                "BRAIN_MAX_CONNECTIONS_PER_IP allows: close one"
            )
            return Rejection("connections_per_ip", detail)
        self.connections[client] = count + 1
        lease.address = client
        return None
