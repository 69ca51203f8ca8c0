"""Where the server listens, how it stops, what remains of it, and its rounds of pings."""

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Coroutine
from functools import wraps
from pathlib import Path
from typing import Any

import psycopg
import pytest
import uvloop

from brain.delivery import source_messages
from brain.server import listener as server
from brain.server.limits import Limits
from brain.server.listener import DESCRIPTORS
from brain.server.sockets import SEND_BUFFER, ListenError, listen
from brain.server.websocket import SHARES, Connection
from tests.support.in_process_server import in_process_server
from tests.support.patience import LIFETIME, PATIENCE, eventually, wait_until, within
from tests.support.postgres import execute
from tests.support.served import BRAIN, Brain, message, served
from tests.support.wire import PING, PONG, TEXT, Frame, Peer, closing, frame, get, request

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: `close` resets the connection."""

# In this process, on uvloop and real sockets, with short timeouts


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """As Brain itself runs. Nothing may reach the loop's handler of lost exceptions."""

    @wraps(test)
    def run(*args: Any, **named: Any) -> None:
        lost: list[Any] = []

        async def watched() -> None:
            asyncio.get_running_loop().set_exception_handler(
                lambda _, context: lost.append(context)
            )
            async with asyncio.timeout(LIFETIME):
                await test(*args, **named)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(watched())
        assert not lost

    return run


@on_uvloop
async def test_connections_that_expire_together_are_closed_in_several_rounds() -> None:
    limits = Limits(expire_interval=3600)
    async with in_process_server(limits=limits) as it:
        peers = [await Peer.open(it.port) for _ in range(limits.max_expired + 50)]
        while len(it.state.waiting) < len(peers):
            await asyncio.sleep(0.01)
        for http in it.state.waiting:
            it.state.waiting[http] = 0
        it.state.expire()
        assert len(it.state.waiting) == 50
        it.state.expire()
        for peer in peers:
            await peer.close()


def _crowd(port: int, count: int) -> list[socket.socket]:
    """Connections that the kernel has accepted, and the server not yet."""
    return [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]


@on_uvloop
async def test_a_crowd_is_accepted_in_a_few_turns_of_the_loop() -> None:
    async with in_process_server() as it:
        crowd = _crowd(it.port, 300)
        turns = 0
        while len(it.state.http) < len(crowd):
            await asyncio.sleep(0)
            turns += 1
        assert turns < 30, "libuv alone accepts one connection a turn"
        for sock in crowd:
            sock.close()


@on_uvloop
async def test_clients_that_are_gone_before_they_are_accepted_disturb_nobody() -> None:
    async with in_process_server() as it:
        for sock in _crowd(it.port, 50):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            sock.close()
        async with await Peer.open(it.port) as peer:
            peer.send(get("/"))
            assert (await peer.answer()).status == 204
        await eventually(lambda: not it.state.http)


@on_uvloop
async def test_a_request_refused_just_before_its_deadline_gets_no_second_answer() -> None:
    async with in_process_server() as it, await Peer.open(it.port) as peer:
        peer.send(b"GET / HTTP/1.1\r\n")
        await eventually(lambda: it.state.waiting)
        peer.send(b"\0\0\0\0\r\n\r\n")
        assert (await peer.answer()).status == 400
        assert not it.state.waiting, "the deadline finds nothing"
        assert await peer.rest() == b""


@on_uvloop
async def test_the_heap_is_trimmed_after_a_crowd_has_left_and_once_more_when_all_is_freed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[int] = []
    trim_heap = server.trim_heap

    def counted() -> None:
        trim_heap()
        given.append(it.hub.clients)

    monkeypatch.setattr(server, "trim_heap", counted)
    async with in_process_server(limits=Limits(tidy_interval=0.05, crowd=20)) as it:
        peers = [await Peer.upgraded(it.port) for _ in range(60)]
        await asyncio.sleep(0.2)
        for peer in peers[:35]:
            peer.reset()
        await eventually(lambda: len(given) == 2)
        await asyncio.sleep(0.2)
        # Of the first, not all who have left are taken down yet (work_queue.py).
        assert (len(given), given[-1]) == (2, 25)
        for peer in peers[35:]:
            await peer.close()
        await asyncio.sleep(0.2)
        assert len(given) <= 4


