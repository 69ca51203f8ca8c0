from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain.access.addresses import NETWORKS, Address, Authority, Origin, address
from brain.access.limits import (
    FAULT,
    HANDSHAKES,
    MAX_REMEMBERED,
    MAX_WAIT,
    ConnectionLimiter,
    Lease,
)
from brain.access.policy import Headers, Policy
from brain.access.rejections import REJECTION_CODES, Rejection, status_headers

LOCALHOST = (b"host", b"localhost:5221")
LAN = "192.168.1.7"

POLICY = Policy(machine="Atelier")


def cut(value: str | bytes) -> str:
    return ascii(value)[:60]


def origin(text: str | bytes) -> tuple[bytes, bytes]:
    return (b"origin", text.encode() if isinstance(text, str) else text)


def status(refusal: Rejection | Address | None) -> int | None:
    """None if it is not a rejection. What all rejections have in common is checked here."""
    if not isinstance(refusal, Rejection):
        return None
    assert refusal.code in REJECTION_CODES
    assert refusal.detail.isascii()
    assert refusal.detail.isprintable()
    assert len(refusal.detail) < 400
    return refusal.status


def check(
    *headers: tuple[bytes, bytes],
    policy: Policy = POLICY,
    peer: str = "127.0.0.1",
    target: bytes = b"/ws",
) -> int | None:
    first = policy.check(peer, headers, target)
    assert isinstance(first, Rejection) or first == policy.client_address(peer, headers)
    assert policy.check(peer, headers, target) == first, "the cache answers as the rule does"
    return status(first)


# Networks


@pytest.mark.parametrize(
    "peer",
    [
        "127.0.0.1",
        "127.255.255.255",
        "10.0.0.0",
        "10.255.255.255",
        "172.16.0.0",
        "172.31.255.255",
        "192.168.0.0",
        "192.168.255.255",
        "169.254.1.1",
        "::1",
        "fc00::",
        "fdff:ffff::1",
        "fe80::1",
        "febf::1",
        "fe80::1%eth0",
        "fe80::1%3",
        "::ffff:127.0.0.1",
        "::ffff:10.1.2.3",
        "::FFFF:C0A8:0107",
    ],
)
def test_private_peers_may_connect(peer: str) -> None:
    assert check(LOCALHOST, peer=peer) is None


@pytest.mark.parametrize(
    "peer",
    [
        "0.0.0.0",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.64.0.1",
        "126.255.255.255",
        "128.0.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "192.169.0.0",
        "169.253.255.255",
        "169.255.0.0",
        "192.0.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::2",
        "::127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:0.0.0.0",
        "::ffff:240.0.0.1",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::1",
        "2002:c0a8:107::1",
        "2a00::1",
        "fbff::",
        "fe00::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1%eth0",
    ],
)
def test_other_peers_may_not_connect(peer: str) -> None:
    refusal = POLICY.check(peer, [LOCALHOST], b"/ws")
    assert status(refusal) == 403
    assert isinstance(refusal, Rejection)
    assert refusal.code == "network"
    assert "BRAIN_ALLOWED_NETWORKS" in refusal.detail
    assert str(address(peer)) in refusal.detail


@pytest.mark.parametrize(
    "peer",
    [
        "", "unix:/run/x", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1",
        "127.0.0.1/8", "127.0.0.1%lo",
    ],
)  # fmt: skip
def test_a_peer_without_an_address_may_not_connect(peer: str) -> None:
    assert check(LOCALHOST, peer=peer) == 403


def test_only_the_configured_networks_may_connect() -> None:
    narrow = Policy(networks=[ip_network("10.1.0.0/16")])
    assert check(LOCALHOST, peer="10.1.2.3", policy=narrow) is None
    assert check(LOCALHOST, peer="10.2.2.3", policy=narrow) == 403
    assert check(LOCALHOST, peer="127.0.0.1", policy=narrow) == 403
    everyone = Policy(networks=[ip_network("0.0.0.0/0"), ip_network("::/0")])
    assert check(LOCALHOST, peer="8.8.8.8", policy=everyone) is None
    assert check(LOCALHOST, peer="2a00::1", policy=everyone) is None


def test_the_default_networks() -> None:
    assert [str(network) for network in NETWORKS] == [
        "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
        "::1/128", "fc00::/7", "fe80::/10",
    ]  # fmt: skip


# The Host

