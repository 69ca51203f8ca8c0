"""What all measurements share: a PostgreSQL, a Brain, cores, the cost of a process, results."""

import argparse
import json
import math
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from benchmarks.load import Load
from brain.config import Settings
from brain.postgres.table import Table, init_sql
from tests.support.postgres import Postgres, _readable, execute
from tests.support.served import Brain

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path(__file__).parent / "build"
FAILED_RUN = "the run of"
BEGAN = time.monotonic()
LOAD = round(os.getloadavg()[0], 2)
"""Of the machine, in the minute before."""

RUNS = 3
"""Of each measurement, unless a program has its own number or is given one."""

ROLE = "cecelia"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")

POSTGRES = {
    "fsync": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "1h",
    "max_connections": "200",
}
"""Beside the settings of the tests. The data is in memory (/dev/shm), so a commit costs CPU alone:
the hardest case for a follower that shares the CPU.
"""

LIBRARIES = ("uvloop", "uvicorn", "httptools", "websockets", "psycopg", "fastapi", "pydantic")


# The database and Brain.


@contextmanager
def postgres(*, cores: str = "", disk: bool = False, **settings: str) -> Iterator[Postgres]:
    """A PostgreSQL 18 on these cores, with role and database `cecelia` and an empty table `runs`.

    `disk`: its data is in the folder of temporary files, and a commit waits until it is written.
    """
    server = Postgres(18, **POSTGRES | settings)
    try:
        if disk:
            _to_disk(server)
        server.init().start()
        execute(server.url(), f"CREATE ROLE {ROLE} LOGIN REPLICATION")
        execute(server.url(), f"CREATE DATABASE {ROLE} OWNER {ROLE}")
        execute(address(server), init_sql(Table("public", "runs")))
        if cores:
            assert server.process is not None
            pin(server.process.pid, cores)
        yield server
    finally:
        server.remove()


def _to_disk(server: Postgres) -> None:
    folder = Path(tempfile.mkdtemp(prefix="brain-postgres-"))
    owner = server.folder.stat()
    os.chown(folder, owner.st_uid, owner.st_gid)
    server.folder.rmdir()
    server.folder, server.data = folder, folder / "data"


@contextmanager
def database(*, cores: str = "", disk: bool = False, **settings: str) -> Iterator[str]:
    """The database's URL, for the owner of the table."""
    with postgres(cores=cores, disk=disk, **settings) as server:
        yield address(server)


def address(server: Postgres) -> str:
    return server.url(ROLE, ROLE)


@contextmanager
def brain(
    url: str,
    *,
    cores: str = "",
    follows: str = "replication",
    version: Path | None = None,
    **settings: object,
) -> Iterator[Brain]:
    """A Brain in its own process, without its limits.

    It is killed at the end, so that nobody waits until it has closed thousands of clients.
    `version` is the folder src/ of another one.
    """
    if version:
        settings["shell"] = f'PYTHONPATH={shlex.quote(str(version))} exec "$@"'
    given: dict[str, Any] = {"max_connections": 0, "database_url": url, "log_level": "warning"}
    if "handshakes_per_second" in Settings.model_fields:
        given["handshakes_per_second"] = 0
    served = Brain(follows=follows, wait=False, **given | settings)
    try:
        served.wait_for(r"on port (\d+)\. Paste")
        served.port = int(served.log().partition("on port ")[2].partition(".")[0])
        served.wait_ready(follows)
        if cores:
            pin(served.process.pid, cores)
        yield served
        if served.process.poll() is not None:
            raise RuntimeError(
                f"Brain ended with {served.process.returncode}:\n{served.log()[-2000:]}"
            )
    finally:
        served.process.kill()
        served.process.wait()


def statements(url: str, *queries: str) -> None:
    """Run each in a transaction of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        for query in queries:
            connection.execute(query.encode())


def quiet(load: Load, seconds: float = 0.5) -> int:
    """Wait until nothing has arrived at the clients for `seconds`.

    Returns the messages since the last reset.
    """
    last, since = -1, time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(0.05)  # between two looks
        delivered: int = load.ask("progress")["delivered"]
        if delivered != last:
            last, since = delivered, time.monotonic()
    return last


# Cores and processes.


def cores() -> tuple[str, str]:
    """The core for what is measured, and the others, as `taskset -c` takes them.

    On a machine with one core, both are that core.
    """
    all_ = sorted(os.sched_getaffinity(0))
    return str(all_[0]), ",".join(map(str, all_[1:] or all_))


def pin(pid: int, cores: str) -> None:
    """Keep a process on these cores, with its threads, its children and all that it will start."""
    wanted = {int(core) for core in cores.split(",")}
    for each in tree(pid):
        with suppress(OSError):
            for thread in Path(f"/proc/{each}/task").iterdir():
                os.sched_setaffinity(int(thread.name), wanted)


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    found = [pid]
    for each in found:
        with suppress(OSError):
            found.extend(map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split()))
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads, in seconds; 0 if it has ended."""
    # schedstat counts nanoseconds, stat only hundredths of a second.
    total = 0
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                total += int((thread / "schedstat").read_text().split()[0])
    return total / 1e9