VANISHING = """
import os, signal, socket, sys
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
client.sendall(bytes.fromhex(sys.argv[2]))
client.recv(4096)
os.kill(os.getpid(), signal.SIGSTOP)
"""


@on_uvloop
async def test_a_client_that_vanishes_is_dropped_and_one_that_answers_or_reads_stays() -> None:
    async with (
        in_process_server(patience=within(3), ping_interval=within(0.3)) as it,
        contextlib.AsyncExitStack() as stack,
    ):
        stopped = await asyncio.create_subprocess_exec(
            sys.executable, "-c", VANISHING, str(it.port), request().hex()
        )

        async def end() -> None:  # or uvloop would wait for it for ever
            stopped.kill()
            await stopped.wait()

        stack.push_async_callback(end)
        await eventually(lambda: it.hub.clients)  # a slow start must not use up the others' time
        answering, mute, talking = [
            await stack.enter_async_context(await Peer.upgraded(it.port, target))
            for target in ("/ws", "/ws?run_id=nobody", "/ws?run_id=nobody")
        ]
        slow = stack.enter_context(socket.socket())  # without a buffer of ours in between
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        slow.setblocking(False)
        await asyncio.get_running_loop().sock_connect(slow, ("127.0.0.1", it.port))
        slow.send(request())
        pongs = 0

        async def answer() -> None:
            nonlocal pongs
            while True:
                if (await answering.frame()).opcode == PING:
                    answering.send(frame(b"", PONG))
                    pongs += 1

        async def read_slowly() -> None:
            """And answer nothing: its transport is always full, so it gets no pings."""
            while True:
                with contextlib.suppress(BlockingIOError):
                    slow.recv(65536)
                await asyncio.sleep(0.005)

        async def talk() -> None:
            while True:
                talking.send(frame(b"ping"))
                await asyncio.sleep(0.06)

        tasks = [asyncio.create_task(each()) for each in (answer, read_slowly, talk)]
        for task in tasks:
            stack.callback(task.cancel)
        lagged = 0
        while it.hub.clients > 3 or lagged <= 20 or pongs < 6:
            assert not any(task.done() for task in tasks), "one that answers or reads was dropped"
            assert it.hub.clients >= 3
            for number in range(30):
                it.change(f"run-{number}", error="x" * 8000)
            await asyncio.sleep(0.05)
            lagged += it.hub.lagging > 0
        assert it.hub.clients == 3, "the one that answers, the one that talks, and the slow one"
        assert await mute.frames(), "it was pinged, and then aborted"


@on_uvloop
async def test_a_connection_has_the_options_of_the_listener() -> None:
    """Without them, one that stalls costs 4 MB of the kernel's memory."""
    async with in_process_server() as it, await Peer.upgraded(it.port):
        sock = it.connections[0]._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * SEND_BUFFER
        # It would end a client that answers and reads slowly: see uptake.py.
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


@on_uvloop
async def test_a_round_of_pings_reaches_each_client_once() -> None:
    async with in_process_server(ping_interval=0.4) as it:
        begun = asyncio.get_running_loop().time()
        peers = [await Peer.upgraded(it.port) for _ in range(250)]
        sizes = sorted(map(len, it.state.connections.shares))
        assert sizes == [2] * 50 + [3] * 50
        await asyncio.sleep(0.6)
        for peer in peers:
            got = [await peer.frame()]
            while peer.reader._buffer:  # type: ignore[attr-defined]
                got.append(await peer.frame())
            rounds = (asyncio.get_running_loop().time() - begun) / 0.4
            assert set(got) == {Frame(PING, b"")}
            assert len(got) <= rounds + 1
            await peer.close()


