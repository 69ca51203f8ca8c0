"""Stalled clients: what they cost, and whether other clients notice.

`python -m benchmarks.stalled [--quick]`.

8 000 changes per second, each of a run's status, so that none may be merged. 100 of 300 clients
stop reading for 4 s, and then continue. The others must receive every change. In the end, each
stalled client must have the last state of every run. The growth of Brain's memory during the stall
is divided by the number of stalled clients. Clients of one filter share the bytes that wait for
them. So, once more with 1 000 changes per second, each of the 100 has a filter of its own that
matches every run, and stalls for 6 s. The kernel keeps at most 256 KiB for each client that stalls,
where it would keep up to 6 MB: most of them would not lag.
"""

import re
import socket
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import psycopg

from benchmarks import machine
from benchmarks.changes import RUNS, prepare, run_id, stamp
from benchmarks.load import Load, Options
from tests.support.wire import request

SERVER_CORE, OTHER_CORES = machine.cores()
STEP = 80
QUIET = 1.0
"""Seconds without a message after which the clients that stalled have read everything."""
RECEIVED = 128 * 1024
"""SO_RCVBUF of the clients that stall, which Linux doubles."""
MAX_KB = 64
MAX_OWN_KB = 192
"""With a filter of its own: a batch of 128 KiB, handed to a transport that was not full, which is
one with up to 64 KiB."""
# "queued" and "failed", "run_update" and "run_failed" have one length each: bytes count messages.
CHANGE = """
UPDATE runs SET status = CASE status WHEN 'queued' THEN 'failed' ELSE 'queued' END, error = $1
WHERE id >= $2 AND id < $3
"""
SAID = re.compile(rb'"id":"(run-\d{8})","status":"(\w+)"')


@dataclass(frozen=True)
class Job:
    clients: int
    stalled: int
    seconds: float
    rate: int = 8_000
    runs: int = RUNS
    """All of them change while the clients stall, and in the second after that."""
    own: bool = False
    """Each client that stalls has a filter of its own."""

    @property
    def name(self) -> str:
        own = ", each with a filter of its own" if self.own else ""
        return f"{self.stalled} of {self.clients} clients{own}"


FEW, MANY = Job(60, 20, 3.0), Job(300, 100, 4.0)
QUICK = (FEW, replace(FEW, rate=1_000, runs=2_000, own=True))
JOBS = (MANY, replace(MANY, seconds=6.0, rate=1_000, runs=4_000, own=True))


class Writer(threading.Thread):
    """Changes STEP runs per transaction, `rate` runs per second."""

    def __init__(self, url: str, job: Job) -> None:
        super().__init__(name="writer")
        self._url = url
        self._job = job
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
                at = self.made % self._job.runs
                result = pg.exec_prepared(b"change", [stamp(), run_id(at), run_id(at + STEP)])
                assert result.command_tuples == STEP, result.error_message
                self.made += STEP
                self.late = time.monotonic() - began - self.made / self._job.rate
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
        self.last = 0.0
        """When it read anything."""

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
            self.last = time.monotonic()
        return found


def stall(url: str, job: Job) -> dict[str, float]:
    clients, stalled = job.clients, job.stalled
    prepare(url, job.runs)
    machine.statements(url, "UPDATE runs SET status = 'queued'")
    with ExitStack() as closing:
        brain = closing.enter_context(machine.brain(url, cores=SERVER_CORE))
        load = closing.enter_context(
            Load(Options(brain.port, "/ws", clients - stalled), cores=OTHER_CORES)
        )
        sockets = []
        for number in range(stalled):
            sock = closing.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVED)
            sock.connect(("127.0.0.1", brain.port))
            own = f"?agent=benchmark&agent=nobody-{number}" if job.own else ""
            sock.sendall(request(f"/ws{own}"))
            assert sock.recv(4096).startswith(b"HTTP/1.1 101")
            sock.setblocking(False)
            sockets.append(sock)
        # The board's log is longest after each run has changed a few times.
        for _ in range(3):
            machine.statements(url, "UPDATE runs SET progress = progress")
        machine.quiet(load)
        load.ask("reset")
        reader, writer = Reader(sockets), Writer(url, job)
        reader.start()
        writer.start()
        sampled = partial(_highest, brain.process.pid)
        before = sampled(4.0)
        for taken in reader.taken:
            taken.clear()
        reader.stalled.set()
        while_stalled = sampled(job.seconds)
        lagging = brain.get("/readyz")[1]["lagging"]
        reader.stalled.clear()
        time.sleep(1.0)  # it reads while changes continue
        writer.stop()
        due = writer.made * (clients - stalled)
        until = time.monotonic() + 60
        while load.ask("progress")["delivered"] < due and time.monotonic() < until:
            time.sleep(0.2)  # between two looks
        while brain.get("/readyz")[1]["lagging"] and time.monotonic() < until:
            time.sleep(0.1)  # between two looks
        while time.monotonic() - reader.last < QUIET and time.monotonic() < until:
            time.sleep(0.1)  # between two looks
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
    options = machine.options(__doc__, runs=1)
    jobs = QUICK if options.quick else JOBS
    with machine.database(cores=OTHER_CORES) as url:
        measures = {job.name: partial(stall, url, job) for job in jobs}
        found = machine.interleaved(options.runs, measures)
    figures = {name: machine.spreads(runs) for name, runs in found.items()}
    targets = []
    for job in jobs:
        of, what = figures[job.name], ", a filter each" if job.own else ""
        most = MAX_OWN_KB if job.own else MAX_KB
        lost, wrong = of["lost_by_others"]["max"], of["wrong_at_the_end"]["max"]
        lagged = of["lagged"]["min"]
        kilobytes = of["kb_per_stalled"]["median"]
        targets += [
            machine.target(f"clients that stalled and lagged{what}", lagged, least=job.stalled),
            machine.target(f"changes that the others lost{what}", lost, most=0),
            machine.target(f"KB for each stalled client{what}", kilobytes, most=most),
            machine.target(f"stalled clients that end up wrong{what}", wrong, most=0),
        ]
    document = {
        "jobs": {name: {"runs": runs, "figures": figures[name]} for name, runs in found.items()},
        "targets": targets,
    }
    machine.write("stalled", document, quick=options.quick)


if __name__ == "__main__":
    main()
