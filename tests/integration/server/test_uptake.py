"""Which clients count as dead: those that send nothing and take nothing.

In this process, on uvloop and real sockets, with short timeouts.
"""

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from brain.server.uptake import is_stalled, uptake
from tests.integration.server.test_listener import on_uvloop
from tests.support.in_process_server import InProcessServer, in_process_server
from tests.support.patience import eventually, within
from tests.support.wire import TEXT, Peer, frame, get, request

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 40


class Slow:
    """A client that reads a byte at a time, with a small buffer, and may send pings."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.sock = peer.writer.get_extra_info("socket")
        self.taken = bytearray()

    @classmethod
    async def open(cls, port: int, data: bytes) -> "Slow":
        peer = await Peer.open(port, rcvbuf=4096)
        peer.stall()
        peer.send(data)
        return cls(peer)


async def fill(it: InProcessServer, stalled: int = 1) -> None:
    """Push until this many clients lag."""
    while it.hub.lagging < stalled:
        for number in range(RUNS):
            it.change(f"run-{number}", error="x" * 8000)
        await asyncio.sleep(0.01)


async def last_states(peer: Peer) -> dict[str, str]:
    """The status of each run once the run `last` has arrived."""
    states: dict[str, str] = {}
    while "last" not in states:
        got = await peer.frame()
        if got.opcode == TEXT and got.payload != b"pong":
            data = json.loads(got.payload)["data"]
            states[data["id"]] = data["status"]
    return states


@on_uvloop
async def test_a_client_that_sends_but_does_not_read_stays_and_ends_with_the_right_state() -> None:
    async with in_process_server(patience=within(0.5), ping_interval=within(0.05)) as it:
        talking = await Slow.open(it.port, request())
        await eventually(lambda: it.hub.clients)
        await fill(it)
        mute = await Slow.open(it.port, request())
        await eventually(lambda: it.hub.clients == 2)
        await fill(it, 2)

        async def talk() -> None:
            while True:
                talking.peer.send(frame(b"ping"))
                await asyncio.sleep(0.06)

        task = asyncio.create_task(talk())
        await eventually(lambda: it.hub.clients == 1, seconds=within(60))
        began = time.monotonic()
        while time.monotonic() - began < within(1):  # twice as long as a silent one may be
            assert it.hub.clients == 1, "the one that sends is still there"
            await asyncio.sleep(0.05)
        for number in range(RUNS):
            it.change(f"run-{number}", "completed")
        it.change("last", "completed")
        talking.peer.wake()
        assert (await talking.peer.answer()).status == 101
        states = await last_states(talking.peer)
        assert set(states.values()) == {"completed"}
        assert len(states) == RUNS + 1
        assert it.state.rejections.counts["silence"] == 1
        task.cancel()
        for each in (talking, mute):
            await each.peer.close()


@on_uvloop
async def test_a_client_that_reads_little_by_little_and_sends_nothing_stays() -> None:
    """Its pongs never come: the pings wait behind messages that take it longer than the timeout."""
    async with in_process_server(patience=within(1), ping_interval=within(0.2)) as it:
        slow = await Slow.open(it.port, request())
        await eventually(lambda: it.hub.clients)
        await fill(it)
        loop, sock = asyncio.get_running_loop(), slow.sock.dup()
        sock.setblocking(False)
        began = time.monotonic()
        while time.monotonic() - began < within(4):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(loop.sock_recv(sock, 2048), 0.5)
            await asyncio.sleep(0.02)
            assert it.hub.clients == 1, it.state.rejections.counts
        sock.close()
        counts = it.state.rejections.counts
        assert counts["silence"] == 0
        await eventually(lambda: counts["silence"] == 1)  # it stopped reading
        assert not it.hub.clients
        await slow.peer.close()


async def _page(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * (4 << 20)})


@on_uvloop
async def test_an_answer_that_nobody_reads_ends_its_connection_and_a_slow_reader_gets_it() -> None:
    async with in_process_server(app=_page, patience=within(1), ping_interval=within(0.2)) as it:
        data = get("/", "localhost", "Connection: close")
        slow, stalled = await Peer.open(it.port), await Slow.open(it.port, data)
        slow.stall()
        slow.send(data)
        await eventually(lambda: sum(http.unsent > 0 for http in it.state.http) == 2)
        size = 0
        while len(it.state.http) == 2:
            slow.wake()
            size += len(await slow.reader.read(20_000))
            slow.stall()
            await asyncio.sleep(0.1)
        assert it.state.rejections.counts["silence"] == 1
        slow.wake()
        size += len(await slow.rest())
        assert size > 4 << 20
        await slow.close()
        await stalled.peer.close()


class Transport:
    """Without a socket of the kernel, as on another system than Linux."""

    unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, _: str) -> None:
        return None


class Client:
    heard = 0.0
    taken: int | None = None


@pytest.mark.parametrize(
    ("sizes", "stalled", "heard"),
    [
        ([0, 0], [True, True], 0),  # silent, and nothing waits for it
        ([9, 9, 9], [False, True, True], 0),
        ([9, 8], [False, False], 2),
        ([9, 0, 0], [False, False, True], 2),
        ([9, 8, 8, 7], [False, False, True, False], 4),
    ],
)
def test_a_client_is_stalled_if_what_waits_for_it_does_not_shrink(
    sizes: list[int], stalled: list[bool], heard: int
) -> None:
    transport: Any = Transport()
    client = Client()
    found = []
    for now, transport.unsent in enumerate(sizes, 1):
        found.append(is_stalled(client, transport, now))
    assert found == stalled
    assert client.heard == heard


@on_uvloop
async def test_what_the_kernel_takes_for_a_client_that_hangs_is_no_uptake() -> None:
    async with in_process_server() as it:
        peer = await Peer.upgraded(it.port)
        peer.stall()
        it.change("a")
        await asyncio.sleep(0.1)
        assert uptake(it.connections[0]._transport) is None
        await fill(it)
        assert uptake(it.connections[0]._transport) is not None
        await peer.close()


@on_uvloop
async def test_a_lost_connection_that_waits_to_be_taken_down_is_not_pinged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with in_process_server() as it:
        connections = it.state.connections

        def ping_all() -> None:
            for share in range(len(connections.shares)):
                connections.sweep(share)

        peer = await Peer.open(it.port)
        peer.send(request())
        await eventually(lambda: it.hub.clients)
        ping_all()
        ping_all()  # it has not answered
        waiting: list[Callable[[], object]] = []
        monkeypatch.setattr(connections.queue, "add", waiting.append)
        peer.reset()
        await eventually(lambda: waiting)
        await asyncio.sleep(0.01)  # the transport closes its socket in a later turn
        with capture_logs() as lines:
            ping_all()
        assert not lines
        for take_down in waiting:
            take_down()
