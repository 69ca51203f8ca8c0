"""docs/limits.md says what the code does."""

import asyncio
import re
import socket
import threading
import time
from functools import reduce
from importlib import import_module
from typing import Any

import psutil
import pytest

from brain.config import variables
from brain.server import http
from tests.support import ROOT
from tests.support.in_process_server import in_process_server
from tests.support.patience import PATIENCE, wait_until
from tests.support.postgres import execute
from tests.support.served import Brain
from tests.support.wire import Control, Peer, get, request

PAGE = ROOT / "docs" / "limits.md"
ROWS = re.findall(
    r"^\| `(\w+(?:\.\w+)*)` \| (\d+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("name", "value", "what", "detail"), ROWS, ids=[row[0] for row in ROWS])
def test_a_limit_is_what_the_page_says(name: str, value: str, what: str, detail: str) -> None:
    if name.startswith("BRAIN_"):
        found = variables()[name].default
    else:
        package, module, *path = name.split(".")
        found = reduce(getattr, path, import_module(f"brain.{package}.{module}"))
    assert float(found) == float(value)
    assert what
    assert detail


def test_no_limit_is_left_out() -> None:
    assert len(ROWS) == PAGE.read_text().count("\n| `")
    named = {name for name, *_ in ROWS}
    for module in (
        "access.limits",
        "access.jwks",
        "access.tokens",
        "server.http",
        "server.websocket",
        "server.authentication",
        "api.concurrency",
    ):
        for name in vars(import_module(f"brain.{module}")):
            if re.match("MAX_|BURST$|RATE$", name) and name not in (
                "MAX_VALUES",
                "MAX_CHARACTERS",
                "MAX_BODY",
            ):
                assert f"{module}.{name}" in named | INTERNAL, f"{module}.{name}"


INTERNAL = {
    "server.http.MAX_UNHEARD",  # of websocket
    "server.http.MAX_BEHIND",  # problems.MAX_BODY, and how it is cut into chunks
    "access.limits.MAX_REMEMBERED",  # nobody meets it
}


def test_a_crowd_does_not_get_the_descriptors_that_the_database_needs(
    database: str, superuser_url: str
) -> None:
    """It takes all that it can, and knocks on while Brain is cut off from its database."""
    brain = Brain(database_url=database, shell='ulimit -n 200; exec "$@"')
    try:
        assert "connections=136" in brain.log()
        used = psutil.Process(brain.process.pid).num_fds
        idle = used()
        crowd: list[socket.socket] = []
        full = False
        control = Control(brain, database, "?status=queued")
        with control.undisturbed():
            while not full:
                crowd.append(socket.create_connection(("127.0.0.1", brain.port), PATIENCE))
                crowd[-1].sendall(request("/ws?run_id=nobody"))
                answer = crowd[-1].recv(1000)
                full = b" 503 " in answer
        assert b"136 connections are all that this process has file descriptors for" in answer
        assert len(crowd) == 136  # the last in vain; and the control client
        assert used() < 200 - 40
        for _ in range(
            50
        ):  # who is silent gives way to who comes next, and that one is no client either
            silent = socket.create_connection(("127.0.0.1", brain.port), PATIENCE)
            with socket.create_connection(("127.0.0.1", brain.port), PATIENCE) as another:
                another.sendall(request("/ws?run_id=nobody"))
                assert b" 503 " in another.recv(1000)
            crowd.append(silent)
        assert used() < 200 - 40
        knocking = threading.Event()

        def knock() -> None:
            while not knocking.is_set():
                silent = [
                    socket.create_connection(("127.0.0.1", brain.port), PATIENCE)
                    for _ in range(100)
                ]
                for each in silent:
                    each.close()

        thread = threading.Thread(target=knock)
        thread.start()
        try:
            with control.undisturbed():
                for _ in range(3):
                    execute(
                        superuser_url,
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'brain%'",
                    )
                    time.sleep(1)
        finally:
            knocking.set()
            thread.join()
        for each in crowd:
            each.close()
        control.stop()
        wait_until(lambda: used() <= idle + 3)
    finally:
        assert brain.stop() == 0


# Those that no setting makes small enough to be met from outside


async def test_the_longest_silent_gives_way_and_a_client_gets_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "MAX_UNUPGRADED", 10)
    async with in_process_server() as it:
        silent = [await Peer.open(it.port) for _ in range(10)]
        clients = [await Peer.upgraded(it.port) for _ in range(5)]
        assert [await peer.rest() for peer in silent[:1]] == [b""]
        assert it.state.rejections.counts["requests"] == 1, (
            "a client that was let in makes its room free"
        )
        silent += [await Peer.open(it.port) for _ in range(4)]
        assert [await peer.rest() for peer in silent[1:4]] == [b""] * 3
        for peer in (*silent, *clients):
            await peer.close()


async def test_where_nobody_can_give_way_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_UNUPGRADED", 2)
    go = asyncio.Event()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        await go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with in_process_server(app=slow) as it:
        busy = [await Peer.open(it.port) for _ in range(2)]
        for peer in busy:
            peer.send(get())
        await asyncio.sleep(0.1)
        async with await Peer.open(it.port) as third:
            third.send(get())
            answer = await third.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        go.set()
        assert [(await peer.answer()).status for peer in busy] == [204, 204]
        for peer in busy:
            await peer.close()


@pytest.mark.parametrize("by_http", [False, True])
async def test_who_does_not_read_goes_before_memory_does(
    monkeypatch: pytest.MonkeyPatch, *, by_http: bool
) -> None:
    monkeypatch.setattr(http, "MAX_UNSENT", 256 * 1024)

    async def large(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(4 << 20)})

    async with in_process_server(app=large) as it:
        stalled = [await Peer.open(it.port, rcvbuf=4096) for _ in range(8)]
        reader = await Peer.upgraded(it.port)
        for peer in stalled:
            peer.stall()
            peer.send(get() if by_http else request())
        async with asyncio.timeout(PATIENCE):
            number = 0
            while not it.state.rejections.counts["outgoing"]:
                number += 1
                it.change(str(number), error="x" * 8000)
                await asyncio.sleep(0.002)
        await asyncio.sleep(0.6)
        unsent = sum(size for _, size, _ in it.state.connections.unsent()) + sum(
            each.unsent for each in it.state.http
        )
        assert unsent <= 256 * 1024
        it.change("the last")
        async with asyncio.timeout(PATIENCE):
            while (await reader.message())["data"]["id"] != "the last":
                pass
        for peer in (*stalled, reader):
            peer.reset()
        await asyncio.sleep(0.1)
