"""How many processes, cores and network ports a number of clients needs, up to a million.

    python -m benchmarks.sizing

It measures nothing. It computes from the figures below, and prints the tables of
docs/explanation/sizing.md. Some are assumed, and some round what the other programs have measured
(benchmarks/results): a test says when those no longer fit.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import RESULTS

MESSAGE = 200
"""Bytes of a change on the wire: a run with an agent, a progress and two times."""

CLIENTS_PER_PROCESS = 50_000
"""Assumed. 10 000 were measured; the file descriptors of a process (65 536) end it above this."""

PORT = 10e9
"""Bits a second of a network port."""

LOAD = 0.6
"""Of a port, and of a core: what is left is for a crowd that comes back."""

PROCESSES_PER_MACHINE = 4

LOG_BYTES = 300
"""Of a change in the log between the nodes: its row, in JSON."""

AUDIENCES = (1_000, 10_000, 50_000, 100_000, 250_000, 1_000_000)
RATES = (1, 10, 100)
"""Changes a second that each client receives."""


WRITE = 8e-6
"""Seconds of CPU for a write to one client that brings one change."""

CHANGE = 0.2e-6
"""The same for each change, where a write brings many."""

IDLE = 2.3
"""KB of memory of a client."""


@dataclass(frozen=True)
class Size:
    gigabits: float
    ports: int
    processes: int
    machines: int
    rotation: float
    """Seconds in which a process serves each of its clients once: a change waits one or two of
    them. Changes that come meanwhile share the next write."""
    core: float
    """How much of a core each process needs, if no write brings more than a rotation's changes."""


def measured() -> dict[str, tuple[float, float]]:
    """What the other programs have measured, and what is assumed here."""
    latency, connections = _jobs("latency"), _jobs("connections")
    return {
        "write": (_median(latency["1 000 clients × 100/s"], "cpu_us") / 1e6, WRITE),
        "change": (_median(latency["5 000 clients × 1 000/s"], "cpu_us") / 1e6, CHANGE),
        "idle": (_median(connections["10 000 idle clients"], "rss_kb"), IDLE),
    }


def _jobs(name: str) -> dict[str, Any]:
    jobs: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())["jobs"]
    return jobs


def _median(job: Mapping[str, Any], key: str) -> float:
    values = sorted(run[key] for run in job["brain"]["runs"])
    return float(values[len(values) // 2])


def size(clients: int, rate: float) -> Size:
    """For clients that each receive so many changes a second."""
    bits = clients * rate * MESSAGE * 8
    processes = max(
        math.ceil(clients / CLIENTS_PER_PROCESS),
        math.ceil(clients * rate * CHANGE / LOAD),
    )
    ports = max(1, math.ceil(bits / (PORT * LOAD)))
    each = clients / processes
    rotation = each * WRITE
    # At most one write for each change. If there is no time for that, writes bring several.
    writes = min(rate, LOAD / rotation)
    core = min(LOAD, each * (writes * WRITE + max(0.0, rate - writes) * CHANGE))
    return Size(
        gigabits=bits / 1e9,
        ports=ports,
        processes=processes,
        machines=max(math.ceil(processes / PROCESSES_PER_MACHINE), ports),
        rotation=rotation,
        core=core,
    )


def tables() -> str:
    lines = [
        "| clients | changes/s | Gbit/s | 10-Gbit ports | processes | machines | core | wait |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for clients in AUDIENCES:
        for rate in RATES:
            found = size(clients, rate)
            lines.append(
                f"| {_spaced(clients)} | {rate} | {_figures(found.gigabits)} | {found.ports} | "
                f"{found.processes} | {found.machines} | {found.core:.0%} | "
                f"{2 * found.rotation + 0.025:.2f} s |"
            )
    return "\n".join(lines) + "\n"


def log_table() -> str:
    lines = ["| changes a second | of 4 nodes | of 20 nodes |", "|---|---|---|"]
    for rate in (100, 2_000, 10_000):
        of = [f"{rate * LOG_BYTES * nodes / 1e6:.2g} MB/s" for nodes in (4, 20)]
        lines.append(f"| {_spaced(rate)} | {of[0]} | {of[1]} |")
    return "\n".join(lines) + "\n"


def _figures(number: float) -> str:
    """Two figures, without an exponent."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def assumptions() -> str:
    rows = [
        ("a change on the wire", f"{MESSAGE} bytes", "assumed"),
        ("clients of a process, at most", _spaced(CLIENTS_PER_PROCESS), "assumed"),
        ("a write to a client with one change", f"{WRITE * 1e6:.0f} µs", "benchmarks.latency"),
        ("each further change in a write", f"{CHANGE * 1e6:.1f} µs", "benchmarks.latency"),
        ("memory of a client", f"{IDLE} KB", "benchmarks.connections"),
        ("used of a core and of a port", f"{LOAD:.0%}", "assumed"),
        ("processes of a machine", f"{PROCESSES_PER_MACHINE}", "assumed"),
        ("a change in the log", f"{LOG_BYTES} bytes", "assumed"),
    ]
    lines = [" | ".join(row) for row in (("what", "value", "from"), *rows)]
    lines[1:1] = ["---|---|---"]
    return "".join(f"| {line} |\n" for line in lines).replace("| ---|---|--- |", "|---|---|---|")


def main() -> None:
    sys.stdout.write(f"{assumptions()}\n{tables()}\n{log_table()}")


if __name__ == "__main__":
    main()
