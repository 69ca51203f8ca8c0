"""A request that offers another protocol than WebSocket is served in HTTP/1.1 (RFC 9110, 7.8)."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from itertools import count

import pytest

from brain.server.limits import Limits
from tests.support.patience import PATIENCE
from tests.support.served import Brain, served
from tests.support.wire import KEY, Peer, closing, get, request

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
OFFERS = {
    "curl": H2C,
    "Java": (
        "connection: Upgrade, HTTP2-Settings",
        "http2-settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
        "upgrade: h2c",
    ),
    "TLS": ("Upgrade: TLS/1.0", "Connection: Upgrade"),
    "keep-alive": ("Connection: keep-alive, Upgrade", "Upgrade: foo/2"),
    "two headers": ("Connection: upgrade", "Connection: keep-alive", "Upgrade: a", "Upgrade: b"),
    "in capitals": ("CONNECTION: UPGRADE", "UPGRADE: H2C"),
    "nothing": ("Connection: Upgrade", "Upgrade:"),
}
ids = count()


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    with served(database_url=shared) as brain:
        yield brain


def post(*lines: str, chunked: bool = False, target: str = "/api/runs") -> tuple[bytes, str]:
    """A request that creates a run, and its id."""
    run_id = f"upgrade-{next(ids)}"
    body = json.dumps({"id": run_id}).encode()
    if chunked:
        framing = "Transfer-Encoding: chunked"
        body = b"".join(b"%x\r\n%s\r\n" % (1, body[i : i + 1]) for i in range(len(body)))
        body += b"0\r\nX-Trailer: t\r\n\r\n"
    else:
        framing = f"Content-Length: {len(body)}"
    head = [f"POST {target} HTTP/1.1", "Host: localhost", *lines, framing]
    head += ["Content-Type: application/json", "", ""]
    return "\r\n".join(head).encode() + body, run_id


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunks"])
@pytest.mark.parametrize("size", [1, 7, 1 << 20], ids=["bytes", "pieces", "whole"])
async def test_a_request_with_another_upgrade_keeps_its_body_and_its_connection(
    brain: Brain, offer: str, chunked: bool, size: int
) -> None:
    async with await Peer.open(brain.port) as peer:
        for _ in range(2):
            data, run_id = post(*OFFERS[offer], chunked=chunked)
            for at in range(0, len(data), size):
                peer.send(data[at : at + size])
                await peer.writer.drain()
            answer = await peer.answer()
            assert answer.status == 201, answer
            assert json.loads(answer.body)["id"] == run_id
            assert "connection" not in answer.headers
        peer.send(get())
        assert (await peer.answer()).status == 200


@pytest.mark.parametrize("size", [1, 1 << 20], ids=["bytes", "whole"])
async def test_requests_behind_another_upgrade_are_answered_in_order(
    brain: Brain, size: int
) -> None:
    first, one = post(*H2C)
    second, two = post(*H2C, chunked=True)
    data = (
        first
        + second
        + get("/healthz", "localhost", *H2C)
        + get("/nowhere")
        + get("/healthz", "localhost", "Connection: close, Upgrade", "Upgrade: h2c")
    )
    async with await Peer.open(brain.port) as peer:
        for at in range(0, len(data), size):
            peer.send(data[at : at + size])
            await peer.writer.drain()
        answers = [await peer.answer() for _ in range(5)]
        assert [each.status for each in answers] == [201, 201, 200, 404, 200]
        assert [json.loads(each.body)["id"] for each in answers[:2]] == [one, two]
        assert await peer.rest() == b"", "the last asked for the end"


async def test_a_websocket_follows_an_ignored_upgrade_on_the_same_connection(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(post(*H2C)[0])
        assert (await peer.answer()).status == 201
        peer.send(request("/ws?run_id=nobody", Upgrade="h2c, websocket"))
        assert (await peer.answer()).status == 101
        peer.send(closing(1000))
        assert await peer.farewell() == 1000


async def test_an_expectation_beside_another_upgrade_is_answered(brain: Brain) -> None:
    data, run_id = post(*H2C, "Expect: 100-continue")
    head, _, body = data.partition(b"\r\n\r\n")
    async with await Peer.open(brain.port) as peer:
        peer.send(head + b"\r\n\r\n")
        assert (await peer.answer(head=True)).status == 100
        peer.send(body)
        assert json.loads((await peer.answer()).body)["id"] == run_id


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (("Content-Length: 3", "Transfer-Encoding: chunked"), 400),
        (("Content-Length: 2", "Content-Length: 3"), 400),
        (("Content-Length: 2000000",), 413),
        (("X: " + "x" * Limits().max_head,), 431),
        (("Origin: https://evil.example",), 403),
    ],
)
async def test_the_rules_hold_beside_another_upgrade(
    brain: Brain, lines: tuple[str, ...], status: int
) -> None:
    async with await Peer.open(brain.port) as peer:
        head = get("/api/runs", "localhost", *H2C, *lines, "Content-Type: application/json")
        peer.send(head.replace(b"GET", b"POST") + b"x" * (2_200_000 if status == 413 else 0))
        assert (await peer.answer()).status == status


async def test_a_flood_of_ignored_upgrades_is_bounded(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(get("/healthz", "localhost", *H2C) * 5_000)
        assert (await peer.rest()).count(b" 200 ") <= Limits().max_pipelined


async def test_connect_is_refused_whatever_it_upgrades_to(brain: Brain) -> None:
    for lines in ((), H2C, ("Connection: Upgrade", "Upgrade: websocket", f"Sec-Key: {KEY}")):
        async with await Peer.open(brain.port) as peer:
            head = get("localhost:5221", "localhost", *lines)
            peer.send(head.replace(b"GET", b"CONNECT"))
            assert (await peer.answer()).status == 400


@pytest.mark.parametrize("more", [[], ["-H", "Transfer-Encoding: chunked"]], ids=["-d", "chunked"])
def test_curl_with_http2_creates_a_run(brain: Brain, more: list[str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    run_id = f"curl-{next(ids)}"
    command = ["curl", "-s", "--http2", "-H", "Content-Type: application/json", *more]
    command += ["-d", json.dumps({"id": run_id}), f"http://localhost:{brain.port}/api/runs"]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
    assert json.loads(done.stdout)["id"] == run_id
