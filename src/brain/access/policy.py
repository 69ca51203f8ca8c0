"""Who may come in: (peer, headers, target) → welcome, or a Refusal.

Pure, and the same for HTTP and WebSocket, before the upgrade. Four rules, each against an intruder of its own:

    network     the client's address is in an allowed network          a stranger's machine
    Host        is a name of this server, wherever a request says it   DNS rebinding: a page whose name has become 127.0.0.1
    Origin      is absent, or no page on the internet can have it      a page on the internet, in a browser on this network
    cross-site  no request without an Origin that a browser says       an image or a script in such a page: it cannot read the
                another site caused, but for opening a page            answer, but it can make work, and measure time

The Origin rule holds for every method: only browsers send an Origin, and a page that may not write may not read either.
A form, or anything else that a page may send without asking, carries an Origin or says that it is cross-site; and the API takes
JSON alone, which a page cannot send without asking.
"""

import re
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from brain.access.rate_limit import Pace
from brain.access.rejections import Reason

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network
Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""

HANDSHAKES = Pace(burst=1000, rate=500)
"""Of one address. Beyond it they wait for their turn: who is merely many is late, and who floods is slow."""

FAULT = 20
"""Handshakes for which a client counts that was cut off for what it sent: who floods, is cut off and comes back took 64 % of a
core without, and is down to 25 times a second so."""

MOST_REMEMBERED = 4096
"""Addresses whose handshakes are remembered before those that have long been quiet are forgotten."""

MOST_WAIT = 2.0
"""Seconds that a handshake may wait for its turn."""


@dataclass(frozen=True, slots=True)
class Refusal:
    status: int
    reason: str
    """A sentence that is safe to log and to send: what came from outside is quoted in ASCII, and cut."""
    kind: Reason
    """Which rule, as the label of a metric."""
    retry_after: int | None = None
    """Seconds."""


def address(text: str) -> Address | None:
    """None if it is no IP address in its usual form: `2130706433` and `0177.0.0.1` are names.

    IPv4 in IPv6 (`::ffff:127.0.0.1`) is IPv4. A zone (`%eth0`) says by which way a packet came, not from whom: it is dropped.
    """
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        return found.ipv4_mapped or IPv6Address(int(found))
    return found


def parse_network(text: str) -> Network:
    """`192.168.0.0/16`, or a single address. Raises ValueError."""
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        hint = f": did you mean {ip_network(text, strict=False)}?"
    except ValueError:
        hint = ", such as 192.168.0.0/16"
    raise ValueError(f"{_quoted(text)} is not a network{hint}")


NETWORKS: Final = tuple(
    map(
        parse_network,
        (
            "127.0.0.0/8",
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "169.254.0.0/16",
            "::1/128",
            "fc00::/7",
            "fe80::/10",
        ),
    )
)
"""Loopback, private, link-local. Written out, because `is_private` holds for 0.0.0.0 and 240.0.0.0/4 too."""

_AUTHORITY: Final = re.compile(
    r"(?:([a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?)|\[([0-9a-f:.]+)(?:%(?:25)?[a-z0-9._~-]+)?\])(?::([0-9]{0,5}))?"
)
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(.+)")
_ABSOLUTE: Final = re.compile(rb"(?:https?|wss?)://([^/?#]*)", re.IGNORECASE)
_HOP: Final = re.compile(r"\[([^]]*)\](?::[0-9]+)?|([0-9.]+):[0-9]+")
_PORTS: Final = {"http": 80, "https": 443}
_OPAQUE: Final = frozenset({"null", "file://"})
_LONGEST: Final = 400
"""Bytes of a Host or an Origin (a name has at most 253): beyond it nothing is parsed, and nothing kept."""


@dataclass(frozen=True, slots=True)
class Authority:
    """`host[:port]` (RFC 3986, 3.2), without user information, in lower case."""

    host: str | Address
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "Authority":
        """Raises ValueError."""
        match = _AUTHORITY.fullmatch(text.lower()) if len(text) <= _LONGEST and text.isascii() else None
        if match:
            name, literal, digits = match.groups()
            found = address(name or literal)
            port = int(digits) if digits else None
            if (port or 0) <= 65535 and (name or found):
                return cls(found or name, port)
        raise ValueError(
            f"{_quoted(text)} is not a host, such as localhost:5221 or 192.168.1.20 or [fd00::1]"
        )

    def __str__(self) -> str:
        host = f"[{self.host}]" if isinstance(self.host, IPv6Address) else str(self.host)
        return host if self.port is None else f"{host}:{self.port}"

    def on(self, scheme: str) -> "Authority":
        """With the scheme's own port where none is written."""
        return self if self.port is not None else Authority(self.host, _PORTS.get(scheme))


