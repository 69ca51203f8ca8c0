"""How each cost grows: clients × 10, changes × 10, and filters × 100.

`python -m benchmarks.growth [--quick]`.

A delivery is one message at one client. Ten times the clients and ten times the changes are
compared with the first row: Brain's CPU per delivery should fall, because more deliveries share a
flush and a read of the stream. In the part on filters, each client asks for a run of its own by
`run_id`, and each change is of a run that one client has asked for. However many other filters
there are, the change should cost the same.
"""

import select
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks import machine
from benchmarks.changes import RUNS, Changes, prepare, run_id
from benchmarks.peers import PEERS
from benchmarks.trial import OTHER_CORES, SERVER_CORE, Place
from tests.support.served import Brain
from tests.support.wire import request

FEW = 100
MAX_RATIO = 1.5
"""A change among 10 000 filters may cost this many times one among a hundred."""


def fan_out(place: Place, count: int, rate: float) -> dict[str, float]:
    trial = place.trial(count, rate)
    return {
        "cpu_us_per_delivery": trial.cpu_us,
        "cpu_us_per_change": trial.cpu / count * 1e6,
        "core_share": trial.cpu / (count / rate),
        "p50_ms": trial.latency["p50"],
        "p99_ms": trial.latency["p99"],
        "lost": float(trial.lost),
    }


@contextmanager
def filtering(brain: Brain, count: int) -> Iterator[list[socket.socket]]:
    """Clients 0 to `count`. Each asks for the run with its number."""
    clients = []
    try:
        for number in range(count):
            client = socket.create_connection(("127.0.0.1", brain.port))
            client.sendall(request(f"/ws?run_id={run_id(number).decode()}"))
            clients.append(client)
        for client in clients:
            answer = client.recv(4096)
            if not answer.startswith(b"HTTP/1.1 101"):
                raise RuntimeError(f"refused: {answer[:100]!r}")
            client.setblocking(False)
        yield clients
    finally:
        for client in clients:
            client.close()


def filtered(url: str, clients: int, rate: float, seconds: float) -> dict[str, float]:
    """CPU of a change that concerns one client of `clients`.

    Minus what the clients cost when nothing changes.
    """
    count = round(rate * seconds)
    with (
        machine.brain(url, cores=SERVER_CORE) as brain,
        Changes(url, clients, cores=OTHER_CORES) as changes,
        filtering(brain, clients) as sockets,
    ):
        changes.start(min(count, 200), rate)
        changes.finish(60.0)
        time.sleep(0.5)  # the last flush is over
        came(sockets)
        pid = brain.process.pid
        idle = machine.cpu_seconds(pid)
        time.sleep(seconds)  # measured: the cost of the clients when nothing changes
        began, merged = machine.cpu_seconds(pid), brain.metric("brain_changes_conflated_total")
        changes.start(count, rate)
        changes.finish(60.0 + seconds)
        time.sleep(0.5)  # the last flush is over
        used = machine.cpu_seconds(pid) - began
        return {
            "cpu_us_per_change": (used - (began - idle)) / count * 1e6,
            "idle_core_share": (began - idle) / seconds,
            "lost": count
            - came(sockets)
            - (brain.metric("brain_changes_conflated_total") - merged),
        }


def came(sockets: list[socket.socket]) -> int:
    """The number of messages that wait at the clients."""
    epoll = select.epoll()
    by_number = {each.fileno(): each for each in sockets}
    for number in by_number:
        epoll.register(number, select.EPOLLIN)
    found = 0
    while ready := epoll.poll(0.1, 20_000):
        for number, _ in ready:
            found += by_number[number].recv(1 << 20).count(b'"type":"run_')
    epoll.close()
    return found


def main() -> None:
    options = machine.options(__doc__, runs=1)
    clients, rate, seconds, filters = (50, 50, 1, 300) if options.quick else (500, 100, 3, 10_000)
    with machine.database(cores=OTHER_CORES) as url:
        prepare(url)
        jobs: dict[str, list[dict[str, float]]] = {}
        for many in (clients, clients * 10):
            with Place(PEERS["brain"], url, clients=many) as place:
                rates = (rate, rate * 10) if many == clients else (rate,)
                measures = {
                    f"{many} clients × {each}/s": partial(
                        fan_out, place, round(each * seconds), each
                    )
                    for each in rates
                }
                jobs |= machine.interleaved(options.runs, measures)
        prepare(url, max(RUNS, filters))
        measures = {
            f"{many} clients with {many} filters": partial(filtered, url, many, rate * 5, seconds)
            for many in (FEW, filters)
        }
        jobs |= machine.interleaved(options.runs, measures)
    document: dict[str, Any] = {
        "jobs": {
            name: {"runs": runs, "figures": machine.spreads(runs)} for name, runs in jobs.items()
        }
    }
    first, *others = document["jobs"].values()
    print(f"{'':34} {'µs/delivery':>12} {'µs/change':>10} {'core':>6} {'p99 ms':>8} {'lost':>6}")
    for name, job in document["jobs"].items():
        figures = job["figures"]
        cells = [
            f"{figures[field]['median']:.3f}" if field in figures else ""
            for field in ("cpu_us_per_delivery", "cpu_us_per_change", "core_share", "p99_ms")
        ]
        print(
            f"{name:34} {cells[0]:>12} {cells[1]:>10} {cells[2]:>6} {cells[3]:>8} "
            f"{figures['lost']['max']:6.0f}"
        )
    few, most = (
        document["jobs"][f"{many} clients with {many} filters"]["figures"]
        for many in (FEW, filters)
    )
    document["targets"] = [
        machine.target(
            f"a change among {filters} run_id filters to one among {FEW}",
            most["cpu_us_per_change"]["median"] / few["cpu_us_per_change"]["median"],
            most=MAX_RATIO,
        ),
        machine.target(
            "messages lost", max(job["figures"]["lost"]["max"] for job in (first, *others)), most=0
        ),
    ]
    machine.write("growth", document, quick=options.quick)


if __name__ == "__main__":
    main()
