"""Writers: what following the table costs its writers.

`python -m benchmarks.writers [--quick]`.

pgbench updates runs, one per transaction, as fast as it can: alone; while Brain streams; while
Brain polls; and with the trigger and the listener that each peer needs. PostgreSQL, writers and
followers share all cores, and nobody has a WebSocket client: the difference is the price of
hearing of the changes. Once with the data on disk, where a commit waits until it is written, as
usual; once in memory, where a commit is CPU and nothing else, and a follower takes that CPU from
the writers.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import machine
from benchmarks.changes import RUNS, prepare
from benchmarks.peers import HERE, PEERS, CannotBuild, Server
from tests.support.postgres import Postgres

CLIENTS = 4
SCRIPT = f"""\\set n random(0, {RUNS - 1})
\\set p random(0, 100)
UPDATE runs SET progress = :p WHERE id = 'run-' || lpad(:n::text, 8, '0');
"""
FORGET = (
    "DROP TRIGGER IF EXISTS notify_run ON runs",
    "DROP TABLE IF EXISTS centrifugo_outbox CASCADE",
)

PEERS_WITH_TRIGGER = ("websockets", "node_ws", "centrifugo")

Follower: TypeAlias = Callable[[], AbstractContextManager[int]]
Found: TypeAlias = dict[str, list[dict[str, float]]]

LEAST = 0.88
LEAST_TO_TRIGGER = 2.4


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
def brain(url: str, source: str) -> Iterator[int]:
    with machine.brain(url, follows=source, source=source) as served:
        yield served.process.pid


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


def compare(*, disk: bool, runs: int, seconds: float, skipped: dict[str, str]) -> Found:
    """All followers, in turn."""
    with machine.postgres(disk=disk) as server:
        url = machine.address(server)
        followers: dict[str, Follower | None] = {
            "alone": None,
            "Brain streaming": partial(brain, url, "replication"),
            "Brain polling": partial(brain, url, "poll"),
        }
        for name in PEERS_WITH_TRIGGER:
            if name not in skipped:
                followers[name] = partial(peer, url, name)
        measures = {
            name: partial(measure, server, seconds, each) for name, each in followers.items()
        }
        measure(server, 2, None)  # warm up
        return machine.interleaved(runs, measures)


def report(found: Found) -> dict[str, Any]:
    jobs: dict[str, Any] = {}
    for name, runs in found.items():
        jobs[name] = {
            "runs": runs,
            "figures": machine.spreads(runs),
            "to_alone": machine.ratios(runs, found["alone"], "tps"),
            "latency_to_alone": machine.ratios(runs, found["alone"], "p50_ms"),
        }
        tps, p50, p99 = (
            jobs[name]["figures"][field]["median"] for field in ("tps", "p50_ms", "p99_ms")
        )
        print(
            f"  {name:16} {tps:8.0f} tps, {jobs[name]['to_alone']['median']:.2f} of alone; "
            f"p50 {p50:.3f} ms, p99 {p99:.3f} ms"
        )
    return jobs


def main() -> None:
    options = machine.options(__doc__)
    seconds = 2 if options.quick else 10
    skipped = {}
    for name in PEERS_WITH_TRIGGER:
        try:
            PEERS[name].build()
        except CannotBuild as reason:
            skipped[name] = str(reason)
    document: dict[str, Any] = {
        "clients": CLIENTS,
        "seconds": seconds,
        "skipped": skipped,
        "jobs": {},
        "targets": [],
    }
    for place, disk in (("on disk", True), ("in memory", False)):
        found = compare(disk=disk, runs=options.runs, seconds=seconds, skipped=skipped)
        print(f"{place}:")
        document["jobs"][place] = report(found)
        for rivals, least in (("alone", LEAST), ("websockets", LEAST_TO_TRIGGER)):
            kept = machine.ratios(found["Brain streaming"], found[rivals], "tps")["median"]
            rival = "alone" if rivals == "alone" else "a JSON NOTIFY trigger"
            what = f"writers' transactions/s {place}, Brain streaming to {rival}"
            document["targets"].append(machine.target(what, kept, least=least))
    machine.write("writers", document, quick=options.quick)


if __name__ == "__main__":
    main()
