"""Several nodes and workers: what clients hear of faults, and what the log costs.

`python -m benchmarks.nodes [--quick] [--only PART,…]`.

It starts its own PostgreSQL, nats-servers and Brains, all on this machine, which share its cores.
`make bench` has no time left for it; `make bench-nodes` runs it, in ten minutes. `--quick` leaves
out what takes long.

**Silence** is the longest time without a change for any client of a node that lives on, while a
writer makes 250 changes a second: 5 clients of each of 3 nodes. It begins with the last change
before the fault. *Wrong* are clients that do not hold in the end what SELECT shows. NATS is away
for a second. With three nats-servers, the one that leads the stream is killed and stays away.

**Cost:** a single Brain follows one database, and three nodes follow another one of the same
server. Changes are written to one and to the other in turn. Each Brain has one client. The leader
reads the database, writes the log and reads it again; the others read the log.

**A fresh node** starts without any files beside two others. Its time is from the start of its
process until /readyz says 200. Then it is asked with the `since` of a client of each other node,
and has to answer with the 100 runs that have changed since, and no others. (nats-py imports aiohttp
where that is installed, as it is for the tests of Brain. That takes 0.1 s, which Brain's own
dependencies do not.)

**Rolling restart:** the leader first, each node is stopped by SIGTERM, and started again once it
has ended. Clients go to the next node, and resume. A writer makes 50 changes a second; a fifth of
them are runs that end at once, so a hole shows.

**Workers:** 5 000 clients, and one UPDATE of 1 000 rows, several times. The clients read on the
same cores as the workers, so the rate by the clock (*deliveries per second*) is what workers *and*
clients manage together. *By CPU* is what the workers could deliver to clients on other machines: of
one Brain, a core divided by its CPU for a delivery; of two workers, two cores divided by the CPU of
all their processes, nats-server and supervisor included, but no more than the busier worker allows,
which has one core at most.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from types import FrameType
from typing import Any, TypeAlias

from benchmarks import machine
from benchmarks.restart import fill
from benchmarks.several import faults
from benchmarks.several.cluster import Cluster
from benchmarks.several.costs import FOLLOWER, LEADER, NATS, SINGLE, costs
from benchmarks.several.faults import Fault, silence
from benchmarks.several.fresh import fresh
from benchmarks.several.rolling import rolling
from benchmarks.several.workers import ONE, TWO, two_and_one
from benchmarks.suite import number

Runs: TypeAlias = list[dict[str, float]]

RUNS, FEW = 5, 3
"""Of each measurement; of those that take long."""

PART_SECONDS = 240
"""After which a part has failed."""

ENOUGH_SECONDS = 120
"""After which a fault is tried no more."""

LIMIT_MINUTES = 11
"""After which no part begins."""

SILENCE = "silence of clients in s, 3 nodes"


@dataclass
class Found:
    """What was measured so far."""

    quick: bool
    runs: int
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Table → row → runs and figures."""
    targets: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, table: str, row: str, runs: Runs) -> dict[str, dict[str, float]]:
        """Returns the figures: least, median and most of each."""
        figures = machine.spreads(runs)
        self.jobs.setdefault(table, {})[row] = {"runs": runs, "figures": figures}
        return figures

    def reach(self, what: str, reached: float, **bound: float) -> None:
        """With `--quick`, only what must never happen counts."""
        if self.quick and bound != {"most": 0}:
            return
        self.targets.append(machine.target(what, reached, **bound))


class Stage:
    """The nodes that faults happen to, one after another. After a failure there are others."""

    def __init__(self) -> None:
        self._closing = ExitStack()
        self._cluster: Cluster | None = None

    def cluster(self, *, quick: bool) -> Cluster:
        if self._cluster is None:
            url = self._closing.enter_context(machine.database())
            fill(url)
            self._cluster = self._closing.enter_context(Cluster(url, takeover=1 if quick else None))
        return self._cluster

    def close(self) -> None:
        self._cluster = None
        self._closing.close()


Measure: TypeAlias = Callable[[Found, Stage], None]


def after(
    found: Found, stage: Stage, *, row: str, fault: Fault, most: float, times: int = 1
) -> None:
    """`most`: seconds of silence to reach. `times` as many runs as usual."""
    measured: Runs = []
    cluster = stage.cluster(quick=found.quick)
    until = time.monotonic() + ENOUGH_SECONDS
    for run in range(found.runs * (1 if found.quick else times)):
        if time.monotonic() > until:
            break
        measured.append(silence(cluster, fault))
        machine.say(f"{row}, run {run + 1}", measured[-1])
        found.add(SILENCE, row, measured)
    _silence_reached(found, row, measured, most)


