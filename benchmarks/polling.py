"""Polling: what it costs, and how late it is, when Brain cannot stream the database.

`python -m benchmarks.polling [--quick]`.

The table has 1 000 000 rows. 1 000 of them are active and change, 20 times per second, so every
poll has to scan. The scan is PostgreSQL's work: the share of a core is that of Brain and its
connections together.
"""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.changes import Changes
from benchmarks.load import Load, Options
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain

SERVER_CORE, OTHER_CORES = machine.cores()
ACTIVE = 1_000
RATE = 20
MAX_MS = 1_000
MAX_SHARE = 0.06

FILL = """
INSERT INTO runs (id, status, progress, task_id, agent, started_at, completed_at, error)
SELECT 'run-' || lpad(n::text, 8, '0'),
       CASE WHEN n < {active} THEN 'running' ELSE 'completed' END,
       42, 'task-' || n, 'benchmark', '2026-01-01T00:00:00Z',
       CASE WHEN n >= {active} THEN '2026-01-01T01:00:00Z'::timestamptz END,
       't=' || repeat('0', 19)
FROM generate_series(0, {last}) n
"""


def children_seconds(pid: int) -> float:
    """CPU of the children that have ended: parallel workers of a scan come and go."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / machine.TICK


def spent(server: Postgres, brain: Brain) -> tuple[float, float]:
    """CPU seconds of Brain, and of PostgreSQL on its behalf."""
    assert server.process is not None
    query = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'brain%'"
    backends = [pid for (pid,) in execute(server.url(), query)]
    postgres = sum(map(machine.cpu_seconds, backends)) + children_seconds(server.process.pid)
    return machine.cpu_seconds(brain.process.pid), postgres


def poll(
    server: Postgres, brain: Brain, load: Load, changes: Changes, seconds: float
) -> dict[str, float]:
    load.ask("reset")
    count = round(RATE * seconds)
    before, began = spent(server, brain), time.monotonic()
    changes.start(count, RATE)
    changes.finish(seconds + 30)
    after, took = spent(server, brain), time.monotonic() - began
    time.sleep(2.0)  # two polls: the last change has arrived
    latency = load.ask("count")["latency"]
    own, postgres = ((b - a) / took for a, b in zip(before, after, strict=True))
    return {
        "p50_ms": latency["p50"],
        "p99_ms": latency["p99"],
        "max_ms": latency["max"],
        "came": float(latency["n"]),
        "made": float(count),
        "brain_core_share": own,
        "postgres_core_share": postgres,
        "core_share": own + postgres,
    }


def main() -> None:
    options = machine.options(__doc__, runs=2)
    rows, seconds = (100_000, 3.0) if options.quick else (1_000_000, 15.0)
    with machine.postgres(cores=OTHER_CORES) as server:
        url = machine.address(server)
        machine.statements(url, FILL.format(active=ACTIVE, last=rows - 1), "VACUUM ANALYZE runs")
        with machine.brain(url, cores=SERVER_CORE, follows="poll", source="poll") as brain:
            os.sched_setaffinity(0, {int(core) for core in OTHER_CORES.split(",")})
            with Load(Options(brain.port, "/ws", 1)) as load, Changes(url, ACTIVE) as changes:
                poll(server, brain, load, changes, 2.0)
                measure = {f"{rows} rows": partial(poll, server, brain, load, changes, seconds)}
                found = machine.interleaved(options.runs, measure)
    runs = found[f"{rows} rows"]
    figures = machine.spreads(runs)
    document: dict[str, Any] = {
        "rows": rows,
        "jobs": {f"{rows} rows": {"runs": runs, "figures": figures}},
        "targets": [
            machine.target("change → client, p99, ms", figures["p99_ms"]["median"], most=MAX_MS),
            machine.target(
                "of a core, Brain and PostgreSQL for it",
                figures["core_share"]["median"],
                most=MAX_SHARE,
            ),
        ],
    }
    machine.write("polling", document, quick=options.quick)


if __name__ == "__main__":
    main()
