"""HTTP up to the upgrade, against malformed and hostile requests.

A control client is connected throughout, and misses no message.
"""

import asyncio
import re
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect

from brain.server.limits import Limits
from tests.support.patience import eventually
from tests.support.postgres import execute
from tests.support.served import Brain, served
from tests.support.wire import (
    KEY,
    TEXT,
    Answer,
    Baseline,
    Control,
    Frame,
    Peer,
    closing,
    frame,
    get,
    memory,
    request,
    settled,
)
from tests.support.workers import suspended

MAX_HEAD = Limits().max_head

pytestmark = pytest.mark.usefixtures("undisturbed")


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    # The control client hears more often so, and no ping comes between what a test expects.
    with served(
        database_url=shared, flush_interval=0.005, ping_interval=3600, ping_timeout=7200
    ) as brain:
        yield brain


async def asked(brain: Brain, data: bytes, *, local: str | None = None) -> Answer:
    """The answer to this, behind which the connection ends, unless it is an upgrade."""
    async with await Peer.open(brain.port, local=local) as peer:
        peer.send(data)
        answer = await peer.answer()
        if answer.status != 101:
            assert "close" in answer.headers["connection"].lower()
            assert await peer.rest() == b""
        return answer


# The upgrade (RFC 6455, section 4.2)

WELCOME: dict[str, bytes] = {
    "as a browser asks": request(Origin="http://localhost:3000", User_Agent="x", Cookie="a=b"),
    "with an empty query": request("/ws?"),
    "percent-encoded": request("/%77s"),
    "percent-encoded, and in full": request("http://localhost/%77%73?status=queued"),
    "absolute": request("http://localhost:5221/ws"),
    "names in other cases": request(Upgrade="WebSocket", Connection="keep-alive, upgrade"),
    "two Connection headers": request().replace(
        b"Connection: Upgrade", b"Connection: Upgrade\r\nConnection: keep-alive"
    ),
    "a length of nothing": request(Content_Length="0"),
    "after empty lines": b"\r\n\r\n" + request(),
    "with deflate offered": request(
        Sec_WebSocket_Extensions="permessage-deflate; client_max_window_bits"
    ),
    "with a subprotocol offered": request(Sec_WebSocket_Protocol="chat, superchat"),
    "with a head as large as may be": request(X="x" * (MAX_HEAD - len(request(X="")))),
}


@pytest.mark.parametrize("sent", WELCOME)
async def test_an_upgrade_is_accepted(brain: Brain, sent: str) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(WELCOME[sent])
        answer = await peer.answer()
        assert answer.status == 101, answer
        assert "sec-websocket-extensions" not in answer.headers
        assert "sec-websocket-protocol" not in answer.headers
        peer.send(closing(1000))
        assert await peer.farewell() == 1000


