"""The writer: a program that commits changes of runs, one transaction each or many in one.

Each change writes `t=` and the monotonic clock, in nanoseconds, into the run's `error`, just
before the statement is sent. So a latency measured from it includes the UPDATE and its COMMIT. The
runs are changed in turn: thousands of other changes are between two of the same run, so nothing
can be conflated, and a missing change is a lost one.

As a program it takes a URL and the number of runs, then commands on standard input, one JSON
object per line: `{"count": 1000, "rate": 100}`. Rate 0 is one statement in one transaction. When
that is done, it answers `{"began": …, "ended": …, "commit_ms": …}`.
"""

import json
import select
import subprocess
import sys
import time
from typing import Any, Self

import psycopg
from psycopg import pq
from psycopg.pq.abc import PGconn

RUNS = 20_000
PREPARE = """
TRUNCATE runs;
INSERT INTO runs (id, status, progress, task_id, agent, started_at, error)
SELECT 'run-' || lpad(n::text, 8, '0'), 'running', 42, 'task-' || lpad(n::text, 8, '0'),
       'benchmark', '2026-01-01T00:00:00Z', 't=' || repeat('0', 19)
FROM generate_series(0, {most}) n;
"""
ONE = b"UPDATE runs SET error = $1 WHERE id = $2"
MANY = b"UPDATE runs SET error = $1 WHERE id >= $2 AND id < $3"


def prepare(url: str, runs: int = RUNS) -> None:
    """Fill the table as every measurement expects it.

    The runs differ in their ids alone, so all their messages have the same length.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(PREPARE.format(most=runs - 1).encode())
        connection.execute("VACUUM ANALYZE runs")


def run_id(number: int) -> bytes:
    return b"run-%08d" % number


def stamp() -> bytes:
    return b"t=%019d" % time.monotonic_ns()


def execute(connection: PGconn, name: bytes, *values: bytes) -> None:
    result = connection.exec_prepared(name, values)
    if result.status != pq.ExecStatus.COMMAND_OK:
        raise RuntimeError(result.error_message.decode())


def change(connection: PGconn, at: int, runs: int, count: int, rate: float) -> dict[str, Any]:
    began = time.monotonic_ns()
    took: list[int] = []
    if not rate:
        first, left = at % runs, count
        if first + left > runs:
            raise ValueError(f"{count} changes in one statement, of {runs} runs")
        execute(connection, b"many", stamp(), run_id(first), run_id(first + left))
        took.append(time.monotonic_ns() - began)
    for i in range(count if rate else 0):
        wait = began / 1e9 + i / rate - time.monotonic()
        if select.select([0], [], [], max(wait, 0.0))[0]:
            break  # stopped by a command
        sent = time.monotonic_ns()
        execute(connection, b"one", stamp(), run_id((at + i) % runs))
        took.append(time.monotonic_ns() - sent)
    ended = time.monotonic_ns()
    return {
        "began": began,
        "ended": ended,
        "made": count if not rate else len(took),
        "commit_ms": sorted(took)[len(took) // 2] / 1e6,
    }


def serve(url: str, runs: int) -> None:
    connection = psycopg.connect(url, autocommit=True).pgconn
    for name, statement in ((b"one", ONE), (b"many", MANY)):
        connection.prepare(name, statement)
    at = 0
    print("{}", flush=True)
    for line in sys.stdin:
        if line.strip() == "stop":
            continue
        wish = json.loads(line)
        if not wish["rate"] and at % runs + wish["count"] > runs:
            at = 0
        print(json.dumps(change(connection, at, runs, **wish)), flush=True)
        at += wish["count"]


class Changes:
    """The program, seen from its parent. It runs on `cores`."""

    def __init__(self, url: str, runs: int = RUNS, *, cores: str = "") -> None:
        command = [sys.executable, "-m", "benchmarks.changes", url, str(runs)]
        self.process = subprocess.Popen(
            [*(["taskset", "-c", cores] if cores else []), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.finish(60.0)

    def start(self, count: int, rate: float) -> None:
        self._say(json.dumps({"count": count, "rate": rate}))

    def stop(self) -> None:
        """Make no further change, so that `finish` returns at once."""
        self._say("stop")

    def finish(self, seconds: float) -> dict[str, Any] | None:
        """The answer, or None if it has not arrived within `seconds`."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            return None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the changes ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
