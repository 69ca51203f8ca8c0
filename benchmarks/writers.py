"""Writers: what following the table costs its writers.

`python -m benchmarks.writers [--quick] [--compare REV]`.

pgbench updates runs, one per transaction, as fast as it can: alone; while Brain streams; while
Brain polls; while PostgreSQL's own pg_recvlogical streams the same publication by the same plugin
and discards the output, which is the floor for any follower; and with the trigger and the listener
that a peer needs. PostgreSQL, writers and followers share all cores, and nobody has a WebSocket
client: the difference is the price of hearing of the changes. Once with the data on disk, where a
commit waits until it is written, as usual; once in memory, where a commit is CPU and nothing else,
and a follower takes that CPU from the writers. The JSON trigger is that of all peers but one.
"""

import argparse
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from psycopg import sql

from benchmarks import machine, versions
from benchmarks.changes import RUNS, prepare
from benchmarks.peers import HERE, PEERS, CannotBuild, Server
from brain.postgres.table import Table
from tests.support.patience import wait_until
from tests.support.postgres import Postgres, _readable, execute

CLIENTS = 4
SCRIPT = f"""\\set n random(0, {RUNS - 1})
\\set p random(0, 100)
UPDATE runs SET progress = :p WHERE id = 'run-' || lpad(:n::text, 8, '0');
"""
FORGET = (
    "DROP TRIGGER IF EXISTS notify_run ON runs",
    "DROP TABLE IF EXISTS centrifugo_outbox CASCADE",
)

STREAMING, FLOOR, TRIGGER = "Brain streaming", "pg_recvlogical", "websockets"
PEERS_WITH_TRIGGER = (TRIGGER, "centrifugo_outbox")
SLOT = "benchmark"
IS_ACTIVE = f"SELECT active FROM pg_replication_slots WHERE slot_name = '{SLOT}'"

Follower: TypeAlias = Callable[[], AbstractContextManager[int]]
Found: TypeAlias = dict[str, list[dict[str, float]]]

MIN_TO_FLOOR = {"on disk": 0.95, "in memory": 0.92}
MAX_CPU_US = 14.0
"""Of Brain, for a transaction of one row."""


