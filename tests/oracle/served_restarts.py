"""The oracle over restarts with real processes and real sockets: Brain is stopped and killed at
random moments, and 20 clients resume over each restart (restarts.py has the same without sockets).

    .venv/bin/python -m tests.oracle.served_restarts --restarts 1000 [--seed 7] [--version 18]

At the end, and every few restarts, the writers rest and what each client holds is compared with
SELECT. A hole is a run that a client holds in another state, or lacks. A 4410 has a reason if the
log of this Brain, or of one before it, says that clients from before start over, and the client's
`since` is from before. It prints both, and the seed. Exit status 0: no holes, and no 4410 without a
reason.
"""

import argparse
import asyncio
import contextlib
import http.client
import json
import random
import re
import signal
import sys
import tempfile
import time
import urllib.parse
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psycopg import AsyncConnection
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from brain.contract.close_codes import GAP
from brain.contract.messages import Micros, iso, parse_time
from brain.contract.subscription import ALL
from tests.oracle.restarts import MARKER, Consumer, Plan, World, move_marker
from tests.support.patience import LIFETIME
from tests.support.ports import free_port
from tests.support.postgres import VERSIONS, running
from tests.support.served import Brain
from tests.support.template import ROLE, TEMPLATE, with_template

AWAY = (
    OSError,
    http.client.HTTPException,  # the answer was cut off: Brain was killed while it wrote
    json.JSONDecodeError,
    ConnectionClosed,
    InvalidHandshake,
    TimeoutError,
)
PLAN = Plan(1000, pause=4.0)
LIMIT = 1000
REASON = re.compile(
    r'^timestamp=(\S+) .*event="(clients from before start over.*|table replaced.*)', re.MULTILINE
)


class ServedConsumer(Consumer):
    """A client as protocol.md asks for, over a socket. It includes `ready`, whose timestamp it
    remembers like any other.
    """

    connection: ClientConnection | None = None
    ready = False
    """It has received what it asked for when it connected."""
    pongs = 0

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number)
        self.saw: deque[str] = deque(maxlen=30)
        """What happened to it last, and when."""

    def note(self, what: str) -> None:
        self.saw.append(f"{time.time():.3f} {what}")

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] != "ready":
            super().take(message)
            return
        stamp = parse_time(message["timestamp"])
        if self.since is not None and stamp < self.since:
            self.world.fault(f"{self.name}: `ready` is {self.since - stamp} µs earlier")
        self.since, self.ready = stamp, True
        self.note(f"ready at {stamp}")

    def cut(self) -> None:
        """Without a close frame: a connection may break at any moment."""
        connection, self.connection = self.connection, None
        self.ready = False
        if connection is not None:
            connection.transport.abort()

    async def run(self) -> None:
        world = self.world
        assert isinstance(world, ServedWorld)
        while True:
            await asyncio.sleep(self.dice.uniform(0, 0.1))
            if not world.resting and self.dice.random() < 0.3:
                await asyncio.sleep(self.dice.uniform(0, 3))  # away for some restarts
            try:
                await self._visit(world)
            except AWAY as error:
                self.note(f"{error!r}")
            self.cut()

    async def _visit(self, world: "ServedWorld") -> None:
        if self.since is None and not self.by_snapshot:
            self.note("GET /api/runs")
            await self._list(world)
        self.left = 0 if world.resting else int(self.dice.expovariate(1 / 100)) + 1
        before = self.since
        if before is None:
            self.view = {}
        url = world.url_of(f"/ws?{self._query(before)}", "ws")
        self.note(f"connects to {url}")
        async with connect(url, compression=None, proxy=None, ping_interval=None) as connection:
            self.connection = connection
            self.note("connected")
            try:
                async for text in connection:
                    if text == "pong":
                        self.pongs += 1
                        continue
                    if self.connection is not connection:
                        self.note("cut off")
                        return
                    self.take(json.loads(text))
            except ConnectionClosed:
                pass
            self.note(f"closed with {connection.close_code} {connection.close_reason}")
            if connection.close_code == GAP.code:
                world.gap(self.name, before)
                self.view, self.since = {}, None

    def _query(self, since: Micros | None) -> str:
        filter_ = self.filter
        query = [
            *(("status", each) for each in sorted(filter_.status)),
            *(("agent", each) for each in sorted(filter_.agent)),
            *(("task_id", each) for each in sorted(filter_.task_id)),
        ]
        asked = ("snapshot", "true") if since is None else ("since", iso(since))
        return urllib.parse.urlencode([*query, asked, ("include", "ready")])

    async def _list(self, world: "ServedWorld") -> None:
        """GET /api/runs, page by page. The first timestamp counts."""
        view, stamp, cursor = {}, "", ""
        query = self._query(None).replace("snapshot=true&include=ready", "")
        while True:
            path = f"/api/runs?{query}limit={LIMIT}" + (f"&cursor={cursor}" if cursor else "")
            page = await asyncio.to_thread(world.get, path)
            stamp = stamp or page["timestamp"]
            for run in page["runs"]:
                view[run["id"]] = (
                    run["status"],
                    run.get("agent"),
                    run.get("task_id"),
                    run.get("error"),
                )
            if page["next_cursor"] is None:
                self.view, self.since = view, parse_time(stamp)
                return
            cursor = urllib.parse.quote(page["next_cursor"])


