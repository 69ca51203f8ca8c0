"""Many deletes in one statement, and crashes of PostgreSQL meanwhile: who includes `deleted` ends
with what SELECT shows, and a token that is limited to an agent hears only of that agent's runs.
"""

import asyncio
import contextlib
import json
import random
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from brain.contract.close_codes import GAP
from tests.support.fleet import Fleet, sound
from tests.support.issuer import SECRET, token
from tests.support.patience import PATIENCE, eventually
from tests.support.postgres import VERSIONS, Postgres, available, execute, running
from tests.support.served import Brain, served
from tests.support.template import ROLE, TEMPLATE, with_template
from tests.support.wire import Control, request

COUNT = 100_000
FILL = (
    "INSERT INTO runs (id, status, agent) SELECT 'bulk-' || lpad(n::text, 6, '0'), 'completed',"
    " 'bulk' FROM generate_series(1, %s) n"
)


class Counters:
    """Clients that only count: each byte that they receive after the upgrade belongs to a message
    of one size.
    """

    def __init__(self, brain: Brain, count: int, query: str) -> None:
        self.counts = [0] * count
        self.ended = 0
        self._going = True
        self._sockets = [self._connect(brain, query) for _ in range(count)]
        self._thread = threading.Thread(target=self._read)

    def _connect(self, brain: Brain, query: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", brain.port))
        sock.sendall(request(f"/ws{query}"))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += sock.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        sock.setblocking(False)
        return sock

    def _read(self) -> None:
        buffer = bytearray(1 << 20)
        while self._going:
            idle = True
            for number, sock in enumerate(self._sockets):
                with contextlib.suppress(BlockingIOError):
                    size = sock.recv_into(buffer)
                    self.counts[number] += size
                    self.ended += not size
                    idle = False
            if idle:
                time.sleep(0.005)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        self._thread.join(PATIENCE)
        for sock in self._sockets:
            sock.close()


def test_100_000_deletes_in_one_statement_reach_500_clients_once_each(database: str) -> None:
    """The control client is not disturbed, and those without `deleted` receive nothing."""
    execute(database, FILL, COUNT)
    execute(database, FILL.replace("bulk-", "warm-"), 1000)
    told, quiet = "?agent=bulk&include=deleted", "?agent=bulk"
    settings: dict[str, Any] = {"board_memory": 1 << 28, "ping_interval": 3600}
    with served(database_url=database, ping_timeout=7200, **settings) as brain:
        control = Control(brain, database, "?status=queued")
        with (
            sound(brain, 512 << 20),
            control.undisturbed(),
            Counters(brain, 500, told) as clients,
            Counters(brain, 5, quiet) as others,
        ):
            execute(database, "DELETE FROM runs WHERE id LIKE 'warm-%'")
            Fleet.until(lambda: min(clients.counts) == max(clients.counts) > 0)
            Fleet.until(lambda: not min(clients.counts) % 1000)
            size = min(clients.counts) // 1000
            execute(database, "DELETE FROM runs WHERE id LIKE 'bulk-%'")
            wanted = size * (COUNT + 1000)
            Fleet.until(
                lambda: min(clients.counts) == wanted,
                2 * PATIENCE,
                lambda: f"{min(clients.counts) // size} of {COUNT}",
            )
            time.sleep(0.3)  # nothing comes twice
            assert max(clients.counts) == wanted
            assert others.counts == [0] * 5
            assert (clients.ended, others.ended) == (0, 0)
        control.stop()
        assert brain.metric("brain_runs") < 1000 + control.told


class Holder:
    """A client that includes `deleted`, as protocol.md asks for. Its token may be limited to
    an agent.
    """

    def __init__(self, brain: Brain, agent: str = "") -> None:
        self.brain = brain
        self.agent = agent
        self.headers = {"Authorization": f"Bearer {token(agent=agent or None)}"}
        self.view: dict[str, Any] = {}
        self.since = ""
        self.told: set[str] = set()
        """The ids that it was told of."""
        self.reloads = 0

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, ConnectionClosed, InvalidHandshake, TimeoutError):
                if not self.since:
                    await self._load()
                query = f"?include=deleted&since={self.since}"
                async with self.brain.connect(query, additional_headers=self.headers) as client:
                    await self._read(client)
            await asyncio.sleep(random.uniform(0, 0.1))

    async def _read(self, client: ClientConnection) -> None:
        try:
            async for text in client:
                message = json.loads(text)
                run_id = message["data"]["id"]
                self.since = message["timestamp"]
                self.told.add(run_id)
                if message["type"] == "run_deleted":
                    self.view.pop(run_id, None)
                else:
                    self.view[run_id] = message["data"].get("progress")
        finally:
            if client.close_code == GAP.code:
                self.since = ""
                self.reloads += 1

    async def _load(self) -> None:
        view: dict[str, Any] = {}
        stamp = cursor = ""
        while True:
            path = "/api/runs?limit=1000" + (f"&cursor={cursor}" if cursor else "")
            page = await asyncio.to_thread(self._get, path)
            stamp, cursor = stamp or page["timestamp"], page["next_cursor"]
            view |= {run["id"]: run.get("progress") for run in page["runs"]}
            if not cursor:
                break
        self.view, self.since = view, stamp

    def _get(self, path: str) -> dict[str, Any]:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.brain.port}{path}", headers=self.headers
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        if found["timestamp"] is None:
            raise OSError("the table has not been read yet")
        return found

    def wanted(self, url: str) -> dict[str, Any]:
        where = f"WHERE agent = '{self.agent}'" if self.agent else ""
        return dict(execute(url, f"SELECT id, progress FROM runs {where}"))


