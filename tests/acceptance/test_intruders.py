"""What an attacker tries, by HTTP and by WebSocket, against a Brain as its own process;
and the clients that must get in.

The tests beside each module cover the details of its rules.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
import psutil
import psycopg
import pytest
from websockets.asyncio.client import connect

from brain.access.addresses import NETWORKS
from brain.access.rate_limit import LINES
from tests.support import ROOT
from tests.support.patience import PATIENCE, eventually
from tests.support.served import Brain, served
from tests.support.wire import (
    CLOSE,
    CONT,
    PING,
    TEXT,
    Control,
    Frame,
    Peer,
    frame,
    get,
    memory,
    request,
)

NODE = ROOT / "tests/support/node" / "node_modules"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

pytestmark = [pytest.mark.usefixtures("undisturbed"), pytest.mark.long]


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    """With the settings that nobody has touched, but for the port."""
    with served(database_url=shared, max_connections_per_ip="") as brain:
        yield brain


@pytest.fixture(scope="module")
def strict(shared: str) -> Iterator[Brain]:
    """Behind a proxy at 127.0.0.5, and for few."""
    networks = "127.0.0.1/32,127.0.0.5/32,127.0.0.6/32,10.0.0.0/8"
    with served(
        database_url=shared,
        allowed_networks=networks,
        trusted_proxies="127.0.0.5/32",
        max_connections=2,
    ) as strict:
        yield strict


def addresses() -> list[str]:
    """Of this machine, but for loopback and what needs a zone."""
    found = [each.address for every in psutil.net_if_addrs().values() for each in every]
    found = [
        text
        for text in found
        if re.fullmatch(r"[0-9.]+|[0-9a-f:]*::?[0-9a-f:]*", text) and "%" not in text
    ]
    return [text for text in found if text.count(":") != 5 and not ip_address(text).is_loopback]


def allowed(text: str) -> bool:
    return any(ip_address(text) in network for network in NETWORKS)


def rejections(brain: Brain) -> dict[str, float]:
    found = re.findall(
        r'^brain_rejections_total\{code="(\w+)"\} (\S+)$', brain.get("/metrics")[1], re.MULTILINE
    )
    return {code: float(count) for code, count in found}


async def refused(
    brain: Brain,
    sent: bytes,
    status: int,
    code: str,
    *,
    host: str = "127.0.0.1",
    local: str | None = None,
) -> str:
    """Brain answers with this status, counts one rejection under this code, and gives a reason."""
    counted = rejections(brain)[code]
    async with await Peer.open(brain.port, host=host, local=local) as peer:
        peer.send(sent)
        answer = await peer.answer()
        assert answer.status == status, answer
        said = answer.problem()
        assert len(said.split()) >= 4, said
        assert said.isascii()
        assert said.isprintable()
        assert (await peer.rest()) == b""
    assert rejections(brain)[code] == counted + 1
    return said


page = partial(get, "/metrics")
"""A plain request. Not of a health check, which is answered whatever Host it names."""

BOTH = pytest.mark.parametrize("ask", [request, page], ids=["ws", "http"])


def asking(ask: Any, *lines: str) -> bytes:
    """With these lines in the head; one that begins as a line that is there replaces it."""
    head = ask().decode("latin-1").split("\r\n")
    for line in lines:
        name = line.partition(":")[0]
        head = [each for each in head if not each.startswith(f"{name}:")]
    return "\r\n".join([head[0], *lines, *[each for each in head[1:] if each], "", ""]).encode(
        "latin-1"
    )


# Peers of other networks


@BOTH
async def test_a_peer_of_another_network_is_rejected(brain: Brain, strict: Brain, ask: Any) -> None:
    outside = [text for text in addresses() if not allowed(text)]
    for text in outside:  # such as the address of a server on the internet
        said = await refused(
            brain, asking(ask, "Host: localhost"), 403, "network", host=text, local=text
        )
        assert text in said
        assert "BRAIN_ALLOWED_NETWORKS" in said
    await refused(strict, asking(ask), 403, "network", local="127.0.0.2")


# A page on the internet, in a browser of this network

EVIL_ORIGINS = [
    "https://evil.example",
    "http://evil.example:5221",
    "null",
    "file://",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://localhost@evil.example",
    "http://evil.example#localhost",
    "http://127.0.0.1 .evil.example",
    "chrome-extension://abcdefghijklmnop",
    "http://0.0.0.0:5221",
    "http://2130706433",
    "http://8.8.8.8",
    "http://[2001:db8::1]",
    "ws://localhost:5221",
    "http://localhost:99999",
    "",
    "http://localh\xf6st",
    "x" * 3000,
]


@BOTH
@pytest.mark.parametrize("origin", EVIL_ORIGINS, ids=range(len(EVIL_ORIGINS)))
async def test_a_page_on_the_internet_is_rejected(brain: Brain, ask: Any, origin: str) -> None:
    await refused(brain, asking(ask, f"Origin: {origin}"), 403, "origin")


@BOTH
async def test_two_origins_are_rejected(brain: Brain, ask: Any) -> None:
    await refused(
        brain,
        asking(ask, "Origin: http://localhost\r\nOrigin: https://evil.example"),
        403,
        "origin",
    )
    await refused(
        brain, asking(ask, "Origin: http://localhost, https://evil.example"), 403, "origin"
    )


@BOTH
async def test_a_cross_site_request_without_an_origin_is_rejected(brain: Brain, ask: Any) -> None:
    """An image or a script of another site's: the answer stays hidden, but work would be done and
    time could be measured.
    """
    said = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image")
    await refused(brain, asking(ask, *said), 403, "cross_site")


CROSS = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate")


@pytest.mark.parametrize("more", [(), ("Sec-Fetch-Dest: document", "Sec-Fetch-User: ?1")])
async def test_a_link_may_be_followed(brain: Brain, more: tuple[str, ...]) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(asking(get, *CROSS, *more, "Connection: close"))
        assert (await peer.answer()).status == 200


@pytest.mark.parametrize("inside", ["iframe", "frame", "object", "embed"])
async def test_a_page_may_not_be_framed(brain: Brain, inside: str) -> None:
    """/docs in an invisible frame: where the visitor believes to click on something else, a run
    would be made.
    """
    await refused(brain, asking(get, *CROSS, f"Sec-Fetch-Dest: {inside}"), 403, "cross_site")


# DNS rebinding: a page whose own name resolves to 127.0.0.1

EVIL_HOSTS = {
    "evil.example": 421,
    "evil.example:5221": 421,
    "localhost.evil.example": 421,
    "127.0.0.1.evil.example": 421,
    "brain:5221": 421,
    "2130706433": 421,
    "0x7f.1": 421,
    "8.8.8.8": 421,
    "[2001:db8::1]": 421,
    "": 400,
    "localhost, evil.example": 400,
    "localhost\r\nHost: evil.example": 400,
    "localhost@evil.example": 400,
    "localhost/": 400,
    "localhost#": 400,
    "[::1": 400,
    "localhost:port": 400,
    "x" * 3000: 400,
}


@BOTH
@pytest.mark.parametrize("host", EVIL_HOSTS, ids=range(len(EVIL_HOSTS)))
async def test_a_rebound_name_is_rejected(brain: Brain, ask: Any, host: str) -> None:
    status = EVIL_HOSTS[host]
    code = "host" if status == 421 else "host_header"
    said = await refused(brain, asking(ask, f"Host: {host}"), status, code)
    if host == "brain:5221":
        assert "a service of docker compose" in said
        assert "BRAIN_ALLOWED_HOSTS=brain" in said


@BOTH
async def test_a_missing_host_and_a_foreign_host_in_the_target_are_rejected(
    brain: Brain, ask: Any
) -> None:
    await refused(brain, ask().replace(b"Host: localhost\r\n", b""), 400, "host_header")
    path = ask().split()[1]
    await refused(brain, ask().replace(path, b"http://evil.example" + path), 421, "host")
    await refused(
        brain,
        ask().replace(path, b"//evil.example" + path, 1).replace(b"localhost", b"evil.example"),
        421,
        "host",
    )


# A forged X-Forwarded-For


@BOTH
async def test_a_forged_x_forwarded_for_is_not_believed(
    brain: Brain, strict: Brain, ask: Any
) -> None:
    async with await Peer.open(
        brain.port
    ) as peer:  # of no proxy of ours: not believed, neither for nor against
        peer.send(
            asking(ask, "X-Forwarded-For: 8.8.8.8", "Forwarded: for=8.8.8.8", "X-Real-IP: 8.8.8.8")
        )
        assert (await peer.answer()).status in (101, 200)
    for way in (
        "8.8.8.8",
        "127.0.0.1, 8.8.8.8",
        "10.0.0.1\r\nX-Forwarded-For: 8.8.8.8",
        "8.8.8.8, 127.0.0.5",
    ):
        await refused(
            strict, asking(ask, f"X-Forwarded-For: {way}"), 403, "network", local="127.0.0.5"
        )
    for way in ("unknown", "10.0.0.1, _hidden", "10.0.0.1, 300.1.1.1", "x" * 2000):
        await refused(
            strict, asking(ask, f"X-Forwarded-For: {way}"), 400, "forwarded", local="127.0.0.5"
        )
    for way, local in (("8.8.8.8, 10.0.0.1", "127.0.0.5"), ("8.8.8.8", "127.0.0.6")):
        async with await Peer.open(strict.port, local=local) as peer:
            peer.send(asking(ask, f"X-Forwarded-For: {way}"))
            assert (await peer.answer()).status in (101, 200)


# More than a fair share


@BOTH
async def test_one_connection_too_many_of_an_address_is_rejected(brain: Brain, ask: Any) -> None:
    peers = [await Peer.upgraded(brain.port, local="127.0.0.44") for _ in range(100)]
    said = await refused(brain, ask(), 429, "connections_per_ip", local="127.0.0.44")
    assert "BRAIN_MAX_CONNECTIONS_PER_IP" in said
    before = brain.metric("brain_connections")
    peers.pop().reset()
    await eventually(lambda: brain.metric("brain_connections") < before)
    async with await Peer.open(brain.port, local="127.0.0.44") as peer:
        peer.send(ask())
        assert (await peer.answer()).status in (101, 200)
    for peer in peers:
        await peer.close()


async def test_one_client_too_many_in_all_is_rejected(strict: Brain) -> None:
    async with await Peer.upgraded(strict.port), await Peer.upgraded(strict.port):
        said = await refused(strict, request(), 503, "connections")
        assert "BRAIN_MAX_CONNECTIONS" in said


async def test_an_address_that_opens_too_many_websockets_waits_and_no_other_does(
    brain: Brain, control: Control
) -> None:
    async def churn(local: str, seconds: float) -> list[int]:
        found: list[int] = []
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            async with await Peer.open(brain.port, local=local) as peer:
                peer.send(request("/ws?run_id=nobody"))
                found.append((await peer.answer()).status)
                peer.reset()
        return found

    with control.undisturbed():
        began = time.monotonic()
        crowd = await asyncio.gather(*(churn("127.0.0.45", 2.0) for _ in range(30)))
        seconds = time.monotonic() - began
        found = [status for each in crowd for status in each]
        assert set(found) == {101}
        assert len(found) <= 1000 + 500 * seconds, "never more than the burst and the rate"
        async with await Peer.upgraded(brain.port, local="127.0.0.46"):
            pass


# A form of another site


@pytest.mark.parametrize("method", ["POST", "PATCH"])
async def test_a_form_of_another_site_is_rejected(brain: Brain, method: str) -> None:
    body = '{"id":"forged"}'
    path = "/api/runs/forged" if method == "PATCH" else "/api/runs"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    evil = "Origin: https://evil.example\r\n"
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json",
    ):
        await refused(
            brain, f"{head}{evil}Content-Type: {kind}\r\n\r\n{body}".encode(), 403, "origin"
        )
    # An old browser, or a page that is allowed to: what can be sent without asking is not taken.
    for kind in (
        "Content-Type: text/plain;application/json\r\n",
        "Content-Type: application/x-www-form-urlencoded\r\n",
        "",
    ):
        async with await Peer.open(brain.port) as peer:
            peer.send(f"{head}{kind}Connection: close\r\n\r\n{body}".encode())
            assert (await peer.answer()).status == 415
    assert brain.get("/api/runs/forged")[0] == 404


# Secrets and control characters


@BOTH
async def test_nothing_raw_is_logged(brain: Brain, ask: Any) -> None:
    secret = "hunter2hunter2"
    path = ask().split()[1]
    evil = f"\x1b[31m\x9b31m\x07\x85 level=error event=forged {secret}"
    for head in (
        asking(ask, f"Origin: http://x{evil}"),
        asking(ask, f"X-Secret: {secret}", "Origin: https://evil.example"),
        asking(ask, f"Cookie: session={secret}", "Host: evil.example"),
        asking(ask, f"Authorization: Bearer {secret}", "Host: evil.example"),
        asking(ask, f"Sec-WebSocket-Protocol: bearer, {secret}", "Host: evil.example"),
        ask().replace(path, path + f"?{secret}".encode()),
        ask().replace(path, path + f"?token={secret}&run_id={secret}".encode()),
        ask().replace(path, path + f"?since={secret}".encode()),
        ask().replace(path, f"foo?token={secret}".encode()),
        ask().replace(path, f"/elsewhere?token={secret}".encode()),
        ask(**{"X-A": evil}) if ask is request else asking(ask, f"X-A: {evil}"),
    ):
        async with await Peer.open(brain.port) as peer:
            peer.send(
                head.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") if ask is get else head
            )
            await peer.answer()
    log = brain.log()
    # An Origin and a path are quoted, in ASCII: whoever runs Brain has to know them. A query never
    # is.
    assert all("code=origin" in line for line in log.splitlines() if secret in line)
    assert f"token={secret}" not in log
    assert f"Bearer {secret}" not in log
    assert all(character.isprintable() or character == "\n" for character in log)
    assert not re.search(r"^(?!timestamp=).*forged", log, re.MULTILINE), "a line cannot be forged"


async def test_a_flood_of_rejections_is_a_few_lines(brain: Brain) -> None:
    counted, lines = rejections(brain)["cross_site"], brain.log().count("code=cross_site")
    ask = asking(get, "Sec-Fetch-Site: cross-site")
    began = time.monotonic()

    async def rejected() -> None:
        async with await Peer.open(brain.port, local="127.0.0.47") as peer:
            peer.send(ask)
            assert (await peer.answer()).status == 403

    for _ in range(8):  # one by one they are too slow to be a flood, on a busy machine
        await asyncio.gather(*(rejected() for _ in range(50)))
    assert rejections(brain)["cross_site"] == counted + 400
    brain.wait_for(r"code=cross_site.* left_out=|left_out=\d+ code=cross_site")
    lines = brain.log().count("code=cross_site") - lines
    assert lines <= LINES.burst + LINES.rate * (time.monotonic() - began)


# To block it

HEAD = b" HTTP/1.1\r\nHost: localhost\r\n"
MEGABYTES = b"100000\r\n" + b" " * 0x100000 + b"\r\n"

STUCK: dict[str, tuple[bytes, int, str]] = {
    "20 MB of headers": (b"GET /ws" + HEAD + b"X: " + b"x" * 20_000_000, 431, "head_size"),
    "2 000 headers": (b"GET /ws" + HEAD + b"X-Y: zzzz\r\n" * 2000, 431, "head_size"),
    "a 9 kB URL": (get("/" + "x" * 9000), 414, "url_size"),
    "a 9 kB URL of an upgrade": (request("/ws?run_id=" + "x" * 9000), 414, "url_size"),
    "a body of 3 MB": (
        b"POST /api/runs"
        + HEAD
        + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        + MEGABYTES * 3,
        413,
        "body_size",
    ),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "malformed"),
}


@pytest.mark.parametrize("name", STUCK)
async def test_a_request_without_end_is_rejected(brain: Brain, name: str) -> None:
    sent, status, code = STUCK[name]
    held = memory(brain.process.pid)
    counted = rejections(brain)[code]
    async with await Peer.open(brain.port, local="127.0.0.48") as peer:
        peer.send(sent)
        assert (await peer.answer()).status == status
    if name.startswith("a body"):
        return  # either the API or the HTTP protocol answers it
    assert rejections(brain)[code] == counted + 1
    assert memory(brain.process.pid) - held < 8 * 1024 * 1024


FRAMES: dict[str, tuple[bytes, int, str]] = {
    "unmasked": (frame(b"x", masked=False), 1002, "frame"),
    "a bad opcode": (frame(b"x", 0x3), 1002, "frame"),
    "a RSV bit": (frame(b"x", rsv=4), 1002, "frame"),
    "a fragmented ping": (frame(b"", PING, fin=False), 1002, "frame"),
    "a ping of 126 bytes": (frame(b"x" * 126, PING), 1002, "frame"),
    "a bad close code": (frame(b"\x03\xed", 0x8), 1002, "frame"),
    "no UTF-8": (frame(b"\xff"), 1007, "text"),
    "a frame of 1 GiB": (frame(b"", length=1 << 30), 1009, "message_size"),
    "a frame of 2^63": (frame(b"", length=(1 << 63) - 1), 1009, "message_size"),
    "fragments without end": (
        frame(b"x" * 512, fin=False) + frame(b"x" * 512, CONT, fin=False) * 20,
        1009,
        "message_size",
    ),
    "a flood of messages": (frame(b"x") * 50_000, 1008, "flood"),
    "a flood of pings": (frame(b"", PING) * 50_000, 1008, "flood"),
    "a flood of bytes": (frame(b"x" * 4000) * 200, 1008, "flood"),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
async def test_a_frame_that_breaks_a_rule_ends_its_client_alone(
    brain: Brain, control: Control, name: str
) -> None:
    sent, close_code, code = FRAMES[name]
    counted = rejections(brain)[code]
    with control.undisturbed():
        for tries in range(1, 11):
            async with await Peer.upgraded(
                brain.port, "/ws?run_id=nobody", local="127.0.0.49"
            ) as peer:
                peer.send(sent)
                got = await peer.frames()
            assert rejections(brain)[code] == counted + tries
            # One that goes on sending has only a moment to read why.
            if got and got[-1].opcode == CLOSE:
                assert got[-1].code == close_code
                return
    pytest.fail("it is never told why")


async def test_deflate_is_declined(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(
            request(
                "/ws?run_id=nobody",
                Sec_WebSocket_Extensions="permessage-deflate; server_no_context_takeover",
            )
        )
        assert "sec-websocket-extensions" not in (await peer.answer()).headers
        peer.send(frame(b"ping"))
        assert await peer.frame() == Frame(TEXT, b"pong")


async def test_a_client_that_floods_and_reconnects_costs_little_cpu(
    brain: Brain, control: Control
) -> None:
    """It floods, is closed, and reconnects as fast as it can, for 2 s."""
    process = psutil.Process(brain.process.pid)
    flood = frame(b"x" * 100) * 500
    with control.undisturbed():
        for turn in range(1000):
            if turn == 60:  # it has used up what is free
                times, began = process.cpu_times(), time.monotonic()
            if turn > 60 and time.monotonic() - began > 2:
                break
            async with await Peer.upgraded(
                brain.port, "/ws?run_id=nobody", local="127.0.0.50"
            ) as peer:
                peer.send(flood)
                await peer.farewell()
        after, seconds = process.cpu_times(), time.monotonic() - began
    share = (after.user + after.system - times.user - times.system) / seconds
    print(f"a client that floods and comes back took {share:.0%} of a core")
    assert share < 0.35, "a tenth on an idle machine, and without coverage"


@pytest.mark.faults
async def test_thousands_of_silent_connections_disturb_nobody(shared: str) -> None:
    silent: list[socket.socket] = []
    with served(database_url=shared, max_connections_per_ip=0) as crowded:
        start = memory(crowded.process.pid)
        try:
            for i in range(3000):
                each = socket.socket()
                each.setblocking(False)
                each.bind((f"127.0.1.{1 + i % 250}", 0))
                with pytest.raises(BlockingIOError):
                    each.connect(("127.0.0.1", crowded.port))
                silent.append(each)
            for _ in range(20):
                async with await Peer.upgraded(crowded.port):
                    pass
            await eventually(lambda: crowded.metric("brain_connections") == 1, pause=0.1)
            assert memory(crowded.process.pid) - start < 32 * 1024 * 1024
            assert rejections(crowded)["deadline"] >= 2900
        finally:
            for each in silent:
                each.close()


async def test_a_client_that_does_not_read_its_answer_holds_at_most_one_page(
    brain: Brain, shared: str
) -> None:
    with psycopg.connect(shared, autocommit=True) as conn:
        conn.execute(
            "INSERT INTO runs (id, status, error)"
            " SELECT 'long-' || i, 'failed', repeat('x', 8000) FROM generate_series(1, 1000) i"
        )
    held = memory(brain.process.pid)
    peers = []
    for _ in range(20):
        peer = await Peer.open(brain.port, local="127.0.0.51", rcvbuf=4096)
        peer.stall()
        peer.send(get("/api/runs?limit=1000&status=failed"))
        peers.append(peer)
    await asyncio.sleep(3)
    grown = memory(brain.process.pid) - held
    print(f"{grown / len(peers) / 1e6:.2f} MB for each of {len(peers)} that do not read")
    assert grown < 20 * 4 * 1024 * 1024
    for peer in peers:
        peer.reset()
    status, page = await asyncio.to_thread(brain.get, "/api/runs?limit=1000&status=failed")
    assert status == 200
    assert 0 < len(page["runs"]) < 200, "a page is bounded by its bytes"
    seen = [run["id"] for run in page["runs"]]
    while page["next_cursor"]:
        page = (
            await asyncio.to_thread(
                brain.get, f"/api/runs?limit=1000&status=failed&cursor={page['next_cursor']}"
            )
        )[1]
        seen += [run["id"] for run in page["runs"]]
    assert len(set(seen)) == len(seen)
    assert sum(run_id.startswith("long-") for run_id in seen) == 1000
    with psycopg.connect(shared, autocommit=True) as conn:
        conn.execute("DELETE FROM runs WHERE id LIKE 'long-%'")


# Clients that must get in: no false rejection


def hosts() -> list[str]:
    """Every name by which a neighbour may call this machine."""
    lan = [f"[{text}]" if ":" in text else text for text in addresses() if allowed(text)]
    return ["localhost", "127.0.0.1", "[::1]", *lan]


needs_node = pytest.mark.skipif(
    not (shutil.which("node") and NODE.is_dir()),
    reason="Node is not installed, or `make` has not installed tests/node",
)


@contextmanager
def nobody_is_rejected(brain: Brain) -> Iterator[None]:
    before = rejections(brain)
    yield
    assert rejections(brain) == before


async def ran(*command: str | Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return out.decode(errors="replace")


async def test_websockets_may_connect(brain: Brain) -> None:
    with nobody_is_rejected(brain):
        for host in hosts():
            async with connect(brain.url("?run_id=nobody", host), proxy=None) as client:
                await client.send("ping")
                assert await client.recv() == "pong"


async def test_aiohttp_may_connect(brain: Brain) -> None:
    with nobody_is_rejected(brain):
        async with aiohttp.ClientSession() as session:
            for host in hosts():
                async with session.ws_connect(brain.url("?run_id=nobody", host)) as client:
                    await client.send_str("ping")
                    assert await client.receive_str(timeout=PATIENCE) == "pong"
                async with session.get(f"http://{host}:{brain.port}/api/runs") as answer:
                    assert answer.status == 200


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
async def test_curl_may_connect(brain: Brain) -> None:
    with nobody_is_rejected(brain):
        for host in hosts():
            url = f"http://{host}:{brain.port}/api/runs"
            said = await ran("curl", "-sg", "--noproxy", "*", url)
            assert "runs" in json.loads(said), said
            name = f"curl-{len(host)}-{host.strip('[]')}"
            body = json.dumps({"id": name})
            said = await ran(
                "curl",
                "-sg",
                "--noproxy",
                "*",
                url,
                "-H",
                "Content-Type: application/json",
                "-d",
                body,
            )
            assert json.loads(said)["id"] == name, said


@needs_node
async def test_wscat_and_ws_of_node_may_connect(brain: Brain) -> None:
    program = """
        const WebSocket = require(process.argv[1]);
        for (const url of process.argv.slice(2)) {
          const ws = new WebSocket(url);
          ws.on('open', () => ws.send('ping'));
          ws.on('message', data => { console.log(String(data)); ws.close(); });
          ws.on('error', error => console.log(String(error)));
        }"""
    urls = [brain.url("?run_id=nobody", host) for host in hosts()]
    with nobody_is_rejected(brain):
        assert (await ran("node", "-e", program, NODE / "ws", *urls)).split() == ["pong"] * len(
            urls
        )
        for url in urls:
            said = await ran(
                NODE / ".bin" / "wscat", "-c", url, "-x", "ping", "-w", "1", "--no-color"
            )
            assert "pong" in said, said


# A real browser

PAGE = """<!doctype html><meta charset=utf-8><script>
const at = AT, next = NEXT;
const socket = url => new Promise(done => {
  const ws = new WebSocket(url);
  ws.onopen = () => ws.send('ping');
  ws.onmessage = message => { done(message.data); ws.close(); };
  ws.onclose = () => done('refused');
});
const reads = url => fetch(url).then(answer => String(answer.status), () => 'refused');
const shows = url => new Promise(done => {
  const image = new Image();
  image.onload = () => done('shown');
  image.onerror = () => done('refused');
  image.src = url;
});
(async () => {
  const found = [];
  for (const host of at) found.push(await socket('ws://' + host + '/ws?run_id=nobody'));
  if (location.hostname.endsWith('.example')) for (const host of at) {
    found.push(await reads('http://' + host + '/api/runs'));
    const post = {method: 'POST', body: '{"id":"by-browser"}'};
    found.push(await reads(new Request('http://' + host + '/api/runs', post)));
    found.push(await shows('http://' + host + '/api/runs'));
  }
  await fetch('/report?' + encodeURIComponent(JSON.stringify(found)));
  if (next) location.href = next;
})();
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt install chromium")
def test_a_browser_connects_from_a_page_of_this_network_and_not_of_the_internet(
    brain: Brain,
) -> None:
    """Pages of this machine, by each of its names, and one of evil.example, whose name has become
    127.0.0.1.
    """
    lan = hosts()[3:]
    names = ["localhost", "127.0.0.1", *lan, "evil.example"]
    reports: dict[str, list[str]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host, _, port = self.headers["Host"].rpartition(":")
            if self.path.startswith("/report?"):
                reports[host] = json.loads(unquote(self.path.partition("?")[2]))
                body = ""
            else:
                to = [*hosts(), "evil.example"] if host.endswith(".example") else [host]
                i = names.index(host) + 1
                onward = f"http://{names[i]}:{port}/" if i < len(names) else None
                body = PAGE.replace("AT", json.dumps([f"{each}:{brain.port}" for each in to]))
                body = body.replace("NEXT", json.dumps(onward))
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6

        def server_bind(self) -> None:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    assert CHROMIUM is not None
    with Server(("::", 0), Handler) as server, tempfile.TemporaryDirectory() as profile:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        flags = (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
        )
        more = (
            "disable-component-update",
            "disable-sync",
            f"user-data-dir={profile}",
            "no-proxy-server",
        )
        rules = ("host-resolver-rules=MAP evil.example 127.0.0.1",)
        command = [
            CHROMIUM,
            *(f"--{flag}" for flag in (*flags, *more, *rules)),
            f"http://localhost:{server.server_port}/",
        ]
        browser = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            until = time.monotonic() + PATIENCE
            while len(reports) < len(names) and time.monotonic() < until:
                time.sleep(0.05)
        finally:
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            server.shutdown()
            thread.join()
    assert {name: reports.get(name) for name in names[:-1]} == {
        name: ["pong"] for name in names[:-1]
    }
    assert set(reports.get("evil.example", [])) == {"refused"}
    assert len(reports["evil.example"]) == 4 * (len(hosts()) + 1)
    assert brain.get("/api/runs/by-browser")[0] == 404