def lost_server(found: Found, _: Stage, *, row: str, most: float) -> None:
    """Each run has a cluster of its own, as the server never comes back."""
    measured: Runs = []
    for run in range(min(found.runs, FEW)):
        takeover = 1 if found.quick else None
        with machine.database() as url, Cluster(url, servers=3, takeover=takeover) as cluster:
            fill(url)
            measured.append(silence(cluster, faults.lose_a_server))
        machine.say(f"{row}, run {run + 1}", measured[-1])
        found.add(SILENCE, row, measured)
    _silence_reached(found, row, measured, most)


def _silence_reached(found: Found, row: str, measured: Runs, most: float) -> None:
    seconds = [run["seconds"] for run in measured]
    found.reach(f"{row}: longest silence, s", max(seconds), most=most)
    within = sum(each <= most for each in seconds)
    found.reach(f"{row}: runs within {most:g} s, of {len(seconds)}", within, least=len(seconds))
    found.reach(f"{row}: clients wrong", max(run["wrong"] for run in measured), most=0)


LATENCY, CHANGES, BULK = "latency at 100/s", "one-row changes at 2 000/s", "one UPDATE"
ENOUGH = 0.95
"""Of the rate. Fewer changes share a message or a read where there are fewer, so each costs more.
"""
MORE_MS = {"p50": 2.0, "p99": 5.0}
MAX_RATIO, MAX_NATS_US = {FOLLOWER: 1.0, LEADER: 2.2}, 40.0
MAX_BULK_US = {FOLLOWER: 10.0, LEADER: 20.0, NATS: 1.5}


def cost(found: Found, _: Stage) -> None:
    loads: dict[str, tuple[int, float]] = {
        LATENCY: (500, 100),
        CHANGES: (8_000, 2_000),
        BULK: (20_000, 0),
    }
    if found.quick:
        loads = {LATENCY: (50, 100), CHANGES: (500, 500), BULK: (5_000, 0)}
    measured = costs(found.runs, loads)
    for load, (_count, rate) in loads.items():
        reached = min(run["changes_per_second"] for of in measured[load].values() for run in of)
        if reached < rate * ENOUGH:
            found.failed[load] = f"the writer made only {reached:.0f} changes a second"
    for load, roles in measured.items():
        fields = ("p50", "p99") if load == LATENCY else ("cpu_us", "changes_per_second")
        for role, runs in roles.items():
            if load == LATENCY and role == NATS:
                continue
            shown = [{name: run[name] for name in fields if name in run} for run in runs]
            found.add(f"{load}, {'ms' if load == LATENCY else 'CPU µs for each row'}", role, shown)
    _cost_reached(found, measured)


def _cost_reached(found: Found, measured: Mapping[str, Mapping[str, Runs]]) -> None:
    """Figures of a load that was not made do not count."""
    latency, changes = measured[LATENCY], measured[CHANGES]
    for role in (LEADER, FOLLOWER) if LATENCY not in found.failed else ():
        for name, most in MORE_MS.items():
            pairs = zip(latency[role], latency[SINGLE], strict=True)
            more = machine.spread([of[name] - one[name] for of, one in pairs])
            found.reach(f"{name} at 100/s, {role}: ms more", more["median"], most=most)
    for role, most in MAX_RATIO.items() if CHANGES not in found.failed else ():
        ratio = machine.ratios(changes[role], changes[SINGLE], "cpu_us")["median"]
        found.reach(f"CPU for a change at 2 000/s, {role} to a single Brain", ratio, most=most)
    if CHANGES not in found.failed:
        nats = machine.spreads(changes[NATS])["cpu_us"]["median"]
        found.reach("CPU µs for a change at 2 000/s, nats-server", nats, most=MAX_NATS_US)
    for role, most in MAX_BULK_US.items():
        used = machine.spreads(measured[BULK][role])["cpu_us"]["median"]
        found.reach(f"CPU µs for a row of one UPDATE, {role}", used, most=most)


def start(found: Found, _: Stage) -> None:
    rows = 2_000 if found.quick else 60_000
    runs = fresh(found.runs, rows)
    figures = found.add(f"a fresh node, {number(rows)} runs", "start", runs)
    found.reach(
        f"a fresh node with {number(rows)} runs: s until it is ready",
        figures["ready_seconds"]["median"],
        most=1.5,
    )
    unanswered = max(run["since_asked"] - run["since_answered"] for run in runs)
    found.reach("a fresh node: `since` of other nodes not answered", unanswered, most=0)


