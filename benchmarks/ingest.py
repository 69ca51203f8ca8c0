"""Ingest: how many changed rows per second Brain takes in, stage by stage.

`python -m benchmarks.ingest [--quick] [--profile] [--compare REV]`.

The pgoutput messages of two loads are recorded and replayed on one core. Each stage includes those
before it:

    runs        pgoutput's bytes → the runs of the contract, in slices
    board       … → the board, which encodes and frames each
    frame       … → the hub, which makes batches for a client

Then the whole: Brain on one core; a real PostgreSQL, its writers and one real client on the others.
The loads: `one UPDATE` is 100 000 rows in one transaction. `8 writers` is pgbench with one row per
transaction, as fast as possible.

With `--compare`, the whole is measured with both. The stages are internals, so those of the other
commit come from its own version of this program, if that works.
"""

import asyncio
import cProfile
import gc
import json
import os
import pstats
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import uvloop

from benchmarks import machine, versions
from benchmarks.changes import RUNS, prepare, run_id
from benchmarks.load import Load, Options
from benchmarks.writers import pgbench
from brain.app import COLLECTOR
from brain.contract.events import Changes, Snapshot
from brain.contract.subscription import Subscription
from brain.delivery.board import Board
from brain.delivery.cohorts import Client
from brain.delivery.hub import Hub
from brain.postgres.connection import connect
from brain.postgres.decoder import Decoder
from brain.postgres.pgoutput import LSN
from brain.postgres.replication import Stream
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.table import Description, Table, describe
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain

SERVER_CORE, OTHER_CORES = machine.cores()
ROWS = 100_000
MIN_ROWS_PER_SECOND = 130_000
WRITERS = 8
QUIET = 1.0
"""Seconds after the end of a load without a message: all have come."""
TABLE = Table("public", "runs")
UPDATE = "UPDATE runs SET progress = mod(progress::int + 1, 100)"
UPDATES, WRITES, WHOLE = "one UPDATE", "8 writers", "whole"

Found: TypeAlias = dict[str, dict[str, list[dict[str, float]]]]
"""Load → stage → runs."""


class Recording:
    """Recorded CopyData, returned as libpq returns it. Nothing else is replaced."""

    socket = -1
    encoding = "utf-8"
    backend_pid = 0

    def __init__(self, description: Description, data: list[bytes]) -> None:
        self.description = description
        self.data = data
        self._at = 0

    @property
    def pgconn(self) -> "Recording":
        return self

    @property
    def info(self) -> "Recording":
        return self

    def rewind(self) -> None:
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at >= len(self.data)

    @property
    def rows(self) -> int:
        return sum(data[25] == ord("U") for data in self.data)

    def get_copy_data(self, _: int) -> tuple[int, memoryview]:
        if self.ended:
            return 0, memoryview(b"")
        self._at += 1
        data = self.data[self._at - 1]
        return len(data), memoryview(data)

    def consume_input(self) -> None:
        """The recording is complete."""

    def put_copy_data(self, _: bytes) -> None:
        """A recording needs no answers."""

    def flush(self) -> None: ...


async def record(url: str, rows: int, load: Callable[[], object]) -> Recording:
    """Record the stream of a load: this many rows, or fewer if the load ends before."""
    async with await connect(url, "benchmark") as conn:
        description = await describe(conn, TABLE)
    stream = await Stream.open(
        url, TABLE, description, Decoder({}, 8192), application="benchmark", patience=30
    )
    await stream.start(PgSnapshot(0, 0, frozenset()), LSN(0))
    loading = asyncio.create_task(asyncio.to_thread(load))
    data: list[bytes] = []
    found = 0
    pg = stream._conn.pgconn  # noqa: SLF001 - the raw messages that the stream reads
    heard = time.monotonic()
    while found < rows:
        size, copied = pg.get_copy_data(1)
        if size <= 0:
            if time.monotonic() > heard + (QUIET if loading.done() else 60):
                break
            await asyncio.sleep(0.001)
            pg.consume_input()
            continue
        heard = time.monotonic()
        if copied[0] == ord("w"):
            data.append(bytes(copied))
            found += data[-1][25] == ord("U")
    await loading
    await stream.close()
    return Recording(description, data)


