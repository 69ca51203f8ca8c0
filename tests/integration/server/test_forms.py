"""Requests as clients write them: paths, methods, targets, preflights."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from tests.support.served import Brain, served
from tests.support.wire import Answer, Peer, closing, get, request


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(
        database_url=shared,
        allowed_origins="https://app.example,app://.,vscode-webview://1a2b",
    ) as brain:
        yield brain


async def asked(brain: Brain, data: bytes, *, head: bool = False) -> Answer:
    async with await Peer.open(brain.port) as peer:
        peer.send(data)
        return await peer.answer(head=head)


@pytest.mark.parametrize(
    "target", ["/ws/", "/ws/?run_id=nobody", "/ws?", "/%77s/", "http://localhost./ws/"]
)
async def test_a_websocket_opens_at_any_form_of_its_path(brain: Brain, target: str) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(request(target))
        assert (await peer.answer()).status == 101
        peer.send(closing(1000))
        assert await peer.farewell() == 1000


async def test_spaces_around_the_value_of_a_header_are_no_part_of_it(brain: Brain) -> None:
    """RFC 9112, section 5: a client may send them, and a proxy may leave them there."""
    text = request("/ws").decode()
    assert "Sec-WebSocket-Version" in text
    spaced = "\r\n".join(
        line.replace(": ", ":\t  ") + " \t " if ": " in line else line
        for line in text.split("\r\n")
    )
    assert (await asked(brain, spaced.encode())).status == 101
    made = (
        b"POST /api/runs HTTP/1.1\r\nHost: localhost \r\nOrigin: http://localhost \r\n"
        b'Content-Type: application/json \r\nContent-Length: 15 \r\n\r\n{"id":"spaces"}'
    )
    answer = await asked(brain, made)
    assert answer.status == 201
    etag = answer.headers["etag"].encode()
    claim = (
        b"PATCH /api/runs/spaces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b'If-Match: %s \r\nContent-Length: 14\r\n\r\n{"progress":1}' % etag
    )
    assert (await asked(brain, claim)).status == 200


@pytest.mark.parametrize("target", [b"/api/runs?agent=\xc3\xa9", b"/ws?agent=\xc3\xa9", b"/\x01"])
async def test_a_url_with_other_characters_is_told_to_percent_encode_them(
    brain: Brain, target: bytes
) -> None:
    """As curl sends what somebody typed."""
    answer = await asked(brain, b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % target)
    assert answer.status == 400
    assert "percent-encode" in json.loads(answer.body)["detail"]


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/runs/", 200),
        ("/api/runs/?limit=1", 200),
        ("/api/runs?", 200),
        ("/%61pi/runs", 200),
        ("http://localhost:5221/api/runs/", 200),
        ("http://localhost./healthz", 200),
        ("http://[::1%25eth0]/healthz", 200),
        ("/healthz/", 200),
        ("/metrics/", 200),
        ("/docs/", 200),
        ("/openapi.json/", 200),
        ("/ws/", 426),
        ("/ws", 426),
        ("//ws", 404),
        ("/healthz//", 404),
        ("/api/runs/no-such-run", 404),
        ("/api/runs/no-such-run/", 404),
        ("/api/runs?limit", 422),
    ],
)
async def test_get_and_head_answer_alike(brain: Brain, target: str, status: int) -> None:
    answer = await asked(brain, get(target))
    assert answer.status == status, answer
    async with await Peer.open(brain.port) as peer:
        peer.send(get(target).replace(b"GET", b"HEAD") + get("/healthz"))
        head = await peer.answer(head=True)
        assert head.status == status
        assert head.headers["content-type"] == answer.headers["content-type"]
        if "metrics" not in target:
            assert head.headers["content-length"] == answer.headers["content-length"]
        assert (await peer.answer()).body == b'{"status":"alive"}', "HEAD has no body"


async def test_a_post_to_the_path_with_a_slash_keeps_its_body(brain: Brain) -> None:
    body = b'{"id":"with-slash"}'
    head = f"POST /api/runs/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    answer = await asked(brain, head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    assert (answer.status, json.loads(answer.body)["id"]) == (201, "with-slash")


async def test_an_id_that_ends_in_a_slash_is_not_cut(brain: Brain) -> None:
    for run_id in ("cut", "cut/"):
        assert brain.request("POST", "/api/runs", {"id": run_id})[0] == 201
    for target in ("/api/runs/cut%2F", "/api/runs/cut/"):
        assert json.loads((await asked(brain, get(target))).body)["id"] == "cut/"


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://app.example", 200),
        ("app://.", 200),
        ("vscode-webview://1a2b", 200),
        ("https://evil.example", 403),
        ("app://other", 403),
    ],
)
async def test_a_preflight_for_the_private_network_is_granted_to_allowed_origins(
    brain: Brain, origin: str, status: int
) -> None:
    lines = (
        f"Origin: {origin}",
        "Access-Control-Request-Method: PATCH",
        "Access-Control-Request-Headers: content-type",
        "Access-Control-Request-Private-Network: true",
    )
    data = get("/api/runs/x", "localhost", *lines).replace(b"GET", b"OPTIONS")
    answer = await asked(brain, data)
    assert answer.status == status
    allowed = answer.headers.get("access-control-allow-private-network")
    assert allowed == ("true" if status == 200 else None)


async def test_an_old_client_is_answered_and_its_connection_ends(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(b"GET /api/runs HTTP/1.0\r\nHost: localhost\r\nX-Empty:\r\n\r\n")
        assert (await peer.answer()).status == 200
        assert await peer.rest() == b""


async def test_a_body_waits_for_the_answer_to_its_expectation(brain: Brain) -> None:
    body = b'{"id":"expected"}'
    head = f"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\nExpect: 100-Continue\r\n\r\n"
    async with await Peer.open(brain.port) as peer:
        peer.send(head.encode())
        assert (await peer.answer(head=True)).status == 100
        peer.send(body[:5])
        await asyncio.sleep(0.05)
        peer.send(body[5:])
        assert (await peer.answer()).status == 201


@pytest.mark.parametrize(
    "target", ["http://localhost", "http://localhost?x=1", "http://localhost/"]
)
async def test_an_absolute_target_without_a_path_is_the_root(brain: Brain, target: str) -> None:
    assert (await asked(brain, get(target))).status == (await asked(brain, get("/"))).status


@pytest.mark.parametrize(
    ("data", "protocol"),
    [
        (bytes.fromhex("16030100f0010000ec0303") + bytes(230), "TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
    ],
)
async def test_another_protocol_is_named(brain: Brain, data: bytes, protocol: str) -> None:
    answer = await asked(brain, data)
    assert answer.status == 400
    assert f"the client speaks {protocol}" in json.loads(answer.body)["detail"]


async def test_an_empty_body_is_called_empty(brain: Brain) -> None:
    head = b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n"
    answer = await asked(brain, head + b"Content-Type: application/json\r\n\r\n")
    assert answer.status == 422
    assert json.loads(answer.body)["detail"].endswith("and this one is empty")
