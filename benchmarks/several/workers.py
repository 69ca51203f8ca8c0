"""Deliveries a second of two workers, beside those of one Brain.

5 000 clients, and one UPDATE of 1 000 rows, again and again. No process is pinned. The clients read
on the same cores as the workers, so the rate by the clock says how many deliveries workers *and
clients* can make. The rate by CPU is what the workers could deliver if the clients were on other
machines: with one Brain, a core divided by its CPU for a delivery. With two workers, two cores
divided by the CPU of all their processes, their nats-server and the supervisor included; and no
more than the busier worker, which has a core at most, allows.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import machine
from benchmarks.changes import Changes, prepare
from benchmarks.load import Load, Options
from tests.support.served import Brain
from tests.support.workers import settle

PATIENCE = 60.0
QUIET = 1.0
"""Seconds without a message."""

ONE, TWO = "one Brain", "two workers"
CORES = 2


@contextmanager
def serving(url: str, workers: int) -> Iterator[Brain]:
    """All its processes have ended afterwards."""
    with TemporaryDirectory() as folder:
        brain = Brain(
            wait=False,
            folder=Path(folder),
            database_url=url,
            workers=workers,
            max_connections=0,
            log_level="warning",
        )
        try:
            brain.wait_for(r"on port (\d+)\. Paste")
            brain.port = int(brain.log().partition("on port ")[2].partition(".")[0])
            brain.wait_ready("replication")
            if workers > 1:
                settle(brain)
            yield brain
        finally:
            _end(brain)


def _end(brain: Brain) -> None:
    family = machine.tree(brain.process.pid)
    brain.process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        brain.process.wait(10)
    for pid in family:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    brain.process.wait()


def deliveries(url: str, workers: int, *, clients: int, rows: int, bursts: int) -> dict[str, float]:
    """The median of the bursts."""
    prepare(url)
    with serving(url, workers) as brain, ExitStack() as closing:
        load = closing.enter_context(Load(Options(brain.port, "/ws", clients=clients)))
        load.check_connected()
        changes = closing.enter_context(Changes(url))
        found = [_burst(brain, load, changes, rows) for _ in range(bursts + 1)][1:]
    return sorted(found, key=lambda each: each["deliveries_per_second"])[len(found) // 2]


def _burst(brain: Brain, load: Load, changes: Changes, rows: int) -> dict[str, float]:
    load.ask("reset")
    before = _cpu(brain)
    changes.start(rows, 0)
    due = rows * int(load.connected["clients"])
    came, heard, deadline = -1, time.monotonic(), time.monotonic() + PATIENCE
    while came < due and time.monotonic() - heard < QUIET and time.monotonic() < deadline:
        time.sleep(0.05)  # between two looks
        now = load.ask("progress")["delivered"]
        if now > came:
            came, heard = now, time.monotonic()
    done = changes.finish(PATIENCE)
    assert done is not None
    report = load.ask("count")
    spent = {pid: used - before.get(pid, 0.0) for pid, used in _cpu(brain).items()}
    delivered = report["messages"][2]
    seconds = report["last"] / 1e9 - done["began"] / 1e9
    total, busiest = sum(spent.values()), max(spent.values())
    return {
        "deliveries_per_second": delivered / seconds,
        "by_cpu": delivered / max(busiest, total / _cores_of(len(spent))),
        "deliveries_per_CPU_second": delivered / total,
        "busiest_share": busiest / total,
        "cores_used": total / seconds,
        "cores_used_by_clients": report["cpu"] / seconds,
        "lost": due - delivered,
    }


def _cores_of(processes: int) -> int:
    """One for a single Brain; for workers as many as there are."""
    return 1 if processes == 1 else CORES


def _cpu(brain: Brain) -> dict[int, float]:
    """Seconds of each process."""
    return {pid: machine.cpu_seconds(pid) for pid in machine.tree(brain.process.pid)}


def two_and_one(
    runs: int, *, clients: int, rows: int, bursts: int
) -> dict[str, list[dict[str, float]]]:
    """One Brain, and two workers, in turn."""
    with machine.database() as url:
        measured = partial(deliveries, url, clients=clients, rows=rows, bursts=bursts)
        return machine.interleaved(
            runs, {ONE: partial(measured, workers=1), TWO: partial(measured, workers=2)}
        )