OWN_HOSTS = [
    "localhost",
    "localhost:5221",
    "LocalHost:80",
    "localhost:",
    "front.localhost",
    "a.b.localhost:3000",
    "127.0.0.1",
    "127.0.0.1:5221",
    "127.3.2.1",
    "192.168.1.20:5221",
    "10.0.0.1",
    "169.254.3.3",
    "localhost.",
    "localhost.:5221",
    "atelier.",
    "atelier.local.",
    "front.localhost.",
    "127.0.0.1.",
    "[::1]",
    "[::1]:5221",
    "[0:0:0:0:0:0:0:1]",
    "[fd00::1]:8080",
    "[fe80::1%25eth0]:5221",
    "[fe80::1%eth0]",
    "[::ffff:127.0.0.1]",
    "[::FFFF:7F00:1]",
    "atelier",
    "ATELIER:5221",
    "atelier.local",
]

STRANGE_HOSTS = [
    "evil.example",
    "evil.example:5221",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1.nip.io",
    "atelier.lan",
    "evil.local",
    "xatelier",
    "notlocalhost",
    "xlocalhost",
    "localhost.localdomain",
    "evil.example.",
    "2130706433",
    "017700000001",
    "0x7f000001",
    "0x7f.1",
    "127.1",
    "127.0.1",
    "0177.0.0.1",
    "127.0.0.01",
    "127.0.0.256",
    "0.0.0.0",
    "0.0.0.0:5221",
    "8.8.8.8",
    "240.0.0.1",
    "[::]",
    "[2001:db8::1]",
    "[::ffff:8.8.8.8]",
    "[2002:7f00:1::]",
    "[64:ff9b::7f00:1]",
    "xn--lclhost-hxa.example",
    "_",
    "-",
    "1",
]

BROKEN_HOSTS: list[str | bytes] = [
    "", " ", "\t", ":", ":5221", ".", "..", ".localhost", "a..localhost", "localhost..",
    "localhost:http", "localhost:-1", "localhost:+1", "localhost:65536", "localhost:99999",
    "localhost:000000", "localhost:5221:5221",
    "localhost: 5221", "localhost :5221", "local host", "localhost\t.evil", "localhost\x00",
    "localhost\x00.evil.example", "localhost\n",
    "localhost\r\nx", "localhost/", "localhost/ws", "http://localhost", "//localhost",
    "localhost?", "localhost#", "localhost\\",
    "user@localhost", "localhost@evil.example", "user:pass@localhost:5221",
    "localhost,evil.example", "localhost, localhost",
    "localhost;", "local%68ost", "%6c", "*", "*.localhost", "::1", "::1:5221", "[::1", "::1]",
    "[]", "[::1]]", "[[::1]]", "[::1]x",
    "[::1]5221", "[::1]:x", "[127.0.0.1]x", "[localhost]", "[::1%]", "[::g]", "[:]", "[1::2::3]",
    "[v1.a]", "[::1%25eth0%25]",
    "l\u00f6calhost", "\uff4cocalhost", "localho\u017ft", "\u212aiosk.localhost",
    "127\u30020\u30020\u30021", "١٢٧.0.0.1",
    b"\xff", b"localhost\xff", b"\xef\xbb\xbflocalhost", "a" * 401, "a." * 8000 + "localhost",
    "1" * 16000, "[" * 300,
]  # fmt: skip


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_a_host_of_this_server_is_accepted(host: str) -> None:
    assert check((b"host", host.encode())) is None
    assert check((b"host", f"\t {host} ".encode())) is None, (
        "white space around a value is not part of it"
    )


@pytest.mark.parametrize("host", STRANGE_HOSTS)
def test_a_foreign_host_gets_421(host: str) -> None:
    assert check((b"host", host.encode())) == 421
    assert check((b"host", host.encode()), origin(f"http://{host}")) == 421, "even if its page asks"


@pytest.mark.parametrize("host", BROKEN_HOSTS, ids=cut)
def test_a_malformed_host_gets_400(host: str | bytes) -> None:
    value = host.encode() if isinstance(host, str) else host
    assert check((b"host", value)) == 400
    assert check((b"host", value), policy=Policy(hosts=["*"])) == 400


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [
            (b"x-forwarded-host", b"localhost"),
            (b"forwarded", b"host=localhost"),
            (b":authority", b"localhost"),
        ],
        [LOCALHOST, LOCALHOST],
        [LOCALHOST, (b"host", b"evil.example")],
        [(b"host", b"evil.example"), LOCALHOST],
        [LOCALHOST, (b"host", b"")],
    ],
)
def test_a_request_has_one_host(headers: Headers) -> None:
    assert check(*headers) == 400
    assert check(*headers, policy=Policy(hosts=["*"])) == 400
    assert check(*headers, target=b"http://localhost/ws") == 400


