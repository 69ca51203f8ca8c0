"""A node that starts: when it is ready, and whether it answers what clients have seen elsewhere."""

import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from benchmarks import machine
from benchmarks.changes import prepare, run_id
from benchmarks.several.cluster import Cluster
from tests.support.patience import PATIENCE
from tests.support.served import Brain

AWAY = 100
"""Changes that a client misses."""
MISSED = {run_id(number).decode() for number in range(AWAY)}
SEEN = run_id(AWAY).decode()
"""`since` includes what has its own time."""
CHANGE = f"UPDATE runs SET progress = {{run}} WHERE id < '{SEEN}'"
NODES = 3
FRESH = NODES - 1
"""The node that starts."""


def fresh(runs: int, rows: int) -> list[dict[str, float]]:
    """With this many rows in the table."""
    found = []
    with machine.database() as url:
        prepare(url, rows)
        with Cluster(url, count=NODES) as cluster:
            for run in range(runs):
                cluster.end(FRESH, signal.SIGTERM)
                cluster.settle()
                since = _stamps(list(cluster.running().values()), url, run)
                began = time.monotonic()
                node = cluster.start(FRESH)
                ready = cluster.ready(FRESH) - began
                answered = [MISSED <= _missed(node, stamp) <= MISSED | {SEEN} for stamp in since]
                found.append(
                    {
                        "ready_seconds": ready,
                        "since_asked": float(len(answered)),
                        "since_answered": float(sum(answered)),
                    }
                )
                machine.say(f"a fresh node, run {run + 1}", found[-1])
    return found


def _client(node: Brain, query: str = "") -> ClientConnection:
    return connect(node.url(query), compression=None, proxy=None, max_size=None)


def _stamps(nodes: Sequence[Brain], url: str, run: int) -> list[str]:
    """The timestamp of a change, as a client of each node receives it. Others have come since."""
    with ExitStack() as closing:
        clients = [closing.enter_context(_client(node)) for node in nodes]
        machine.statements(url, f"UPDATE runs SET agent = 'a-{run}' WHERE id = '{SEEN}'")
        found = [json.loads(client.recv(PATIENCE))["timestamp"] for client in clients]
        machine.statements(url, CHANGE.format(run=run))
        for client in clients:
            for _ in range(AWAY):
                client.recv(PATIENCE)
        return found


def _missed(node: Brain, since: str) -> set[str]:
    """The runs that this node says have changed since then."""
    found: set[str] = set()
    try:
        with _client(node, f"?since={since}&include=ready") as client:
            while (message := json.loads(client.recv(PATIENCE)))["type"] != "ready":
                found.add(message["data"]["id"])
    except WebSocketException as error:
        print(f"since={since} was not answered: {error}", file=sys.stderr)
    return found
