"""One trial: the server on one core, and PostgreSQL, the writer and N clients on the others.

It is the same for Brain and for each peer: the same program changes the same rows, and the same
program counts what arrives.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import psycopg

from benchmarks import machine
from benchmarks.changes import RUNS, Changes, prepare
from benchmarks.load import Load, Options
from benchmarks.peers import HERE, Peer, Server

SERVER_CORE, OTHER_CORES = machine.cores()

GRACE = 4.0
"""If a server has not delivered everything so many seconds after the last of changes at a rate, it
has fallen behind."""
PATIENCE = 30.0
"""The same after a burst, which takes as long as it takes."""
QUIET = 2.0
"""After so many seconds without a message since the last change, what is missing is lost. Less than
GRACE, so that lost messages do not look like late ones. Pings do not count: Brain sends them."""


@dataclass(slots=True)
class Trial:
    """The figures of one measurement. Seconds are from the first change to the last byte."""

    messages: int
    clients: int
    asked: int
    """Deliveries that were due: changes made × clients."""
    delivered: int
    seconds: float
    per_second: float
    cpu: float
    """Seconds of the server's CPU, kernel included."""
    cpu_us: float
    """Microseconds of the server's CPU per delivery."""
    load_cpu: float
    lost: int
    """Deliveries that were due and never arrived. 0 if the server has fallen behind."""
    behind: bool
    """The server could not keep up, and the trial ended early: `per_second` is its capacity."""
    latency: dict[str, float]
    """Milliseconds, from before the UPDATE was sent."""
    commit_ms: float | None
    changes_per_second: float | None
    """The rate that the writer reached: lower than required if PostgreSQL and its triggers were too
    slow. None for a burst."""
    message_bytes: int


class Place:
    """A server and its clients, ready for trials. After a trial that left a backlog, restart it."""

    def __init__(self, peer: Peer, url: str, *, clients: int, runs: int = RUNS) -> None:
        self.peer, self.url, self.clients, self.runs = peer, url, clients, runs
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.server = self._closing.enter_context(
                Server(self.peer, self.url, cores=SERVER_CORE)
            )
            options = Options(self.server.port, self.peer.path, self.clients, hello=self.peer.hello)
            self.load = self._closing.enter_context(Load(options, cores=OTHER_CORES))
            self.load.require_all()
            self.changes = self._closing.enter_context(changes(self.peer, self.url, self.runs))
            for _ in range(2):  # warm up
                self.trial(20, 100)
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def restart(self) -> None:
        self._closing.close()
        self.__enter__()

    def trial(self, count: int, rate: float) -> Trial:
        return trial(self.server, self.load, self.changes, count, rate)


@contextmanager
def changes(peer: Peer, url: str, runs: int = RUNS) -> Iterator[Changes | None]:
    """None for the floor, which makes messages itself."""
    if peer.name == "floor":
        yield None
    else:
        with Changes(url, runs, cores=OTHER_CORES) as program:
            yield program


def trial(server: Server, load: Load, changes: Changes | None, count: int, rate: float) -> Trial:
    """Make `count` changes, `rate` per second; 0: all in one transaction."""
    load.ask("reset")
    clients = load.connected["clients"]
    used, began = machine.cpu_seconds(server.pid), time.monotonic()
    last_change = began + (count / rate if rate else 0.0)
    due = count * clients
    if changes is not None:
        changes.start(count, rate)
    else:
        server.say(f"{count} {rate}")
    done: dict[str, Any] | None = None
    behind = False
    delivered, progressed = 0, began
    while True:
        time.sleep(0.1)
        now = time.monotonic()
        progress = load.ask("progress")
        if progress["delivered"] > delivered:
            delivered, progressed = progress["delivered"], now
        if done is None and changes is not None:
            done = changes.finish(0.0)
            last_change = max(last_change, done["ended"] / 1e9 if done else now)
        if (
            delivered >= due
            or progress["clients"] == 0
            or now - max(progressed, last_change) > QUIET
        ):
            break
        behind = now - last_change > (GRACE if rate else PATIENCE)
        if behind:
            break
    cpu = machine.cpu_seconds(server.pid) - used
    if changes is not None and done is None:
        changes.stop()
        done = changes.finish(30.0)
    report = load.ask("count")
    begun = done["began"] / 1e9 if done else began
    seconds = max(report["last"] / 1e9 - begun, 1e-9)
    delivered = report["messages"][2]
    asked = (done["made"] if done else count) * clients
    return Trial(
        messages=count,
        clients=clients,
        asked=asked,
        delivered=delivered,
        seconds=seconds,
        per_second=delivered / seconds,
        cpu=cpu,
        cpu_us=cpu / delivered * 1e6 if delivered else 0.0,
        load_cpu=report["cpu"],
        lost=0 if behind else asked - delivered,
        behind=behind,
        latency=report["latency"],
        commit_ms=done["commit_ms"] if done else None,
        changes_per_second=done["made"] / (done["ended"] - done["began"]) * 1e9
        if done and rate
        else None,
        message_bytes=report["size"],
    )


@contextmanager
def database(peer: Peer, url: str, runs: int = RUNS) -> Iterator[None]:
    """The filled table, with the peer's trigger until the end of the block."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TRIGGER IF EXISTS notify_run ON runs")
    prepare(url, runs)
    with psycopg.connect(url, autocommit=True) as connection:
        if peer.sql:
            connection.execute((HERE / peer.sql).read_bytes())
        yield
        connection.execute("DROP TRIGGER IF EXISTS notify_run ON runs")