REFUSED: dict[str, tuple[bytes, int]] = {
    "version 12": (request(Sec_WebSocket_Version="12"), 426),
    "version 8": (request(Sec_WebSocket_Version="8"), 426),
    "no version": (request(Sec_WebSocket_Version=None), 426),
    "two versions": (request(Sec_WebSocket_Version="13\r\nSec-WebSocket-Version: 8"), 426),
    "no key": (request(Sec_WebSocket_Key=None), 400),
    "an empty key": (request(Sec_WebSocket_Key=""), 400),
    "a short key": (request(Sec_WebSocket_Key="AAAA"), 400),
    "a key that is not base64": (request(Sec_WebSocket_Key="\xe9" * 24), 400),
    "two keys": (request(Sec_WebSocket_Key=f"{KEY}\r\nSec-WebSocket-Key: {KEY}"), 400),
    "HTTP/1.0": (request(version="1.0"), 505),
    "POST": (request(method="POST", Content_Length="0"), 405),
    "PUT": (request(method="PUT"), 405),
    "a body": (request(Content_Length="5") + b"hello", 400),
    "a body in chunks": (request(Transfer_Encoding="chunked") + b"5\r\nhello\r\n0\r\n\r\n", 400),
    "another path": (request("/"), 404),
    "a path below": (request("/ws/x"), 404),
    "an unreadable path": (request("/%ff%00"), 404),
    "the API's path": (request("/api/runs"), 404),
    "an unknown parameter": (request("/ws?stauts=queued"), 400),
    "an unknown status": (request("/ws?status=Queued"), 400),
    "an empty value": (request("/ws?run_id="), 400),
    "snapshot=1": (request("/ws?snapshot=1"), 400),
    "since yesterday": (request("/ws?since=yesterday"), 400),
    "since and snapshot": (request("/ws?since=2026-01-01T00:00:00Z&snapshot=true"), 400),
    "a query that is no UTF-8": (request("/ws?run_id=%ff"), 400),
    "too many values": (request("/ws?" + "&".join(f"run_id={i}" for i in range(101))), 400),
    "an origin on the internet": (request(Origin="https://evil.example"), 403),
    "the null origin": (request(Origin="null"), 403),
    "two origins": (request(Origin="http://localhost\r\nOrigin: http://localhost"), 403),
    "a host on the internet": (request(Host="evil.example"), 421),
    "a host of that name in the target": (request("http://evil.example/ws"), 421),
    "no host": (request(Host=None), 400),
    "two hosts": (request(Host="localhost\r\nHost: localhost"), 400),
    "a target that is none": (request("*"), 404),
}


@pytest.mark.parametrize("sent", REFUSED)
async def test_an_upgrade_is_rejected(brain: Brain, sent: str) -> None:
    data, status = REFUSED[sent]
    answer = await asked(brain, data)
    assert answer.status == status, answer
    assert answer.problem()
    if status == 426:
        assert answer.headers["sec-websocket-version"] == "13"
        assert answer.headers["upgrade"] == "websocket"
    if status == 405:
        assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("query", "name"),
    [("stauts=queued", "stauts"), ("status=Queued", "Queued"), ("since=now", "now")],
)
async def test_a_rejection_names_what_is_wrong(brain: Brain, query: str, name: str) -> None:
    assert name in (await asked(brain, request(f"/ws?{query}"))).problem()


