"""limits.md has every limit of the code, with its value; and those that no setting can reduce
are met.
"""

import asyncio
import re
import socket
import threading
import time
from dataclasses import fields
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

import psutil
import pytest

from brain.config import variables
from brain.server.limits import Limits
from tests.support import ROOT
from tests.support.in_process_server import in_process_server
from tests.support.patience import PATIENCE, wait_until
from tests.support.postgres import execute
from tests.support.served import Brain
from tests.support.wire import Control, Peer, get, request

PAGE = ROOT / "docs" / "reference" / "limits.md"
ROWS = re.findall(
    r"^\| ([^|]+?) \| (\d+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(), re.MULTILINE
)

SERVER = {
    "request head": "max_head",
    "URL": "max_url",
    "pipelined requests": "max_pipelined",
    "request deadline": "request_deadline",
    "message of a client": "max_message",
    "frame burst": "frames.burst",
    "frame rate": "frames.rate",
    "token deadline": "token_deadline",
    "close timeout": "close_timeout",
    "bytes read of a closing client": "max_discarded",
    "connections before the upgrade": "max_unupgraded",
    "unsent bytes": "max_unsent",
    "expired connections closed in one round": "max_expired",
}
"""Row → field of server.limits.Limits."""

CONSTANTS = {
    "handshake rate": "access.limits.HANDSHAKES.rate",
    "handshake burst": "access.limits.HANDSHAKES.burst",
    "longest wait for a handshake": "access.limits.MAX_WAIT",
    "handshakes charged for a fault": "access.limits.FAULT",
    "reserved file descriptors": "server.listener.RESERVED",
    "request body": "access.limits.MAX_BODY",
    "page of runs": "api.pages.MAX_PAGE",
    "runs of a page": "api.routes.MAX_LIMIT",
    "cost of a total": "api.totals.MAX_COST",
    "longest wait for a total": "api.totals.DEADLINE",
    "API requests of an address": "api.concurrency.MAX_REQUESTS",
    "longest wait of an API request": "api.concurrency.MAX_WAIT",
    "socket send buffer": "server.sockets.SEND_BUFFER",
    "batch": "delivery.batches.BATCH",
    "token": "access.tokens.MAX_TOKEN",
    "key set": "access.jwks.MAX_JWKS",
    "longest load of a key set": "access.jwks.LOAD_TIMEOUT",
    "interval between loads of a key set": "access.jwks.RELOAD",
    "log lines of one kind": "access.rate_limit.LINES.rate",
    "id of a run": "contract.messages.MAX_ID_BYTES",
    "nesting of a request body": "api.body.MAX_DEPTH",
    "errors of an answer": "api.sentences.MAX_ERRORS",
    "value of a filter": "contract.subscription.MAX_CHARACTERS",
    "values of a filter": "contract.subscription.MAX_VALUES",
}
"""Row → constant."""

INTERNAL = {
    "max_behind_head": "the request body, and how it is cut into chunks",
    "discard_timeout": "part of the row on a closing client",
    "expire_interval": "how often, not how much",
    "tidy_interval": "how often, not how much",
    "crowd": "when the heap is trimmed",
    "access.limits.MAX_BEHIND_HEAD": "the request body, and how it is cut into chunks",
    "access.limits.MAX_REMEMBERED": "no client meets it",
    "server.authentication.MAX_TIMER": "how often, not how much",
}
"""Limits that the page leaves out → why."""


def value(name: str) -> float:
    if name.startswith("`"):
        return float(variables()[name.strip("`")].default)
    if name in SERVER:
        return float(attrgetter(SERVER[name])(Limits()))
    package, module, path = CONSTANTS[name].split(".", 2)
    return float(attrgetter(path)(import_module(f"brain.{package}.{module}")))


@pytest.mark.parametrize(("name", "default", "unit", "detail"), ROWS, ids=[row[0] for row in ROWS])
def test_a_limit_has_the_value_of_the_code(name: str, default: str, unit: str, detail: str) -> None:
    assert value(name) == float(default)
    assert unit
    assert detail


def test_every_row_is_read_and_every_name_has_a_row() -> None:
    names = [name for name, *_ in ROWS]
    assert len(names) == len(set(names)) == PAGE.read_text().count("\n| ") - 1
    settings = {name for name in names if name.startswith("`")}
    assert set(names) - settings == SERVER.keys() | CONSTANTS.keys()


def test_no_limit_of_the_server_is_left_out() -> None:
    covered = {field.partition(".")[0] for field in SERVER.values()}
    assert {each.name for each in fields(Limits)} <= covered | INTERNAL.keys()


@pytest.mark.parametrize(
    "module",
    [
        "access.limits",
        "access.jwks",
        "access.tokens",
        "access.rate_limit",
        "server.http",
        "server.websocket",
        "server.authentication",
        "server.listener",
        "api.concurrency",
        "contract.subscription",
    ],
)
def test_no_limit_of_a_module_is_left_out(module: str) -> None:
    found = import_module(f"brain.{module}")
    source = Path(str(found.__file__)).read_text()
    names = {f"{module}.{name}" for name in re.findall(r"^(MAX_\w+)\b.*=", source, re.MULTILINE)}
    assert names <= {*CONSTANTS.values(), *INTERNAL}


def test_a_crowd_does_not_get_the_descriptors_that_the_database_needs(
    database: str, superuser_url: str
) -> None:
    """It takes all it can, and goes on connecting while Brain loses its connections to the
    database.
    """
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
        assert (
            b"136 connections are open, and this process has file descriptors for no more" in answer
        )
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
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name LIKE 'brain%'",
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


# In this process, with smaller limits


async def test_the_connection_idle_longest_is_closed_and_a_client_connects() -> None:
    async with in_process_server(limits=Limits(max_unupgraded=10)) as it:
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


async def test_a_connection_is_rejected_where_no_other_is_idle() -> None:
    go = asyncio.Event()

    async def slow(_scope: Any, _receive: Any, send: Any) -> None:
        await go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async with in_process_server(app=slow, limits=Limits(max_unupgraded=2)) as it:
        busy = [await Peer.open(it.port) for _ in range(2)]
        for peer in busy:
            peer.send(get())
        await asyncio.sleep(0.1)
        async with await Peer.open(it.port) as third:
            third.send(get("/metrics"))
            answer = await third.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        go.set()
        assert [(await peer.answer()).status for peer in busy] == [204, 204]
        for peer in busy:
            await peer.close()


@pytest.mark.parametrize("by_http", [False, True])
async def test_clients_that_do_not_read_are_closed_before_memory_runs_out(*, by_http: bool) -> None:
    async def large(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": bytes(4 << 20)})

    async with in_process_server(app=large, limits=Limits(max_unsent=256 * 1024)) as it:
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