class ServedWorld(World):
    """Its lives are processes."""

    brain: Brain | None = None
    port = 0
    undocumented = 0
    _reasons: Sequence[tuple[Micros, str]] = ()
    """When the log said that clients start over, and why."""
    signals: tuple[signal.Signals, ...] = (signal.SIGKILL, signal.SIGTERM)

    def _consumer(self, number: int) -> Consumer:
        return ServedConsumer(self, number)

    def url_of(self, path: str, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def get(self, path: str) -> dict[str, Any]:
        brain = self.brain
        if brain is None or brain.process.poll() is not None:
            raise OSError("Brain is away")
        status, document = brain.get(path)
        if status != 200 or document["timestamp"] is None:
            raise OSError(f"{status}")
        found: dict[str, Any] = document
        return found

    def gap(self, name: str, since: Micros | None) -> None:
        """A client has been sent 4410. It may have been absent in the life that logged why."""
        self._hear()
        reasons = [text for at, text in self._reasons if since is None or at > since]
        text = reasons[-1] if reasons else f"NONE: {name}, since {since}"
        self.undocumented += not reasons
        self.gaps[text] += 1

    def _hear(self) -> None:
        """Note why clients start over, as the present life has logged it."""
        log = self.brain.log() if self.brain is not None else ""
        found = {(parse_time(at), text) for at, text in REASON.findall(log)}
        self._reasons = sorted({*self._reasons, *found})

    async def _begin(self) -> None:
        dice = self.dice
        self.port = self.port or free_port()
        folder = self.folder / "served"
        folder.mkdir(exist_ok=True)
        (folder / "log").unlink(missing_ok=True)
        self.brain = Brain(
            wait=False,
            folder=folder,
            port=self.port,
            database_url=self.url,
            source=dice.choice(self.plan.modes),
            flush_interval=dice.choice((0.001, 0.005, 0.03)),
        )
        self.brain.port = self.port
        # Some lives end before anybody could connect.
        if dice.random() < 0.9:
            await self._ready(self.brain)

    async def _ready(self, brain: Brain) -> None:
        deadline = time.monotonic() + LIFETIME
        while True:
            with contextlib.suppress(OSError):
                if (await asyncio.to_thread(brain.get, "/readyz"))[0] == 200:
                    return
            if brain.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(brain.log())
            await asyncio.sleep(0.05)

    async def _live(self) -> None:
        await asyncio.sleep(self.dice.choice((0, 0.1, 0.5, 1.5)) * self.dice.random())

    async def _restart(self) -> None:
        await self._end(self.dice.choice(self.signals))
        self.restarts += 1
        if self.server is not None and self.dice.random() < self.plan.crashes:
            self.crashes += 1
            await asyncio.to_thread(self.server.crash)
        await asyncio.sleep(self.dice.choice((0, 0, 0.2)) * self.dice.random())
        await self._begin()

    async def _end(self, number: signal.Signals) -> None:
        brain = self.brain
        assert brain is not None
        self.resumed += "start over" not in brain.log()
        status = await asyncio.to_thread(brain.stop, number)
        early = number == signal.SIGTERM and status == -signal.SIGTERM  # before it has a handler
        assert status == (-number if number == signal.SIGKILL else 0) or early, brain.log()
        self._hear()
        if "Traceback" in brain.log():
            self.fault(brain.log())

    async def _check(self) -> None:
        brain = self.brain
        assert brain is not None
        self.resting = True
        await self._ready(brain)
        await self._wait(lambda: not self._busy)
        async with await AsyncConnection.connect(self.url, autocommit=True) as conn:
            mark = await move_marker(conn)
            everyone = [each for each in self.consumers if isinstance(each, ServedConsumer)]
            await self._wait(lambda: all(each.ready for each in everyone))
            # Those without a filter have the marker, so it was written to the others too, behind
            # everything else. Their pong comes behind it.
            await self._wait(
                lambda: all(
                    each.view.get(MARKER, ("",) * 4)[3] == mark
                    for each in everyone
                    if each.filter == ALL
                )
            )
            await self._pong(everyone)
            cursor = await conn.execute("SELECT id, status, agent, task_id, error FROM runs")
            table = {each[0]: each[1:] for each in await cursor.fetchall()}
        for consumer in everyone:
            consumer.judge(table)
        self.checks += 1
        print(self, flush=True)
        for consumer in everyone:
            consumer.left = self.dice.randrange(1, 200)
        self.resting = False

    async def _pong(self, everyone: Sequence[ServedConsumer]) -> None:
        """A client whose connection ends before its pong is asked over its next one."""
        for consumer in everyone:
            before = consumer.pongs
            while consumer.pongs == before:
                await self._wait(lambda: consumer.ready)  # noqa: B023 - awaited here
                connection = consumer.connection
                assert connection is not None
                with contextlib.suppress(ConnectionClosed):
                    await connection.send("ping")
                await self._wait(
                    lambda: consumer.pongs > before or consumer.connection is not connection  # noqa: B023
                )
        await self._wait(lambda: all(each.ready for each in everyone))

    async def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + LIFETIME
        while not condition():
            assert self.brain is not None
            assert self.brain.process.poll() is None, self.brain.log()
            for task in self.tasks:
                if task.done():
                    task.result()
            assert time.monotonic() < deadline, await self._report()
            await asyncio.sleep(0.01)

    async def _report(self) -> str:
        """Everything about a client that is not ready, or whose pong does not come."""
        assert self.brain is not None
        asked = [asyncio.to_thread(self.brain.get, path) for path in ("/readyz", "/metrics")]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        now = f"{time.time():.3f} deadline"
        return "\n".join((str(self), self._clients(), now, *map(str, answers), self.brain.log()))

    def _clients(self) -> str:
        return "\n".join(
            f"{each.name}: ready {each.ready}, pongs {each.pongs}, since {each.since},"
            f" {each.left} messages left, {each.connection}\n  " + "\n  ".join(each.saw)
            for each in self.consumers
            if isinstance(each, ServedConsumer)
        )


async def play(seed: int, plan: Plan, version: int, seconds: float) -> ServedWorld:
    settings = {"fsync": "on", "wal_writer_delay": "10s"} if plan.crashes else {}
    with tempfile.TemporaryDirectory() as folder, running(version, **settings) as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        world = ServedWorld(url, seed, Path(folder), plan, server if plan.crashes else None)
        try:
            await world.run(seconds=seconds)
        finally:
            print(world, flush=True)
            if world.brain is not None and world.brain.process.poll() is None:
                world.brain.stop(signal.SIGKILL)
        return world


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--restarts", type=int, default=PLAN.restarts)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--version", type=int, choices=VERSIONS, default=18)
    parser.add_argument("--crashes", type=float, default=0.0, help="the share with PostgreSQL's")
    parser.add_argument("--minutes", type=float, default=24 * 60, help="at most")
    asked = parser.parse_args(arguments)
    print(f"seed {asked.seed}", flush=True)
    plan = PLAN._replace(restarts=asked.restarts, crashes=asked.crashes)
    world = asyncio.run(play(asked.seed, plan, asked.version, asked.minutes * 60))
    for fault in world.faults[:20]:
        print("HOLE:", fault)
    print(
        f"{world.restarts} restarts, {len(world.faults)} holes, {sum(world.gaps.values())} times"
        f" 4410, {world.undocumented} of them without a reason"
    )
    sys.exit(bool(world.faults or world.undocumented))


if __name__ == "__main__":
    main()
