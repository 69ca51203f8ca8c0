"""What the comparisons of Brain with its peers share: database, repetitions, table, results."""

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any, Self, TypeAlias

from benchmarks import machine
from benchmarks.peers import PEERS, CannotBuild
from benchmarks.trial import OTHER_CORES, Place, database

Entry: TypeAlias = dict[str, Any]

RUNS = 3
BASELINE = "brain"
SERVERS = (
    BASELINE,
    "brain_before",
    "brain_at_once",
    "node_ws",
    "fastapi",
    "websockets",
    "centrifugo",
)
"""What people would use, in this order."""


def arguments(doc: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="a smoke test: little of everything, once"
    )
    parser.add_argument("--only", help="servers to measure, separated by commas", default="")
    parser.add_argument(
        "--runs", type=int, help=f"of each measurement (default: {RUNS}; 1 if --quick)"
    )
    return parser.parse_args()


class Suite:
    """The measurements of one program. A failure is reported as a result, and the rest goes on."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.runs = options.runs or (1 if options.quick else RUNS)
        self.quick: bool = options.quick
        self.only: list[str] = [each for each in options.only.split(",") if each]
        self.skipped: dict[str, str] = {}
        self.failed: dict[str, str] = {}
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
        wanted = [name for name in names if not self.only or name in self.only]
        for name in wanted:
            try:
                PEERS[name].build()
            except CannotBuild as reason:
                self.skipped[name] = str(reason)
                print(f"{name}: skipped: {reason}", file=sys.stderr, flush=True)
        for _ in range(self.runs):
            yield from (name for name in wanted if name not in self.skipped)

    @contextmanager
    def database(self, name: str) -> Iterator[None]:
        with database(PEERS[name], self.url):
            yield

    @contextmanager
    def place(self, name: str, *, clients: int) -> Iterator[Place | None]:
        """None if the server did not start, or refused clients; the results say so."""
        with self.database(name), ExitStack() as closing:
            try:
                place = closing.enter_context(Place(PEERS[name], self.url, clients=clients))
            except RuntimeError as error:
                self._fail(name, f"{clients} clients", error)
                yield None
            else:
                yield place

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
            if isinstance(server, Place) and entry.get("behind"):
                server.again()
        except (RuntimeError, OSError) as error:
            self._fail(name, job, error)

    def _fail(self, name: str, job: str, error: BaseException) -> None:
        self.failed[f"{name}: {job}"] = (
            str(error).splitlines()[0] if str(error) else type(error).__name__
        )
        print(f"{name}, {job}: failed: {error}", file=sys.stderr, flush=True)

    def median(self, job: str, name: str, field: str) -> float:
        """NaN if it was not measured."""
        values = [run[field] for run in self.results.get(job, {}).get(name, []) if field in run]
        return statistics.median(values) if values else float("nan")

    def finish(
        self,
        columns: dict[str, str],
        *,
        ratios: dict[str, str],
        targets: Sequence[tuple[str, float, dict[str, float]]] = (),
    ) -> None:
        """Print the tables and write the results.

        `ratios`: field → whether `more` or `less` of it is better. `targets`: the name, the figure
        reached, and its bound `least` or `most`. Targets that were not measured are left out.
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
            "targets": [
                machine.target(what, reached, **bounds)
                for what, reached, bounds in targets
                if not math.isnan(reached)
            ],
            "jobs": jobs,
        }
        machine.write(self.name, document, quick=self.quick)


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