def test_configured_hosts_are_accepted() -> None:
    policy = Policy(
        hosts=[
            "Brain.example",
            "with.port:8443",
            "tls.example:443",
            "203.0.113.9",
            "[2001:db8::9]:80",
        ]
    )
    for host in [
        "brain.example", "BRAIN.EXAMPLE:99", "with.port:8443", "tls.example", "tls.example:443",
        "203.0.113.9:5221", "[2001:db8:0::9]", "localhost", "brain.example.", "brain.example.:99",
    ]:  # fmt: skip
        assert check((b"host", host.encode()), policy=policy) is None, host
    for host in [
        "brain.example.evil", "x.brain.example", "brain.example.evil.", "with.port",
        "with.port:8444", "tls.example:80", "tls.example:5221", "203.0.113.8",
    ]:  # fmt: skip
        assert check((b"host", host.encode()), policy=policy) == 421, host
    assert check((b"host", b"evil.example"), policy=Policy(hosts=["*"])) is None


def test_a_machine_without_a_name_has_no_dot_local_name() -> None:
    assert check((b"host", b".local"), policy=Policy()) == 400
    assert check((b"host", b"atelier.local"), policy=Policy()) == 421


def test_loopback_is_a_host_of_this_server_even_where_loopback_clients_may_not_connect() -> None:
    """A container behind a mapped port: the client is the bridge, the Host what the user typed."""
    bridge = Policy(networks=[ip_network("172.17.0.0/16")])
    assert check((b"host", b"127.0.0.1:5221"), peer="172.17.0.1", policy=bridge) is None
    assert check((b"host", b"[::1]:5221"), peer="172.17.0.1", policy=bridge) is None
    assert check((b"host", b"192.168.1.1"), peer="172.17.0.1", policy=bridge) == 421


# The host of an absolute target


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        (b"/", None),
        (b"/ws?run_id=1", None),
        (b"//evil.example/ws", None),  # a path
        (b"/http://evil.example/", None),
        (b"*", None),
        (b"http://localhost:5221/ws", None),
        (b"HTTP://LOCALHOST/ws", None),
        (b"wss://127.0.0.1/ws", None),
        (b"http://localhost", None),
        (b"http://localhost?x", None),
        (b"http://evil.example/ws", 421),
        (b"http://evil.example", 421),
        (b"http://evil.example?http://localhost/", 421),
        (b"http://evil.example#@localhost/", 421),
        (b"http://localhost.evil.example/ws", 421),
        (b"http://localhost@evil.example/ws", 400),
        (b"http://evil.example@localhost/ws", 400),
        (b"http://localhost\\@evil.example/ws", 400),
        (b"http://evil.example\\.localhost/ws", 400),
        (b"http:///ws", 400),
        (b"http://", 400),
        (b"http:/ws", 400),
        (b"http:localhost", 400),
        (b" http://localhost", 400),
        (b"ftp://localhost/ws", 400),
        (b"javascript://localhost/", 400),
        (b"localhost:5221", 400),
        (b"evil.example:5221", 400),
        (b"*evil", 400),
        (b"ws", 400),
        (b"", 400),
        (b"\xff\x00", 400),
        (b"http://" + b"a" * 9000, 400),
        (b"x" * 9000, 400),
    ],
)
def test_the_host_of_an_absolute_target_is_checked_too(target: bytes, answer: int | None) -> None:
    assert check(LOCALHOST, target=target) == answer


def test_the_host_header_counts_beside_an_absolute_target() -> None:
    assert check((b"host", b"evil.example"), target=b"http://localhost/ws") == 421


def test_pages_of_the_host_of_an_absolute_target_may_connect() -> None:
    policy = Policy(hosts=["a.example", "b.example"])
    headers = (b"host", b"a.example"), origin("http://a.example")
    assert check(*headers, policy=policy) is None
    assert check(*headers, policy=policy, target=b"http://a.example/ws") is None
    assert check(*headers, policy=policy, target=b"http://b.example/ws") == 403


# The Origin


@pytest.mark.parametrize(
    "text",
    [
        "http://localhost",
        "http://localhost:3000",
        "http://localhost.:3000",
        "https://localhost:3000",
        "HTTP://LOCALHOST:3000",
        "http://front.localhost:8080",
        "http://127.0.0.1",
        "http://127.0.0.1:5173",
        "https://127.0.0.1:8443",
        "http://127.9.9.9:1",
        "http://192.168.1.20:8080",
        "http://10.0.0.5",
        "http://172.16.0.1:3000",
        "http://169.254.9.9",
        "http://[::1]:3000",
        "http://[fd12::1]:3000",
        "http://[::ffff:7f00:1]:3000",
        "http://atelier:3000",
        "https://ATELIER.local",
    ],
)
def test_pages_of_this_network_may_connect(text: str) -> None:
    assert check(LOCALHOST, origin(text)) is None