@dataclass(frozen=True, slots=True)
class Origin:
    """`scheme://host[:port]` (RFC 6454, 6.2), always with the port of a scheme that has one."""

    scheme: str
    authority: Authority

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """Raises ValueError."""
        match = _ORIGIN.fullmatch(text.lower()) if len(text) <= _LONGEST and text.isascii() else None
        try:
            if match:
                return cls(match[1], Authority.parse(match[2]).on(match[1]))
        except ValueError:
            pass
        raise ValueError(f"{_quoted(text)} is not an origin, such as http://app.example:3000") from None


class Policy:
    """Made once from the settings. `origins` and `hosts` are welcome beyond the defaults, and `*` in them is all; `origins` may
    hold `null` and `file://`, the origins of pages without a host. `machine` is this machine's own host name.

    Raises ValueError for an origin or a host that is none.
    """

    def __init__(
        self,
        *,
        networks: Collection[Network] = NETWORKS,
        origins: Collection[str] = (),
        hosts: Collection[str] = (),
        trusted_proxies: Collection[Network] = (),
        machine: str = "",
    ) -> None:
        self._networks = tuple(networks)
        self._proxies = tuple(trusted_proxies)
        lower = {text.lower() for text in origins}
        self._any_origin = "*" in lower
        self._opaque = lower & _OPAQUE
        self._origins = frozenset(map(Origin.parse, lower - _OPAQUE - {"*"}))
        self._any_host = "*" in hosts
        self._hosts = frozenset(Authority.parse(text) for text in hosts if text != "*")
        own = machine.lower()
        self._names = frozenset({"localhost", own, f"{own}.local"} if own else {"localhost"})
        # Clients repeat themselves: a request costs a few look-ups, not the parsing of an address, a Host and an Origin.
        self.identify = lru_cache(4096)(self._identify)
        self._network_rule = lru_cache(4096)(self._check_network)
        self._host_rule = lru_cache(1024)(self._check_host)
        self._origin_rule = lru_cache(1024)(self._check_origin)

    def check(self, peer: str, headers: Headers, target: bytes) -> Refusal | None:
        """None is welcome. `target` is the request target as it was sent: an absolute one names a host of its own, of which an
        ASGI scope says nothing.
        """
        client = self.client_address(peer, headers)
        refusal = self._network_rule(client) if client is not None else _no_address(peer, headers)
        if refusal is not None:
            return refusal
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1:
            return Refusal(400, f"a request has one Host header, and this one has {len(hosts)}", "host")
        if not target.startswith(b"/") and target != b"*":
            # The target's host overrules the header's (RFC 9112, 3.2.2). Both must be ours: what reads only one is not misled.
            absolute = _ABSOLUTE.match(target)
            if absolute is None:
                return Refusal(
                    400, "a request target is a path or an http:// URL", "host"
                )  # it may hold a secret
            hosts.append(absolute[1])
        for host in hosts:
            refusal = (self._host_rule if len(host) <= _LONGEST else self._check_host)(host)
            if refusal is not None:
                return refusal
        origins = [value for name, value in headers if name == b"origin"]
        if self._any_origin:
            return None
        if not origins:
            return _CROSS_SITE if _is_cross_site(headers) else None
        if len(origins) > 1:
            return Refusal(403, f"a request has one Origin header, and this one has {len(origins)}", "origin")
        origin = origins[0]
        return (self._origin_rule if len(origin) <= _LONGEST else self._check_origin)(origin, hosts[-1])

    def client_address(self, peer: str, headers: Headers) -> Address | None:
        """The peer's, or, behind a trusted proxy, that of the rightmost hop of X-Forwarded-For that is not one itself.

        None if that hop is no address, and then `check` refuses: to take the proxy's own address, which is allowed, would let in
        whomever the proxy cannot name.
        """
        found, is_proxy = self.identify(peer)
        if not is_proxy:
            return found
        hops = b",".join(value for name, value in headers if name == b"x-forwarded-for")
        for hop in reversed(hops.decode("latin-1").split(",")):
            text = hop.strip(' \t"')
            if not text:
                continue
            if match := _HOP.fullmatch(text):
                text = match[1] or match[2] or ""
            found, is_proxy = self.identify(text) if len(text) <= 64 else (None, False)
            if not is_proxy:
                break
        return found

    def _identify(self, text: str) -> tuple[Address | None, bool]:
        """The address, and whether it is a trusted proxy's."""
        found = address(text)
        return found, found is not None and any(found in network for network in self._proxies)

    def _check_network(self, client: Address) -> Refusal | None:
        if any(client in network for network in self._networks):
            return None
        reason = f"{client} is in none of the networks that may connect: BRAIN_ALLOWED_NETWORKS names them"
        return Refusal(403, reason, "network")

    def _check_host(self, value: bytes) -> Refusal | None:
        try:
            host = Authority.parse(_text(value))
        except ValueError as error:
            return Refusal(400, f"Host: {error}", "host")
        # Without a port it is that of http or https: behind a proxy that ends TLS, there is no telling which.
        forms = (host, Authority(host.host, None), host.on("http"), host.on("https"))
        if self._any_host or self._is_own(host.host) or not self._hosts.isdisjoint(forms):
            return None
        reason = (
            f"{_quoted(value)} is not a name of this server: if it is one (a DNS name, a service of docker compose), "
            f"start Brain with it in BRAIN_ALLOWED_HOSTS={host.host}"
        )
        return Refusal(421, reason, "host")

    def _check_origin(self, value: bytes, host: bytes) -> Refusal | None:
        text = _text(value)
        if text.lower() in self._opaque:
            return None
        try:
            origin = Origin.parse(text)
        except ValueError as error:
            reason = f"Origin: {error}; BRAIN_ALLOWED_ORIGINS can let in null and file://"
            return Refusal(403, reason, "origin")
        if origin in self._origins:
            return None
        # On any port: front ends are served by dev servers of their own.
        if origin.scheme in _PORTS and (
            self._is_own(origin.authority.host)
            or origin.authority == Authority.parse(_text(host)).on(origin.scheme)
        ):
            return None
        reason = f"pages of {_quoted(value)} may not connect: if they may, add that to BRAIN_ALLOWED_ORIGINS"
        return Refusal(403, reason, "origin")

    def allowed(self) -> dict[str, str]:
        """What is allowed to whom, for a log line."""
        origins = [*sorted(self._opaque), *(f"{each.scheme}://{each.authority}" for each in self._origins)]
        hosts = [*sorted(self._names), "*.localhost", "addresses of these networks", *map(str, self._hosts)]
        return {
            "networks": ",".join(map(str, self._networks)),
            "hosts": "all" if self._any_host else ", ".join(hosts),
            "pages": "all" if self._any_origin else ", ".join(["of these hosts", *origins]),
            "proxies": ",".join(map(str, self._proxies)) or "none",
        }

    def _is_own(self, host: str | Address) -> bool:
        """Whether it is a name that nobody on the internet can have: an address cannot be rebound, .localhost not be bought."""
        if isinstance(host, str):
            return host in self._names or host.endswith(".localhost")
        return host.is_loopback or any(host in network for network in self._networks)