def roll(found: Found, _: Stage) -> None:
    clients = 60 if found.quick else 3_000
    table = f"rolling restart of 3 nodes, {number(clients)} clients"
    runs: Runs = []
    for run in range(min(found.runs, 2)):
        runs.append(rolling(clients))
        machine.say(f"{table}, run {run + 1}", runs[-1])
        figures = found.add(table, "restart", runs)
    for name, what in (
        ("ends_missing", "ends that a client missed"),
        ("reloads", "clients that had to reload (4410)"),
        ("clients_that_differ", "clients that hold something else than SELECT"),
    ):
        found.reach(f"rolling restart: {what}", figures[name]["max"], most=0)


def two_workers(found: Found, _: Stage) -> None:
    clients, rows, bursts = (200, 200, 1) if found.quick else (5_000, 1_000, 5)
    measured = two_and_one(min(found.runs, FEW), clients=clients, rows=rows, bursts=bursts)
    table = f"bursts of {number(rows)} rows to {number(clients)} clients"
    for name, each in measured.items():
        found.add(table, name, each)
    by_cpu = machine.ratios(measured[TWO], measured[ONE], "by_cpu")["median"]
    found.reach("deliveries/s of two workers to one Brain, by CPU", by_cpu, least=1.7)
    clock = machine.ratios(measured[TWO], measured[ONE], "deliveries_per_second")["median"]
    print(f"the same by the clock, beside the clients: {clock:.3g}", flush=True)


PARTS: Mapping[str, Measure] = {
    "kill": partial(after, row="leader SIGKILL", fault=faults.kill_the_leader, most=4.5),
    "stop": partial(after, row="leader SIGTERM", fault=faults.stop_the_leader, most=1.0, times=4),
    "other": partial(after, row="another node SIGKILL", fault=faults.kill_a_follower, most=0.2),
    "nats": partial(after, row="NATS restart", fault=faults.restart_nats, most=5.0),
    "store": partial(after, row="NATS store lost", fault=faults.lose_the_store, most=6.0),
    "raft": partial(lost_server, row="one of three NATS lost", most=12.0),
    "cost": cost,
    "fresh": start,
    "rolling": roll,
    "workers": two_workers,
}


ON_STAGE = ("kill", "stop", "other", "nats", "store")
"""They happen to the same nodes, one after another."""

SLOW = ("store", "raft")
"""Not a part of `--quick`, unless they are named."""


def measure(found: Found, names: Sequence[str]) -> None:
    """A part that fails is reported, and the others go on."""
    stage = Stage()
    try:
        for number, name in enumerate(names, 1):
            gone = (time.monotonic() - machine.BEGAN) / 60
            print(f"== {name} ({number} of {len(names)}), {gone:.1f} min gone", flush=True)
            if gone > LIMIT_MINUTES:
                found.failed[name] = f"no time was left after {LIMIT_MINUTES} minutes"
                continue
            if name not in ON_STAGE:
                stage.close()
            signal.alarm(PART_SECONDS)
            try:
                PARTS[name](found, stage)
            except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
                line = (str(error).splitlines() or [""])[0]
                found.failed[name] = line or type(error).__name__
                print(f"failed: {name}: {error}", flush=True)
                stage.close()
            finally:
                signal.alarm(0)
    finally:
        stage.close()


def _late(_: int, __: FrameType | None) -> None:
    raise TimeoutError(f"not done after {PART_SECONDS} s")


def _stop(_: int, __: FrameType | None) -> None:
    """So that nothing is left running."""
    sys.exit(1)


def main() -> None:
    made = machine.parser(__doc__, runs=RUNS)
    made.add_argument("--only", help=f"parts, separated by commas: {', '.join(PARTS)}", default="")
    options = machine.parsed(made)
    usual = [each for each in PARTS if not options.quick or each not in SLOW]
    names = [each for each in options.only.split(",") if each] or usual
    if unknown := set(names) - PARTS.keys():
        raise SystemExit(f"--only {','.join(unknown)}: the parts are {', '.join(PARTS)}")
    signal.signal(signal.SIGALRM, _late)
    signal.signal(signal.SIGTERM, _stop)
    found = Found(options.quick, options.runs)
    try:
        measure(found, names)
    finally:
        for pid in machine.tree(os.getpid())[1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    document = {"jobs": found.jobs, "targets": found.targets, "failed": found.failed}
    print(json.dumps(found.failed) if found.failed else "no part failed", flush=True)
    machine.write("nodes", document, quick=options.quick or bool(options.only))
    if found.failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
