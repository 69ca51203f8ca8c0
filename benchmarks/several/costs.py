"""What a log between the database and the clients costs: time, and CPU for each change.

A single Brain follows one database, and three nodes follow another one of the same server. Changes
are written to one and to the other in turn, so that other work of the machine affects both alike.
Each Brain has one client, which reads at once. Nothing is pinned: three nodes, their nats-server,
PostgreSQL, the writer and the clients share all cores, which makes the nodes slower than they would
be on machines of their own.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks import machine
from benchmarks.changes import Changes, prepare
from benchmarks.load import Load, Options
from benchmarks.several.cluster import Cluster
from brain.postgres.table import Table, init_sql
from tests.support.postgres import execute

SINGLE, LEADER, FOLLOWER, NATS = "a single Brain", "leader", "another node", "nats-server"
PATIENCE = 10.0
OTHER = "nodes"
"""The second database."""


@dataclass
class Side:
    """What follows one of the databases."""

    changes: Changes
    pids: dict[str, list[int]]
    """Of each role."""
    loads: dict[str, list[Load]]
    """The clients, likewise."""

    def measure(self, count: int, rate: float) -> dict[str, dict[str, float]]:
        """Of each role: microseconds of CPU for a change, and its client's latency."""
        clients = [load for loads in self.loads.values() for load in loads]
        for load in clients:
            machine.quiet(load, 0.3)
            load.ask("reset")
        before = self._cpu()
        self.changes.start(count, rate)
        done = self.changes.finish(60 + 2 * count / (rate or count))
        if done is None:
            raise RuntimeError(f"{count} changes were not written in time")
        made = done["made"]
        deadline = time.monotonic() + PATIENCE
        while any(came != made for came in (load.ask("progress")["delivered"] for load in clients)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"a client did not receive all {made} changes")
            time.sleep(0.02)  # between two looks
        spent = {role: used - before[role] for role, used in self._cpu().items()}
        found = {
            role: {
                "cpu_us": seconds / len(self.pids[role]) / made * 1e6,
                "changes_per_second": made / (done["ended"] - done["began"]) * 1e9,
            }
            for role, seconds in spent.items()
        }
        for role, loads in self.loads.items():
            latencies = [load.ask("count")["latency"] for load in loads]
            found[role] |= {name: max(each[name] for each in latencies) for name in ("p50", "p99")}
        return found

    def _cpu(self) -> dict[str, float]:
        return {role: sum(map(machine.cpu_seconds, pids)) for role, pids in self.pids.items()}


@contextmanager
def sides() -> Iterator[tuple[Side, Side]]:
    """A single Brain, and the nodes."""
    with machine.postgres() as server, ExitStack() as closing:
        single = machine.address(server)
        execute(server.url(), f"CREATE DATABASE {OTHER} OWNER {machine.ROLE}")
        nodes = server.url(OTHER, machine.ROLE)
        execute(nodes, init_sql(Table("public", "runs")))
        for url in (single, nodes):
            prepare(url)
        brain = closing.enter_context(machine.brain(single))
        cluster = closing.enter_context(Cluster(nodes))
        leader = cluster.settle()
        followers = [number for number in cluster.running() if number != leader]

        def client(port: int) -> Load:
            load = closing.enter_context(Load(Options(port, "/ws", clients=1, probes=1)))
            load.check_connected()
            return load

        yield (
            Side(
                closing.enter_context(Changes(single)),
                {SINGLE: [brain.process.pid]},
                {SINGLE: [client(brain.port)]},
            ),
            Side(
                closing.enter_context(Changes(nodes)),
                {
                    LEADER: [cluster.pid(leader)],
                    FOLLOWER: [cluster.pid(number) for number in followers],
                    NATS: [cluster.servers[0].pid],
                },
                {
                    LEADER: [client(cluster.ports[leader])],
                    FOLLOWER: [client(cluster.ports[number]) for number in followers],
                },
            ),
        )
        if cluster.settle() != leader:
            raise RuntimeError("the leader changed meanwhile: the figures are of two leaders")


def costs(
    runs: int, loads: Mapping[str, tuple[int, float]]
) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Load → role → one entry for each run. `loads`: so many changes, so many a second; 0: all in
    one transaction.
    """
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    with sides() as both:
        for side in both:
            side.measure(200, 100)  # warm up
        for run in range(runs):
            for name, (count, rate) in loads.items():
                for side in both:
                    for role, figures in side.measure(count, rate).items():
                        found.setdefault(name, {}).setdefault(role, []).append(figures)
                        machine.say(f"{name}, {role}, run {run + 1}", figures)
    return found