_CROSS_SITE: Final = Refusal(
    403,
    "another site's page caused this request: if it may, add its origin to BRAIN_ALLOWED_ORIGINS and fetch with CORS",
    "cross_site",
)


def _is_cross_site(headers: Headers) -> bool:
    """By the word of the browser, which no page can change (Fetch Metadata). To follow a link or to type a URL is no page's doing."""
    said = {name: value for name, value in headers if name.startswith(b"sec-fetch-")}
    # But to open it inside the page is: /docs in an invisible frame, and the visitor's clicks would be its own.
    opens = (
        said.get(b"sec-fetch-mode") == b"navigate" and said.get(b"sec-fetch-dest", b"document") == b"document"
    )
    return said.get(b"sec-fetch-site") == b"cross-site" and not opens


def _no_address(peer: str, headers: Headers) -> Refusal:
    if address(peer) is None:
        return Refusal(403, f"the peer {_quoted(peer)} has no IP address", "network")
    hops = b",".join(value for name, value in headers if name == b"x-forwarded-for")
    reason = f"X-Forwarded-For, from the proxy {_quoted(peer)}, names the client by no address: {_quoted(hops[-80:])}"
    return Refusal(400, reason, "forwarded")


def _text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \t")


def _quoted(value: bytes | str) -> str:
    text = value[:81].decode("latin-1") if isinstance(value, bytes) else value[:81]
    return ascii(text) if len(text) <= 80 else f"{text[:80]!a}..."


