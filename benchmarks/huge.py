"""Huge: what one text of 100 MB costs Brain, and those who wait meanwhile.

`python -m benchmarks.huge [--quick] [--megabytes 100] [--compare REV]`.

A run's `error` gets that length in one UPDATE while Brain streams. PostgreSQL sends all of it, and
clients receive the beginning (BRAIN_MAX_TEXT). Measured are the peak of Brain's memory above what
it was, what it keeps, and the longest wait for an answer of /healthz meanwhile.
"""

import http.client
import threading
import time
from functools import partial
from pathlib import Path
from typing import Self

from benchmarks import machine, versions
from tests.support.postgres import execute
from tests.support.served import Brain

HUGE = "UPDATE runs SET error = repeat('x', %s) WHERE id = 'huge'"
EVERY = 0.002
"""Seconds between two questions."""


class Asking:
    """Asks /healthz all the time, and notes the longest wait for an answer."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.longest = 0.0

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        while not self._stop.is_set():
            began = time.monotonic()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            self.longest = max(self.longest, time.monotonic() - began)
            time.sleep(EVERY)  # the rate
        connection.close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def peak_bytes(pid: int) -> int:
    """The most of the process that was in memory since the last `forget_peak`."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def measure(url: str, brain: Brain, megabytes: int) -> dict[str, float]:
    pid = brain.process.pid
    execute(url, "TRUNCATE runs")
    execute(url, "INSERT INTO runs (id, status) VALUES ('huge', 'running'), ('other', 'running')")
    time.sleep(1)  # the rows have been pushed, and their memory is free
    before = machine.rss_bytes(pid)
    forget_peak(pid)
    counted = brain.metric("brain_changes_total")
    with Asking(brain.port) as asking:
        execute(url, HUGE, megabytes * 1_000_000)
        while brain.metric("brain_changes_total") == counted:
            time.sleep(0.01)  # between two looks
        time.sleep(0.5)  # what was asked meanwhile has been answered
    return {
        "peak_mb": (peak_bytes(pid) - before) / 1e6,
        "kept_mb": (machine.rss_bytes(pid) - before) / 1e6,
        "longest_ms": asking.longest * 1000,
    }


def main() -> None:
    made = machine.parser(__doc__, runs=3, compare=True)
    made.add_argument("--megabytes", type=int, default=100)
    asked = machine.parsed(made)
    megabytes = 10 if asked.quick else asked.megabytes
    sources: dict[str, Path | None] = {"Brain": None}
    if asked.compare:
        sources[asked.compare] = versions.source(asked.compare)
    with machine.postgres() as server:
        url = machine.address(server)
        measures = {name: partial(_measured, url, megabytes, src) for name, src in sources.items()}
        found = machine.interleaved(asked.runs, measures)
    jobs = {name: {"runs": runs, "figures": machine.spreads(runs)} for name, runs in found.items()}
    machine.write(
        "huge-compare" if asked.compare else "huge",
        {"jobs": {f"a text of {megabytes} MB": jobs}, "targets": []},
        quick=asked.quick or bool(asked.compare),
    )


def _measured(url: str, megabytes: int, version: Path | None) -> dict[str, float]:
    with machine.brain(url, version=version) as brain:
        return measure(url, brain, megabytes)


if __name__ == "__main__":
    main()