@on_uvloop
async def test_a_message_about_the_source_takes_the_ping_of_the_round_along(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who is told nothing of the source is pinged by the round itself."""
    monkeypatch.setattr(source_messages, "EVERY", 0.05)
    async with (
        in_process_server() as it,
        await Peer.upgraded(it.port, "/ws?include=source") as told,
        await Peer.upgraded(it.port) as other,
    ):
        connection = next(each for each in it.connections if each.cohort and each.cohort.source)
        for _ in range(3):
            await eventually(lambda: connection.pinged)
            for share in range(SHARES):
                it.state.connections.sweep(share)
            assert not connection.pinged
        kinds = [(await told.frame()).opcode for _ in range(7)]
        assert kinds.count(PING) <= 3
        assert all(kinds[at - 1] == TEXT for at, kind in enumerate(kinds) if kind == PING)
        assert kinds[:3] == [TEXT, TEXT, PING]
        assert [(await other.frame()).opcode for _ in range(3)] == [PING] * 3


class Broken:
    """A transport that raises whatever it is asked, as uvloop's does once it is closed. It can
    still be cut.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def write(self, _: bytes) -> None:
        raise RuntimeError("the handler is closed")

    def write_eof(self) -> None:
        raise RuntimeError("the handler is closed")

    def abort(self) -> None:
        self._transport.abort()


def breaking(connection: Connection) -> None:
    broken: Any = Broken(connection._transport)
    connection._transport = broken
    connection.write = broken.write


@on_uvloop
@pytest.mark.parametrize(
    "by", ["a flush", "catching up", "a refusal", "a ping", "its own frame", "the shutdown"]
)
async def test_a_transport_that_raises_closes_only_its_own_client(by: str) -> None:
    async with in_process_server(ping_interval=0.1 if by == "a ping" else 60) as it:
        peers = [await Peer.upgraded(it.port, "/ws?run_id=a") for _ in range(60)]
        it.change("a", "queued")
        assert [(await peer.message())["data"]["status"] for peer in peers] == ["queued"] * 60
        victims = {connection.peer: connection for connection in it.connections[10:11]}
        (victim,) = victims.values()
        breaking(victim)
        match by:
            case "a flush":
                it.change("a")
                it.change("a", "completed")
            case "catching up":
                it.hub.pause(victim)
                victim.seq, victim.intact = 0, False
                it.hub.resume(victim)
                await asyncio.sleep(0.05)
                it.change("a", "completed")
            case "a refusal":
                it.hub.pause(victim)
                victim.seq, victim.intact = 0, False
                it.board.floor = it.board.seq
                it.hub.resume(victim)
                await asyncio.sleep(0.05)
                it.change("a", "completed")
            case "a ping":
                await asyncio.sleep(0.15)
                it.change("a", "completed")
            case "its own frame":
                for peer in peers:
                    peer.send(frame(b"ping"))
                await asyncio.sleep(0.05)
                it.change("a", "completed")
            case _:
                it.server.stop()
        await asyncio.sleep(0.05)
        if by == "the shutdown":
            codes = [found[-1].code if (found := await peer.frames()) else None for peer in peers]
            assert sorted(codes, key=str) == [1012] * 59 + [None]
        else:
            assert it.hub.clients == 59
            assert it.hub.lagging == 0
            assert it.hub.counts.failures == (by != "a refusal")
            served_ = 0
            for peer in peers:
                last = b""
                with contextlib.suppress(
                    asyncio.IncompleteReadError, TimeoutError, ConnectionError
                ):
                    while b"completed" not in last:
                        last = (await peer.frame()).payload
                served_ += b"completed" in last
            assert served_ == 59
        for peer in peers:
            await peer.close()
        if by == "the shutdown":
            while it.connections:
                await asyncio.sleep(0.01)


@on_uvloop
async def test_a_client_that_never_closes_is_aborted_at_the_close_timeout() -> None:
    """It broke a rule, got a close frame, and goes on sending."""
    async with in_process_server(limits=Limits(close_timeout=0.3)) as it:
        peer = await Peer.upgraded(it.port)
        peer.send(frame(b"", 3))
        assert await peer.farewell() == 1002
        assert not it.connections
        assert len(it.state.connections.closing) == 1
        while it.state.connections.closing:
            peer.send(frame(b"more"))
            await asyncio.sleep(0.02)
        assert not it.limiter.connections
        await peer.close()


@on_uvloop
@pytest.mark.usefixtures("unmeasured")
async def test_closed_connections_leave_no_task_no_reference_and_no_memory() -> None:
    """No task, no reference, no memory."""
    async with in_process_server() as it:

        async def round_() -> None:
            for _ in range(20):
                peers = [await Peer.upgraded(it.port, f"/ws?run_id={i}") for i in range(5)]
                peers += [await Peer.open(it.port) for _ in range(5)]
                for i, peer in enumerate(peers):
                    peer.send(get() if i == 5 else frame(b"hello"))
                it.change("1")
                for i, peer in enumerate(peers):
                    peer.reset() if i % 2 else await peer.close()

        async def rest() -> None:
            await eventually(
                lambda: (
                    not (it.hub.clients or it.limiter.connections or it.state.connections.closing)
                )
            )
            gc.collect()

        await round_()
        await rest()
        tasks = len(asyncio.all_tasks())
        objects = sum(isinstance(each, Connection) for each in gc.get_objects())
        assert objects == 0
        tracemalloc.start()
        for _ in range(3):
            await round_()
        await rest()
        ours = [
            tracemalloc.Filter(inclusive=True, filename_pattern=f"*/{name}/*")
            for name in ("brain", "uvicorn", "websockets")
        ]
        left = tracemalloc.take_snapshot().filter_traces(ours).statistics("filename")
        tracemalloc.stop()
        assert sum(each.size for each in left) < 60_000, (
            left
        )  # a hundred bytes a connection; any object is more
        assert len(asyncio.all_tasks()) == tasks


@on_uvloop
async def test_an_upgrade_leaves_nothing_to_the_collector() -> None:
    """10 000 clients that come at once would each leave a cycle, and the collector would hold
    everybody up.
    """
    from brain.server.http import HTTPProtocol

    async with in_process_server() as it:
        gc.collect()
        gc.disable()
        try:
            peers = [await Peer.upgraded(it.port) for _ in range(50)]
            assert sum(isinstance(each, HTTPProtocol) for each in gc.get_objects()) <= 1
        finally:
            gc.enable()
        for peer in peers:
            await peer.close()


@on_uvloop
async def test_a_client_that_sent_frames_leaves_nothing_to_the_collector() -> None:
    """What it lets grow old stays for 15 million objects more."""
    from websockets.protocol import SERVER, Protocol

    said = {
        "text": frame(b"hello"),
        "half a text": frame(b"he", fin=False),
        "half a frame": frame(b"hello")[:4],
        "a close frame": closing(1000),
        "against the RFC": frame(b"hello", masked=False),
        "invalid UTF-8": frame(b"\xff"),
        "too much": frame(length=1 << 30),
    }
    async with in_process_server() as it:
        gc.collect()
        gc.disable()
        try:
            for reset in (False, True):
                peers = [await Peer.upgraded(it.port) for _ in said]
                for peer, data in zip(peers, said.values(), strict=True):
                    peer.send(data)
                await asyncio.sleep(0.1)
                for peer in peers:
                    peer.reset() if reset else await peer.close()
                await eventually(
                    lambda: (
                        not (
                            it.hub.clients or it.limiter.connections or it.state.connections.closing
                        )
                    )
                )
            left = [
                each
                for each in gc.get_objects()
                if isinstance(each, Protocol) and each.side is SERVER
            ]
            assert not left, [(each.close_sent, each.close_rcvd, each.parser_exc) for each in left]
        finally:
            gc.enable()


# As its own process


def slots(database: str) -> int:
    return len(
        execute(database, "SELECT 1 FROM pg_replication_slots WHERE database = current_database()")
    )


def gone(database: str) -> bool:
    """Its slot is, or soon will be."""
    wait_until(lambda: not slots(database))
    return True


async def test_it_listens_on_ipv4_and_ipv6_and_leaves_no_slot(
    database: str,
) -> None:
    with served(database_url=database) as brain:
        assert slots(database) == 1
        for host in ("127.0.0.1", "::1"):
            async with await Peer.open(brain.port, host=host) as peer:
                peer.send(request(Host=f"[{host}]:{brain.port}" if ":" in host else host))
                assert (await peer.answer()).status == 101
        assert brain.stop() == 0
        assert gone(database)


@pytest.mark.faults
async def test_sigterm_during_a_broadcast_with_clients_that_do_not_read(database: str) -> None:
    execute(
        database,
        "INSERT INTO runs (id, error) SELECT i, repeat('e', 4000) FROM generate_series(1, 100) i",
    )
    with served(database_url=database) as brain:
        healthy = [await Peer.upgraded(brain.port, "/ws?status=queued") for _ in range(160)]
        stalled = [await Peer.upgraded(brain.port, "/ws", rcvbuf=4096) for _ in range(40)]
        for peer in stalled:
            peer.stall()
        # These are in the middle of something when the end comes: a body that never ends, an answer
        # that nobody reads.
        posting = await Peer.open(brain.port)
        posting.send(
            request(
                "/api/runs",
                method="POST",
                Upgrade=None,
                Connection=None,
                Content_Type="application/json",
                Content_Length="99",
            )
        )
        waiting = await Peer.open(brain.port)
        patch = b'{"progress": 5}'
        head = request(
            "/api/runs/30",
            method="PATCH",
            Upgrade=None,
            Connection=None,
            Content_Type="application/json",
            Content_Length=str(len(patch)),
        )
        lock = psycopg.connect(database)
        lock.execute("SELECT 1 FROM runs WHERE id = '30' FOR UPDATE")
        waiting.send(head + patch)
        idle = await Peer.open(brain.port)
        deaf = await Peer.open(brain.port, rcvbuf=4096)
        deaf.stall()
        deaf.send(get("/api/runs") * 8)

        async def storm() -> None:
            with contextlib.suppress(psycopg.Error):
                async with await psycopg.AsyncConnection.connect(database, autocommit=True) as conn:
                    while brain.process.poll() is None:
                        await conn.execute(
                            "UPDATE runs SET progress = random() * 100 WHERE id::int <= 20"
                        )
                        await conn.execute(
                            "UPDATE runs SET error = repeat(md5(random()::text), 100)"
                            " WHERE id::int > 50"
                        )

        async def last(peer: Peer) -> Frame:
            return (await peer.frames())[-1]

        storming = asyncio.create_task(storm())
        last_words = [asyncio.create_task(last(peer)) for peer in healthy]
        while brain.metric("brain_clients_lagging") < len(stalled):
            await asyncio.sleep(0.05)
        began = time.monotonic()
        brain.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(brain.process.wait, PATIENCE) == 0
        print(f"stopped in {time.monotonic() - began:.1f} s")
        assert [found.code for found in await asyncio.gather(*last_words)] == [1012] * len(healthy)
        await storming
        lock.close()
        for peer in (*healthy, *stalled, posting, waiting, idle, deaf):
            await peer.close()
        assert gone(database)


@on_uvloop
async def test_the_close_frames_of_a_shutdown_are_spread() -> None:
    """Spread over a second, so that not all come back in the same instant."""
    loop = asyncio.get_running_loop()
    async with in_process_server() as it:
        peers = [await Peer.upgraded(it.port) for _ in range(300)]
        left, began = [300], loop.time()
        it.server.stop()
        while it.hub.clients:
            if it.hub.clients != left[-1]:
                left.append(it.hub.clients)
            await asyncio.sleep(0)
        assert left == [300, 200, 100]
        assert loop.time() - began > server.SPREAD * 0.6
        for peer in peers:
            assert (await peer.frames())[-1].code == 1012
            await peer.close()


@on_uvloop
async def test_a_second_stop_does_not_wait_until_all_close_frames_are_sent() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "SPREAD", 1000 * LIFETIME)
        async with in_process_server() as it:
            peers = [await Peer.upgraded(it.port) for _ in range(101)]
            it.server.stop()
            await peers[0].farewell()
            it.server.stop()
        for peer in peers:
            await peer.close()


