"""Flush intervals: what BRAIN_FLUSH_INTERVAL trades, CPU against latency.

`python -m benchmarks.intervals [--quick] [--compare REV]`.

1 000 clients × 100 changes/s at three settings: 0 (each change at once), the default, and 100 ms.
`core_share` is Brain's share of its core; `deliveries_us` is its CPU for one delivery.
"""

from functools import partial
from pathlib import Path

from benchmarks import machine, versions
from benchmarks.changes import prepare
from benchmarks.peers import brain
from benchmarks.trial import OTHER_CORES, Place
from brain.config import Settings

DEFAULT: float = Settings.model_fields["flush_interval"].default
SETTINGS = (0.0, DEFAULT, 0.1)
MAX_SHARE = 0.75


def measure(
    url: str, interval: float, version: Path | None, *, seconds: float, clients: int, rate: float
) -> dict[str, float]:
    environment = {"BRAIN_FLUSH_INTERVAL": str(interval)}
    with Place(brain("brain", "Brain", version, **environment), url, clients=clients) as place:
        trial = place.trial(round(seconds * rate), rate)
    return {
        "core_share": trial.cpu / seconds,
        "deliveries_us": trial.cpu_us,
        "p50_ms": trial.latency["p50"],
        "p99_ms": trial.latency["p99"],
        "lost": float(trial.lost),
    }


def main() -> None:
    options = machine.options(__doc__, runs=2, compare=True)
    seconds, clients, rate = (1.0, 200, 50) if options.quick else (5.0, 1_000, 100)
    rev = options.compare
    sides: dict[str, Path | None] = {"": None}
    if rev:
        sides[f", {rev}"] = versions.source(rev)
    with machine.database(cores=OTHER_CORES) as url:
        prepare(url)
        found = machine.interleaved(
            options.runs,
            {
                _job(interval) + side: partial(
                    measure, url, interval, version, seconds=seconds, clients=clients, rate=rate
                )
                for interval in SETTINGS
                for side, version in sides.items()
            },
        )
    jobs = {name: {"runs": runs, "figures": machine.spreads(runs)} for name, runs in found.items()}
    share = machine.spreads(found[_job(DEFAULT)])["core_share"]["median"]
    document = {
        "jobs": jobs,
        "targets": [
            machine.target(f"share of a core, {clients} × {rate}/s", share, most=MAX_SHARE)
        ],
    }
    machine.write(
        "intervals-compare" if rev else "intervals", document, quick=options.quick or bool(rev)
    )


def _job(interval: float) -> str:
    return f"{interval * 1000:.0f} ms" + (", the default" if interval == DEFAULT else "")


if __name__ == "__main__":
    main()