STRANGE_ORIGINS: list[str | bytes] = [
    "https://evil.example", "http://evil.example:5221", "http://localhost.evil.example",
    "http://localhost.evil.example:5221",
    "http://127.0.0.1.evil.example", "http://evil.example.localhost.evil", "http://notlocalhost",
    "http://localhost..", "http://evil.local",
    "null", "NULL", "Null", "", " ", "\t", "file://", "file:///", "file:///home/x.html",
    "about:blank", "data:text/html,x", "blob:null",
    "http://localhost:3000@evil.example", "http://user@localhost", "http://localhost@localhost",
    "http://:x@localhost:3000",
    "http://localhost:3000/", "http://localhost/ws", "http://localhost?", "http://localhost#",
    "http://localhost\\@evil.example",
    "http://localhost http://localhost", "http://localhost https://evil.example",
    "http://localhost,http://evil.example",
    "http://localhost, http://localhost", "localhost", "localhost:3000", "//localhost",
    "http:localhost", "http:/localhost", "http//localhost",
    "://localhost", "http://", "http://:3000", "http://.", "http://*", "*", "http://*.localhost",
    "ws://localhost:5221", "wss://localhost", "ftp://localhost", "chrome-extension://localhost",
    "moz-extension://0f0e-1", "app://localhost",
    "javascript://localhost", "httpx://localhost", "xhttp://localhost", "http+unix://localhost",
    "1http://localhost",
    "http://localhost:http", "http://localhost:65536", "http://localhost:-1",
    "http://localhost: 3000", "http://localhost:3000:3000",
    "http://2130706433", "http://0x7f000001", "http://0177.0.0.1", "http://127.1",
    "http://0.0.0.0:3000", "http://240.0.0.1",
    "http://8.8.8.8", "http://[2001:db8::1]", "http://[::ffff:8.8.8.8]", "http://[2002:7f00:1::]",
    "http://::1", "http://[::1", "http://[localhost]",
    "http://l\u00f6calhost", "http://localho\u017ft", "http://\u24db\u24de\u24d2alhost",
    "http://xn--lclhost-hxa", "http://local%68ost",
    "http://localhost\x00.evil.example", "http://localhost\n", "http://local\thost",
    "http ://localhost", b"\xff\xfe", b"http://localhost\xff",
    "http://" + "a" * 16000, "x" * 401, "http://" + "a." * 8000 + "localhost", "\u2028<script>",
]  # fmt: skip


@pytest.mark.parametrize("text", STRANGE_ORIGINS, ids=cut)
@pytest.mark.parametrize("target", [b"/ws", b"/api/runs"])
def test_other_pages_may_not_connect(text: str | bytes, target: bytes) -> None:
    assert check(LOCALHOST, origin(text), target=target) == 403


def test_a_request_without_an_origin_is_accepted() -> None:
    assert check(LOCALHOST) is None


@pytest.mark.parametrize(
    ("site", "mode", "answer"),
    [
        (b"cross-site", b"no-cors", 403),  # an image
        (b"cross-site", b"websocket", 403),
        (b"cross-site", b"", 403),
        (b"cross-site", b"navigate", None),  # a link
        (b"same-site", b"no-cors", None),
        (b"same-origin", b"cors", None),
        (b"none", b"navigate", None),  # typed
    ],
)
def test_fetch_metadata_decides_on_a_request_without_an_origin(
    site: bytes, mode: bytes, answer: int | None
) -> None:
    said = [(b"sec-fetch-site", site), *([(b"sec-fetch-mode", mode)] if mode else [])]
    assert check(LOCALHOST, *said) == answer
    assert check(LOCALHOST, origin("http://localhost:3000"), *said) is None, (
        "the Origin says it exactly"
    )


def test_the_rules_are_logged() -> None:
    said = POLICY.allowed()
    assert said["networks"].startswith("127.0.0.0/8,")
    assert "localhost" in said["hosts"]
    wide = Policy(origins=["*"], hosts=["*"], trusted_proxies=[ip_network("10.0.0.1")]).allowed()
    assert (wide["hosts"], wide["pages"], wide["proxies"]) == ("all", "all", "10.0.0.1/32")
    named = Policy(
        origins=["https://a.example", "null"], hosts=["brain.example:81", "[fd00::1]:82"]
    ).allowed()
    assert "null" in named["pages"]
    assert "https://a.example:443" in named["pages"]
    assert "brain.example:81" in named["hosts"]
    assert "[fd00::1]:82" in named["hosts"]


@pytest.mark.parametrize("second", ["http://localhost:5221", "https://evil.example", "null", ""])
def test_two_origins_are_rejected(second: str) -> None:
    one = origin("http://localhost:5221")
    assert check(LOCALHOST, one, origin(second)) == 403
    assert check(LOCALHOST, origin(second), one) == 403


