"""One trial: a server on one core; PostgreSQL, the writer and N clients on the others.

It is the same for Brain and each peer: the same program changes the same rows, and the same program
counts the messages.
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
"""Seconds after the last of changes that were sent at a rate. A server that has not delivered all
by then has fallen behind.
"""
PATIENCE = 30.0
"""The same after a burst, which the server delivers as fast as it can."""
QUIET = 2.0
"""Seconds without a message, after the last change, after which missing messages are lost. Less
than GRACE: otherwise a lost message would look like a late one. Pings do not count, or Brain would
never be quiet.
"""


@dataclass(slots=True)
class Trial:
    """One measurement. Seconds are from the first change to the last byte at a client."""

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
    """Microseconds of CPU per delivery."""
    load_cpu: float
    lost: int
    """Deliveries that were due and did not arrive, although the server had the time."""
    behind: bool
    """The server could not keep up, and the trial ended early: `per_second` is what it reached."""
    latency: dict[str, float]
    """Milliseconds, from before the UPDATE was sent."""
    commit_ms: float | None
    changes_per_second: float | None
    """What the writer reached: less than requested if PostgreSQL, with its triggers, was slower.
    None for a burst.
    """
    message_bytes: int


class Place:
    """A server and its clients, ready for trials."""

    def __init__(self, peer: Peer, url: str, *, clients: int, runs: int = RUNS) -> None:
        self.peer, self.url, self.clients, self.runs = peer, url, clients, runs
        self._closing = ExitStack()
        self._stale = False
        """The last trial left a backlog."""

    def __enter__(self) -> Self:
        try:
            self.server = self._closing.enter_context(
                Server(self.peer, self.url, cores=SERVER_CORE)
            )
            options = Options(self.server.port, self.peer.path, self.clients, hello=self.peer.hello)
            self.load = self._closing.enter_context(Load(options, cores=OTHER_CORES))
            self.load.check_connected()
            self.changes = self._closing.enter_context(changes(self.peer, self.url, self.runs))
            for _ in range(2):  # warm up
                trial(self.server, self.load, self.changes, 20, 100)
        except BaseException:
            self._closing.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def trial(self, count: int, rate: float) -> Trial:
        """A server that was left with a backlog is first replaced."""
        if self._stale:
            self._stale = False
            self._closing.close()
            self.__enter__()
        found = trial(self.server, self.load, self.changes, count, rate)
        self._stale = found.behind
        return found


@contextmanager
def changes(peer: Peer, url: str, runs: int = RUNS) -> Iterator[Changes | None]:
    """None for the floor, which makes its own messages."""
    if peer.name == "floor":
        yield None
    else:
        with Changes(url, runs, cores=OTHER_CORES) as program:
            yield program


def trial(server: Server, load: Load, changes: Changes | None, count: int, rate: float) -> Trial:
    """`count` changes, `rate` per second; 0: all at once, in one transaction."""
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
    so_far, grew = 0, began
    while True:
        time.sleep(0.1)  # between two looks
        now = time.monotonic()
        progress = load.ask("progress")
        if progress["delivered"] > so_far:
            so_far, grew = progress["delivered"], now
        if done is None and changes is not None:
            done = changes.finish(0.0)
            last_change = max(last_change, done["ended"] / 1e9 if done else now)
        if so_far >= due or progress["clients"] == 0 or now - max(grew, last_change) > QUIET:
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
    asked = (done["made"] if done else count) * clients
    delivered = report["messages"][2]
    if report["joined"]:
        delivered = min(delivered, asked)  # the count varies by 1 %
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
    """The table, filled, with what the peer needs to hear of changes; afterwards without it."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP TRIGGER IF EXISTS notify_run ON runs")
    prepare(url, runs)
    with psycopg.connect(url, autocommit=True) as connection:
        if peer.sql:
            connection.execute((HERE / peer.sql).read_bytes())
        yield
        connection.execute("DROP TRIGGER IF EXISTS notify_run ON runs")
