"""Every hint of a rejection that names a setting works when it is pasted."""

import os
import re
from collections.abc import Iterator
from ipaddress import ip_network

import pytest

from brain.access.limits import HANDSHAKES, MAX_WAIT, ConnectionLimiter
from brain.access.policy import Headers, Policy
from brain.access.rejections import REJECTIONS, Rejection
from brain.config import Settings, variables

HERE = (b"host", b"localhost")
HOSTS = [
    b"brain.example",
    b"Brain.Example:8443",
    b"brain_1",
    b"brain.example.",
    b"203.0.113.9:5221",
    b"[2001:db8::1]",
    b"[2001:db8::1%25eth0]:5221",
    b"a." * 190 + b"example",
]
ORIGINS = [
    b"https://app.example",
    b"http://app.example:3000",
    b"http://[2001:db8::1]:3000",
    b"null",
    b"file://",
    b"app://",
    b"app://.",
    b"app://obsidian.md",
    b"capacitor://localhost",
    b"ionic://localhost",
    b"tauri://localhost",
    b"wails://wails.localhost:34115",
    b"chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    b"moz-extension://0f0e0d0c-1111-2222-3333-444455556666",
    b"vscode-webview://1a2b3c4d",
    b"app://My-App",
    b"https://" + b"a." * 150 + b"example",
]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("BRAIN_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)


def page(origin: bytes) -> Headers:
    return [HERE, (b"origin", origin)]


def rejected(headers: Headers, peer: str = "127.0.0.1", **rules: object) -> Rejection:
    found = Policy(**rules).check(peer, headers, b"/ws")  # type: ignore[arg-type]
    assert isinstance(found, Rejection)
    return found


def limits() -> Iterator[Rejection]:
    limiter = ConnectionLimiter(Policy(), max_connections=1, max_connections_per_ip=1)
    lease = limiter.enter("127.0.0.1")
    assert not isinstance(lease, Rejection)
    found = limiter.enter("127.0.0.1")
    assert isinstance(found, Rejection)
    yield found
    assert limiter.upgrade(lease, None) is None
    second = limiter.enter("127.0.0.2")
    assert not isinstance(second, Rejection)
    full = limiter.upgrade(second, None)
    assert full is not None
    yield full
    for _ in range(int(HANDSHAKES.burst + MAX_WAIT * HANDSHAKES.rate) + 2):
        wait = limiter.wait(Policy().identify("127.0.0.1")[0], 0.0)  # type: ignore[arg-type]
        if isinstance(wait, Rejection):
            yield wait
            return


def every() -> list[Rejection]:
    return [
        *(rejected([(b"host", host)]) for host in HOSTS),
        *(rejected(page(origin)) for origin in ORIGINS),
        rejected([HERE], peer="203.0.113.9"),
        rejected([HERE], peer="2001:db8::1"),
        rejected([HERE, (b"sec-fetch-site", b"cross-site")]),
        rejected([]),
        rejected([(b"host", b"a b")]),
        rejected(page(b"https://")),
        rejected([HERE, (b"x-forwarded-for", b"x")], trusted_proxies=[ip_network("127.0.0.1")]),
        *limits(),
    ]


def test_every_hint_names_a_setting_that_exists_and_a_value_that_it_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pasted = 0
    for text in [each.detail for each in every()] + [row.meaning for row in REJECTIONS.values()]:
        for name, value in re.findall(r"\b(BRAIN_[A-Z_]+)(?:=(\S+))?", text):
            assert name in variables(), text
            if value:
                with monkeypatch.context() as patch:
                    patch.setenv(name, value)
                    assert getattr(Settings.load(), name.removeprefix("BRAIN_").lower()), text
                pasted += 1
    assert pasted >= len(HOSTS) + len(ORIGINS) - 2, "all but the two that are too long to repeat"


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_accepted_once_its_hint_is_pasted(
    host: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, equals, value = rejected([(b"host", host)]).detail.partition("BRAIN_ALLOWED_HOSTS=")
    if not equals:
        value = host.decode()
    monkeypatch.setenv("BRAIN_ALLOWED_HOSTS", value)
    policy = Policy(hosts=Settings.load().allowed_hosts)
    assert not isinstance(policy.check("127.0.0.1", [(b"host", host)], b"/"), Rejection)


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_page_is_accepted_once_its_hint_is_pasted(
    origin: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, equals, value = rejected(page(origin)).detail.partition("BRAIN_ALLOWED_ORIGINS=")
    for text in {value if equals else origin.decode(), origin.decode()}:
        monkeypatch.setenv("BRAIN_ALLOWED_ORIGINS", text)
        policy = Policy(origins=Settings.load().allowed_origins)
        assert not isinstance(policy.check("127.0.0.1", page(origin), b"/"), Rejection)
        assert isinstance(policy.check("127.0.0.1", page(b"https://evil.example"), b"/"), Rejection)


@pytest.mark.parametrize(
    "text", ["2001:db8::1", "[2001:db8::1]", "2001:DB8:0::1", "fe80::1%eth0", "[2001:db8::1]:5221"]
)
def test_an_ipv6_address_is_a_host_with_and_without_brackets(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAIN_ALLOWED_HOSTS", f"brain.example,{text}")
    policy = Policy(hosts=Settings.load().allowed_hosts)
    literal = b"[fe80::1]:5221" if text.startswith("fe80") else b"[2001:db8::1]:5221"
    for host in (literal, b"brain.example"):
        assert not isinstance(policy.check("127.0.0.1", [(b"host", host)], b"/"), Rejection)


@pytest.mark.parametrize("text", ["app://$(id)", "app://a;b", "app://a b", "app://a/b", "a'b://c"])
def test_an_origin_that_a_shell_would_run_is_in_no_hint(text: str) -> None:
    assert "BRAIN_ALLOWED_ORIGINS=" not in rejected(page(text.encode())).detail