@pytest.mark.parametrize(
    ("host", "text", "answer"),
    [
        ("brain.example:5221", "http://brain.example:5221", None),
        ("BRAIN.example:5221", "https://brain.EXAMPLE:5221", None),
        ("brain.example", "http://brain.example", None),
        ("brain.example", "https://brain.example", None),
        ("brain.example", "https://brain.example:443", None),
        ("brain.example:443", "https://brain.example", None),
        ("brain.example:80", "http://brain.example", None),
        ("brain.example:443", "http://brain.example", 403),
        ("brain.example:5221", "http://brain.example", 403),
        ("brain.example", "http://brain.example:5221", 403),
        ("brain.example:5221", "http://brain.example:5222", 403),
        ("brain.example:5221", "http://x.brain.example:5221", 403),
        ("brain.example:5221", "http://brain.example.evil:5221", 403),
        ("brain.example:5221", "ws://brain.example:5221", 403),
        ("[2001:db8::9]:5221", "http://[2001:db8:0:0::9]:5221", None),
    ],
)
def test_a_page_may_ask_the_server_it_came_from(host: str, text: str, answer: int | None) -> None:
    policy = Policy(hosts=["brain.example", "[2001:db8::9]"])
    assert check((b"host", host.encode()), origin(text), policy=policy) == answer


def test_configured_origins_may_connect() -> None:
    policy = Policy(
        origins=["https://App.example", "http://dev.example:3000", "chrome-extension://abc"]
    )
    for text in [
        "https://app.example",
        "https://APP.example:443",
        "http://dev.example:3000",
        "chrome-extension://abc",
        "http://localhost:1",
    ]:
        assert check(LOCALHOST, origin(text), policy=policy) is None, text
    for text in [
        "http://app.example",
        "https://app.example:444",
        "http://dev.example",
        "http://dev.example:3001",
        "https://x.app.example",
        "null",
    ]:
        assert check(LOCALHOST, origin(text), policy=policy) == 403, text


def test_null_and_file_are_allowed_only_by_name() -> None:
    assert check(LOCALHOST, origin("null"), policy=Policy(origins=["NULL"])) is None
    assert check(LOCALHOST, origin("file://"), policy=Policy(origins=["null"])) == 403
    assert check(LOCALHOST, origin("file://"), policy=Policy(origins=["file://"])) is None
    assert check(LOCALHOST, origin("https://evil.example"), policy=Policy(origins=["null"])) == 403
    assert check(LOCALHOST, origin("https://evil.example"), policy=Policy(origins=["*"])) is None


def test_narrow_networks_allow_fewer_pages() -> None:
    """If only this machine may connect, pages of its neighbours in the network may not."""
    policy = Policy(networks=[ip_network("127.0.0.0/8")])
    assert check(LOCALHOST, origin("http://192.168.1.66"), policy=policy) == 403
    assert check(LOCALHOST, origin("http://127.0.0.1:3000"), policy=policy) is None


