"""Where `watch` and `wait` find Brain."""

import pytest

from brain.cli.target import Target
from brain.config import Settings
from brain.validators import brain_url, without_password


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("myhost", "ws://myhost:5221/ws"),
        ("myhost:80", "ws://myhost:80/ws"),
        (":8080", "ws://localhost:8080/ws"),
        ("myhost:5221/ws?agent=a%20b", "ws://myhost:5221/ws?agent=a%20b"),
        ("myhost?agent=://", "ws://myhost:5221/ws?agent=://"),
        ("192.168.1.20", "ws://192.168.1.20:5221/ws"),
        ("::1", "ws://[::1]:5221/ws"),
        ("[fd00::1]:80", "ws://[fd00::1]:80/ws"),
        ("bücher.example", "ws://xn--bcher-kva.example:5221/ws"),
        ("http://myhost", "ws://myhost/ws"),
        ("HTTPS://brain.example/", "wss://brain.example/ws"),
        ("https://example.com/brain/", "wss://example.com/brain/ws"),
        ("http://myhost:5221/?status=running#top", "ws://myhost:5221/ws?status=running"),
        ("ws://myhost", "ws://myhost/ws"),
        ("wss://myhost/live", "wss://myhost/live"),
        (" ws://myhost/ws\n", "ws://myhost/ws"),
        ("user:p%40ss@myhost:80", "ws://user:p%40ss@myhost:80/ws"),
    ],
)
def test_a_host_or_a_url_is_understood(given: str, meant: str) -> None:
    assert brain_url(given) == meant
    assert brain_url(meant) == meant


@pytest.mark.parametrize(
    "given",
    [
        "",
        "5221",
        "my host",
        "ftp://myhost",
        "file:///etc/passwd",
        "ws://",
        "ws:///ws",
        "myhost:0",
        "myhost:99999",
        "myhost:port",
        "http://[::1",
        "ws://user@myhost/ws",
        "ws://myhost/a b",
        "ws://myhost/\x1b",
        "é" * 300,
        "\udcff",
    ],
)
def test_another_text_is_refused_with_the_rule(given: str) -> None:
    with pytest.raises(ValueError, match=r"^Brain is at host:port, such as myhost:5221, or "):
        brain_url(given)


@pytest.mark.parametrize("url", ["ftp://me:se/cr@et@myhost/", "me:secret@myhost", "WS://u:p@h?a=@"])
def test_a_password_is_not_shown(url: str) -> None:
    shown = without_password(url)
    assert "secret" not in shown
    assert "cr@et" not in shown
    assert "***@" in shown


def find(given: str | None = None, **settings: object) -> Target:
    return Target.find(given, Settings(**settings))  # type: ignore[arg-type]


def test_the_command_line_wins_over_the_setting_and_the_setting_over_the_port() -> None:
    assert find("one:1", url="two:2", port=3).url == "ws://one:1/ws"
    assert find(url="two:2", port=3).url == "ws://two:2/ws"
    assert find(port=3).url == "ws://localhost:3/ws"


def test_on_this_machine_it_is_where_it_listens() -> None:
    assert find(host="192.168.1.5").url == "ws://192.168.1.5:5221/ws"
    assert find(host="::1").url == "ws://[::1]:5221/ws"
    assert find(host="0.0.0.0").url == "ws://localhost:5221/ws"


def test_a_free_port_cannot_be_found(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        find(port=0)
    assert "set BRAIN_URL" in capfd.readouterr().err
    assert find(port=0, url="localhost:27754").url == "ws://localhost:27754/ws"


def test_a_password_is_a_header_and_stands_in_no_message(capfd: pytest.CaptureFixture[str]) -> None:
    target = find("me:p%40ss@myhost")
    assert target.url == "ws://myhost:5221/ws"
    assert target.headers == {"Authorization": "Basic bWU6cEBzcw=="}
    with pytest.raises(SystemExit, match="2"):
        find("me:secret@myhost", token="hunter2")
    error = capfd.readouterr().err
    assert "unset BRAIN_TOKEN, or leave the user out of the URL" in error
    assert "secret" not in error
    assert find("me:secret@myhost").token is None
    assert find("myhost", token="hunter2").token == "hunter2"
