"""The oracle over nodes: three Brains share a log, two faults at a time happen to them and to what
they stand on, and 20 clients come back on any of them.

    make torture-nodes                                         20 minutes, with a new seed
    .venv/bin/python -m tests.oracle.nodes --seconds 60 --seed 7 [--version 18]

A run counts its changes. What a client holds of a run must never go back, wherever it comes back;
timestamps must not either; and when the writers rest, it must hold what SELECT shows. A 4410 has a
reason if a node has logged that clients start over, or that the log was lost. It prints all of
that, and the seed. Exit status 0: nothing wrong, and no 4410 without a reason.
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import psycopg

from brain.contract.messages import Micros
from brain.contract.subscription import ALL
from tests.oracle.restarts import MARKER, Consumer, Plan, move_marker
from tests.oracle.served_restarts import ServedConsumer, ServedWorld
from tests.support.nats import NatsServer
from tests.support.patience import PATIENCE
from tests.support.ports import free_port
from tests.support.postgres import VERSIONS, Postgres, running
from tests.support.proxy import Proxy
from tests.support.served import Brain
from tests.support.template import ROLE, TEMPLATE, with_template

NODES = 3
PLAN = Plan(10**9, modes=("auto", "auto", "poll"), check_every=4, pause=4.0)
FALLS_SILENT = (0.2, 1.0, 4.0)
"""Seconds for which packets are lost."""


class Wanderer(ServedConsumer):
    """A client that comes back on any node."""

    def __init__(self, world: "NodesWorld", number: int) -> None:
        super().__init__(world, number)
        self.listed: set[str] = set()
        """Runs of a list. GET shows what was committed, and Brain may not have read it yet."""

    def take(self, message: dict[str, Any]) -> None:
        if message["type"] != "ready":
            run = message["data"]
            held = self.view.get(run["id"])
            if (
                held is not None
                and run["id"] not in self.listed
                and int(held[3] or 0) > int(run.get("error") or 0)
            ):
                self.world.fault(f"{self.name}: {run['id']} went back from {held} to {message}")
            self.listed.discard(run["id"])
        super().take(message)

    async def _list(self, world: ServedWorld) -> None:
        await super()._list(world)
        self.listed = set(self.view)


class NodesWorld(ServedWorld):
    """`brain` is any living node, for what the base asks."""

    def __init__(self, *given: Any, nats: NatsServer, takeover: float) -> None:
        super().__init__(*given)
        self.nats = nats
        self.takeover = takeover
        self.proxies = [Proxy(nats.port) for _ in range(NODES)]
        self.database = Proxy(self.url)
        self.nodes: list[Brain | None] = [None] * NODES
        self.suspended: set[int] = set()
        """Nodes that are stopped, or about to be."""
        self.injected: Counter[str] = Counter()
        self.logs = ""
        """Of nodes that have ended."""

    def __str__(self) -> str:
        return f"{super().__str__()}, {dict(self.injected)}"

    def _consumer(self, number: int) -> Consumer:
        return Wanderer(self, number)

    @property
    def living(self) -> list[Brain]:
        return [
            node
            for i, node in enumerate(self.nodes)
            if node is not None and node.process.poll() is None and i not in self.suspended
        ]

    def any(self) -> Brain:
        if not self.living:
            raise OSError("no node lives")
        return random.choice(self.living)

    def url_of(self, path: str, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.any().port}{path}"

    def get(self, path: str) -> dict[str, Any]:
        self.brain = self.any()
        try:
            return super().get(path)
        except HTTPException as error:  # the node was killed in the middle of its answer
            raise OSError(str(error)) from error

    def everything(self) -> str:
        return self.logs + "".join(node.log() for node in self.nodes if node is not None)

    def gap(self, name: str, since: Micros | None) -> None:
        text = self.everything()
        reasons = {
            "start over": 'clients="start over"|table replaced',
            "what it had seen was lost": "goes on from another state",
        }
        found = [reason for reason, line in reasons.items() if re.search(line, text)]
        self.undocumented += not found
        self.gaps[found[0] if found else f"NONE: {name}, since {since}"] += 1

    # Nodes.

    def _start(self, number: int) -> None:
        folder = self.folder / f"node-{number}"
        folder.mkdir(exist_ok=True)
        (folder / "log").unlink(missing_ok=True)
        port = free_port()
        node = Brain(
            wait=False,
            folder=folder,
            port=port,
            database_url=self.database.url,
            source=self.dice.choice(self.plan.modes),
            flush_interval=self.dice.choice((0.001, 0.005, 0.03)),
            nats_url=self.proxies[number].url.replace("tcp:", "nats:"),
            nats_takeover=self.takeover,
        )
        node.port = port
        self.nodes[number] = node

    def _retire(self, number: int, *, running: bool = False) -> None:
        node = self.nodes[number]
        assert node is not None
        log = node.log()
        if "Traceback" in log:
            self.fault(log)
        self.logs += "\n".join(
            line
            for line in log.splitlines()
            if re.search("start over|replaced|does not go on|loaded again|event=leader", line)
        )
        if not running:
            self.nodes[number] = None

    async def _begin(self) -> None:
        for number in range(NODES):
            self._start(number)
        await self._all_ready()

    async def _all_ready(self) -> None:
        for node in self.living:
            await self._ready(node)
        self.brain = self.any()

    async def _live(self) -> None:
        await asyncio.sleep(self.dice.choice((0.2, 1, 3)) * self.dice.random())

    # Faults.

    def _leader(self) -> int:
        """The node that leads, or any."""
        for number, node in enumerate(self.nodes):
            if node in self.living:
                with contextlib.suppress(OSError, ValueError, HTTPException):
                    assert node is not None
                    if node.get("/readyz")[1].get("role") == "leader":
                        return number
        return self.dice.randrange(NODES)

    async def _restart(self) -> None:
        """Two faults at a time, of different things."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self._kill,
            self._terminate,
            self._suspend,
            self._lose_packets,
            self._cut,
            self._stop_nats,
            self._lose_store,
            self._end_walsenders,
            self._lose_packets_of_the_database,
        ]
        some = self.dice.sample(kinds, self.dice.choice((1, 2, 2)))
        for each in some:
            self.injected[getattr(each, "__name__", "").lstrip("_")] += 1
        if self._stop_nats in some and self._lose_store in some:
            some.remove(self._stop_nats)  # the same server
        await asyncio.gather(*(each() for each in some))
        self.restarts += 1

    def _victim(self) -> int:
        return self._leader() if self.dice.random() < 0.6 else self.dice.randrange(NODES)

    async def _kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        victim = await asyncio.to_thread(self._victim)
        node = self.nodes[victim]
        if node is None or victim in self.suspended:
            return
        self.suspended.add(victim)
        status = await asyncio.to_thread(node.stop, number)
        early = status == -number
        assert early or status == 0, node.log()
        self._retire(victim)
        await asyncio.sleep(self.dice.choice((0, 1, 5)) * self.dice.random())
        self._start(victim)
        self.suspended.discard(victim)

    async def _terminate(self) -> None:
        await self._kill(signal.SIGTERM)

    async def _suspend(self) -> None:
        victim = await asyncio.to_thread(self._victim)
        node = self.nodes[victim]
        if node is None or victim in self.suspended:
            return
        self.suspended.add(victim)
        node.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(self.dice.choice((0.3, 4, 8)) * self.dice.random())
        node.process.send_signal(signal.SIGCONT)
        self.suspended.discard(victim)

    async def _lose_packets(self) -> None:
        proxy = self.proxies[await asyncio.to_thread(self._victim)]
        await self._silence(proxy)

    async def _lose_packets_of_the_database(self) -> None:
        await self._silence(self.database)

    async def _silence(self, proxy: Proxy) -> None:
        proxy.fall_silent()
        await asyncio.sleep(self.dice.choice(FALLS_SILENT) * self.dice.uniform(0.5, 1))
        if self.dice.random() < 0.5:
            proxy.reset()
        proxy.speak()

    async def _cut(self) -> None:
        proxy = self.proxies[await asyncio.to_thread(self._victim)]
        self.dice.choice((proxy.cut, proxy.reset))()

    async def _stop_nats(self, *, lose: bool = False) -> None:
        number = self.dice.choice((signal.SIGKILL, signal.SIGTERM))
        await asyncio.to_thread(self.nats.stop, number)
        if lose:
            self.nats.lose_store()
        await asyncio.sleep(self.dice.choice((0, 1, 4)) * self.dice.random())
        await asyncio.to_thread(self.nats.start)

    async def _lose_store(self) -> None:
        await self._stop_nats(lose=True)

    async def _end_walsenders(self) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as conn:
                await conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE backend_type = 'walsender' AND datname = current_database()"
                )

    # The verdict.

    async def _check(self) -> None:
        await self._all_ready()
        await super()._check()

    async def _pong(self, everyone: Sequence[ServedConsumer]) -> None:
        """What one node has written to its clients says nothing of the others. So on each of them
        a client without a filter is sent the marker, behind everything else.
        """
        async with (
            await psycopg.AsyncConnection.connect(self.url, autocommit=True) as conn,
            contextlib.AsyncExitStack() as stack,
        ):
            witnesses = [await stack.enter_async_context(node.connect()) for node in self.living]
            mark = await move_marker(conn)
            for witness in witnesses:
                async with asyncio.timeout(PATIENCE):
                    while not is_marker(await witness.recv(), mark):
                        pass
        await self._wait(
            lambda: all(
                each.view.get(MARKER, ("",) * 4)[3] == mark
                for each in everyone
                if each.filter == ALL
            )
        )
        await super()._pong(everyone)

    async def _wait(self, condition: Any) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            dead = [
                node for node in self.nodes if node is not None and node.process.poll() is not None
            ]
            assert not dead, dead[0].log()
            assert time.monotonic() < deadline, f"{self}\n{self._clients()}\n{self.everything()}"
            await asyncio.sleep(0.01)

    def close(self) -> None:
        for node in self.nodes:
            if node is not None and node.process.poll() is None:
                node.process.send_signal(signal.SIGCONT)
                node.stop(signal.SIGKILL)
        for proxy in (*self.proxies, self.database):
            proxy.__exit__()


