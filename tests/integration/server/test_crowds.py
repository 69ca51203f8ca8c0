"""What many clients do at the same moment: send, close, vanish.

In this process, on uvloop and real sockets. The clock of the work queue is one in which each call
takes half of a turn's budget.
"""

import asyncio
import itertools
import signal
from typing import Any

import pytest
from structlog.testing import capture_logs

from brain.access.jwks import Secret
from brain.access.tokens import Tokens
from brain.server.work_queue import BUDGET, WorkQueue
from tests.integration.server.test_listener import on_uvloop
from tests.support.in_process_server import InProcessServer, in_process_server
from tests.support.issuer import SECRET, token
from tests.support.patience import eventually
from tests.support.served import served
from tests.support.wire import BINARY, CLOSE, TEXT, Peer, closing, frame, get, request

CROWD = 20
MASK = b"\x11\x22\x33\x44"
"""Of `frame`."""


def slow_work(it: InProcessServer) -> None:
    """Each call takes two thirds of the budget: a turn makes two."""
    ticks = itertools.count()
    clock = lambda: next(ticks) * BUDGET * 2 / 3  # noqa: E731 - one expression
    it.state.connections.queue = WorkQueue(asyncio.get_running_loop(), clock)


def spend_turn(it: InProcessServer) -> None:
    """What comes now waits for the next turn."""
    slow_work(it)
    for _ in range(3):
        it.state.connections.queue.add(lambda: None)


async def closing_crowd(it: InProcessServer) -> list[Peer]:
    """Each has sent a close frame."""
    slow_work(it)
    peers = [await Peer.upgraded(it.port) for _ in range(CROWD)]
    for peer in peers:
        peer.send(closing(1000))
    return peers


async def half_closed(it: InProcessServer) -> list[Peer]:
    """The close frames of the others still wait."""
    peers = await closing_crowd(it)
    while it.hub.clients > CROWD // 2:
        await asyncio.sleep(0)
    return peers


async def sizes(it: InProcessServer) -> list[int]:
    """How many clients the hub has, turn by turn, until there are none."""
    seen = [it.hub.clients]
    while it.hub.clients:
        await asyncio.sleep(0)
        seen.append(it.hub.clients)
    return seen


@on_uvloop
async def test_close_frames_that_come_at_once_are_answered_in_several_turns() -> None:
    async with in_process_server() as it:
        peers = await closing_crowd(it)
        seen = await sizes(it)
        assert max(before - after for before, after in itertools.pairwise(seen)) <= 2
        for peer in peers:
            assert await peer.farewell() == 1000
            await peer.close()


@on_uvloop
async def test_a_client_whose_close_frame_waits_is_sent_what_changes_and_then_the_answer() -> None:
    async with in_process_server() as it:
        peers = await half_closed(it)
        it.change("a")
        opcodes = []
        for peer in peers:
            opcodes.append([each.opcode for each in await peer.frames()])
            await peer.close()
        assert opcodes[0] == [CLOSE]
        assert opcodes[-1] == [TEXT, CLOSE]


@on_uvloop
@pytest.mark.parametrize("reset", [False, True])
async def test_clients_that_close_and_vanish_at_once_leave_in_several_turns(reset: bool) -> None:
    async with in_process_server() as it:
        slow_work(it)
        peers = [await Peer.upgraded(it.port) for _ in range(CROWD)]
        with capture_logs() as lines:
            for peer in peers:
                peer.send(closing(1001))
            await asyncio.sleep(0)  # it is in the kernel
            for peer in peers:
                if reset:
                    peer.reset()
                else:
                    peer.writer.write_eof()
            seen = await sizes(it)
            if not reset:
                for peer in peers:
                    assert await peer.farewell() == 1001
            await eventually(lambda: not it.state.connections.closing)
        assert max(before - after for before, after in itertools.pairwise(seen)) <= 2
        ended = [line for line in lines if line["event"] == "client disconnected"]
        assert [line["code"] for line in ended] == [1001] * CROWD
        assert len(lines) == CROWD, "nothing else happened"
        for peer in peers:
            await peer.close()


@on_uvloop
async def test_clients_that_the_server_ends_while_their_bytes_wait_get_one_close_frame() -> None:
    async with in_process_server() as it:
        peers = await half_closed(it)
        for connection in it.connections:
            connection.end(4410, "start over")
        codes = []
        for peer in peers:
            codes.append([each.code for each in await peer.frames()])
            await peer.close()
        assert codes[0] == [1000]
        assert codes[-1] == [4410]


@on_uvloop
async def test_bytes_that_wait_are_read_in_their_order() -> None:
    async with in_process_server() as it, await Peer.upgraded(it.port) as peer:
        (connection,) = it.connections
        looks = frame(bytes(a ^ b for a, b in zip(b"\x8a\x80abcd", MASK * 2, strict=False)), BINARY)
        assert looks[6:8] == b"\x8a\x80", "the second part looks like a pong"
        for part in (looks[:6], looks[6:], frame(b"ping"), frame(b"ping")[:3], frame(b"ping")[3:]):
            connection.data_received(part)
        assert [(await peer.text()).payload for _ in range(2)] == [b"pong"] * 2


