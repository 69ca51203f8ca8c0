"""Turns: how long one turn of Brain's event loop takes, in which nobody else is answered.

`python -m benchmarks.turns [--quick] [--compare REV]`.

Brain itself records its turns (benchmarks/observed.py): a client would see its own delays, and the
kernel's, on top. They are in CPU time, so that other processes on the core do not count;
`longest_wall_ms` is the same with them. In the loads with filters, each client asks for a run of
its own by `run_id`, and each change is of a run that one client has asked for. `leaving_ms` is the
longest turn when all clients end their connections at once, after the load, and `closing_ms` when
they all send a close frame at once.
"""

import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine, versions
from benchmarks.changes import RUNS, Changes, prepare
from benchmarks.growth import came, filtering
from benchmarks.load import Load, Options
from tests.support import served
from tests.support.patience import wait_until
from tests.support.served import Brain
from tests.support.wire import closing

SERVER_CORE, OTHER_CORES = machine.cores()
MAX_MS = 40.0


@dataclass(frozen=True)
class Job:
    name: str
    clients: int
    count: int
    rate: float
    filters: bool = False


JOBS = (
    Job("1 000 clients × 100/s", 1_000, 300, 100),
    Job("1 000 clients, a burst of 20 000", 1_000, 20_000, 0),
    Job("5 000 clients × 1 000/s", 5_000, 3_000, 1_000),
    Job("10 000 clients × 500/s", 10_000, 1_500, 500),
    Job("10 000 filters × 1 000/s", 10_000, 3_000, 1_000, filters=True),
    Job("10 000 filters, a burst of 10 000", 10_000, 10_000, 0, filters=True),
)
QUICK = (
    Job("200 clients × 100/s", 200, 100, 100),
    Job("200 filters, a burst of 200", 200, 200, 0, filters=True),
)


@contextmanager
def clients(brain: Brain, job: Job) -> Iterator[Callable[[], object]]:
    """Yields what waits until they have read everything. At the end all leave at once."""
    if job.filters:
        with filtering(brain, job.clients) as sockets:
            yield lambda: came(sockets)
    else:
        with Load(Options(brain.port, "/ws", job.clients), cores=OTHER_CORES) as load:
            load.check_connected()
            load.ask("reset")
            yield lambda: machine.quiet(load)


def recorded(file: Path, begun: int = 0) -> list[tuple[float, float]]:
    """Wall and CPU seconds of the turns since the file had this size."""
    lines = file.read_bytes()[begun:].decode().splitlines()
    return [(float(wall), float(cpu)) for wall, cpu in map(str.split, lines)]


def leave(brain: Brain, file: Path, begun: int) -> list[tuple[float, float]]:
    """The turns since the file had this size, until all clients have gone."""
    wait_until(lambda: brain.metric("brain_clients") == 0)
    return recorded(file, begun)


def close(brain: Brain, file: Path, count: int) -> list[tuple[float, float]]:
    """The turns in which so many clients close. Their frames come while the process is stopped, so
    that the loop reads them all in one turn.
    """
    with filtering(brain, count) as sockets:
        # The turn in which the last of them connected is over.
        wait_until(lambda: brain.metric("brain_clients") == count)
        begun = file.stat().st_size
        brain.process.send_signal(signal.SIGSTOP)
        for each in sockets:
            each.send(closing(1000))
        brain.process.send_signal(signal.SIGCONT)
        return leave(brain, file, begun)


def measure(url: str, job: Job, version: Path | None) -> dict[str, float]:
    with ExitStack() as closing:
        file = Path(closing.enter_context(tempfile.NamedTemporaryFile(prefix="brain-turns-")).name)
        os.environ["BENCHMARK_TURNS"] = str(file)
        brain = closing.enter_context(machine.brain(url, cores=SERVER_CORE, version=version))
        changes = closing.enter_context(Changes(url, RUNS, cores=OTHER_CORES))
        with clients(brain, job) as wait_until_read:
            changes.start(100, 100)  # warm up
            changes.finish(60.0)
            begun = file.stat().st_size
            changes.start(job.count, job.rate)
            changes.finish(60.0 + job.count)
            wait_until_read()
            turns = recorded(file, begun)
            begun = file.stat().st_size
        leaving = leave(brain, file, begun)
        closed = close(brain, file, job.clients)
    return {
        "longest_ms": max((cpu for _, cpu in turns), default=0.0) * 1000,
        "longest_wall_ms": max((wall for wall, _ in turns), default=0.0) * 1000,
        "above_20_ms": float(sum(cpu > 0.02 for _, cpu in turns)),
        "leaving_ms": max((cpu for _, cpu in leaving), default=0.0) * 1000,
        "closing_ms": max((cpu for _, cpu in closed), default=0.0) * 1000,
    }


def main() -> None:
    options = machine.options(__doc__, runs=1, compare=True)
    asked = QUICK if options.quick else JOBS
    observed = str(Path(__file__).with_name("observed.py"))
    served.BRAIN = [sys.executable, observed]
    rev = options.compare
    sides: dict[str, Path | None] = {"": None}
    if rev:
        sides[f", {rev}"] = versions.source(rev)
    found: dict[str, list[dict[str, float]]] = {}
    failed: dict[str, str] = {}
    with machine.database(cores=OTHER_CORES) as url:
        prepare(url)
        for job in asked:
            measures = {
                f"{job.name}{side}": partial(measure, url, job, version)
                for side, version in sides.items()
            }
            found |= machine.interleaved(options.runs, measures, failed)
    jobs: dict[str, Any] = {
        name: {"runs": runs, "figures": machine.spreads(runs)} for name, runs in found.items()
    }
    targets = [
        machine.target(
            f"longest turn, ms, {job.name}{when}",
            jobs[job.name]["figures"][figure]["max"] if job.name in jobs else math.nan,
            most=MAX_MS,
        )
        for job in asked
        for figure, when in (
            ("longest_ms", ""),
            ("leaving_ms", ", all leave"),
            ("closing_ms", ", all close"),
        )
    ]
    machine.write(
        "turns-compare" if rev else "turns",
        {"jobs": jobs, "targets": targets, "failed": failed},
        quick=options.quick or bool(rev),
    )


if __name__ == "__main__":
    main()
