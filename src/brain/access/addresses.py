"""Addresses, networks, hosts and origins, as requests name them. Pure."""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

from brain.contract.errors import BrainError

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network


class AddressError(BrainError, ValueError):
    """Not a network, a host or an origin. The text quotes it, and says what one looks like."""


def address(text: str) -> Address | None:
    """None if it is not an IP address in its usual form: `2130706433` and `0177.0.0.1` are names.

    IPv4 in IPv6 (`::ffff:127.0.0.1`) is IPv4. A zone (`%eth0`) gives an interface of this machine,
    not the sender: it is dropped.
    """
    try:
        found = ip_address(text)
    except ValueError:
        return None
    if isinstance(found, IPv6Address):
        return found.ipv4_mapped or IPv6Address(int(found))
    return found


def parse_network(text: str) -> Network:
    """`192.168.0.0/16`, or a single address. Raises AddressError."""
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        hint = f": did you mean {ip_network(text, strict=False)}?"
    except ValueError:
        hint = ", such as 192.168.0.0/16"
    raise AddressError(f"{quoted(text)} is not a network{hint}")


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
"""Loopback, private, link-local. Written out, because `is_private` holds for 0.0.0.0 and
240.0.0.0/4 too."""

_AUTHORITY: Final = re.compile(
    r"(?:([a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?)|\[([0-9a-f:.]+)(?:%(?:25)?[a-z0-9._~-]+)?\])"
    r"(?::([0-9]{0,5}))?"
)
_ORIGIN: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)")
_OPAQUE_HOST: Final = re.compile(r"[a-z0-9._~%:-]*")
"""The host of an application's own scheme (URL Standard, section 3.2), without shell characters."""
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_AUTHORITY: Final = 400
"""Bytes of a Host or an Origin (a name has at most 253). A longer one is neither parsed nor
cached."""


@dataclass(frozen=True, slots=True)
class Authority:
    """`host[:port]` (RFC 3986, 3.2), without user information, in lower case."""

    host: str | Address
    port: int | None

    @classmethod
    def parse(cls, text: str) -> "Authority":
        """Raises AddressError."""
        match = (
            _AUTHORITY.fullmatch(text.lower())
            if len(text) <= MAX_AUTHORITY and text.isascii()
            else None
        )
        if match:
            name, literal, digits = match.groups()
            # The dot of a complete name (RFC 1034, section 3.1) changes nothing.
            name = name and name.removesuffix(".")
            found = address(name or literal)
            port = int(digits) if digits else None
            if (port or 0) <= 65535 and (name or found):
                return cls(found or name, port)
        raise AddressError(
            f"{quoted(text)} is not a host, such as localhost:5221 or 192.168.1.20 or [fd00::1]"
        )

    @classmethod
    def parse_setting(cls, text: str) -> "Authority":
        """As an operator writes it: an IPv6 address may be without its brackets."""
        literal = text.partition("%")[0]
        return cls.parse(f"[{literal}]" if isinstance(address(text), IPv6Address) else text)

    def __str__(self) -> str:
        host = f"[{self.host}]" if isinstance(self.host, IPv6Address) else str(self.host)
        return host if self.port is None else f"{host}:{self.port}"

    def on(self, scheme: str) -> "Authority":
        """With the scheme's own port where none is written."""
        return self if self.port is not None else Authority(self.host, DEFAULT_PORTS.get(scheme))


@dataclass(frozen=True, slots=True)
class Origin:
    """`scheme://host[:port]` (RFC 6454, 6.2), always with the port of a scheme that has one.

    What an application's own scheme has behind it (`app://obsidian.md`, `app://`) is only compared.
    """

    scheme: str
    authority: Authority

    @classmethod
    def parse(cls, text: str) -> "Origin":
        """Raises AddressError."""
        match = (
            _ORIGIN.fullmatch(text.lower())
            if len(text) <= MAX_AUTHORITY and text.isascii()
            else None
        )
        try:
            if match and match[1] in DEFAULT_PORTS:
                return cls(match[1], Authority.parse(match[2]).on(match[1]))
            if match and _OPAQUE_HOST.fullmatch(match[2]):
                return cls(match[1], Authority(match[2], None))
        except AddressError:
            pass
        raise AddressError(
            f"{quoted(text)} is not an origin, such as http://app.example:3000"
        ) from None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def header_text(value: bytes) -> str:
    return value.decode("latin-1").strip(" \t")


def quoted(value: bytes | str) -> str:
    text = value[:81].decode("latin-1") if isinstance(value, bytes) else value[:81]
    return ascii(text) if len(text) <= 80 else f"{text[:80]!a}..."
