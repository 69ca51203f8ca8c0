"""One WebSocket, against every frame that a client may send.

A control client is connected throughout, and misses no message.
"""

import asyncio
import contextlib
import itertools
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from brain.server.limits import Limits
from tests.support.patience import PATIENCE
from tests.support.postgres import execute
from tests.support.served import Brain, served
from tests.support.wire import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    Baseline,
    Control,
    Frame,
    Peer,
    closing,
    frame,
    memory,
    request,
    settled,
)

LIMITS = Limits()
MAX_MESSAGE, BURST = LIMITS.max_message, int(LIMITS.frames.burst)

pytestmark = pytest.mark.usefixtures("undisturbed")


@pytest.fixture(scope="module")
def brain(shared: str) -> Iterator[Brain]:
    # The control client hears more often so, and no ping comes between what a test expects.
    with served(
        database_url=shared, flush_interval=0.005, ping_interval=3600, ping_timeout=7200
    ) as brain:
        yield brain


# What a client may not send (RFC 6455; the codes are of section 7.4.1)

LONE = b"\xed\xa0\x80"  # half a surrogate pair
BAD = b"caf\xff"

BROKEN: dict[str, tuple[bytes, int]] = {
    "unmasked": (frame(b"hello", masked=False), 1002),
    "opcode 3": (frame(b"", 3), 1002),
    "opcode 7": (frame(b"", 7), 1002),
    "opcode 11": (frame(b"", 11), 1002),
    "opcode 15": (frame(b"", 15), 1002),
    "RSV1, which a deflated frame would have": (frame(b"hello", rsv=4), 1002),
    "RSV2": (frame(b"hello", rsv=2), 1002),
    "RSV3": (frame(b"hello", rsv=1), 1002),
    "fragmented ping": (frame(b"x", PING, fin=False), 1002),
    "fragmented close": (frame(struct.pack("!H", 1000), CLOSE, fin=False), 1002),
    "ping of 126 bytes": (frame(b"x" * 126, PING), 1002),
    "pong of 126 bytes": (frame(b"x" * 126, PONG), 1002),
    "close of 126 bytes": (closing(1000, b"x" * 124), 1002),
    "close of one byte": (frame(b"\x03", CLOSE), 1002),
    **{
        f"close with {code}": (closing(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535)
    },
    "continuation of nothing": (frame(b"x", CONT), 1002),
    "text within a message": (frame(b"x", fin=False) + frame(b"y"), 1002),
    "close within a message": (frame(b"x", fin=False) + closing(1000), 1002),
    "invalid UTF-8": (frame(BAD), 1007),
    "half a surrogate pair": (frame(LONE), 1007),
    "UTF-8 that breaks off": (frame("é".encode()[:1]), 1007),
    "invalid UTF-8 across fragments": (
        frame("é".encode()[:1], fin=False) + frame(b"e", CONT),
        1007,
    ),
    "invalid UTF-8 in a message without an end": (frame(BAD, fin=False), 1007),
    "UTF-8 that breaks off with the last fragment": (
        frame("é".encode()[:1], fin=False) + frame(b"", CONT),
        1007,
    ),
    "invalid UTF-8 in the reason of a close": (closing(1000, BAD), 1007),
    "a header of 1 GiB": (frame(length=1 << 30), 1009),
    "a header of 2^63": (frame(length=1 << 63), 1009),
    "a header of 2^64 - 1": (frame(length=(1 << 64) - 1), 1009),
    "a text too long by one": (frame(b"x" * (MAX_MESSAGE + 1)), 1009),
    "binary too long by one": (frame(b"x" * (MAX_MESSAGE + 1), BINARY), 1009),
    "a fragment too many": (frame(b"x" * MAX_MESSAGE, fin=False) + frame(b"x", CONT), 1009),
    "fragments without end": (
        frame(b"x", fin=False) + frame(b"x" * 100, CONT, fin=False) * 50,
        1009,
    ),
}


@pytest.mark.parametrize("sent", BROKEN)
async def test_a_broken_rule_ends_that_client_with_its_code(brain: Brain, sent: str) -> None:
    data, code = BROKEN[sent]
    async with await Peer.upgraded(brain.port) as peer:
        peer.send(data)
        assert (await peer.frames())[-1].code == code


@pytest.mark.parametrize(
    "sent", ["unmasked", "fragmented ping", "invalid UTF-8 across fragments", "a fragment too many"]
)
async def test_byte_by_byte_makes_no_difference(brain: Brain, sent: str) -> None:
    data, code = BROKEN[sent]
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        for byte in data:
            peer.send(bytes([byte]))
            await asyncio.sleep(0)
        assert await peer.farewell() == code


async def test_nothing_behind_a_frame_that_breaks_a_rule_is_read(brain: Brain) -> None:
    """Whatever stands behind the frame that broke a rule is not looked at (RFC 6455, 7.1.7)."""
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        peer.send(frame(b"ping") + frame(b"", 3) + frame(b"ping") * 20 + closing(1000))
        assert await peer.frames() == [
            Frame(TEXT, b"pong"),
            Frame(CLOSE, b"\x03\xeainvalid opcode"),
        ]


async def test_the_rest_of_a_message_that_is_not_utf8_is_ignored(brain: Brain) -> None:
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        peer.send(frame(BAD, fin=False) + frame(b"ping", CONT) + frame(b"ping"))
        assert [found.opcode for found in await peer.frames()] == [CLOSE]


async def test_a_pong_does_not_wait_for_what_follows_its_ping(brain: Brain) -> None:
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        peer.send(frame(b"pi", fin=False) + frame(b"between", PING) + frame(b"ng", CONT))
        assert [await peer.frame(), await peer.frame()] == [
            Frame(PONG, b"between"),
            Frame(TEXT, b"pong"),
        ]


# What it may


async def test_every_message_but_ping_is_ignored(brain: Brain) -> None:
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        peer.send(
            frame(b"hello")
            + frame(b"x" * MAX_MESSAGE)
            + frame(b"ping", BINARY)
            + frame(b"pinG")
            + frame()
        )
        peer.send(frame("z\u00e9ro \U0001f600".encode()) + frame(bytes(range(256)), BINARY))
        peer.send(frame(b"x", fin=False) + frame(b"", CONT, fin=False) * 3 + frame(b"y", CONT))
        peer.send(frame(b"ping"))
        assert await peer.frame() == Frame(TEXT, b"pong")
        peer.send(frame(b"pi", fin=False) + frame(b"between", PING) + frame(b"ng", CONT))
        assert {await peer.frame(), await peer.frame()} == {
            Frame(PONG, b"between"),
            Frame(TEXT, b"pong"),
        }


@pytest.mark.parametrize("payload", [b"", b"hello", bytes(125)])
async def test_a_ping_is_answered_with_its_payload(brain: Brain, payload: bytes) -> None:
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        peer.send(frame(payload, PING))
        assert await peer.frame() == Frame(PONG, payload)
        peer.send(frame(payload, PONG) + frame(b"ping"))  # a pong that nobody asked for is no fault
        assert await peer.frame() == Frame(TEXT, b"pong")


@pytest.mark.parametrize(
    "payload",
    [b"", *(struct.pack("!H", code) for code in (1000, 1001, 1014, 3000, 4999)), b"\x03\xe8bye"],
)
async def test_a_close_is_answered_with_its_own_code(brain: Brain, payload: bytes) -> None:
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        peer.send(frame(payload, CLOSE) + frame(b"ping"))
        assert await peer.frames() == [Frame(CLOSE, payload)]


async def test_a_client_that_just_ends_its_stream_is_closed(brain: Brain) -> None:
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        peer.writer.write_eof()
        assert await peer.frames() == []


async def test_frames_in_the_segment_of_the_request_are_not_lost(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        peer.send(
            request("/ws?run_id=nobody")
            + frame(b"ping")
            + frame(b"x", PING)
            + frame(b"y", PING)[:3]
        )
        assert (await peer.answer()).status == 101
        assert {await peer.frame(), await peer.frame()} == {Frame(TEXT, b"pong"), Frame(PONG, b"x")}
        peer.send(frame(b"y", PING)[3:])
        assert await peer.frame() == Frame(PONG, b"y")


async def test_a_request_and_frames_byte_by_byte_are_understood(brain: Brain) -> None:
    async with await Peer.open(brain.port) as peer:
        for byte in (
            request("/ws?run_id=nobody") + frame(b"ping") + frame(b"x", PING) + closing(4000)
        ):
            peer.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await peer.answer()).status == 101
        *answers, close = await peer.frames()
        # In either order: what came in one piece is answered by the protocol behind what Brain
        # itself says to it.
        assert sorted(answers) == sorted([Frame(TEXT, b"pong"), Frame(PONG, b"x")])
        assert close == Frame(CLOSE, b"\x0f\xa0")


# Floods

FLOODS = {
    "texts": frame(b"hello"),
    "pings": frame(b"", PING),
    "full pings": frame(bytes(125), PING),
    "pongs": frame(b"", PONG),
    "hellos": frame(b"ping"),
    "empty continuations": frame(b"", CONT, fin=False),
    "long texts": frame(b"x" * MAX_MESSAGE),
}


@pytest.mark.parametrize("sent", FLOODS)
async def test_a_flood_is_closed_at_the_frame_rate(
    brain: Brain, control: Control, sent: str
) -> None:
    many = FLOODS[sent] * (100_000 if len(FLOODS[sent]) < 200 else 2_000)
    if "continuations" in sent:
        many = frame(b"x", fin=False) + many
    with control.undisturbed():
        for _ in range(10):
            async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
                peer.send(many)
                got = await peer.frames()
                assert len(got) <= 300, "the answers are bounded too"
                # It has only a moment to read why, which a busy machine may not leave to it.
                if got and got[-1].opcode == CLOSE:
                    assert got[-1].code == 1008
                    return
    pytest.fail("it is never told why")


def flood_on(port: int) -> tuple[int, float, bytes]:
    """Of a client that goes on when it was cut off: the bytes that were taken, the seconds until
    its end, what it was told.
    """
    sent, began = 0, time.monotonic()
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(request("/ws?run_id=nobody"))
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < began + PATIENCE:
                sent += sock.send(bytes(1 << 20))
        return sent, time.monotonic() - began, sock.recv(65536)


async def test_a_client_that_floods_on_after_its_close_frame_is_not_read(
    brain: Brain, control: Control
) -> None:
    """It was, by gigabytes, to be thrown away; and who else came had to wait."""
    with control.undisturbed():
        sent, seconds, told = await asyncio.to_thread(flood_on, brain.port)
    assert sent < 64 << 20, "what the kernel holds, at the most"
    assert LIMITS.discard_timeout <= seconds < PATIENCE, (
        "it could see why, and was not kept for ever"
    )
    assert told.startswith(b"HTTP/1.1 101 ")
    assert (1002).to_bytes(2) in told


async def test_a_client_below_the_frame_rate_stays(brain: Brain) -> None:
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        peer.send(frame(b"ping") * (BURST - 5))
        for _ in range(BURST - 5):
            assert await peer.frame() == Frame(TEXT, b"pong")
        for _ in range(8):
            await asyncio.sleep(0.06)
            peer.send(frame(b"ping"))
            assert await peer.frame() == Frame(TEXT, b"pong")


@pytest.mark.faults
async def test_many_floods_at_once_disturb_nobody(brain: Brain, control: Control) -> None:
    with control.undisturbed():
        peers = [await Peer.upgraded(brain.port, "/ws?run_id=nobody") for _ in range(50)]
        for peer in peers:
            peer.send(frame(b"", PING) * 20_000)
        assert [await peer.farewell() for peer in peers] == [1008] * 50
        for peer in peers:
            await peer.close()


async def test_the_close_reason_of_a_client_is_not_logged_raw(brain: Brain) -> None:
    async with await Peer.upgraded(brain.port, "/ws?run_id=nobody") as peer:
        peer.send(closing(1000, b'\x1b[31mred\r\nforged level=error" \x00\xe2\x80\xae'))
        assert (await peer.farewell()) == 1000
    brain.wait_for("31mred")
    assert all(character.isprintable() or character == "\n" for character in brain.log())


# Coming and going


@pytest.mark.faults
async def test_hundreds_of_clients_connect_and_leave_nothing(
    brain: Brain, before: Baseline
) -> None:
    """By a close, by FIN, by RST, in the middle of the request, in the middle of a frame."""
    head = request("/ws?run_id=nobody")

    async def once(number: int) -> None:
        match number % 8:
            case 0:
                peer = await Peer.open(brain.port)
                peer.send(head[: number % len(head)])
            case 1:
                peer = await Peer.open(brain.port)
                peer.send(head)
                await asyncio.sleep(0)
            case 2:
                peer = await Peer.open(brain.port)
                peer.send(head + frame(b"hello")[:5])
            case 3:
                peer = await Peer.upgraded(brain.port)
                peer.send(closing(1000))
                assert (await peer.frames())[-1].code == 1000
            case _:
                peer = await Peer.upgraded(brain.port, "/ws?snapshot=true")
                peer.send(frame(b"ping")[: number % 11])
        if number % 2:
            peer.reset()
        else:
            await peer.close()

    await asyncio.gather(*map(once, range(200)))
    settled(brain, before)
    used = memory(brain.process.pid)
    began = time.monotonic()
    for first in range(0, 2_000, 200):
        await asyncio.gather(*map(once, range(first, first + 200)))
    print(f"{2000 / (time.monotonic() - began):.0f} connections/s")
    settled(brain, before)
    assert memory(brain.process.pid) - used < 4 << 20


# Those who stop reading


@pytest.mark.faults
async def test_a_client_that_stalls_during_a_storm_disturbs_nobody_and_catches_up(
    brain: Brain, shared: str
) -> None:
    runs = 150
    insert = (
        "INSERT INTO runs (id, status)"
        " SELECT 'storm-' || i, 'completed' FROM generate_series(1, %s) i"
    )

    async def storm() -> None:
        steps = (
            "'queued', progress = NULL",
            "'running'",
            *["'running', progress = coalesce(progress, 0) + 7"] * 4,
            "'completed'",
        )
        for step in steps:
            await asyncio.to_thread(
                execute, shared, f"UPDATE runs SET status = {step} WHERE id LIKE 'storm-%'"
            )
            await asyncio.sleep(0.03)  # or conflation would take all the progress

    async def heard(peer: Peer) -> dict[str, list[tuple[str, float | None]]]:
        """The states of each run, in their order, up to the mark."""
        found: dict[str, list[tuple[str, float | None]]] = {}
        while "storm-end" not in found:
            data = (await peer.message())["data"]
            if data["id"].startswith("storm-"):
                found.setdefault(data["id"], []).append((data["status"], data.get("progress")))
        return found

    healthy = [
        await Peer.upgraded(brain.port, "/ws?status=queued&status=running&status=completed")
        for _ in range(20)
    ]
    healthy += [await Peer.upgraded(brain.port, "/ws") for _ in range(20)]
    execute(shared, insert, runs)
    await storm()  # what grows only once has grown
    stalled = [await Peer.upgraded(brain.port, "/ws", rcvbuf=4096) for _ in range(20)]
    for peer in stalled:
        peer.stall()
    lags, before = brain.metric("brain_lags_total"), memory(brain.process.pid)
    for _ in range(4):
        await storm()
    assert brain.metric("brain_clients_lagging") == len(stalled)
    assert brain.get("/readyz")[1]["lagging"] == len(stalled)
    grown = memory(brain.process.pid) - before
    print(f"{grown / len(stalled) / 1024:.0f} KB for each that stalls")
    assert grown < len(stalled) * 64 * 1024

    execute(shared, "INSERT INTO runs (id) VALUES ('storm-end')")
    rows = execute(shared, "SELECT id, status, progress FROM runs WHERE id LIKE 'storm-%'")
    truth = {run_id: (status, progress) for run_id, status, progress in rows}
    for peer in healthy:
        seen = await heard(peer)
        assert {run_id: states[-1] for run_id, states in seen.items()} == truth
        del seen["storm-end"]
        for states in seen.values():
            statuses = [status for status, _ in itertools.groupby(status for status, _ in states)]
            assert statuses == ["completed"] + ["queued", "running", "completed"] * 5
    for peer in stalled:
        peer.wake()
    for peer in stalled:
        seen = await heard(peer)
        assert {run_id: states[-1] for run_id, states in seen.items()} == truth
        assert sum(map(len, seen.values())) < 4 * 7 * runs * 0.75, (
            "the latest of each, and not all that was missed"
        )
    assert brain.metric("brain_clients_lagging") == 0
    assert brain.metric("brain_lags_total") - lags >= len(stalled)
    execute(shared, "UPDATE runs SET status = 'running' WHERE id = 'storm-end'")
    for peer in (*healthy, *stalled):
        assert await heard(peer) == {"storm-end": [("running", None)]}
        await peer.close()
