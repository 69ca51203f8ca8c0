"""Pauses: how long the garbage collector stops Brain.

`python -m benchmarks.pauses [--quick]`.

The board holds 100 000 active runs. 10 000 clients connect, all at once. Then runs change, 100 per
second. Then all clients drop, and connect again. The collector itself reports how long each
collection took, in CPU time, so that other processes on the core do not count. Collections before
the first connection are not counted.
"""

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.changes import Changes, prepare
from benchmarks.load import Load, Options
from tests.support import served

SERVER_CORE, OTHER_CORES = machine.cores()
MAX_PAUSE = 0.010
RATE = 100


def storm(url: str, runs: int, clients: int, seconds: float) -> dict[str, float]:
    with tempfile.NamedTemporaryFile(prefix="brain-pauses-") as file:
        os.environ["BENCHMARK_PAUSES"] = file.name
        with machine.brain(url, cores=SERVER_CORE) as brain:
            assert brain.get("/readyz")[1]["runs"] == runs
            begun = Path(file.name).stat().st_size
            with Load(
                Options(brain.port, "/ws", clients, window=clients), cores=OTHER_CORES
            ) as load:
                connected = load.connected
                with Changes(url, runs, cores=OTHER_CORES) as changes:
                    changes.start(round(RATE * seconds), RATE)
                    changes.finish(seconds + 60)
                load.ask("again")
            time.sleep(1.0)  # collections caused by the last connections are over
            lines = Path(file.name).read_bytes()[begun:].decode().splitlines()
    rounds = [(int(g), float(wall), float(cpu)) for g, wall, cpu in map(str.split, lines)]
    oldest = [cpu for generation, _, cpu in rounds if generation == 2]
    return {
        "clients": float(connected["clients"]),
        "rounds": float(len(rounds)),
        "full_rounds": float(len(oldest)),
        "longest_ms": max((cpu for _, _, cpu in rounds), default=0.0) * 1000,
        "longest_wall_ms": max((wall for _, wall, _ in rounds), default=0.0) * 1000,
        "longest_full_ms": max(oldest, default=0.0) * 1000,
        "all_ms": sum(cpu for _, _, cpu in rounds) * 1000,
    }


def main() -> None:
    options = machine.options(__doc__, runs=2)
    runs, clients, seconds = (5_000, 500, 1.0) if options.quick else (100_000, 10_000, 5.0)
    served.BRAIN = [sys.executable, str(Path(__file__).with_name("observed.py"))]
    with machine.database(cores=OTHER_CORES) as url:
        prepare(url, runs)
        job = f"{clients} clients, {runs} runs"
        found = machine.interleaved(
            options.runs, {job: partial(storm, url, runs, clients, seconds)}
        )
    figures = machine.spreads(found[job])
    document: dict[str, Any] = {
        "jobs": {job: {"runs": found[job], "figures": figures}},
        "targets": [
            machine.target("longest pause, s", figures["longest_ms"]["max"] / 1000, most=MAX_PAUSE)
        ],
    }
    machine.write("pauses", document, quick=options.quick)


if __name__ == "__main__":
    main()
