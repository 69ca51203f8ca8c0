"""What clients hear of a fault: how long they receive nothing, and whether they end right.

While a writer makes 250 changes a second, 5 clients of each of 3 nodes read them. Then something is
broken. Counted is the longest time without a change of any client whose own node lives on; it
begins with the last change before the fault. Afterwards each of them must hold what SELECT shows.
"""

import signal
import time
from collections.abc import Callable
from typing import TypeAlias

from benchmarks.restart import Writer
from benchmarks.several.cluster import Cluster
from benchmarks.several.watchers import Watchers, silent, wrong
from tests.support.postgres import execute

RATE = 250
EACH = 5
"""Clients of a node."""
STEADY = 0.5
"""Seconds before the fault."""
AFTER = 1.0
"""Seconds that are watched after everything is well again."""
DOWN = 1.0
"""Seconds for which NATS is away."""
PATIENCE = 10.0
"""Seconds after the last change in which each client must hold it."""

TRUTH = "SELECT id, substr(error, 3) FROM runs WHERE error IS NOT NULL AND id LIKE 'run-%'"

Fault: TypeAlias = Callable[[Cluster], tuple[int, ...]]
"""Breaks something, and returns when it is as it stays: the nodes that it has ended."""


def kill_the_leader(cluster: Cluster) -> tuple[int, ...]:
    return _end(cluster, cluster.settle(), signal.SIGKILL)


def stop_the_leader(cluster: Cluster) -> tuple[int, ...]:
    return _end(cluster, cluster.settle(), signal.SIGTERM)


def kill_a_follower(cluster: Cluster) -> tuple[int, ...]:
    return _end(cluster, cluster.follower(), signal.SIGKILL)


def _end(cluster: Cluster, number: int, sent: signal.Signals) -> tuple[int, ...]:
    cluster.end(number, sent)
    return (number,)


def restart_nats(cluster: Cluster) -> tuple[int, ...]:
    (server,) = cluster.servers
    server.stop(signal.SIGKILL)
    time.sleep(DOWN)
    server.start()
    return ()


def lose_the_store(cluster: Cluster) -> tuple[int, ...]:
    (server,) = cluster.servers
    server.stop(signal.SIGKILL)
    server.lose_store()
    time.sleep(DOWN)
    server.start()
    return ()


def lose_a_server(cluster: Cluster) -> tuple[int, ...]:
    """For ever: that which leads the stream."""
    cluster.leader_of_the_log().stop(signal.SIGKILL)
    return ()


def silence(cluster: Cluster, fault: Fault) -> dict[str, float]:
    """Afterwards the nodes that it has ended run again."""
    cluster.settle()
    execute(
        cluster.url, "DELETE FROM runs WHERE id LIKE 'once-%'"
    )  # a Writer begins with the first
    writer = Writer(cluster.url, RATE)
    with Watchers(cluster.ports, EACH) as watchers:
        try:
            began = time.monotonic_ns()
            writer.start()
            watchers.current(began)
            time.sleep(STEADY)
            watchers.mark()
            ended = fault(cluster)
            watchers.current(time.monotonic_ns(), *ended)
            time.sleep(AFTER)
            others = watchers.of(*ended)
            seconds = silent(others)
        finally:
            writer.stop = True
            writer.join()
        found = {
            "seconds": seconds,
            "disconnected": float(sum(watcher.ended for watcher in others)),
            "wrong": float(wrong(others, lambda: _truth(cluster.url), PATIENCE)),
        }
    for number in ended:
        cluster.start(number)
    return found


def _truth(url: str) -> dict[str, str]:
    return dict(execute(url, TRUTH))
