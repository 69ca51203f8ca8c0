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
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final, TypeAlias

from brain.access.addresses import (
    DEFAULT_PORTS,
    MAX_AUTHORITY,
    NETWORKS,
    Address,
    Authority,
    Network,
    Origin,
    address,
    header_text,
    quoted,
)
from brain.access.rejections import Rejection

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Names in lower case."""
_ABSOLUTE: Final = re.compile(rb"(?:https?|wss?)://([^/?#]*)", re.IGNORECASE)
_HOP: Final = re.compile(r"\[([^]]*)\](?::[0-9]+)?|([0-9.]+):[0-9]+")
_OPAQUE: Final = frozenset({"null", "file://"})


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

    def check(self, peer: str, headers: Headers, target: bytes) -> Rejection | None:
        """None is welcome. `target` is the request target as it was sent: an absolute one names a host of its own, of which an
        ASGI scope says nothing.
        """
        client = self.client_address(peer, headers)
        rejection = self._network_rule(client) if client is not None else _no_address(peer, headers)
        if rejection is not None:
            return rejection
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1:
            return Rejection(
                400, f"a request has one Host header, and this one has {len(hosts)}", "host"
            )
        if not target.startswith(b"/") and target != b"*":
            # The target's host overrules the header's (RFC 9112, 3.2.2). Both must be ours: what reads only one is not misled.
            absolute = _ABSOLUTE.match(target)
            if absolute is None:
                return Rejection(
                    400, "a request target is a path or an http:// URL", "host"
                )  # it may hold a secret
            hosts.append(absolute[1])
        for host in hosts:
            rejection = (self._host_rule if len(host) <= MAX_AUTHORITY else self._check_host)(host)
            if rejection is not None:
                return rejection
        origins = [value for name, value in headers if name == b"origin"]
        if self._any_origin:
            return None
        if not origins:
            return _CROSS_SITE if _is_cross_site(headers) else None
        if len(origins) > 1:
            return Rejection(
                403, f"a request has one Origin header, and this one has {len(origins)}", "origin"
            )
        origin = origins[0]
        return (self._origin_rule if len(origin) <= MAX_AUTHORITY else self._check_origin)(
            origin, hosts[-1]
        )

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

    def _check_network(self, client: Address) -> Rejection | None:
        if any(client in network for network in self._networks):
            return None
        detail = f"{client} is in none of the networks that may connect: BRAIN_ALLOWED_NETWORKS names them"
        return Rejection(403, detail, "network")

    def _check_host(self, value: bytes) -> Rejection | None:
        try:
            host = Authority.parse(header_text(value))
        except ValueError as error:
            return Rejection(400, f"Host: {error}", "host")
        # Without a port it is that of http or https: behind a proxy that ends TLS, there is no telling which.
        forms = (host, Authority(host.host, None), host.on("http"), host.on("https"))
        if self._any_host or self._is_own(host.host) or not self._hosts.isdisjoint(forms):
            return None
        detail = (
            f"{quoted(value)} is not a name of this server: if it is one (a DNS name, a service of docker compose), "
            f"start Brain with it in BRAIN_ALLOWED_HOSTS={host.host}"
        )
        return Rejection(421, detail, "host")

    def _check_origin(self, value: bytes, host: bytes) -> Rejection | None:
        text = header_text(value)
        if text.lower() in self._opaque:
            return None
        try:
            origin = Origin.parse(text)
        except ValueError as error:
            detail = f"Origin: {error}; BRAIN_ALLOWED_ORIGINS can let in null and file://"
            return Rejection(403, detail, "origin")
        if origin in self._origins:
            return None
        # On any port: front ends are served by dev servers of their own.
        if origin.scheme in DEFAULT_PORTS and (
            self._is_own(origin.authority.host)
            or origin.authority == Authority.parse(header_text(host)).on(origin.scheme)
        ):
            return None
        detail = f"pages of {quoted(value)} may not connect: if they may, add that to BRAIN_ALLOWED_ORIGINS"
        return Rejection(403, detail, "origin")

    def allowed(self) -> dict[str, str]:
        """What is allowed to whom, for a log line."""
        origins = [
            *sorted(self._opaque),
            *(f"{each.scheme}://{each.authority}" for each in self._origins),
        ]
        hosts = [
            *sorted(self._names),
            "*.localhost",
            "addresses of these networks",
            *map(str, self._hosts),
        ]
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


_CROSS_SITE: Final = Rejection(
    403,
    "another site's page caused this request: if it may, add its origin to BRAIN_ALLOWED_ORIGINS and fetch with CORS",
    "cross_site",
)


def _is_cross_site(headers: Headers) -> bool:
    """By the word of the browser, which no page can change (Fetch Metadata). To follow a link or to type a URL is no page's doing."""
    said = {name: value for name, value in headers if name.startswith(b"sec-fetch-")}
    # But to open it inside the page is: /docs in an invisible frame, and the visitor's clicks would be its own.
    opens = (
        said.get(b"sec-fetch-mode") == b"navigate"
        and said.get(b"sec-fetch-dest", b"document") == b"document"
    )
    return said.get(b"sec-fetch-site") == b"cross-site" and not opens


def _no_address(peer: str, headers: Headers) -> Rejection:
    if address(peer) is None:
        return Rejection(403, f"the peer {quoted(peer)} has no IP address", "network")
    hops = b",".join(value for name, value in headers if name == b"x-forwarded-for")
    detail = f"X-Forwarded-For, from the proxy {quoted(peer)}, names the client by no address: {quoted(hops[-80:])}"
    return Rejection(400, detail, "forwarded")
