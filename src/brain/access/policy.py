"""Access rules: (peer, headers, target) → the client's address, or a Rejection.

Pure, and the same for HTTP and WebSocket, before the upgrade. Each rule stops one attack:

    network     The client's address is in an allowed network.
                Stops the machine of a stranger.
    Host        It is a name of this server, everywhere in a request.
                Stops DNS rebinding: a page whose own name resolves to 127.0.0.1.
    Origin      It is absent, or one that no page on the internet can have.
                Stops a page on the internet, in a browser on this network.
    cross-site  No other site caused a request without an Origin, except to open a page.
                Stops an image or a script in such a page: it cannot read the answer, but it can
                make work, and measure time.

The Origin rule holds for every method: only browsers send an Origin, and a page that may not write
may not read either. A form, or anything else that a page may send without a preflight, carries an
Origin or is marked as cross-site; and the API takes only JSON, which needs a preflight.
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
    AddressError,
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
_OWN_HOST: Final = b"localhost"
MAX_HINT: Final = 80
"""Characters of a value that a hint repeats."""


class Policy:
    """`origins` and `hosts` are allowed beyond the defaults; `*` in them means all. `origins` may
    contain `null` and `file://`, the origins of pages without a host. `machine` is this host's
    name.

    Raises AddressError for an invalid origin or host.
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
        self._hosts = frozenset(Authority.parse_setting(text) for text in hosts if text != "*")
        own = machine.lower()
        self._names = frozenset({"localhost", own, f"{own}.local"} if own else {"localhost"})
        # Clients repeat themselves: a request costs look-ups, not parsing an address, a Host and an
        # Origin.
        self.identify = lru_cache(4096)(self._identify)
        self._network_rule = lru_cache(4096)(self._check_network)
        self._host_rule = lru_cache(1024)(self._check_host)
        self._origin_rule = lru_cache(1024)(self._check_origin)

    def check(self, peer: str, headers: Headers, target: bytes) -> Address | Rejection:
        """The client's address, if the request is permitted.

        `target` is the request target as it was sent: an absolute one names a host of its own,
        which an ASGI scope does not contain.
        """
        return self._check(peer, headers, target, any_host=False)

    def check_probe(self, peer: str, headers: Headers, target: bytes) -> Address | Rejection:
        """As `check`, but no Host, an empty one and that of another server are permitted.

        For an answer that is the same for everybody, and tells a page that rebinds its name
        nothing.
        """
        return self._check(peer, headers, target, any_host=True)

    def _check(
        self, peer: str, headers: Headers, target: bytes, *, any_host: bool
    ) -> Address | Rejection:
        client = self.client_address(peer, headers)
        if client is None:
            return _no_address(peer, headers)
        rejection = self._network_rule(client) or self._check_page(headers, target, any_host)
        return client if rejection is None else rejection

    def _check_page(self, headers: Headers, target: bytes, any_host: bool) -> Rejection | None:
        """The rules against pages of other sites: Host, Origin, cross-site."""
        hosts = [value for name, value in headers if name == b"host"]
        if any_host and (not hosts or hosts == [b""]):
            hosts = [_OWN_HOST]
        if len(hosts) != 1:
            return Rejection(
                "host_header", f"a request has one Host header, and this one has {len(hosts)}"
            )
        if not target.startswith(b"/") and target != b"*":
            # The target's host overrules the header's (RFC 9112, 3.2.2). Both must be names of this
            # server, so that a program that reads only one of them is not misled.
            absolute = _ABSOLUTE.match(target)
            if absolute is None:
                # The target is not quoted: it may hold a secret.
                return Rejection("host_header", "a request target is a path or an http:// URL")
            hosts.append(absolute[1])
        for host in hosts:
            rejection = (self._host_rule if len(host) <= MAX_AUTHORITY else self._check_host)(host)
            if rejection is not None and not (any_host and rejection.code == "host"):
                return rejection
        # A page of the Host itself may connect, but not of a Host that is not ours.
        host = _OWN_HOST if any_host else hosts[-1]
        origins = [value for name, value in headers if name == b"origin"]
        if self._any_origin:
            return None
        if not origins:
            return _CROSS_SITE if _is_cross_site(headers) else None
        if len(origins) > 1:
            return Rejection(
                "origin", f"a request has one Origin header, and this one has {len(origins)}"
            )
        origin = origins[0]
        return (self._origin_rule if len(origin) <= MAX_AUTHORITY else self._check_origin)(
            origin, host
        )

    def client_address(self, peer: str, headers: Headers) -> Address | None:
        """The peer's address or, behind a trusted proxy, the rightmost hop of X-Forwarded-For that
        is not itself a trusted proxy.

        None if that hop is not an address; then `check` rejects. The proxy's own address, which is
        allowed, would let in every client that the proxy cannot name.
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
        detail = (
            f"{client} is in none of the networks that may connect: "
            "BRAIN_ALLOWED_NETWORKS names them"
        )
        return Rejection("network", detail)

    def _check_host(self, value: bytes) -> Rejection | None:
        try:
            host = Authority.parse(header_text(value))
        except AddressError as error:
            return Rejection("host_header", f"Host: {error}")
        # Without a port it is that of http or https: behind a proxy that ends TLS, either is
        # possible.
        forms = (host, Authority(host.host, None), host.on("http"), host.on("https"))
        if self._any_host or self._is_own(host.host) or not self._hosts.isdisjoint(forms):
            return None
        detail = (
            f"{quoted(value)} is not a name of this server: if it is one (a DNS name, "
            "a service of docker compose), start Brain with it in BRAIN_ALLOWED_HOSTS"
            + (f"={host.host}" if len(str(host.host)) <= MAX_HINT else "")
        )
        return Rejection("host", detail)

    def _check_origin(self, value: bytes, host: bytes) -> Rejection | None:
        text = header_text(value)
        opaque = text.lower()
        if opaque in self._opaque:
            return None
        try:
            if opaque in _OPAQUE:
                return _page_rejected(value, opaque)
            origin = Origin.parse(text)
        except AddressError as error:
            return Rejection("origin", f"Origin: {error}")
        if origin in self._origins:
            return None
        # On any port: a front end often has its own dev server.
        if origin.scheme in DEFAULT_PORTS and (
            self._is_own(origin.authority.host)
            or origin.authority == Authority.parse(header_text(host)).on(origin.scheme)
        ):
            return None
        return _page_rejected(value, str(origin))

    def allowed(self) -> dict[str, str]:
        """The rules, for a log line."""
        origins = [
            *sorted(self._opaque),
            *map(str, self._origins),
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
        """Whether nobody on the internet can have this name: an address cannot be rebound, and
        nobody can buy .localhost.
        """
        if isinstance(host, str):
            return host in self._names or host.endswith(".localhost")
        return host.is_loopback or any(host in network for network in self._networks)


def _page_rejected(value: bytes, origin: str) -> Rejection:
    if origin in _OPAQUE:
        detail = (
            f"pages without a host (Origin: {origin}), such as a file or a sandboxed frame, may "
            f"not connect: to allow all of them, start Brain with BRAIN_ALLOWED_ORIGINS={origin}"
        )
        return Rejection("origin", detail)
    # The setting ends the sentence, so that nothing is pasted with it.
    setting = "BRAIN_ALLOWED_ORIGINS" + (f"={origin}" if len(origin) <= MAX_HINT else "")
    detail = f"pages of {quoted(value)} may not connect: to allow them, add them to {setting}"
    return Rejection("origin", detail)


_CROSS_SITE: Final = Rejection(
    "cross_site",
    "another site's page caused this request: to allow it, add its origin to "
    "BRAIN_ALLOWED_ORIGINS and fetch with CORS",
)


def _is_cross_site(headers: Headers) -> bool:
    """As the browser says, which no page can change (Fetch Metadata). A page does not cause a
    request when the user follows a link or types a URL.
    """
    metadata = {name: value for name, value in headers if name.startswith(b"sec-fetch-")}
    # Inside the page it does: the user would click on /docs in an invisible frame.
    opens = (
        metadata.get(b"sec-fetch-mode") == b"navigate"
        and metadata.get(b"sec-fetch-dest", b"document") == b"document"
    )
    return metadata.get(b"sec-fetch-site") == b"cross-site" and not opens


def _no_address(peer: str, headers: Headers) -> Rejection:
    if address(peer) is None:
        return Rejection("network", f"the peer {quoted(peer)} has no IP address")
    hops = b",".join(value for name, value in headers if name == b"x-forwarded-for")
    detail = (
        f"X-Forwarded-For, from the proxy {quoted(peer)}, does not give the client's address: "
        f"{quoted(hops[-80:])}"
    )
    return Rejection("forwarded", detail)