def pgbench(server: Postgres, seconds: float, clients: int = CLIENTS) -> dict[str, float]:
    """Transactions per second, and milliseconds per transaction."""
    for old in server.folder.glob("times.*"):
        old.unlink()
    script = server.folder / "update.sql"
    script.write_text(SCRIPT)
    script.chmod(0o644)
    output = server.program(
        "pgbench",
        *("-h", "127.0.0.1", "-p", str(server.port), "-U", machine.ROLE, "-n", "-M", "prepared"),
        *("-c", str(clients), "-j", "2", "-T", f"{seconds:.0f}", "-f", str(script)),
        *("--log", "--log-prefix", str(server.folder / "times"), "--sampling-rate", "0.1"),
        machine.ROLE,
    )
    found = re.search(r"tps = ([\d.]+)", output)
    count = re.search(r"actually processed: (\d+)", output)
    assert found, output
    assert count, output
    assert "failed transactions: 0" in output, output
    times = sorted(_times(server.folder))
    return {
        "tps": float(found[1]),
        "transactions": float(count[1]),
        "p50_ms": times[len(times) // 2],
        "p99_ms": times[int(len(times) * 0.99)],
    }


def _times(folder: Path) -> Iterator[float]:
    """The third column of pgbench's log: microseconds."""
    for log in folder.glob("times.*"):
        for line in log.read_text().splitlines():
            yield int(line.split()[2]) / 1000


@contextmanager
def brain(url: str, source: str, version: Path | None = None) -> Iterator[int]:
    with machine.brain(url, follows=source, source=source, version=version) as served:
        yield served.process.pid


@contextmanager
def recvlogical(server: Postgres) -> Iterator[int]:
    url = machine.address(server)
    publication = sql.Identifier(Table("public", "runs").publication).as_string()
    command: list[str | Path] = [
        _readable(server.version) / "pg_recvlogical",
        *("-h", "127.0.0.1", "-p", str(server.port), "-U", machine.ROLE, "-d", machine.ROLE),
        *("--slot", SLOT, "-P", "pgoutput"),
    ]
    options = ("-o", "proto_version=1", "-o", f"publication_names={publication}")
    subprocess.run([*command, "--create-slot"], check=True)
    start = [*command, *options, "--start", "--no-loop", "--fsync-interval=0", "-f", "/dev/null"]
    with subprocess.Popen(start) as process:
        try:
            wait_until(lambda: process.poll() is not None or execute(url, IS_ACTIVE)[0][0])
            if process.poll() is not None:
                raise RuntimeError(f"pg_recvlogical ended with {process.returncode}")
            yield process.pid
        finally:
            process.kill()
            process.wait()
            wait_until(lambda: not execute(url, IS_ACTIVE)[0][0])
            machine.statements(url, f"SELECT pg_drop_replication_slot('{SLOT}')")


@contextmanager
def peer(url: str, name: str) -> Iterator[int]:
    machine.statements(url, (HERE / PEERS[name].sql).read_text())
    try:
        with Server(PEERS[name], url) as server:
            yield server.pid
    finally:
        machine.statements(url, *FORGET)


def measure(server: Postgres, seconds: float, follower: Follower | None) -> dict[str, float]:
    url = machine.address(server)
    prepare(url)
    if follower is None:
        return pgbench(server, seconds)
    with follower() as pid:
        used = machine.cpu_seconds(pid)
        figures = pgbench(server, seconds)
        cpu = machine.cpu_seconds(pid) - used
        return figures | {"follower_cpu_us": cpu / figures["transactions"] * 1e6}


def compare(
    options: argparse.Namespace, *, disk: bool, skipped: dict[str, str], failed: dict[str, str]
) -> Found:
    """All followers, in turn. Those that fail are named in `failed`."""
    seconds = 2 if options.quick else 4
    with machine.postgres(disk=disk) as server:
        url = machine.address(server)
        followers: dict[str, Follower | None] = {
            "alone": None,
            STREAMING: partial(brain, url, "replication"),
        }
        if options.compare:
            before = versions.source(options.compare)
            name = f"{STREAMING}, {options.compare}"
            followers[name] = partial(brain, url, "replication", before)
        followers[FLOOR] = partial(recvlogical, server)
        if not options.compare:
            followers["Brain polling"] = partial(brain, url, "poll")
            followers |= {
                name: partial(peer, url, name) for name in PEERS_WITH_TRIGGER if name not in skipped
            }
        measures = {
            name: partial(measure, server, seconds, each) for name, each in followers.items()
        }
        measure(server, 2, None)  # warm up
        return machine.interleaved(options.runs, measures, failed)


def report(found: Found) -> dict[str, Any]:
    jobs: dict[str, Any] = {}
    for name, runs in found.items():
        jobs[name] = {
            "runs": runs,
            "figures": machine.spreads(runs),
            "to_alone": machine.ratios(runs, found["alone"], "tps"),
            "latency_to_alone": machine.ratios(runs, found["alone"], "p50_ms"),
        }
        if FLOOR in found:
            jobs[name]["to_pg_recvlogical"] = machine.ratios(runs, found[FLOOR], "tps")
        tps, p50, p99 = (
            jobs[name]["figures"][field]["median"] for field in ("tps", "p50_ms", "p99_ms")
        )
        print(
            f"  {name:16} {tps:8.0f} tps, {jobs[name]['to_alone']['median']:.2f} of alone; "
            f"p50 {p50:.3f} ms, p99 {p99:.3f} ms"
        )
    return jobs


def main() -> None:
    options = machine.options(__doc__, compare=True)
    skipped = {}
    for name in PEERS_WITH_TRIGGER:
        try:
            PEERS[name].build()
        except CannotBuild as reason:
            skipped[name] = str(reason)
    document: dict[str, Any] = {"clients": CLIENTS, "skipped": skipped, "jobs": {}, "targets": []}
    document["failed"] = {}
    for place, disk in (("on disk", True), ("in memory", False)):
        failed: dict[str, str] = {}
        found = compare(options, disk=disk, skipped=skipped, failed=failed)
        document["failed"] |= {f"{name}: {place}": why for name, why in failed.items()}
        print(f"{place}:")
        document["jobs"][place] = report(found)
        figures = document["jobs"][place].get(STREAMING, {})
        kept = figures.get("to_pg_recvlogical", {}).get("median", math.nan)
        used = figures["figures"]["follower_cpu_us"]["median"] if figures else math.nan
        document["targets"] += [
            machine.target(
                f"writers' transactions/s {place}, beside Brain to beside pg_recvlogical",
                kept,
                least=MIN_TO_FLOOR[place],
            ),
            machine.target(
                f"Brain's CPU µs for a transaction of one row, {place}", used, most=MAX_CPU_US
            ),
        ]
    name = "writers-compare" if options.compare else "writers"
    machine.write(name, document, quick=options.quick or bool(options.compare))


if __name__ == "__main__":
    main()