def is_marker(text: str | bytes, mark: str) -> bool:
    run = json.loads(text)["data"]
    return bool(run["id"] == MARKER and run.get("error") == mark)


async def play(
    seed: int, seconds: float, server: Postgres, *, takeover: float = 3.0, plan: Plan = PLAN
) -> NodesWorld:
    nats = NatsServer()
    with tempfile.TemporaryDirectory() as folder:
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        nats.start()
        world = NodesWorld(url, seed, Path(folder), plan, nats=nats, takeover=takeover)
        try:
            await world.run(seconds=seconds, until_fault=True)
        finally:
            print(world, flush=True)
            if world.faults:
                print(world.everything(), flush=True)
            for number, node in enumerate(world.nodes):
                if node is not None:
                    world._retire(number, running=True)
            world.close()
            nats.remove()
        return world


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=1200)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--version", type=int, choices=VERSIONS, default=18)
    parser.add_argument("--takeover", type=float, default=3.0, help="BRAIN_NATS_TAKEOVER")
    asked = parser.parse_args(arguments)
    print(f"seed {asked.seed}", flush=True)
    with running(asked.version) as server:
        with_template(server)
        world = asyncio.run(play(asked.seed, asked.seconds, server, takeover=asked.takeover))
    for fault in world.faults[:20]:
        print("WRONG:", fault)
    print(world.logs)
    print(
        f"{world.restarts} times faults, {len(world.faults)} wrong,"
        f" {sum(world.gaps.values())} times 4410, {world.undocumented} of them without a reason"
    )
    sys.exit(bool(world.faults or world.undocumented))


if __name__ == "__main__":
    main()
