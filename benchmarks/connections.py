"""Connections: memory of an idle one, accepted per second, and the storm after a restart.

`python -m benchmarks.connections [--quick] [--compare REV]`.

- *memory*: the server's RSS with N idle clients minus its RSS with none, divided by N. 10 clients
  have connected and left before.
- *accepted*: N divided by the seconds from the first connect to the last 101, 256 at a time.
- *storm*: the server is killed with N clients and started again. All connect at once as soon as it
  listens. Seconds from then until the last client is back, and until a change made at that moment
  has reached all.
"""

import time
from functools import partial
from typing import Any

from benchmarks import machine
from benchmarks.load import Load, Options
from benchmarks.peers import PEERS, Server
from benchmarks.suite import SERVERS, Suite, arguments
from benchmarks.trial import OTHER_CORES, SERVER_CORE, changes, trial


def idle(suite: Suite, name: str, clients: int) -> dict[str, Any]:
    peer = PEERS[name]
    with Server(peer, suite.url, cores=SERVER_CORE) as server:
        with Load(Options(server.port, peer.path, 10, hello=peer.hello), cores=OTHER_CORES):
            pass
        time.sleep(1.0)  # the ten have left, and their memory is free
        before, used = machine.rss_bytes(server.pid), machine.cpu_seconds(server.pid)
        with Load(
            Options(server.port, peer.path, clients, hello=peer.hello), cores=OTHER_CORES
        ) as load:
            cpu = machine.cpu_seconds(server.pid) - used
            time.sleep(1.0)  # what the last connections used is free
            connected = load.connected
            return {
                "clients": connected["clients"],
                "refused": sum(connected["failed"].values()),
                "rss_kb": (machine.rss_bytes(server.pid) - before) / clients / 1024,
                "accepted_per_second": clients / connected["seconds"],
                "cpu_us": cpu / clients * 1e6,
            }


def storm(suite: Suite, name: str, clients: int) -> dict[str, Any]:
    peer = PEERS[name]
    options = Options(0, peer.path, clients, window=clients, hello=peer.hello)
    with Server(peer, suite.url, cores=SERVER_CORE) as server:
        options.port = server.port
        load = Load(options, cores=OTHER_CORES)
    with load:
        begun = time.monotonic()
        with Server(peer, suite.url, port=options.port, cores=SERVER_CORE) as server:
            listens = time.monotonic()
            connected = load.ask("again")
            with changes(peer, suite.url) as program:
                found = trial(server, load, program, 1, 0)
            return {
                "clients": connected["clients"],
                "refused": sum(connected["failed"].values()),
                "start_s": listens - begun,
                "back_s": connected["seconds"],
                "told_s": connected["seconds"] + found.seconds,
                "slowest_handshake_s": connected["waits"][1],
                "lost": found.lost,
            }


def main() -> None:
    options = arguments(__doc__, runs=2)
    many = 200 if options.quick else 10_000
    crowd = 500 if options.quick else 5_000
    memory, storms = _job(many, "idle clients"), _job(crowd, "clients, storm")
    with Suite("connections", options) as suite:
        for name in suite.in_turn(*SERVERS, "floor"):
            with suite.database(name):
                suite.measure(name, memory, partial(idle, suite, name, many))
                if name != "floor":
                    suite.measure(name, storms, partial(storm, suite, name, crowd))
        suite.finish(
            {
                "RSS KB each": "rss_kb",
                "accepted/s": "accepted_per_second",
                "CPU µs each": "cpu_us",
                "all connected s": "back_s",
                "all updated s": "told_s",
                "refused": "refused",
            },
            ratios={"rss_kb": "less", "accepted_per_second": "more", "told_s": "less"},
            targets=()
            if suite.compare
            else [
                (f"RSS KB each, {memory}", suite.median(memory, "brain", "rss_kb"), {"most": 1.6}),
                (
                    "accepted/s, to those of Node ws",
                    suite.ratio(memory, "accepted_per_second", "node_ws"),
                    {"least": 1.6},
                ),
            ],
        )


def _job(clients: int, what: str) -> str:
    return f"{clients:_} {what}".replace("_", " ")


if __name__ == "__main__":
    main()