async def test_a_second_sigterm_stops_at_once(database: str) -> None:
    execute(
        database,
        "INSERT INTO runs (id, error) SELECT i, repeat('e', 8000) FROM generate_series(1, 200) i",
    )
    with served(database_url=database) as brain:
        stalled = [
            await Peer.upgraded(brain.port, "/ws?snapshot=true", rcvbuf=4096) for _ in range(5)
        ]
        for peer in stalled:
            peer.stall()
        while brain.metric("brain_clients_lagging") < len(stalled):
            execute(database, "UPDATE runs SET progress = 1")
        brain.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.4)
        assert brain.process.poll() is None, "it waits for them"
        brain.process.send_signal(signal.SIGTERM)
        assert brain.process.wait(PATIENCE) == 0
        for peer in stalled:
            await peer.close()


async def test_after_sigkill_the_next_process_binds_at_once_and_clients_reconnect(
    database: str,
) -> None:
    first = Brain(database_url=database)
    peers = [await Peer.upgraded(first.port) for _ in range(20)]
    execute(database, "INSERT INTO runs (id) VALUES ('a')")
    at = {(await peer.message())["timestamp"] for peer in peers}.pop()
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    execute(database, "UPDATE runs SET status = 'running'")
    with served(database_url=database, port=first.port) as brain:
        assert brain.port == first.port
        assert slots(database) == 1
        for peer in peers:
            await peer.close()
        async with brain.connect("?snapshot=true") as client:
            assert (await message(client))["data"] == {"id": "a", "status": "running"}
        async with brain.connect(
            f"?since={at}"
        ) as client:  # from before the new one's memory: refused, never guessed
            with pytest.raises(Exception, match="4410"):
                await message(client)
    assert gone(database)


