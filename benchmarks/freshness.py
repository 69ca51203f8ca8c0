"""Freshness: what `source` messages every 5 s to 10 000 clients cost.

`python -m benchmarks.freshness [--quick]`.

CPU of Brain in percent of a core, over 30 s without a change, with 10 000 clients that include
`source` and with 10 000 that do not. The difference is what the messages cost. Pings are turned
down to one an hour, so that they do not hide it.
"""

import os
import time
from functools import partial
from typing import Any

from benchmarks import machine
from benchmarks.load import Load, Options

SERVER_CORE, OTHER_CORES = machine.cores()
MAX_PERCENT = 1.0


def idle(url: str, path: str, clients: int, seconds: float) -> dict[str, float]:
    settings: dict[str, Any] = {"ping_interval": 3600, "ping_timeout": 7200}
    with machine.brain(url, cores=SERVER_CORE, **settings) as brain:
        with Load(Options(brain.port, path, clients), cores=OTHER_CORES) as load:
            time.sleep(6.0)  # each has been sent its first message
            used = machine.cpu_seconds(brain.process.pid)
            time.sleep(seconds)  # measured: the cost of idle clients
            used = machine.cpu_seconds(brain.process.pid) - used
            return {
                "clients": float(load.connected["clients"]),
                "cpu_percent": 100 * used / seconds,
                "us_per_client_and_round": used / clients / (seconds / 5) * 1e6,
            }


def main() -> None:
    options = machine.options(__doc__)
    machine.pin(os.getpid(), OTHER_CORES)
    clients, seconds = (1_000, 10.0) if options.quick else (10_000, 30.0)
    with machine.database(cores=OTHER_CORES) as url:
        found = machine.interleaved(
            options.runs,
            {
                "source": partial(idle, url, "/ws?include=source", clients, seconds),
                "default": partial(idle, url, "/ws", clients, seconds),
            },
        )
    cost = [
        one["cpu_percent"] - other["cpu_percent"]
        for one, other in zip(found["source"], found["default"], strict=True)
    ]
    median = machine.spread(cost)["median"]
    targets = [machine.target("percent of a core for `source`", median, most=MAX_PERCENT)]
    jobs = {name: {"runs": runs, "figures": machine.spreads(runs)} for name, runs in found.items()}
    machine.write("freshness", {"jobs": jobs, "targets": targets}, quick=options.quick)


if __name__ == "__main__":
    main()