@dataclass(slots=True)
class Visit:
    """What a connection is counted as."""

    address: Address | None = None
    websocket: bool = False


class Doors:
    """Counts connections by address, from accept on, and WebSockets in all. A limit of 0 is none.

    By the whole address, not by its /64: in the private networks that may come in, a /64 is the whole office.
    """

    def __init__(self, policy: Policy, *, max_connections: int, max_connections_per_ip: int) -> None:
        self.room = sys.maxsize
        """Connections of either kind that there are file descriptors for."""
        self.connections: dict[Address, int] = {}
        self.websockets = 0
        self._handshakes: dict[Address, float] = {}
        """Address → when its HANDSHAKES will be full again."""
        self._policy = policy
        self.most = max_connections
        self._most_per_ip = max_connections_per_ip

    def enter(self, peer: str) -> Visit | Refusal:
        """A connection has been accepted. If it is refused it is not counted: answer its first request so, and close it."""
        visit = Visit()
        # A proxy's address stands for many clients. Each is counted when the proxy has said who it is, at the upgrade.
        client, is_proxy = self._policy.identify(peer)
        return visit if client is None or is_proxy else self._seat(visit, client) or visit

    def upgrade(self, visit: Visit, client: Address | None) -> Refusal | None:
        """The connection is to become a WebSocket of `client` (Policy.client_address). If refused, it stays what it was."""
        assert not visit.websocket, "a connection becomes a WebSocket once"
        if self.websockets >= self.room or self.websockets >= self.most > 0:
            which = (
                "BRAIN_MAX_CONNECTIONS allows"
                if self.websockets < self.room
                else "there are file descriptors for"
            )
            reason = f"{self.websockets} clients are connected, as many as {which}: come back later"
            return Refusal(503, reason, "connections", retry_after=1)
        if visit.address is None and client is not None and (refusal := self._seat(visit, client)):
            return refusal
        self.websockets += 1
        visit.websocket = True
        return None

    def wait(self, client: Address, now: float) -> float | Refusal:
        """Seconds until this address may shake hands once more. Counts as one, unless refused.

        Where BRAIN_MAX_CONNECTIONS_PER_IP is 0, an address may stand for many, and does not wait.
        """
        if not self._most_per_ip:
            return 0.0
        full = HANDSHAKES.after(self._handshakes.get(client, now), now)
        wait = HANDSHAKES.wait(full, now)
        if wait > MOST_WAIT:
            reason = f"{client} shakes hands more than {HANDSHAKES.rate:.0f} times a second: come back later"
            return Refusal(429, reason, "handshakes", retry_after=1)
        if len(self._handshakes) >= MOST_REMEMBERED:
            self._handshakes = {each: at for each, at in self._handshakes.items() if at > now}
        self._handshakes[client] = full
        return wait

    def fault(self, client: str, now: float) -> None:
        """A client was cut off for what it sent: its address is slower to come back."""
        found = address(client)
        if found is not None and self._most_per_ip:
            full = self._handshakes.get(found, now)
            self._handshakes[found] = max(full, now) + FAULT / HANDSHAKES.rate

    def leave(self, visit: Visit) -> None:
        """The connection is gone: its places are free. May be called twice."""
        if visit.websocket:
            self.websockets -= 1
            visit.websocket = False
        if visit.address is not None:
            count = self.connections.pop(visit.address) - 1
            if count:
                self.connections[visit.address] = count
            visit.address = None

    def _seat(self, visit: Visit, client: Address) -> Refusal | None:
        count = self.connections.get(client, 0)
        if count >= self._most_per_ip > 0:
            reason = (
                f"{client} has {count} connections, as many as BRAIN_MAX_CONNECTIONS_PER_IP allows: close one"
            )
            return Refusal(429, reason, "connections_per_ip", retry_after=1)
        self.connections[client] = count + 1
        visit.address = client
        return None
