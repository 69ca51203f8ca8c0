"""Several nodes of one table: the nats-servers that keep their log, the Brains, and who leads."""

import json
import signal
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import Any, Self

from tests.support.nats import NatsServer
from tests.support.patience import PATIENCE, wait_until
from tests.support.ports import free_port
from tests.support.served import Brain


class Server(NatsServer):
    """One that says who leads a stream. `routes`: the ports of all servers of its cluster, its own
    first.
    """

    def __init__(self, name: str, *routes: int) -> None:
        self.name = name
        self.monitoring = free_port()
        settings = f"http: 127.0.0.1:{self.monitoring}\n"
        if routes:
            others = ", ".join(f'"nats://127.0.0.1:{each}"' for each in routes[1:])
            listen = f"127.0.0.1:{routes[0]}"
            settings += f"cluster {{ name: brain, listen: {listen}, routes: [{others}] }}\n"
        super().__init__(settings, name=name)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid


def _servers(count: int) -> list[Server]:
    if count == 1:
        return [Server("nats")]
    routes = [free_port() for _ in range(count)]
    return [Server(f"nats-{i}", *routes[i:], *routes[:i]) for i in range(count)]


def _readiness(node: Brain) -> dict[str, Any]:
    """Nothing if it does not answer."""
    try:
        document: dict[str, Any] = node.get("/readyz")[1]
    except (OSError, HTTPException):
        return {}
    return document


class Cluster:
    """`servers` nats-servers, and as many copies of the log."""

    def __init__(
        self, url: str, *, count: int = 3, servers: int = 1, takeover: float | None = None
    ) -> None:
        self.url = url
        self.count = count
        self.servers = _servers(servers)
        self.nodes: list[Brain | None] = [None] * count
        self.ports = [free_port() for _ in range(count)]
        self._settings: dict[str, Any] = {} if takeover is None else {"nats_takeover": takeover}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.folder = Path(self._closing.enter_context(tempfile.TemporaryDirectory()))
            for server in self.servers:
                self._closing.callback(server.remove)
                server.start()
            for number in range(self.count):
                self.start(number)
            self.settle()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for number in range(self.count):
            self.end(number, signal.SIGKILL)
        self._closing.close()

    # Nodes

    def start(self, number: int) -> Brain:
        """Does not wait until it listens."""
        node = Brain(
            wait=False,
            folder=Path(tempfile.mkdtemp(dir=self.folder)),
            port=self.ports[number],
            database_url=self.url,
            nats_url=",".join(server.url for server in self.servers),
            nats_replicas=len(self.servers),
            max_connections=0,
            log_level="warning",
            **self._settings,
        )
        node.port = self.ports[number]
        self.nodes[number] = node
        return node

    def end(self, number: int, sent: signal.Signals) -> None:
        """Returns when its process has ended."""
        node, self.nodes[number] = self.nodes[number], None
        if node is not None:
            node.process.send_signal(sent)
            node.process.wait(PATIENCE)

    def running(self) -> dict[int, Brain]:
        return {number: node for number, node in enumerate(self.nodes) if node is not None}

    def pid(self, number: int) -> int:
        node = self.nodes[number]
        assert node is not None
        return node.process.pid

    def settle(self) -> int:
        """Wait until all nodes follow, and one leads. Returns its number."""
        found: dict[int, dict[str, Any]] = {}

        def settled() -> bool:
            found.clear()
            found.update({number: _readiness(node) for number, node in self.running().items()})
            return (
                all(each.get("ready") and not each["log_lag_seconds"] for each in found.values())
                and {each["source"] for each in found.values()} == {"replication"}
                and len({each["epoch"] for each in found.values()}) == 1
                and sum(each["role"] == "leader" for each in found.values()) == 1
            )

        wait_until(settled, lambda: found, pause=0.05)
        return next(number for number, each in found.items() if each["role"] == "leader")

    def follower(self) -> int:
        leader = self.settle()
        return next(number for number in self.running() if number != leader)

    def ready(self, number: int) -> float:
        """Wait until this node is. Returns the time, by the monotonic clock."""
        node = self.nodes[number]
        assert node is not None
        wait_until(lambda: _readiness(node).get("ready"), node.log, pause=0.005)
        return time.monotonic()

    # NATS

    def leader_of_the_log(self) -> Server:
        """Of several servers, the one that leads the stream."""
        found: list[str] = []

        def known() -> bool:
            url = f"http://127.0.0.1:{self.servers[0].monitoring}/jsz?accounts=1&streams=1"
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                document = json.load(answer)
            found[:] = [
                stream["cluster"].get("leader", "")
                for account in document.get("account_details", ())
                for stream in account.get("stream_detail", ())
            ]
            return any(found)

        wait_until(known, lambda: "the stream has no leader")
        return next(server for server in self.servers if server.name == found[0])
