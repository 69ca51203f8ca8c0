"""What the comparisons of Brain with its peers share: database, repetitions, table, results."""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from typing import Any, Self, TypeAlias

from benchmarks import machine, versions
from benchmarks.peers import PEERS, CannotBuild, brain
from benchmarks.trial import OTHER_CORES, Place, database

Entry: TypeAlias = dict[str, Any]

BASELINE, BEFORE = "brain", "before"
SERVERS = (BASELINE, "socketify", "centrifugo", "node_ws", "fastapi", "websockets")
"""What people would use, in this order."""
ONCE = ("fastapi", "websockets", "floor")
"""Measured in the first run alone: no second run moves a figure that is ten times another."""


@dataclass(frozen=True)
class Job:
    name: str
    clients: int
    count: int
    rate: float
    """Changes per second; 0: all in one transaction."""

    @property
    def deliveries(self) -> float:
        """Due per second."""
        return self.clients * self.rate


def arguments(doc: str | None, *, runs: int = machine.RUNS) -> argparse.Namespace:
    made = machine.parser(doc, runs=runs, compare=True)
    made.add_argument("--only", help="servers to measure, separated by commas", default="")
    return machine.parsed(made)


class Suite:
    """The measurements of one program. A failure is reported as a result, and the rest goes on.

    With `--compare`, Brain and Brain of another commit are the only servers.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.runs: int = options.runs
        self.quick: bool = options.quick
        self.only: list[str] = [each for each in options.only.split(",") if each]
        if unknown := set(self.only) - PEERS.keys():
            raise SystemExit(f"--only {','.join(unknown)}: the servers are {', '.join(PEERS)}")
        self.compare: str | None = options.compare
        if self.compare:
            title = f"Brain of {self.compare}"
            PEERS[BEFORE] = brain(BEFORE, title, versions.source(self.compare))
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.absent: dict[str, dict[str, str]] = {}
        """Job → server → why it was not measured."""
        self._behind: dict[str, Job] = {}
        """Server → the least load that it could not keep up with."""
        self.results: dict[str, dict[str, list[Entry]]] = {}
        """Job → server → one entry per run."""
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        self.url: str = self._closing.enter_context(machine.database(cores=OTHER_CORES))
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def in_turn(self, *names: str) -> Iterator[str]:
        """The wanted servers that can be built here, in turn, as often as there are runs.

        So other work of the machine affects all in the same way, and each run has a server of its
        own.
        """
        if self.compare:
            names = (BASELINE, BEFORE)
        wanted = [name for name in names if not self.only or name in self.only]
        for name in wanted:
            try:
                PEERS[name].build()
            except CannotBuild as reason:
                self.skipped[name] = str(reason)
                print(f"{name}: skipped: {reason}", file=sys.stderr, flush=True)
        for run in range(self.runs):
            yield from (
                name for name in wanted if name not in self.skipped and not (run and name in ONCE)
            )

    @contextmanager
    def database(self, name: str) -> Iterator[None]:
        with database(PEERS[name], self.url):
            yield

    @contextmanager
    def place(self, name: str, *, clients: int) -> Iterator[Place | None]:
        """None if the server did not start, or refused clients; the results say so."""
        with ExitStack() as closing:

            def prepared() -> Place:
                closing.close()  # what the first try has left
                closing.enter_context(self.database(name))
                return closing.enter_context(Place(PEERS[name], self.url, clients=clients))

            what = f"{clients} clients"
            try:
                place = machine.again(prepared, f"{name}, {what}")
            except Exception as error:  # noqa: BLE001 - one server's failure must not end the run
                self._fail(name, what, error)
                yield None
            else:
                yield place

    def sustain(self, place: Place, job: Job) -> None:
        """Measure changes at a rate. What cannot keep up once is not asked again, nor for more."""
        self.measure(place, job.name, partial(place.trial, job.count, job.rate))
        last = self.results.get(job.name, {}).get(place.peer.name, [{}])[-1]
        known = self._behind.get(place.peer.name)
        if last.get("behind") and (known is None or job.deliveries < known.deliveries):
            self._behind[place.peer.name] = job

    def hopeless(self, name: str, job: Job) -> bool:
        """Whether it fell behind at this load, or at fewer deliveries a second."""
        behind = self._behind.get(name)
        if behind is None or (behind != job and behind.deliveries >= job.deliveries):
            return False
        if name not in self.results.get(job.name, {}):
            self.absent.setdefault(job.name, {})[name] = f"fell behind at {behind.name}"
        return True

    def measure(self, server: Place | str, job: str, measure: Callable[[], Any]) -> None:
        name = server if isinstance(server, str) else server.peer.name
        try:
            found = measure()
            entry = (
                asdict(found)
                if is_dataclass(found) and not isinstance(found, type)
                else dict(found)
            )
            entry |= entry.pop("latency", {})
            self.results.setdefault(job, {}).setdefault(name, []).append(entry)
            print(f"{name}, {job}: {_brief(entry)}", file=sys.stderr, flush=True)
        except Exception as error:  # noqa: BLE001 - one server's failure must not end the run
            self._fail(name, job, error)

    def _fail(self, name: str, job: str, error: BaseException) -> None:
        self.failed[f"{name}: {job}"] = machine.reason(error)
        print(f"{name}, {job}: failed: {error}", file=sys.stderr, flush=True)

    def median(self, job: str, name: str, field: str) -> float:
        """NaN if it was not measured."""
        values = [run[field] for run in self.results.get(job, {}).get(name, []) if field in run]
        return statistics.median(values) if values else math.nan

    def ratio(self, job: str, field: str, to: str) -> float:
        """Brain's figure by the other's, for runs next to each other in time; NaN without both."""
        of = self.results.get(job, {})
        pairs = zip(of.get(BASELINE, []), of.get(to, []), strict=False)
        found = [mine[field] / other[field] for mine, other in pairs if other.get(field)]
        return statistics.median(found) if found else math.nan

    def finish(
        self,
        columns: dict[str, str],
        *,
        ratios: dict[str, str],
        targets: Sequence[tuple[str, float, dict[str, float]]] = (),
    ) -> None:
        """Print the tables and write the results.

        `ratios`: field → whether `more` or `less` of it is better. `targets`: the name, the figure
        reached, and its bound `least` or `most`. With `--only`, those that were not measured are
        left out.
        """
        jobs = {
            job: {
                name: {"runs": runs, "figures": figures(runs), "ratio": _ratios(of, name, ratios)}
                for name, runs in of.items()
            }
            for job, of in self.results.items()
        }
        for job, of in jobs.items():
            print(f"\n{job}\n\n{table(of, columns)}")
        for name, reason in self.skipped.items():
            print(f"\n{name} was skipped: {reason}")
        for what, reason in self.failed.items():
            print(f"\nfailed: {what}: {reason}")
        print()
        document = {
            "columns": columns,
            "skipped": self.skipped,
            "failed": self.failed,
            "absent": self.absent,
            "targets": [
                machine.target(what, reached, **bounds)
                for what, reached, bounds in targets
                if not self.quick and not (self.only and math.isnan(reached))
            ],
            "jobs": jobs,
        }
        name = f"{self.name}-compare" if self.compare else self.name
        machine.write(name, document, quick=self.quick or bool(self.compare))


def figures(runs: Sequence[Entry]) -> dict[str, dict[str, float]]:
    """min, median and max of each figure that every run has."""
    fields = [
        field for field in runs[0] if all(isinstance(run.get(field), (int, float)) for run in runs)
    ]
    return machine.spreads([{field: float(run[field]) for field in fields} for run in runs])


def _ratios(
    of: dict[str, list[Entry]], name: str, ratios: dict[str, str]
) -> dict[str, dict[str, float]]:
    """Brain against this server, for runs next to each other in time. Above 1, Brain is better."""
    found = {}
    for field, better in ratios.items():
        pairs = [
            (mine[field], theirs[field])
            for mine, theirs in zip(of.get(BASELINE, []), of[name], strict=False)
            if mine.get(field) and theirs.get(field)
        ]
        if pairs and name != BASELINE:
            found[field] = machine.spread([a / b if better == "more" else b / a for a, b in pairs])
    return found


def table(of: dict[str, Any], columns: dict[str, str]) -> str:
    """Medians, in Markdown, each with its ratio if there is one."""
    shown = {
        title: field
        for title, field in columns.items()
        if any(field in each["figures"] for each in of.values())
    }
    lines = ["| | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for name, each in of.items():
        cells = []
        for field in shown.values():
            if field not in each["figures"]:
                cells.append("")
                continue
            cell = number(each["figures"][field]["median"])
            if field == "behind":
                cell = "fell behind" if each["figures"][field]["max"] else ""
            elif field == "lost":
                cell = (
                    "0"
                    if not each["figures"][field]["max"]
                    else number(each["figures"][field]["max"])
                )
            if field in each["ratio"]:
                cell += f" (Brain {number(each['ratio'][field]['median'])} ×)"
            cells.append(cell)
        lines.append(f"| {PEERS[name].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _brief(entry: dict[str, Any]) -> str:
    keys = (
        "per_second",
        "cpu_us",
        "load_cpu",
        "lost",
        "behind",
        "p50",
        "p99",
        "max",
        "rss_kb",
        "accepted_per_second",
        "back_s",
        "told_s",
    )
    return ", ".join(f"{key} {number(entry[key])}" for key in keys if entry.get(key) is not None)
