"""Stalled clients: what they cost, and whether other clients notice.

`python -m benchmarks.stalled [--quick]`.

8 000 changes per second, each of a run's status, so that none may be merged. 100 of 300 clients
stop reading for 4 s, and then continue. The others must receive every change. In the end, each
stalled client must have the last state of every run. The growth of Brain's memory during the stall
is divided by the number of stalled clients.
"""

import re
import socket
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import Any

import psycopg

from benchmarks import machine
from benchmarks.changes import RUNS, prepare, run_id, stamp
from benchmarks.load import Load, Options
from tests.support.wire import request

SERVER_CORE, OTHER_CORES = machine.cores()
STEP = 80
RATE = 8_000
MAX_KB = 64
# "queued" and "failed", "run_update" and "run_failed" have one length each: bytes count messages.
CHANGE = """
UPDATE runs SET status = CASE status WHEN 'queued' THEN 'failed' ELSE 'queued' END, error = $1
WHERE id >= $2 AND id < $3
"""
SAID = re.compile(rb'"id":"(run-\d{8})","status":"(\w+)"')


class Writer(threading.Thread):
    """Changes STEP runs per transaction, RATE runs per second."""

    def __init__(self, url: str) -> None:
        super().__init__(name="writer")
        self._url = url
        self._going = True
        self.made = 0
        self.late = 0.0
        """Seconds behind schedule at the end."""

    def run(self) -> None:
        with psycopg.connect(self._url, autocommit=True) as connection:
            pg = connection.pgconn
            pg.prepare(b"change", CHANGE.encode())
            began = time.monotonic()
            while self._going:
                at = self.made % RUNS
                result = pg.exec_prepared(b"change", [stamp(), run_id(at), run_id(at + STEP)])
                assert result.command_tuples == STEP, result.error_message
                self.made += STEP
                self.late = time.monotonic() - began - self.made / RATE
                time.sleep(max(0.0, -self.late))  # until the next is due

    def stop(self) -> None:
        self._going = False
        self.join()


class Reader(threading.Thread):
    """Reads for the clients that may stall, unless they stall."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        super().__init__(name="reader", daemon=True)
        self._sockets = sockets
        self.stalled = threading.Event()
        self._going = True
        self.taken = [bytearray() for _ in sockets]

    def run(self) -> None:
        while self._going:
            if self.stalled.is_set() or not self.read():
                time.sleep(0.02)  # nothing to read, or stalled

    def stop(self) -> None:
        self._going = False
        self.join()

    def read(self) -> int:
        found = 0
        for number, sock in enumerate(self._sockets):
            try:
                data = sock.recv(1 << 20)
            except BlockingIOError:
                continue
            if not data:
                raise RuntimeError("a client that had stalled was closed")
            self.taken[number] += data
            found += len(data)
        return found


def stall(url: str, clients: int, stalled: int, seconds: float) -> dict[str, float]:
    prepare(url)
    machine.statements(url, "UPDATE runs SET status = 'queued'")
    with ExitStack() as closing:
        brain = closing.enter_context(machine.brain(url, cores=SERVER_CORE))
        load = closing.enter_context(
            Load(Options(brain.port, "/ws", clients - stalled), cores=OTHER_CORES)
        )
        sockets = []
        for _ in range(stalled):
            sock = closing.enter_context(socket.create_connection(("127.0.0.1", brain.port)))
            sock.sendall(request("/ws"))
            assert sock.recv(4096).startswith(b"HTTP/1.1 101")
            sock.setblocking(False)
            sockets.append(sock)
        # The board's log is longest after each run has changed a few times.
        for _ in range(3):
            machine.statements(url, "UPDATE runs SET progress = progress")
        machine.quiet(load)
        load.ask("reset")
        reader, writer = Reader(sockets), Writer(url)
        reader.start()
        writer.start()
        sampled = partial(_highest, brain.process.pid)
        before = sampled(4.0)
        for taken in reader.taken:
            taken.clear()
        reader.stalled.set()
        while_stalled = sampled(seconds)
        lagging = brain.get("/readyz")[1]["lagging"]
        reader.stalled.clear()
        time.sleep(1.0)  # it reads while changes continue
        writer.stop()
        due = writer.made * (clients - stalled)
        until = time.monotonic() + 30
        while load.ask("progress")["delivered"] < due and time.monotonic() < until:
            time.sleep(0.2)  # between two looks
        while brain.get("/readyz")[1]["lagging"] and time.monotonic() < until:
            time.sleep(0.1)  # between two looks
        time.sleep(1.0)  # what was written last is read
        reader.stop()
        counted = load.ask("count")
        with psycopg.connect(url) as connection:
            truth = {
                i.encode(): s.encode() for i, s in connection.execute("SELECT id, status FROM runs")
            }
        views = [dict(SAID.findall(taken)) for taken in reader.taken]
        missed = load.connected["clients"] * writer.made - counted["messages"][2]
        return {
            "changes": float(writer.made),
            "writer_late_s": writer.late,
            "lagged": float(lagging),
            "lost_by_others": float(missed),
            "kb_per_stalled": (while_stalled - before) / stalled / 1024,
            "wrong_at_the_end": float(sum(wrong(view, truth) for view in views)),
            "lags": brain.metric("brain_lags_total"),
            "others_p50_ms": counted["latency"]["p50"],
            "others_p99_ms": counted["latency"]["p99"],
            "others_max_ms": counted["latency"]["max"],
            "gaps": brain.metric("brain_gaps_total"),
        }


def wrong(view: dict[bytes, bytes], truth: dict[bytes, bytes]) -> bool:
    """All runs have changed since the stall began, so the view must have all of them."""
    return view != truth


def _highest(pid: int, seconds: float) -> int:
    until, highest = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        highest = max(highest, machine.rss_bytes(pid))
        time.sleep(0.02)  # between two samples
    return highest


def main() -> None:
    options = machine.options(__doc__, runs=2)
    clients, stalled, seconds = (60, 20, 3.0) if options.quick else (300, 100, 4.0)
    job = f"{stalled} of {clients} clients"
    with machine.database(cores=OTHER_CORES) as url:
        found = machine.interleaved(
            options.runs, {job: partial(stall, url, clients, stalled, seconds)}
        )
    figures = machine.spreads(found[job])
    document: dict[str, Any] = {
        "jobs": {job: {"runs": found[job], "figures": figures}},
        "targets": [
            machine.target(
                "changes that the others lost", figures["lost_by_others"]["max"], most=0
            ),
            machine.target(
                "KB for each stalled client", figures["kb_per_stalled"]["median"], most=MAX_KB
            ),
            machine.target(
                "stalled clients that end up wrong", figures["wrong_at_the_end"]["max"], most=0
            ),
        ],
    }
    machine.write("stalled", document, quick=options.quick)


if __name__ == "__main__":
    main()