@pytest.mark.parametrize(
    "wrong", ["app.example", "https://app.example/x", "https://", "", "http://a b"]
)
def test_a_policy_rejects_an_invalid_origin(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        Policy(origins=[wrong])


@pytest.mark.parametrize("wrong", ["http://a.example", "a b", "", "*.a.example", "::g"])
def test_a_policy_rejects_an_invalid_host(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a host"):
        Policy(hosts=[wrong])


def test_a_letter_that_becomes_ascii_in_lower_case_makes_no_name_of_this_server() -> None:
    kelvin = "\N{KELVIN SIGN}iosk.localhost"
    assert kelvin.lower() == "kiosk.localhost"
    with pytest.raises(ValueError, match="is not a host"):
        Authority.parse(kelvin)
    with pytest.raises(ValueError, match="is not an origin"):
        Origin.parse(f"http://{kelvin}")


# Proxies

PROXIED = Policy(
    trusted_proxies=[ip_network("10.0.0.0/24"), ip_network("203.0.113.0/24"), ip_network("::1/128")]
)
PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("8.8.8.8", [b"127.0.0.1"], "8.8.8.8"),  # forged
        (LAN, [b"127.0.0.1"], LAN),
        (PROXY, [], PROXY),
        (PROXY, [b""], PROXY),
        (PROXY, [b"192.168.1.7"], LAN),
        (PROXY, [b" 192.168.1.7\t"], LAN),
        (PROXY, [b"127.0.0.1, 8.8.8.8"], "8.8.8.8"),  # the left one is the client's own word
        (PROXY, [b"garbage, 8.8.8.8"], "8.8.8.8"),
        (PROXY, [b"127.0.0.1", b"8.8.8.8"], "8.8.8.8"),
        (PROXY, [b"8.8.8.8", b"127.0.0.1"], "127.0.0.1"),
        (PROXY, [b"127.0.0.1, 8.8.8.8, 10.0.0.2"], "8.8.8.8"),
        (PROXY, [b"127.0.0.1, 8.8.8.8, 10.0.0.2, 203.0.113.5, ::1"], "8.8.8.8"),
        (PROXY, [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),  # all trusted: the first of them
        (PROXY, [b"8.8.8.8,,"], "8.8.8.8"),
        (PROXY, [b"8.8.8.8:4711"], "8.8.8.8"),
        (PROXY, [b"[2a00::1]:4711"], "2a00::1"),
        (PROXY, [b"[2a00::1]"], "2a00::1"),
        (PROXY, [b'"[2a00::1]:4711"'], "2a00::1"),
        (PROXY, [b"::ffff:8.8.8.8"], "8.8.8.8"),
        (PROXY, [b"fe80::1%eth0"], "fe80::1"),
        ("::ffff:10.0.0.1", [b"8.8.8.8"], "8.8.8.8"),
        ("::1", [b"8.8.8.8"], "8.8.8.8"),
        ("203.0.113.9", [b"192.168.1.7"], LAN),
        (PROXY, [b"192.168.1.7, unknown"], None),
        (PROXY, [b"192.168.1.7, garbage, 10.0.0.2"], None),
        (PROXY, [b"127.0.0.1.evil"], None),
        (PROXY, [b"2130706433"], None),
        (PROXY, [b"127.0.0.1 127.0.0.1"], None),
        (PROXY, [b"localhost"], None),
        (PROXY, [b"[]"], None),
        (PROXY, [b"\xff\x00\r\n"], None),
        (PROXY, [b"1" * 16000], None),
        (PROXY, [b"_hidden"], None),
        ("garbage", [b"127.0.0.1"], None),
    ],
)
def test_the_client_behind_a_proxy(peer: str, forwarded: list[bytes], client: str | None) -> None:
    headers = [LOCALHOST, *((b"x-forwarded-for", value) for value in forwarded)]
    found = PROXIED.client_address(peer, headers)
    assert found == (None if client is None else ip_address(client))
    refusal = PROXIED.check(peer, headers, b"/ws")
    if client is None:
        assert status(refusal) == (403 if peer == "garbage" else 400)
    else:
        assert status(refusal) == (403 if client in ("8.8.8.8", "2a00::1") else None)


def test_without_a_trusted_proxy_no_forwarding_header_counts() -> None:
    assert POLICY.client_address(LAN, [(b"x-forwarded-for", b"8.8.8.8")]) == ip_address(LAN)
    assert check(LOCALHOST, (b"x-forwarded-for", b"8.8.8.8")) is None
    assert check(LOCALHOST, (b"x-forwarded-for", b"127.0.0.1"), peer="8.8.8.8") == 403
    assert (
        check(LOCALHOST, (b"forwarded", b"for=127.0.0.1"), (b"x-real-ip", b"::1"), peer="8.8.8.8")
        == 403
    )


def test_nothing_long_is_cached() -> None:
    policy = Policy(trusted_proxies=[ip_network("10.0.0.1")])
    long = b"a" * 401
    for headers in (
        [(b"host", long)],
        [LOCALHOST, (b"origin", long)],
        [LOCALHOST, (b"x-forwarded-for", long)],
    ):
        policy.check(PROXY, headers, b"http://" + long)
        policy.check(PROXY, headers, b"/ws")
    assert policy.identify.cache_info().currsize == 1  # the proxy
    assert policy._host_rule.cache_info().currsize == 1  # localhost
    assert policy._origin_rule.cache_info().currsize == 0


# Limits


def make_limiter(policy: Policy = POLICY, *, most: int = 0, per_ip: int = 0) -> ConnectionLimiter:
    return ConnectionLimiter(policy, max_connections=most, max_connections_per_ip=per_ip)


def entered(limiter: ConnectionLimiter, peer: str) -> Lease:
    lease = limiter.enter(peer)
    assert isinstance(lease, Lease)
    return lease


def test_one_connection_too_many_of_an_address_and_one_leaves() -> None:
    limiter = make_limiter(per_ip=3)
    first, *_ = [entered(limiter, LAN) for _ in range(3)]
    for _ in range(5):  # what is refused is not counted
        refusal = limiter.enter(LAN)
        assert isinstance(refusal, Rejection)
        assert status(refusal) == 429
        assert status_headers(status(refusal) or 0) == {"Retry-After": "1"}
        assert "BRAIN_MAX_CONNECTIONS_PER_IP" in refusal.detail
    entered(limiter, "192.168.1.8")
    limiter.leave(first)
    entered(limiter, LAN)
    assert isinstance(limiter.enter(LAN), Rejection)


def test_one_websocket_too_many_in_all_and_one_leaves() -> None:
    limiter = make_limiter(most=2)
    leases = [entered(limiter, f"10.0.0.{i}") for i in range(3)]
    assert limiter.upgrade(leases[0], leases[0].address) is None
    assert limiter.upgrade(leases[1], leases[1].address) is None
    refusal = limiter.upgrade(leases[2], leases[2].address)
    assert status(refusal) == 503
    assert refusal is not None
    assert "BRAIN_MAX_CONNECTIONS" in refusal.detail
    limiter.leave(leases[0])
    assert limiter.websockets == 1
    assert limiter.upgrade(leases[2], leases[2].address) is None
    assert limiter.websockets == 2


def test_a_limit_of_0_is_no_limit() -> None:
    limiter = make_limiter()
    for _ in range(1000):
        lease = entered(limiter, LAN)
        assert limiter.upgrade(lease, lease.address) is None
    assert limiter.connections == {ip_address(LAN): 1000}
    assert limiter.websockets == 1000


def test_a_proxy_is_not_counted_but_its_clients_are() -> None:
    limiter = make_limiter(PROXIED, per_ip=2)
    leases = [entered(limiter, PROXY) for _ in range(10)]
    assert limiter.connections == {}
    client = ip_address(LAN)
    assert limiter.upgrade(leases[0], client) is None
    entered(limiter, LAN)  # past the proxy
    refused = limiter.upgrade(leases[1], client)
    assert status(refused) == 429
    assert limiter.websockets == 1
    assert limiter.upgrade(leases[1], ip_address("192.168.1.8")) is None
    limiter.leave(leases[0])
    assert limiter.upgrade(leases[2], client) is None
    assert limiter.connections == {client: 2, ip_address("192.168.1.8"): 1}


def test_a_loopback_client_is_counted_behind_a_proxy_on_loopback() -> None:
    policy = Policy(trusted_proxies=[ip_network("127.0.0.1/32")])
    limiter = make_limiter(policy, per_ip=1)
    client = policy.client_address("127.0.0.1", [(b"x-forwarded-for", b"127.0.0.1")])
    assert limiter.upgrade(entered(limiter, "127.0.0.1"), client) is None
    assert status(limiter.upgrade(entered(limiter, "127.0.0.1"), client)) == 429


def test_addresses_are_counted_whole_and_unmapped() -> None:
    limiter = make_limiter(per_ip=1)
    entered(limiter, "fd00::1")
    entered(limiter, "fd00::2")
    entered(limiter, "127.0.0.1")
    assert isinstance(limiter.enter("::ffff:127.0.0.1"), Rejection)
    entered(limiter, "fe80::1%eth0")
    assert isinstance(limiter.enter("fe80::1%eth1"), Rejection)


ONE, OTHER = ip_address("10.0.0.1"), ip_address("10.0.0.2")


def test_handshakes_wait_for_their_turn_and_then_are_rejected() -> None:
    limiter, now = make_limiter(per_ip=100), 50.0
    waits = [
        limiter.wait(ONE, now) for _ in range(int(HANDSHAKES.burst + MAX_WAIT * HANDSHAKES.rate))
    ]
    assert waits[: int(HANDSHAKES.burst)] == [0.0] * int(HANDSHAKES.burst)
    later = [wait for wait in waits[int(HANDSHAKES.burst) :] if isinstance(wait, float)]
    assert len(later) >= MAX_WAIT * HANDSHAKES.rate - 1
    assert later == sorted(later)
    assert later[-1] == pytest.approx(MAX_WAIT, abs=0.01)
    refused = [limiter.wait(ONE, now) for _ in range(3)]
    assert {status(each) for each in refused if isinstance(each, Rejection)} == {429}
    assert limiter.wait(OTHER, now) == 0.0, "another address does not mind"
    assert isinstance(limiter.wait(ONE, now + 1), float), "who was refused is not counted"
    assert limiter.wait(ONE, now + 60) == 0.0


def test_a_client_closed_for_a_fault_reconnects_slower() -> None:
    limiter, now = make_limiter(per_ip=100), 50.0
    for _ in range(int(HANDSHAKES.burst / FAULT)):
        limiter.fault(str(ONE), now)
    wait = limiter.wait(ONE, now)
    assert isinstance(wait, float)
    assert wait > 0
    assert limiter.wait(OTHER, now) == 0.0
    limiter.fault("no address", now)


def test_an_address_that_stands_for_many_does_not_wait() -> None:
    limiter = make_limiter(per_ip=0)
    for _ in range(10_000):
        limiter.fault(str(ONE), 50.0)
        assert limiter.wait(ONE, 50.0) == 0.0


def test_quiet_addresses_are_forgotten() -> None:
    limiter = make_limiter(per_ip=100)
    for i in range(3 * MAX_REMEMBERED):
        assert limiter.wait(ip_address(i + (10 << 24)), 50.0 + i) == 0.0
    assert len(limiter._handshakes) <= MAX_REMEMBERED


PEERS = st.sampled_from(
    ["127.0.0.1", LAN, "::ffff:192.168.1.7", "fd00::1", PROXY, "::1", "garbage", ""]
)


@given(
    st.lists(st.tuples(st.sampled_from(["enter", "upgrade", "leave"]), PEERS, st.integers(0, 100))),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_limits_hold_and_every_place_is_freed(
    story: list[tuple[str, str, int]], most: int, per_ip: int
) -> None:
    limiter = make_limiter(PROXIED, most=most, per_ip=per_ip)
    leases: list[Lease] = []
    for act, peer, which in story:
        if act == "enter":
            lease = limiter.enter(peer)
            if isinstance(lease, Lease):
                leases.append(lease)
        elif leases:
            lease = leases[which % len(leases)]
            if act == "leave":
                limiter.leave(lease)
                limiter.leave(lease)
                leases.remove(lease)
            elif not lease.websocket:
                before = (dict(limiter.connections), limiter.websockets)
                if limiter.upgrade(lease, lease.address or address(peer)) is not None:
                    assert (limiter.connections, limiter.websockets) == before
        assert limiter.websockets == sum(lease.websocket for lease in leases)
        assert sum(limiter.connections.values()) == sum(
            lease.address is not None for lease in leases
        )
        assert not most or limiter.websockets <= most
        assert not per_ip or max(limiter.connections.values(), default=0) <= per_ip
    for lease in leases:
        limiter.leave(lease)
    assert limiter.connections == {}
    assert limiter.websockets == 0


# Any input

NAMES = st.sampled_from([b"host", b"origin", b"x-forwarded-for", b"upgrade"]) | st.binary(
    max_size=8
)
PIECES = st.sampled_from(
    [
        b"localhost", b"127.0.0.1", b"[::1]", b"evil.example", b"http://", b"https://", b"null",
        b":", b"5221", b".", b",", b" ", b"%", b"@",
    ]
)  # fmt: skip
VALUES = st.binary(max_size=40) | st.lists(PIECES, max_size=6).map(b"".join)
POLICIES = st.sampled_from(
    [
        POLICY,
        PROXIED,
        Policy(origins=["*"], hosts=["*"]),
        Policy(origins=["null"], trusted_proxies=[ip_network("0.0.0.0/0")]),
    ]
)


@given(
    POLICIES, PEERS | st.text(max_size=30), st.lists(st.tuples(NAMES, VALUES), max_size=5), VALUES
)
def test_check_never_raises(
    policy: Policy, peer: str, headers: list[tuple[bytes, bytes]], target: bytes
) -> None:
    for request in (headers, [LOCALHOST, *headers]):
        refusal = policy.check(peer, request, target)
        assert status(refusal) in (None, 400, 403, 421)
        if not isinstance(refusal, Rejection):
            assert policy.client_address(peer, request) == refusal


OWN_NAMES = ("localhost", "atelier", "atelier.local")


@given(VALUES, VALUES)
def test_a_permitted_request_has_a_host_and_an_origin_of_this_server(
    host: bytes, page: bytes
) -> None:
    """The rules said once more, from the other end, by what is plainly ours."""

    def own(authority: Authority) -> bool:
        if isinstance(authority.host, str):
            return authority.host in OWN_NAMES or authority.host.split(".")[-1] == "localhost"
        return any(authority.host in network for network in NETWORKS)

    if check((b"host", host), origin(page)) is None:
        assert own(Authority.parse(host.decode().strip(" \t")))
        found = Origin.parse(page.decode().strip(" \t"))
        assert found.scheme in ("http", "https")
        assert own(found.authority)


@given(st.text())
def test_address_never_raises_and_parses_its_own_text(text: str) -> None:
    found = address(text)
    assert found is None or address(str(found)) == found


def test_no_secret_and_no_control_character_is_quoted_raw() -> None:
    refusal = POLICY.check("127.0.0.1", [(b"host", b"\x1b[2J\r\nx" + b"s" * 200)], b"/ws")
    assert isinstance(refusal, Rejection)
    assert "\\x1b[2J\\r\\n" in refusal.detail
    assert "s" * 80 not in refusal.detail