async def test_a_plain_get_of_ws_gets_426(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        for more in (
            (),
            ("Connection: Upgrade",),
            ("Upgrade: websocket",),
            ("Origin: http://localhost",),
        ):
            peer.send(get("/ws", "localhost", *more))
            answer = await peer.answer()
            assert answer.status == 426
            assert answer.headers["upgrade"] == "websocket"
            assert answer.headers["sec-websocket-version"] == "13"
            assert "ws://" in answer.problem()


# Malformed or oversized HTTP

ODD: dict[str, tuple[bytes, int]] = {
    "garbage": (b"\x00\xff\xfe garbage\r\n\r\n", 400),
    "TLS": (bytes.fromhex("1603010200010001fc0303") + bytes(100), 400),
    "HTTP/2 with prior knowledge": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "a version that is none": (b"GET / HTTP/7.7\r\n\r\n", 400),
    "a method that is none": (b"BREW /pot HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "a space in a name": (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
    "a bare LF": (b"GET / HTTP/1.1\nHost: localhost\n\n", 400),
    "NUL in a value": (b"GET / HTTP/1.1\r\nHost: local\0host\r\n\r\n", 400),
    "length and chunks": (
        get("/", "localhost", "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        400,
    ),
    "two lengths": (get("/", "localhost", "Content-Length: 3", "Content-Length: 4") + b"abcd", 400),
    "a length that is none": (get("/", "localhost", "Content-Length: -1"), 400),
    "a chunk that is none": (get("/", "localhost", "Transfer-Encoding: chunked") + b"zz\r\n", 400),
    "CONNECT": (b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n", 400),
    "CONNECT to here": (b"CONNECT localhost:5221 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "CONNECT and upgrade": (request("localhost:5221", method="CONNECT"), 400),
    "a URL of 9 kB": (get("/" + "x" * 9_000), 414),
    "a URL of 9 kB to upgrade": (request("/ws?run_id=" + "x" * 9_000), 414),
    "a URL of 1 MB": (get("/" + "x" * 1_000_000), 414),
    "2 000 headers": (
        get("/healthz", "localhost", *(f"X-{i}: 0123456789" for i in range(2_000))),
        431,
    ),
    "2 000 headers to upgrade": (
        request(X="\r\n".join(f"X-{i}: 0123456789" for i in range(2_000))),
        431,
    ),
    "one huge header": (get("/healthz", "localhost", "X: " + "x" * 1_000_000), 431),
    "one huge name": (get("/healthz", "localhost", "X" * 1_000_000 + ": x"), 431),
    "a head one byte too long": (request(X="x" * (MAX_HEAD - len(request(X="")) + 1)), 431),
    "empty lines without end": (b"\r\n" * MAX_HEAD, 431),
    "20 MB of headers": (get("/healthz", "localhost", *[f"X: {'x' * 1_000}"] * 20_000), 431),
}


@pytest.mark.parametrize("sent", ODD)
async def test_a_malformed_or_oversized_request_is_answered_and_closed(
    brain: Brain, sent: str
) -> None:
    data, status = ODD[sent]
    assert (await asked(brain, data)).status == status


@pytest.mark.parametrize(
    "sent", ["Origin: https://evil.example", "Origin: null", "X-Forwarded-For: 8.8.8.8"]
)
async def test_the_access_rules_hold_for_plain_http_too(brain: Brain, sent: str) -> None:
    answer = await asked(brain, get("/metrics", "localhost", sent, "Connection: close"))
    assert answer.status == (200 if "Forwarded" in sent else 403)
    for host, status in (
        ("evil.example", 421),
        ("localhost:5221", 200),
        ("127.0.0.1", 200),
        ("a b", 400),
    ):
        answer = await asked(brain, get("/metrics", host, "Connection: close"))
        assert answer.status == status


async def test_a_long_head_behind_an_answered_request_is_rejected(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(get())
        assert (await peer.answer()).status == 200
        peer.send(get("/healthz", "localhost", "X: " + "x" * 100_000))
        assert (await peer.answer()).status == 431
        assert await peer.rest() == b""


async def test_a_long_head_behind_an_unanswered_request_closes_the_connection(brain: Brain) -> None:
    """Both in one segment: a 431 could be for either, so the connection just ends."""
    async with await Peer.open(brain.port) as peer:
        peer.send(get() + get("/healthz", "localhost", "X: " + "x" * 150_000))
        assert (await peer.rest()).count(b"HTTP/1.1 200") <= 1


# Several requests on one connection


async def test_an_upgrade_behind_an_answered_request_is_accepted(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        for _ in range(3):
            peer.send(get())
            assert (await peer.answer()).body == b'{"status":"alive"}'
        peer.send(request("/ws?run_id=nobody") + frame(b"ping"))
        assert (await peer.answer()).status == 101
        assert await peer.frame() == Frame(TEXT, b"pong")
        await asyncio.sleep(0.1)
        peer.send(closing(1000))
        assert await peer.farewell() == 1000


async def test_an_upgrade_behind_an_unanswered_request_closes_the_connection(brain: Brain) -> None:
    """The answer to the one would land in the stream of the other."""
    async with await Peer.open(brain.port) as peer:
        peer.send(get("/api/runs") + request() + frame(b"ping"))
        assert b"101" not in await peer.rest()


async def test_pipelined_requests_are_answered_in_their_order(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(
            get("/api/runs?limit=1")
            + get("/healthz")
            + get("/nowhere")
            + get("/metrics", "evil.example")
        )
        assert [(await peer.answer()).status for _ in range(4)] == [200, 200, 404, 421]
        assert await peer.rest() == b""


async def test_a_flood_of_pipelined_requests_disturbs_nobody(
    brain: Brain, control: Control
) -> None:
    used = memory(brain.process.pid)
    with control.undisturbed():
        peers = [await Peer.open(brain.port) for _ in range(10)]
        for peer in peers:
            peer.send(get() * 20_000)
        for peer in peers:
            await peer.rest()
            await peer.close()
    assert memory(brain.process.pid) - used < 30 << 20


async def test_an_upgrade_with_an_unread_answer_before_it_starts_lagging(
    brain: Brain, shared: str
) -> None:
    """The transport is full of an earlier answer when the WebSocket begins."""
    execute(
        shared,
        "INSERT INTO runs (id, status, error)"
        " SELECT 'long-' || i, 'running', repeat('e', 8000) FROM generate_series(1, 100) i",
    )
    async with await Peer.open(brain.port, rcvbuf=4096) as peer:
        peer.stall()
        peer.send(get("/api/runs?limit=1000"))
        # Behind a request that Brain has not answered, it refuses an upgrade.
        await eventually(lambda: peer.arrived > 2000)
        peer.send(request("/ws?snapshot=true&run_id=long-1&run_id=long-2"))
        await eventually(lambda: brain.metric("brain_clients_lagging") == 1)
        peer.wake()
        assert (await peer.answer()).status == 200
        answer = await peer.answer()
        assert answer.status == 101
        assert {(await peer.message())["data"]["id"] for _ in range(2)} == {"long-1", "long-2"}
        execute(shared, "UPDATE runs SET error = 'x' WHERE id = 'long-1'")
        assert (await peer.message())["data"]["error"] == "x"
        assert brain.metric("brain_clients_lagging") == 0
    execute(shared, "DELETE FROM runs WHERE id LIKE 'long-%'")


MUCH = 20 << 20
POST = ("POST", "Content-Type: application/json")


@pytest.mark.parametrize(
    ("line", "body"),
    {
        "a body": ("POST /api/runs", f"Content-Length: {MUCH}\r\n\r\n".encode() + b" " * MUCH),
        "chunks": (
            "POST /api/runs",
            b"Transfer-Encoding: chunked\r\n\r\n"
            + (b"1000\r\n" + b" " * 4096 + b"\r\n") * (MUCH // 4096),
        ),
        "tiny chunks": (
            "POST /api/runs",
            b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * (MUCH // 6),
        ),
        "trailers": (
            "POST /api/runs",
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * (MUCH // 6),
        ),
        "a long trailer": (
            "POST /api/runs",
            b"Transfer-Encoding: chunked\r\n\r\n0\r\na: " + b"x" * MUCH,
        ),
        "a body that nobody reads": (
            "GET /healthz",
            f"Content-Length: {MUCH}\r\n\r\n".encode() + b" " * MUCH,
        ),
        "a body of an upgrade": (
            "GET /ws",
            f"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: {MUCH}\r\n\r\n".encode()
            + b" " * MUCH,
        ),
    }.values(),
)
@pytest.mark.faults
async def test_what_follows_a_head_is_bounded(
    brain: Brain, control: Control, line: str, body: bytes
) -> None:
    used = memory(brain.process.pid)
    with control.undisturbed():
        async with await Peer.open(brain.port) as peer:
            peer.send(
                f"{line} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
                + body
            )
            answer = await peer.answer()
            assert answer.status == {"GET /healthz": 200, "GET /ws": 400}.get(line, 413), answer
            assert b"HTTP/1.1" not in await peer.rest()
    assert memory(brain.process.pid) - used < 8 << 20


async def test_a_client_that_leaves_during_a_request_leaves_no_trace(brain: Brain) -> None:
    """By FIN and by RST; before, in and behind the body; with answers under way, and with many of
    them.
    """
    post = request(
        "/api/runs",
        method="POST",
        Connection="keep-alive",
        Upgrade=None,
        Content_Type="application/json",
    )
    sent = [
        post.replace(b"\r\n\r\n", b"\r\nContent-Length: 50\r\n\r\n") + b'{"id":',
        post.replace(b"\r\n\r\n", b"\r\nContent-Length: 100000\r\n\r\n") + b" " * 70_000,
        post.replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n") + b"5\r\n",
        post.replace(b"\r\n\r\n", b"\r\nContent-Length: 15\r\nExpect: 100-continue\r\n\r\n"),
        get("/api/runs"),
        get("/api/runs") * 20,
        get("/metrics") * 20,
        get("/healthz") * 3 + get("/healthz")[:20],
        get("/openapi.json") * 20 + request(),
        get("/healthz", "localhost", "Connection: Upgrade", "Upgrade: h2c") + get() * 3,
    ]
    for pause in (0.0, 0.001, 0.005):
        for data in sent:
            for reset in (False, True):
                peer = await Peer.open(brain.port)
                peer.send(data)
                await asyncio.sleep(pause)
                peer.reset() if reset else await peer.close()


# The limits


@pytest.fixture(scope="module")
def limited(shared: str) -> Iterator[Brain]:
    networks = "127.0.0.1/32,127.0.0.2/32,127.0.0.3/32"
    with served(
        database_url=shared, allowed_networks=networks, max_connections=5, max_connections_per_ip=3
    ) as brain:
        yield brain


async def left(brain: Brain, count: int) -> None:
    """Wait until Brain has noticed that no more connections are left, besides the one that asks."""
    await eventually(lambda: brain.metric("brain_connections") <= count + 1)


@pytest.mark.parametrize("ask", [request(), get()])
async def test_a_peer_of_another_network_is_rejected(limited: Brain, ask: bytes) -> None:
    before = limited.metric('brain_rejections_total{code="network"}')
    answer = await asked(limited, ask, local="127.0.0.9")
    assert answer.status == 403
    assert "127.0.0.9" in answer.problem()
    assert limited.metric('brain_rejections_total{code="network"}') == before + 1


async def test_a_peer_that_reset_its_connection_before_brain_took_it_is_nobody(
    brain: Brain,
) -> None:
    """As a health check that gives up while Brain is busy. Its address can no longer be asked for,
    and no rule may be said to forbid it.
    """
    before = brain.metric('brain_rejections_total{code="network"}')
    with suspended(brain.process.pid), socket.create_connection(("127.0.0.1", brain.port)) as peer:
        peer.sendall(get("/readyz"))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
    await left(brain, 2)
    assert brain.metric('brain_rejections_total{code="network"}') == before


@pytest.mark.parametrize("ask", [request(), get("/metrics")])
async def test_an_address_has_its_limit_and_a_closed_connection_frees_a_place(
    limited: Brain, ask: bytes
) -> None:
    before = limited.metric('brain_rejections_total{code="connections_per_ip"}')
    first = await Peer.upgraded(limited.port, local="127.0.0.2")
    second = await Peer.upgraded(limited.port, local="127.0.0.2")
    silent = await Peer.open(limited.port, local="127.0.0.2")
    for _ in range(3):
        answer = await asked(limited, ask, local="127.0.0.2")
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) > 0
        assert "127.0.0.2" in answer.problem()
    async with await Peer.upgraded(limited.port, local="127.0.0.3"):  # others do not mind
        pass
    second.reset()
    await left(limited, 2)
    async with await Peer.open(limited.port, local="127.0.0.2") as peer:
        peer.send(ask)
        assert (await peer.answer()).status in (101, 200)
        answer = await asked(limited, ask, local="127.0.0.2")
        assert answer.status == 429
    await left(limited, 2)
    first.send(closing(1000))
    assert await first.farewell() == 1000
    for peer in (first, silent):
        await peer.close()
    await left(limited, 0)
    peers = [await Peer.upgraded(limited.port, local="127.0.0.2") for _ in range(3)]
    for peer in peers:
        await peer.close()
    assert limited.metric('brain_rejections_total{code="connections_per_ip"}') == before + 4


async def test_all_websockets_together_have_a_limit(limited: Brain) -> None:
    peers = [await Peer.upgraded(limited.port, local=f"127.0.0.{i}") for i in (1, 1, 2, 2, 3)]
    answer = await asked(limited, request(), local="127.0.0.3")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert "BRAIN_MAX_CONNECTIONS" in answer.problem()
    assert (
        await asked(limited, get("/healthz", "localhost", "Connection: close"), local="127.0.0.3")
    ).status == 200
    peers.pop().reset()
    await left(limited, 4)
    peers.append(await Peer.upgraded(limited.port, local="127.0.0.3"))
    for peer in peers:
        await peer.close()
    assert limited.metric('brain_rejections_total{code="connections"}') == 1


async def test_a_rejected_connection_holds_no_place(limited: Brain) -> None:
    """One rejected before the upgrade for another reason counts only until it is closed."""
    for _ in range(20):
        assert (
            await asked(limited, request(Origin="https://evil.example"), local="127.0.0.2")
        ).status == 403
        assert (await asked(limited, b"\0\r\n\r\n", local="127.0.0.2")).status == 400
        await left(limited, 0)
    peers = [await Peer.upgraded(limited.port, local="127.0.0.2") for _ in range(3)]
    for peer in peers:
        await peer.close()


# Slow and silent requests


async def test_slow_and_silent_requests_end_at_the_deadline(brain: Brain, before: Baseline) -> None:
    """Slow requests are told 408 at the deadline, silent connections just end; and those who mean
    it get in meanwhile.
    """
    post = b"POST /api/runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"

    async def drip(
        data: bytes, *, first: bytes = b"", answers: int = 0, every: float = 0.2
    ) -> tuple[float, bytes]:
        began = time.monotonic()
        async with await Peer.open(brain.port) as peer:
            peer.send(first)
            for _ in range(answers):
                assert (await peer.answer()).status

            async def slowly() -> None:
                for byte in data:
                    peer.send(bytes([byte]))
                    await asyncio.sleep(every)

            dripping = asyncio.create_task(slowly())
            rest = await peer.rest()
            dripping.cancel()
            return time.monotonic() - began, rest

    slow = {
        "request line": drip(b"GET /" + b"x" * 1000),
        "headers": drip(b"a: b\r\n" * 200, first=b"GET / HTTP/1.1\r\nHost: localhost\r\n"),
        "a body": drip(b" " * 1000, first=post + b"Content-Length: 1000\r\n\r\n"),
        "a body in chunks": drip(
            b"1\r\n \r\n" * 1000, first=post + b"Transfer-Encoding: chunked\r\n\r\n"
        ),
        "a trailer": drip(
            b"a: b\r\n" * 200, first=post + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
        ),
        "a body that nobody reads": drip(
            b" " * 1000, first=get("/healthz", "localhost", "Content-Length: 1000")
        ),
        "a second request": drip(b"GET /" + b"x" * 1000, first=get(), answers=1),
    }
    silent = {
        "at first": drip(b""),
        "behind an answer": drip(b"", first=get(), answers=1),
        "in the middle of a second": drip(b"", first=get() + b"GET /he", answers=1),
        "but for empty lines": drip(b"\r\n", every=3, first=get(), answers=1),
        "but for empty lines, again and again": drip(b"\r\n" * 100, first=get(), answers=1),
    }

    async def real() -> None:
        for _ in range(40):
            async with connect(brain.url("?run_id=nobody"), compression=None, proxy=None):
                await asyncio.sleep(0.1)

    crowd = [await Peer.open(brain.port) for _ in range(1_000)]
    results, others, _, _ = await asyncio.gather(
        asyncio.gather(*slow.values()),
        asyncio.gather(*silent.values()),
        real(),
        asyncio.gather(*(peer.rest() for peer in crowd)),
    )
    for name, (seconds, rest) in zip(slow, results, strict=True):
        # What had its answer already is not given another.
        assert re.match(rb"HTTP/1.1 200 " if "nobody reads" in name else rb"HTTP/1.1 408 ", rest), (
            name,
            rest,
        )
        assert rest.count(b"HTTP/1.1") == 1, (name, rest)
        assert seconds > 4, name
    for name, (seconds, rest) in zip(silent, others, strict=True):
        # Half a request gets 408, unless the timer of idle connections comes first.
        told = name.endswith(("again", "second")) and rest.startswith(b"HTTP/1.1 408 ")
        assert rest == b"" or told, (name, rest)
        assert seconds > 4, name
    for peer in crowd:
        await peer.close()
    settled(brain, before)
