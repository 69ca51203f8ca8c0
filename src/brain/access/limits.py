"""Connections counted by address, and in all; and how fast an address may open them."""

import sys
from dataclasses import dataclass

from brain.access.addresses import Address, address
from brain.access.policy import Policy
from brain.access.rate_limit import RateLimit
from brain.access.rejections import Rejection

HANDSHAKES = RateLimit(burst=1000, rate=500)
"""Of one address. Beyond it they wait for their turn: who is merely many is late, and who floods is slow."""

FAULT = 20
"""Handshakes for which a client counts that was cut off for what it sent: who floods, is cut off and comes back took 64 % of a
core without, and is down to 25 times a second so."""

MAX_REMEMBERED = 4096
"""Addresses whose handshakes are remembered before those that have long been quiet are forgotten."""

MAX_WAIT = 2.0
"""Seconds that a handshake may wait for its turn."""


@dataclass(slots=True)
class Lease:
    """What a connection is counted as."""

    address: Address | None = None
    websocket: bool = False


class ConnectionLimiter:
    """Counts connections by address, from accept on, and WebSockets in all. A limit of 0 is none.

    By the whole address, not by its /64: in the private networks that may come in, a /64 is the whole office.
    """

    def __init__(
        self, policy: Policy, *, max_connections: int, max_connections_per_ip: int
    ) -> None:
        self.room = sys.maxsize
        """Connections of either kind that there are file descriptors for."""
        self.connections: dict[Address, int] = {}
        self.websockets = 0
        self._handshakes: dict[Address, float] = {}
        """Address → when its HANDSHAKES will be full again."""
        self._policy = policy
        self.most = max_connections
        self._most_per_ip = max_connections_per_ip

    def enter(self, peer: str) -> Lease | Rejection:
        """A connection has been accepted. If it is refused it is not counted: answer its first request so, and close it."""
        lease = Lease()
        # A proxy's address stands for many clients. Each is counted when the proxy has said who it is, at the upgrade.
        client, is_proxy = self._policy.identify(peer)
        return lease if client is None or is_proxy else self._seat(lease, client) or lease

    def upgrade(self, lease: Lease, client: Address | None) -> Rejection | None:
        """The connection is to become a WebSocket of `client` (Policy.client_address). If refused, it stays what it was."""
        assert not lease.websocket, "a connection becomes a WebSocket once"
        if self.websockets >= self.room or self.websockets >= self.most > 0:
            which = (
                "BRAIN_MAX_CONNECTIONS allows"
                if self.websockets < self.room
                else "there are file descriptors for"
            )
            detail = f"{self.websockets} clients are connected, as many as {which}: come back later"
            return Rejection(503, detail, "connections", retry_after=1)
        if (
            lease.address is None
            and client is not None
            and (rejection := self._seat(lease, client))
        ):
            return rejection
        self.websockets += 1
        lease.websocket = True
        return None

    def wait(self, client: Address, now: float) -> float | Rejection:
        """Seconds until this address may shake hands once more. Counts as one, unless refused.

        Where BRAIN_MAX_CONNECTIONS_PER_IP is 0, an address may stand for many, and does not wait.
        """
        if not self._most_per_ip:
            return 0.0
        full = HANDSHAKES.after(self._handshakes.get(client, now), now)
        wait = HANDSHAKES.wait(full, now)
        if wait > MAX_WAIT:
            detail = f"{client} shakes hands more than {HANDSHAKES.rate:.0f} times a second: come back later"
            return Rejection(429, detail, "handshakes", retry_after=1)
        if len(self._handshakes) >= MAX_REMEMBERED:
            self._handshakes = {each: at for each, at in self._handshakes.items() if at > now}
        self._handshakes[client] = full
        return wait

    def fault(self, client: str, now: float) -> None:
        """A client was cut off for what it sent: its address is slower to come back."""
        found = address(client)
        if found is not None and self._most_per_ip:
            full = self._handshakes.get(found, now)
            self._handshakes[found] = max(full, now) + FAULT / HANDSHAKES.rate

    def leave(self, lease: Lease) -> None:
        """The connection is gone: its places are free. May be called twice."""
        if lease.websocket:
            self.websockets -= 1
            lease.websocket = False
        if lease.address is not None:
            count = self.connections.pop(lease.address) - 1
            if count:
                self.connections[lease.address] = count
            lease.address = None

    def _seat(self, lease: Lease, client: Address) -> Rejection | None:
        count = self.connections.get(client, 0)
        if count >= self._most_per_ip > 0:
            detail = f"{client} has {count} connections, as many as BRAIN_MAX_CONNECTIONS_PER_IP allows: close one"
            return Rejection(429, detail, "connections_per_ip", retry_after=1)
        self.connections[client] = count + 1
        lease.address = client
        return None