@pytest.fixture(params=VERSIONS, ids=lambda version: f"pg{version}")
def crashing(request: pytest.FixtureRequest) -> Iterator[tuple[Postgres, str]]:
    if not available(request.param):
        pytest.skip(f"PostgreSQL {request.param} is not installed")
    with running(request.param, fsync="on", wal_writer_delay="10s") as server:
        with_template(server)
        yield server, server.url(server.create_database(TEMPLATE, ROLE), ROLE)


async def test_deletes_and_crashes_end_with_the_truth_within_the_bounds_of_each_token(
    crashing: tuple[Postgres, str],
) -> None:
    """Commits do not wait for the disk, so a crash takes some of them back."""
    server, url = crashing
    seed = random.randrange(1_000_000)
    dice = random.Random(seed)
    print(f"seed {seed}")
    with served(database_url=url, jwt_secret=SECRET) as brain:
        holders = [Holder(brain, agent) for agent in ("", "", "a", "a", "b")]
        tasks = [asyncio.create_task(holder.run()) for holder in holders]
        ever: dict[str, set[str]] = {"a": set(), "b": set()}
        for lap in range(4):
            await asyncio.to_thread(fill, url, lap)
            for agent in ever:
                rows = execute(url, f"SELECT id FROM runs WHERE agent = '{agent}'")
                ever[agent] |= {row[0] for row in rows}
            await converged(holders, url)
            delete = asyncio.create_task(asyncio.to_thread(delete_most, url, lap))
            if lap % 2 == 0:
                await asyncio.sleep(dice.uniform(0, 0.4))
                await asyncio.to_thread(server.crash)
            await delete
            execute(
                url,
                "INSERT INTO runs (id, status, agent) VALUES ('z', 'running', 'a')"
                " ON CONFLICT (id) DO UPDATE SET progress = coalesce(runs.progress, 0) + 1",
            )
            ever["a"].add("z")
            await converged(holders, url)
        for holder in holders:
            if holder.agent:
                assert holder.told <= ever[holder.agent], "it was told of a run out of its bounds"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fill(url: str, lap: int) -> None:
    """Of two agents. Some runs change from a to b, and from b to a."""
    execute(
        url,
        "INSERT INTO runs (id, status, agent, progress) SELECT %s || lpad(n::text, 5, '0'),"
        " 'completed', CASE n %% 3 WHEN 0 THEN 'b' ELSE 'a' END, 1 FROM generate_series(1, 5000) n",
        f"r{lap}-",
    )


def delete_most(url: str, lap: int) -> None:
    with contextlib.suppress(Exception):  # the crash
        execute(
            url,
            "BEGIN; SET LOCAL synchronous_commit = off;"
            f" DELETE FROM runs WHERE id LIKE 'r{lap}-%' AND id NOT LIKE '%7'; COMMIT",
        )


async def converged(holders: list[Holder], url: str) -> None:
    """Until each holds what SELECT shows to its token."""
    wanted = [await asyncio.to_thread(holder.wanted, url) for holder in holders]

    def differences() -> list[str]:
        pairs = zip(holders, wanted, strict=True)
        return [
            f"{holder.agent or 'all'}: {len(holder.view)} of {len(table)}"
            for holder, table in pairs
            if holder.view != table
        ]

    await eventually(lambda: not differences(), differences, seconds=2 * PATIENCE, pause=0.05)