def test_a_port_in_use_is_one_clear_error(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            [*BRAIN, "serve", "--port", str(port), "--database-url", database],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"port {port} of 0.0.0.0" in done.stderr
    assert "BRAIN_PORT" in done.stderr


def test_a_second_process_cannot_bind_the_port() -> None:
    """Two that start at once: SO_REUSEADDR would let both bind, until one of them listens."""
    first = listen(["127.0.0.1"], 0)
    port = first[0].getsockname()[1]
    try:
        with pytest.raises(ListenError, match=f"port {port} of 127.0.0.1"):
            listen(["127.0.0.1"], port)
    finally:
        for each in first:
            each.close()


def test_a_failed_listen_closes_its_sockets() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(ListenError, match=r"203\.0\.113\.7"):
        listen(["127.0.0.1", "203.0.113.7"], 0)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_it_raises_the_descriptor_limit_and_survives_running_out(database: str) -> None:
    """The soft limit is 1 024 nearly everywhere. Whatever it is, who comes beyond it must not end
    those who are there.
    """
    mine = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, mine[1]))
    try:
        brain = Brain(database_url=database)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, mine)
    try:
        assert resource.prlimit(brain.process.pid, resource.RLIMIT_NOFILE)[0] == min(
            mine[1], DESCRIPTORS
        )
        resource.prlimit(brain.process.pid, resource.RLIMIT_NOFILE, (100, 100))
        async with brain.connect() as client:
            peers = []
            for _ in range(300):
                with contextlib.suppress(OSError):
                    peers.append(await Peer.open(brain.port))
            await asyncio.sleep(0.2)
            execute(database, "INSERT INTO runs (id) VALUES ('a')")
            assert (await message(client))["data"]["id"] == "a"
            for peer in peers:
                await peer.close()
            await asyncio.sleep(0.1)
            async with brain.connect("?snapshot=true") as other:
                assert (await message(other))["data"]["id"] == "a"
    finally:
        assert brain.stop() == 0
    assert "Traceback" not in brain.log(), brain.log()