class One(Client):
    """A client that accepts everything at once."""

    __slots__ = ()

    def __init__(self) -> None:
        self.write = lambda data: None

    def end(self, code: int, reason: str) -> None:
        raise RuntimeError(reason)

    def drop(self, error: Exception) -> None:
        raise error


class Never:
    def cancel(self) -> None: ...


def changes(recording: Recording) -> Iterator[list[Changes]]:
    """The slices, as the stream yields them. Raises RuntimeError if rows are missing in the end."""
    recording.rewind()
    stream = Stream(cast("Any", recording), "slot", TABLE, recording.description, Decoder({}, 8192))
    rows = 0
    while not recording.ended:
        taken = stream._take()  # noqa: SLF001 - read() without waiting
        rows += sum(len(slice_.rows) for slice_ in taken)
        yield taken
    if rows != recording.rows:
        raise RuntimeError(f"{rows} of {recording.rows} recorded rows came")


def runs(recording: Recording) -> None:
    for _ in changes(recording):
        pass


def begun(recording: Recording) -> Board:
    """A board that already holds the runs."""
    board = Board(1 << 30)
    board.apply(Snapshot((), 0))
    through_board(recording, board)
    return board


def through_board(recording: Recording, board: Board) -> None:
    for slices in changes(recording):
        board.apply(*slices)


def through_hub(recording: Recording, board: Board) -> None:
    hub = Hub(
        board,
        interval=0.025,
        clock=time.monotonic,
        call_later=lambda _, __: Never(),
        call_soon=lambda _: None,
    )
    hub.join(One(), Subscription())
    for slices in changes(recording):
        hub.push(board.apply(*slices))
        hub.tick()


STAGES: dict[str, tuple[Callable[..., None], bool]] = {
    "runs": (runs, False),
    "board": (through_board, True),
    "frame": (through_hub, True),
}


def replayed(recording: Recording, stage: str) -> dict[str, float]:
    rows = recording.rows
    work, with_board = STAGES[stage]
    given: Sequence[object] = (begun(recording),) if with_board else ()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR)
    used = time.process_time()
    work(recording, *given)
    used = time.process_time() - used
    gc.unfreeze()
    return {"rows_per_second": rows / used, "us_per_row": used / rows * 1e6}


def whole(brain: Brain, load: Load, write: Callable[[], object]) -> dict[str, float]:
    """Rows per second that reach the client, and rows that one core could do."""
    load.ask("reset")
    before = brain.metric("brain_changes_total")
    used, start = machine.cpu_seconds(brain.process.pid), time.monotonic_ns()
    write()
    delivered = machine.quiet(load)
    report = load.ask("count")
    cpu = machine.cpu_seconds(brain.process.pid) - used
    rows = brain.metric("brain_changes_total") - before
    seconds = (report["last"] - start) / 1e9
    return {
        "rows": rows,
        "delivered": float(delivered),
        "rows_per_second": rows / seconds,
        "rows_per_cpu_second": rows / cpu,
        "cpu_us_per_row": cpu / rows * 1e6,
    }


def profiled(recording: Recording, stage: str) -> None:
    board = begun(recording)
    profile = cProfile.Profile()
    profile.enable()
    through_hub(recording, board) if stage == "frame" else runs(recording)
    profile.disable()
    pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(25)


def in_loop(work: Callable[[], Any]) -> Any:
    """Run inside an event loop: a stream asks it for the time."""

    async def run() -> Any:
        return work()

    return uvloop.run(run())


def staged(*, quick: bool, runs: int, show: bool) -> Found:
    """The stages of each load, on one core."""
    rows, seconds = (20_000, 2) if quick else (ROWS, 5)
    found: Found = {}
    with on(SERVER_CORE), machine.postgres(cores=OTHER_CORES) as server:
        for load_name, write in loads(server, rows, seconds).items():
            wanted = rows if load_name == UPDATES else 5_000 * seconds // 2
            recording = asyncio.run(record(machine.address(server), wanted, write))
            if show:
                in_loop(partial(profiled, recording, "frame"))
            stages = {
                stage: partial(in_loop, partial(replayed, recording, stage)) for stage in STAGES
            }
            found[load_name] = machine.interleaved(runs, stages)
    return found


