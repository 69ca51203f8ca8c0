"""Restart: how long 5 000 clients are away when Brain restarts under load.

`python -m benchmarks.restart [--quick] [--runs 2]`.

While a writer makes 500 changes a second, Brain is stopped (SIGTERM) or killed (SIGKILL), and
started again at once. Measured is the time from the signal until each of 5 000 clients has
connected again, has received what it missed, and a change that was committed after that. A fifth
of the changes are runs that are written once, so that a hole shows: at the end each client must
have received all of them. Clients wait as protocol.md says. No client may be sent 4410.
`first_seconds`: until the first client is connected again; `most_seconds`: until 99 % are current.
"""

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import psycopg

from benchmarks import machine
from benchmarks.resuming import Resuming
from tests.support.ports import free_port
from tests.support.served import Brain

SERVER_CORE, OTHER_CORES = machine.cores()
RATE = 500
RUNS = 400
ONCE_EVERY = 5
MAX_SECONDS = 2.5
PATIENCE = 120.0


class Writer(threading.Thread):
    """Changes at a rate, each stamped with the time before its commit."""

    def __init__(self, url: str, rate: float = RATE) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.rate = rate
        self.once = 0
        """The last one that was committed."""
        self.count = 0
        self.stop = False

    def run(self) -> None:
        with psycopg.connect(self.url, autocommit=True) as conn:
            began = time.monotonic()
            while not self.stop:
                stamp = f"t={time.monotonic_ns():019}"
                if self.count % ONCE_EVERY:
                    conn.execute(
                        "UPDATE runs SET progress = %s, error = %s WHERE id = %s",
                        (self.count % 100, stamp, f"run-{self.count % RUNS:09}"),
                    )
                else:
                    conn.execute(
                        "INSERT INTO runs (id, status, error) VALUES (%s, 'completed', %s)",
                        (f"once-{self.once + 1:09}", stamp),
                    )
                    self.once += 1
                self.count += 1
                time.sleep(max(0.0, began + self.count / self.rate - time.monotonic()))


def fill(url: str) -> None:
    """The runs that a Writer changes."""
    machine.statements(
        url,
        "INSERT INTO runs (id, status) SELECT 'run-' || lpad(n::text, 9, '0'), 'running'"
        f" FROM generate_series(0, {RUNS - 1}) n",
    )


def start(url: str, folder: Path, port: int) -> Brain:
    brain = Brain(
        wait=False,
        folder=folder,
        port=port,
        database_url=url,
        max_connections=0,
        log_level="warning",
    )
    machine.pin(brain.process.pid, SERVER_CORE)
    brain.port = port
    return brain


def wait(load: Resuming, clients: int, after: int = 0) -> dict[str, float]:
    """Until all are current, and have been since this moment."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = load.ask("state")
        if found["current"] == clients and found["losses"] >= after:
            return found
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all clients are back: {found}")
        time.sleep(0.05)


def restart(number: signal.Signals, clients: int) -> dict[str, float]:
    with machine.database(cores=OTHER_CORES) as url, TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        fill(url)
        brain = start(url, folder, port)
        writer = Writer(url)
        try:
            brain.wait_for("on port")
            brain.wait_ready("replication")
            writer.start()
            with Resuming([port], clients, cores=OTHER_CORES) as load:
                wait(load, clients)
                time.sleep(1)
                load.ask("record")
                first = writer.once + 1
                time.sleep(1)
                began, count = time.monotonic_ns(), writer.count
                brain.process.send_signal(number)
                brain.process.wait(PATIENCE)
                stopped = time.monotonic_ns()
                brain = start(url, folder, port)
                found = wait(load, clients, after=clients)
                rate = (writer.count - count) / (time.monotonic_ns() - began) * 1e9
                writer.stop = True
                writer.join()
                time.sleep(2)  # for the last flush
                lost = load.ask(f"missing {first + RATE // 5} {writer.once}")
                gaps = brain.metric("brain_gaps_total")
        finally:
            writer.stop = True
            brain.process.kill()
            brain.process.wait()
        return {
            "clients": clients,
            "rate": rate,
            "stop_seconds": (stopped - began) / 1e9,
            "first_seconds": (found["first"] - began) / 1e9,
            "most_seconds": (found["most"] - began) / 1e9,
            "seconds": (found["last"] - began) / 1e9,
            "reloads": found["gaps"] + gaps,
            "missing": lost["missing"],
        }


def main() -> None:
    options = machine.options(__doc__, runs=2)
    machine.pin(os.getpid(), OTHER_CORES)
    clients = 200 if options.quick else 5_000
    found = machine.interleaved(
        options.runs,
        {
            "SIGTERM": partial(restart, signal.SIGTERM, clients),
            "SIGKILL": partial(restart, signal.SIGKILL, clients),
        },
    )
    figures = {job: machine.spreads(runs) for job, runs in found.items()}
    targets = []
    for job in found:
        seconds = figures[job]["seconds"]["median"]
        targets += [
            machine.target(f"{job}: seconds until all are current", seconds, most=MAX_SECONDS),
            machine.target(f"{job}: reloads (4410)", figures[job]["reloads"]["max"], most=0),
            machine.target(f"{job}: changes missing", figures[job]["missing"]["max"], most=0),
        ]
    jobs = {job: {"runs": runs, "figures": figures[job]} for job, runs in found.items()}
    machine.write("restart", {"jobs": jobs, "targets": targets}, quick=options.quick)


if __name__ == "__main__":
    main()