@on_uvloop
async def test_a_flood_does_not_wait_for_its_turn() -> None:
    async with in_process_server() as it, await Peer.upgraded(it.port) as peer:
        (connection,) = it.connections
        spend_turn(it)
        connection.data_received(frame(b"x"))
        assert it.hub.clients
        connection.data_received(frame(b"x") * 1000)
        assert not it.hub.clients
        assert await peer.farewell() == 1008


@pytest.mark.parametrize("ask", [request(), get("/"), b"no HTTP\r\n\r\n"])
@on_uvloop
async def test_requests_that_come_at_once_are_read_in_several_turns(ask: bytes) -> None:
    async with in_process_server() as it:
        peers = [await Peer.open(it.port) for _ in range(CROWD)]
        await eventually(lambda: len(it.state.waiting) == CROWD)
        spend_turn(it)
        for peer in peers:
            peer.send(ask)
        seen = [len(it.state.waiting)]
        while it.state.waiting:
            await asyncio.sleep(0)
            seen.append(len(it.state.waiting))
        assert max(before - after for before, after in itertools.pairwise(seen)) <= 2
        status = 400 if ask.startswith(b"no") else 101 if b"Upgrade" in ask else 204
        for peer in peers:
            assert (await peer.answer()).status == status
            await peer.close()


@on_uvloop
async def test_requests_that_wait_when_the_server_stops_are_answered() -> None:
    async with in_process_server() as it:
        peers = [await Peer.open(it.port) for _ in range(CROWD)]
        await eventually(lambda: len(it.state.waiting) == CROWD)
        spend_turn(it)
        for number, http in enumerate(list(it.state.waiting)):
            http.data_received(request() if number % 2 else get("/"))
        it.state.closing = True
        for http in list(it.state.http):
            http.shutdown()
        for number, peer in enumerate(peers):
            assert (await peer.answer()).status == (503 if number % 2 else 204)
            await peer.close()


@on_uvloop
async def test_a_request_whose_client_ends_its_stream_at_once_is_read() -> None:
    asked = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del receive, send
        asked.append(scope["path"])

    async with in_process_server(app=app) as it:
        slow_work(it)
        peers = [await Peer.open(it.port) for _ in range(CROWD)]
        for peer in peers:
            peer.send(get("/a"))
            peer.writer.write_eof()
        await eventually(lambda: len(asked) == CROWD)
        for peer in peers:
            await peer.close()


@on_uvloop
async def test_a_request_that_waits_for_this_server_is_not_overdue() -> None:
    async with in_process_server() as it, await Peer.open(it.port) as peer:
        await eventually(lambda: it.state.waiting)
        (http,) = it.state.waiting
        spend_turn(it)
        http.data_received(get("/"))
        it.state.waiting[http] = 0
        it.state.expire()
        assert (await peer.answer()).status == 204


@on_uvloop
async def test_a_connection_whose_bytes_meet_a_bug_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with in_process_server() as it, await Peer.open(it.port) as peer:
        monkeypatch.setattr(it.state, "policy", None)
        with capture_logs() as lines:
            peer.send(request())
            assert await peer.rest() == b""
        assert [line["event"] for line in lines] == ["connection failed"]


@on_uvloop
async def test_requests_of_clients_that_reset_at_once_leave_nothing() -> None:
    async with in_process_server() as it:
        peers = [await Peer.open(it.port) for _ in range(CROWD)]
        await eventually(lambda: len(it.state.waiting) == CROWD)
        spend_turn(it)
        for peer in peers:
            peer.send(request())
        await asyncio.sleep(0)
        for peer in peers:
            peer.reset()
        await eventually(lambda: not it.state.http and not it.hub.clients)
        await asyncio.sleep(0.01)  # what waited has been read
        assert not it.state.waiting


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_comes_back_at_once_finds_its_place_free(
    shared: str, reset: bool
) -> None:
    with served(database_url=shared, max_connections_per_ip=1) as brain:
        first = await Peer.upgraded(brain.port)
        brain.process.send_signal(signal.SIGSTOP)  # what follows reaches it in one turn
        if reset:
            first.reset()
        await first.close()
        async with await Peer.open(brain.port) as again:
            again.send(request())
            brain.process.send_signal(signal.SIGCONT)
            answer = await again.answer()
        assert answer.status == 101, answer


@on_uvloop
async def test_clients_whose_tokens_expire_at_once_are_ended_in_several_turns() -> None:
    async with in_process_server() as it:
        slow_work(it)
        it.state.tokens = tokens = Tokens(Secret(SECRET))
        ask = request(Authorization=f"Bearer {token(exp=tokens.now() + 1)}")
        peers = [await Peer.open(it.port) for _ in range(CROWD)]
        for peer in peers:
            peer.send(ask)
        await eventually(lambda: it.hub.clients == CROWD)
        seen = await sizes(it)
        assert max(before - after for before, after in itertools.pairwise(seen)) <= 2
        for peer in peers:
            assert (await peer.answer()).status == 101
            assert await peer.farewell() == 4401
            await peer.close()