def wholes(*, quick: bool, runs: int, others: Mapping[str, Path]) -> Found:
    """Each load, with this Brain and with `others`, in turn."""
    rows, seconds = (20_000, 2) if quick else (ROWS, 5)
    found: Found = {}
    with on(OTHER_CORES), machine.postgres(cores=OTHER_CORES) as server:
        for load_name, write in loads(server, rows, seconds).items():
            measures = {WHOLE: partial(started, server, write, None)} | {
                f"{WHOLE}, {name}": partial(started, server, write, source)
                for name, source in others.items()
            }
            found[load_name] = machine.interleaved(runs, measures)
    return found


def loads(server: Postgres, rows: int, seconds: int) -> dict[str, Callable[[], object]]:
    url = machine.address(server)
    prepare(url, max(rows, RUNS))
    return {
        UPDATES: partial(execute, url, f"{UPDATE} WHERE id < '{run_id(rows).decode()}'"),
        WRITES: partial(pgbench, server, seconds, WRITERS),
    }


def started(
    server: Postgres, write: Callable[[], object], version: Path | None
) -> dict[str, float]:
    with machine.brain(machine.address(server), cores=SERVER_CORE, version=version) as brain:
        with Load(Options(brain.port, "/ws", 1), cores=OTHER_CORES) as load:
            write()  # warm up: connections and caches
            machine.quiet(load)
            return whole(brain, load, write)


@contextmanager
def on(cores: str) -> Iterator[None]:
    """Keep this process on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def staged_there(rev: str, *, quick: bool, runs: int) -> Found:
    """The stages of another commit, by its own program; none if that fails."""
    tree = versions.tree(rev)
    command = [sys.executable, "-m", "benchmarks.ingest", "--runs", str(runs)]
    done = subprocess.run(
        [*command, "--quick"] if quick else command,
        cwd=tree,
        env=os.environ | {"PYTHONPATH": f"{tree}/src:{tree}"},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        print(f"no stages of {rev}: its own benchmarks.ingest fails", file=sys.stderr)
        return {}
    path = tree / "benchmarks" / ("build" if quick else "results") / "ingest.json"
    jobs = json.loads(path.read_text())["jobs"]
    return {
        load_name: {f"{stage}, {rev}": of[stage]["runs"] for stage in STAGES if stage in of}
        for load_name, of in jobs.items()
    }


def main() -> None:
    made = machine.parser(__doc__, runs=2, compare=True)
    made.add_argument("--profile", action="store_true", help="print where the time goes")
    options = machine.parsed(made)
    rev, quick, runs = options.compare, options.quick, options.runs
    others = {rev: versions.source(rev)} if rev else {}
    parts = [
        staged(quick=quick, runs=runs, show=options.profile),
        staged_there(rev, quick=quick, runs=runs) if rev else {},
        wholes(quick=quick, runs=runs, others=others),
    ]
    jobs: dict[str, dict[str, Any]] = {}
    for part in parts:
        for load_name, of in part.items():
            jobs.setdefault(load_name, {}).update(
                {
                    stage: {"runs": each, "figures": machine.spreads(each)}
                    for stage, each in of.items()
                }
            )
    for load_name, stages in jobs.items():
        print(
            f"{load_name}: "
            + ", ".join(
                f"{stage} {each['figures']['rows_per_second']['median']:,.0f} rows/s"
                for stage, each in stages.items()
            )
        )
    reached = jobs[UPDATES]["frame"]["figures"]["rows_per_second"]["median"]
    target = machine.target(
        "rows/s of one UPDATE, to the batches of a client, on one core",
        reached,
        least=MIN_ROWS_PER_SECOND,
    )
    document = {"jobs": jobs, "targets": [target]}
    machine.write("ingest-compare" if rev else "ingest", document, quick=quick or bool(rev))


if __name__ == "__main__":
    main()
