"""Small costs: a policy check, a poll that finds nothing, an upgrade.

`python -m benchmarks.handshake [--quick]`.

- *policy*: microseconds to decide on the headers of an upgrade, in this process.
- *poll*: milliseconds of a poll when nothing was committed, of a table with 200 000 completed runs.
- *upgrade*: milliseconds from connect() to the 101, one client after another, and the server's CPU.
"""

import asyncio
import socket
import statistics
import time
import timeit
from functools import partial

from benchmarks import machine
from brain.access.addresses import Address
from brain.access.policy import Policy
from brain.delivery.board import Board
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.poll import Poll
from brain.postgres.progress import Progress
from brain.postgres.table import Table
from tests.support.wire import request

SERVER_CORE, OTHER_CORES = machine.cores()
FILL = "INSERT INTO runs (id, status) SELECT i, 'completed' FROM generate_series(1, {rows}) i"
MAX_POLICY_US = 15.0
MAX_POLL_MS = 5.0

HEADERS = [
    (b"host", b"localhost:5221"),
    *((f"header-{number}".encode(), b"value") for number in range(9)),
    (b"origin", b"http://localhost:3000"),
    (b"upgrade", b"websocket"),
]


def policy(number: int) -> dict[str, float]:
    policy = Policy(machine="benchmark")
    assert isinstance(policy.check("192.168.1.7", HEADERS, b"/ws"), Address)
    work = partial(policy.check, "192.168.1.7", HEADERS, b"/ws")
    return {"policy_us": min(timeit.repeat(work, number=number, repeat=10)) / number * 1e6}


def poll(url: str, number: int) -> dict[str, float]:
    return {"poll_ms": statistics.median(asyncio.run(_polls(url, number)))}


async def _polls(url: str, number: int) -> list[float]:
    took = []
    async with await connect(url, "brain-benchmark") as connection:
        board = Board(1 << 30)
        table, decoder = Table("public", "runs"), Decoder({}, 1000)
        poll = Poll(connection, table, decoder, board, Progress())
        await poll.read_catalog()
        async for snapshot in poll.read():
            board.apply(snapshot)
        for _ in range(number):
            begun = time.perf_counter()
            found = [snapshot async for snapshot in poll.read()]
            took.append((time.perf_counter() - begun) * 1000)
            assert not found, "the benchmark commits nothing"
    return took


def upgrade(url: str, number: int) -> dict[str, float]:
    took = []
    with machine.brain(url, cores=SERVER_CORE, max_connections_per_ip=0) as brain:
        for count in range(-100, number):  # 100 to warm up
            if count == 0:
                used = machine.cpu_seconds(brain.process.pid)
            begun = time.perf_counter()
            with socket.create_connection(("127.0.0.1", brain.port)) as client:
                client.sendall(request("/ws"))
                assert client.recv(4096).startswith(b"HTTP/1.1 101")
                if count >= 0:
                    took.append((time.perf_counter() - begun) * 1000)
        cpu = machine.cpu_seconds(brain.process.pid) - used
    return {"upgrade_ms": statistics.median(took), "upgrade_cpu_us": cpu / number * 1e6}


def main() -> None:
    options = machine.options(__doc__)
    rows, checks, polls, upgrades = (
        (20_000, 1_000, 20, 100) if options.quick else (200_000, 10_000, 200, 2_000)
    )
    with machine.database(cores=OTHER_CORES) as url:
        machine.statements(url, FILL.format(rows=rows), "VACUUM ANALYZE runs")
        found = machine.interleaved(
            options.runs,
            {
                "policy": partial(policy, checks),
                "poll": partial(poll, url, polls),
                "upgrade": partial(upgrade, url, upgrades),
            },
        )
    figures = {job: machine.spreads(runs) for job, runs in found.items()}
    policy_us = figures["policy"]["policy_us"]["median"]
    poll_ms = figures["poll"]["poll_ms"]["median"]
    document = {
        "jobs": {job: {"runs": runs, "figures": figures[job]} for job, runs in found.items()},
        "targets": [
            machine.target("policy check, µs", policy_us, most=MAX_POLICY_US),
            machine.target("poll that finds nothing, ms", poll_ms, most=MAX_POLL_MS),
        ],
    }
    machine.write("handshake", document, quick=options.quick)


if __name__ == "__main__":
    main()
