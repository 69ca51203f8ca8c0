"""Freshness: what `source` messages every 5 s to 10 000 clients cost.

`python -m benchmarks.freshness [--quick]`.

CPU of Brain in percent of a core, over 10 s without a change, with 10 000 clients that include
`source` and with 10 000 that do not. The difference is what the messages cost, less the pings that
they take along. The floor is the same difference of a server that only writes (spread_writes.py):
what uvloop and the kernel take for such a frame.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks import machine
from benchmarks.load import Load, Options
from brain.contract.include import SourceReport, source_message

SERVER_CORE, OTHER_CORES = machine.cores()
MAX_PERCENT = 1.0
MAX_RATIO = 1.25
FRAME = len(source_message(SourceReport("replication", None, "", 0.123), 1_700_000_000_123_456))


@contextmanager
def floor(size: int) -> Iterator[tuple[int, int]]:
    """The process and the port of a server that writes frames of this size."""
    command = [sys.executable, "-m", "benchmarks.spread_writes", str(size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            machine.pin(server.pid, SERVER_CORE)
            assert server.stdout is not None
            yield server.pid, int(server.stdout.readline())
        finally:
            server.kill()


@contextmanager
def served(url: str) -> Iterator[tuple[int, int]]:
    with machine.brain(url, cores=SERVER_CORE) as brain:
        yield brain.process.pid, brain.port


def idle(server: Any, path: str, clients: int, seconds: float) -> dict[str, float]:
    with server() as (pid, port), Load(Options(port, path, clients), cores=OTHER_CORES) as load:
        time.sleep(6.0)  # each has been sent its first message
        used = machine.cpu_seconds(pid)
        time.sleep(seconds)  # measured: the cost of idle clients
        used = machine.cpu_seconds(pid) - used
        return {
            "clients": float(load.connected["clients"]),
            "cpu_percent": 100 * used / seconds,
            "us_per_client_and_round": used / clients / (seconds / 5) * 1e6,
        }


def main() -> None:
    options = machine.options(__doc__, runs=1)
    machine.pin(os.getpid(), OTHER_CORES)
    clients, seconds = (1_000, 10.0) if options.quick else (10_000, 10.0)
    with machine.database(cores=OTHER_CORES) as url:
        brain = partial(served, url)
        found = machine.interleaved(
            options.runs,
            {
                "source": partial(idle, brain, "/ws?include=source", clients, seconds),
                "default": partial(idle, brain, "/ws", clients, seconds),
                "floor": partial(idle, partial(floor, FRAME), "/", clients, seconds),
                "floor, silent": partial(idle, partial(floor, 0), "/", clients, seconds),
            },
        )

    def cost(one: str, other: str) -> list[float]:
        pairs = zip(found[one], found[other], strict=True)
        return [one["cpu_percent"] - other["cpu_percent"] for one, other in pairs]

    ours, least = cost("source", "default"), cost("floor", "floor, silent")
    median = machine.spread(ours)["median"]
    ratio = machine.spread([one / other for one, other in zip(ours, least, strict=True)])
    targets = [
        machine.target("percent of a core for `source`", median, most=MAX_PERCENT),
        machine.target("times the floor's", ratio["median"], most=MAX_RATIO),
    ]
    jobs = {name: {"runs": runs, "figures": machine.spreads(runs)} for name, runs in found.items()}
    document = {
        "jobs": jobs,
        "cost": machine.spread(ours),
        "floor": machine.spread(least),
        "ratio": ratio,
        "targets": targets,
    }
    machine.write("freshness", document, quick=options.quick)


if __name__ == "__main__":
    main()