def rss_bytes(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE


def pss_bytes(pid: int) -> int:
    """Resident bytes of a process and its descendants, with their share of shared pages."""
    total = 0
    for each in tree(pid):
        with suppress(OSError):
            for line in Path(f"/proc/{each}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


def open_files() -> None:
    """Raise the limit: each client is a descriptor, here and in the processes started from here."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Repetitions and results.


def parser(doc: str | None, *, runs: int = RUNS, compare: bool = False) -> argparse.ArgumentParser:
    """`--quick` and `--runs`, which every program has, and `--compare`, which some have."""
    open_files()
    made = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    made.add_argument(
        "--quick", action="store_true", help="a smoke test: little of everything, once"
    )
    made.add_argument(
        "--runs", type=int, help=f"of each measurement (default: {runs}; 1 if --quick)"
    )
    if compare:
        made.add_argument(
            "--compare", metavar="REV", help="only Brain, and Brain as this commit has it, in turn"
        )
    made.set_defaults(usual=runs)
    return made


def parsed(made: argparse.ArgumentParser, given: Sequence[str] | None = None) -> argparse.Namespace:
    found = made.parse_args(given)
    found.runs = found.runs or (1 if found.quick else found.usual)
    return found


def options(doc: str | None, *, runs: int = RUNS, compare: bool = False) -> argparse.Namespace:
    return parsed(parser(doc, runs=runs, compare=compare))


def interleaved(
    runs: int,
    measures: Mapping[str, Callable[[], dict[str, float]]],
    failed: dict[str, str] | None = None,
) -> dict[str, list[dict[str, float]]]:
    """A, B, C, A, B, C, …: so other work of the machine affects all in the same way.

    A measurement that fails is made again, once. If that fails too, the error is raised; or, with
    `failed`, its name and the reason are added there, and nothing is found for it.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in measures}
    for run in range(runs):
        for name in [name for name in measures if name in found]:
            try:
                figures = again(measures[name], f"{name}, run {run + 1}")
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = reason(error)
                del found[name]
                continue
            found[name].append(figures)
            say(f"{name}, run {run + 1}", figures)
    return found


def again(measure: Callable[[], T], what: str) -> T:
    """A second try after a failure: one of hundreds of processes may not start."""
    try:
        return measure()
    except Exception as error:  # noqa: BLE001 - a measurement may fail in any way
        print(f"{what}: failed: {reason(error)}; once more", file=sys.stderr, flush=True)
        return measure()


def reason(error: BaseException) -> str:
    """In one line."""
    return f"{type(error).__name__}: {error}".splitlines()[0].strip().rstrip(":")


def say(what: str, figures: Mapping[str, float]) -> None:
    text = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
    print(f"{what}: {text}", file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def spreads(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """min, median and max of each figure."""
    return {field: spread([run[field] for run in runs]) for field in runs[0]}


def ratios(
    runs: Sequence[dict[str, float]], to: Sequence[dict[str, float]], field: str
) -> dict[str, float]:
    """Ratio of each run to the other's run next to it in time."""
    return spread([one[field] / other[field] for one, other in zip(runs, to, strict=True)])


def target(
    what: str, reached: float, *, most: float | None = None, least: float | None = None
) -> dict[str, Any]:
    """A figure to reach, as the results have it. Prints it too. NaN: it could not be measured."""
    met = (most is None or reached <= most) and (least is None or reached >= least)
    rule = f"at most {most:g}" if most is not None else f"at least {least:g}"
    if math.isnan(reached):
        print(f"NOT MEASURED: {what} ({rule})", flush=True)
        return {"what": what, "reached": None, "rule": rule, "met": False}
    print(f"{'reached' if met else 'MISSED'}: {what}: {reached:.4g} ({rule})", flush=True)
    return {"what": what, "reached": reached, "rule": rule, "met": met}


def write(name: str, document: dict[str, Any], *, quick: bool = False) -> Path:
    """Write results/NAME.json, with the machine, the command, the day and the seconds it took.

    `quick`: to build/, because they are no figures: those of `--quick` and of `--compare`.
    """
    folder = QUICK_RESULTS if quick else RESULTS
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    head = {
        "name": name,
        "command": " ".join(["python -m", _program(), *sys.argv[1:]]),
        "seconds": round(time.monotonic() - BEGAN),
        **describe(),
    }
    path.write_text(json.dumps(head | document, indent=1, ensure_ascii=False) + "\n")
    print(f"written: {path.relative_to(Path(__file__).parents[1])}", file=sys.stderr)
    return path


def missed(name: str, why: str, *, quick: bool = False) -> None:
    """Add to the results, if there are some, that the program failed today. They stay as old as
    they are.
    """
    path = (QUICK_RESULTS if quick else RESULTS) / f"{name}.json"
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError):
        command = " ".join(["python -m", f"benchmarks.{name}", *["--quick"] * quick])
        document = {"name": name, "command": command, **describe(), "jobs": {}, "targets": []}
    document.setdefault("failed", {})[f"{FAILED_RUN} {today()}"] = why
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


def _program() -> str:
    """As `python -m` was given it."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).stem


def describe() -> dict[str, Any]:
    """The machine, as far as figures depend on it."""
    return {
        "day": today(),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * PAGE / 1024**3),
            "kernel": platform.release(),
            "system": platform.freedesktop_os_release().get("PRETTY_NAME", ""),
            "python": platform.python_version(),
            "postgresql": _first_line(_readable(18) / "postgres", "--version"),
            **{library: version(library) for library in LIBRARIES},
            "load_average": LOAD,
        },
    }


def _cpu() -> str:
    text = Path("/proc/cpuinfo").read_text()
    found = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    return (
        f"{found.get('model name', platform.machine())}, {float(found.get('cpu MHz', 0)):.0f} MHz"
    )


def _first_line(program: Path, *arguments: str) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or [""])[0]
