"""A rolling restart of three nodes: each is stopped, started again, and ready before the next.

The leader comes first, so the log changes hands twice or more. Clients whose node closes them go to
the next one, as through a proxy, and resume with `since`. A writer makes 250 changes a second, of
which a fifth are runs that end at once.
"""

import json
import os
import signal
import tempfile
import time

from benchmarks import machine
from benchmarks.restart import Writer, fill, wait
from benchmarks.several.cluster import Cluster
from benchmarks.several.faults import RATE, TRUTH
from benchmarks.several.wandering import Wandering
from tests.support.postgres import execute

SETTLED = 2.0
"""Seconds after the last change."""


def rolling(clients: int) -> dict[str, float]:
    with machine.database() as url, Cluster(url) as cluster:
        fill(url)
        writer = Writer(url, RATE)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        writer.start()
        try:
            with Wandering(cluster.ports, clients, cores=cores) as load:
                wait(load, clients)
                load.ask("record")
                first = writer.once + 1
                leader = cluster.settle()
                began = time.monotonic()
                for step in range(cluster.count):
                    number = (leader + step) % cluster.count
                    cluster.end(number, signal.SIGTERM)
                    cluster.start(number)
                    cluster.ready(number)
                seconds = time.monotonic() - began
                found = wait(load, clients, after=clients)
                current = found["last"] / 1e9 - began
                writer.stop = True
                writer.join()
                time.sleep(SETTLED)
                differ = _differ(load, url, first, writer.once)
        finally:
            writer.stop = True
            writer.join()
    return {
        "clients": clients,
        "seconds": seconds,
        "all_current_seconds": current,
        "closed": found["losses"],
        "reloads": found["gaps"],
        "ends": writer.once - first + 1,
        "ends_missing": differ["missing"],
        "clients_that_differ": differ["differ"],
    }


def _differ(load: Wandering, url: str, first: int, last: int) -> dict[str, float]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(dict(execute(url, TRUTH)), file)
        file.flush()
        found: dict[str, float] = load.ask(f"differ {file.name} {first} {last}")
        return found
