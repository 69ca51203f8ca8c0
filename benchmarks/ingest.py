"""Ingest: how many changed rows per second Brain takes in, stage by stage.

`python -m benchmarks.ingest [--quick] [--profile]`.

The pgoutput messages of two loads are recorded and replayed on one core. Each stage includes those
before it:

    decode      pgoutput's bytes → messages
    runs        … → the runs of the contract, in slices
    board       … → the board, which encodes and frames each
    frame       … → the hub, which makes batches for a client

Then the whole: Brain on one core; a real PostgreSQL, its writers and one real client on the others.
The loads: `one UPDATE` is 100 000 rows in one transaction. `8 writers` is pgbench with one row per
transaction, as fast as possible.
"""

import asyncio
import cProfile
import gc
import os
import pstats
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import uvloop

from benchmarks import machine
from benchmarks.changes import RUNS, prepare
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
from tests.support.pgoutput import parse
from tests.support.postgres import Postgres, execute
from tests.support.served import Brain

SERVER_CORE, OTHER_CORES = machine.cores()
ROWS = 100_000
MIN_ROWS_PER_SECOND = 100_000
WRITERS = 8
TABLE = Table("public", "runs")
UPDATE = "UPDATE runs SET progress = mod(progress::int + 1, 100)"


class Recording:
    """Recorded CopyData, returned as libpq returns it. Nothing else is replaced."""

    socket = -1

    def __init__(self, description: Description, data: list[bytes]) -> None:
        self.description = description
        self.data = data
        self._at = 0

    @property
    def pgconn(self) -> "Recording":
        return self

    def rewind(self) -> None:
        self._at = 0

    def get_copy_data(self, _: int) -> tuple[int, memoryview]:
        if self._at >= len(self.data):
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
    """Record the stream of a load, up to this many rows."""
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
    until = time.monotonic() + 60
    while found < rows:
        size, copied = pg.get_copy_data(1)
        if size <= 0:
            if time.monotonic() > until:
                raise RuntimeError(f"{found} of {rows} rows came")
            await asyncio.sleep(0.001)
            pg.consume_input()
            continue
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


def decode(recording: Recording) -> None:
    for data in recording.data:
        parse(data, at=25)


def changes(recording: Recording) -> Iterator[list[Changes]]:
    """The slices, as the stream yields them."""
    recording.rewind()
    stream = Stream(cast("Any", recording), "slot", TABLE, recording.description, Decoder({}, 8192))
    while taken := stream._take():  # noqa: SLF001 - read() without waiting
        yield taken


def runs(recording: Recording) -> None:
    for _ in changes(recording):
        pass


def begun(recording: Recording) -> Board:
    """A board that already holds the runs."""
    board = Board(1 << 30)
    board.apply(Snapshot((), 0))
    for slices in changes(recording):
        for slice_ in slices:
            board.apply(slice_)
    return board


def through_board(recording: Recording, board: Board) -> None:
    for slices in changes(recording):
        for slice_ in slices:
            board.apply(slice_)


def through_hub(recording: Recording, board: Board) -> None:
    hub = Hub(board, interval=0.025, clock=time.monotonic, call_later=lambda _, __: Never())
    hub.join(One(), Subscription())
    for slices in changes(recording):
        for slice_ in slices:
            hub.push(board.apply(slice_))
        hub.tick()


STAGES: dict[str, tuple[Callable[..., None], bool]] = {
    "decode": (decode, False),
    "runs": (runs, False),
    "board": (through_board, True),
    "frame": (through_hub, True),
}


def replayed(recording: Recording, rows: int, stage: str) -> dict[str, float]:
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


def whole(
    server: Postgres, brain: Brain, load: Load, write: Callable[[], object]
) -> dict[str, float]:
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


def main() -> None:
    show = "--profile" in sys.argv
    if show:
        sys.argv.remove("--profile")
    options = machine.options(__doc__)
    rows = 20_000 if options.quick else ROWS
    seconds = 2 if options.quick else 8
    os.sched_setaffinity(0, {int(SERVER_CORE)})
    document: dict[str, Any] = {"rows": rows, "jobs": {}}
    with machine.postgres(cores=OTHER_CORES) as server:
        url = machine.address(server)
        prepare(url, rows)
        loads: dict[str, Callable[[], object]] = {
            "one UPDATE": partial(execute, url, UPDATE),
            "8 writers": partial(pgbench, server, seconds, WRITERS),
        }
        for load_name, write in loads.items():
            if load_name == "8 writers":
                prepare(url, RUNS)
            wanted = rows if load_name == "one UPDATE" else 5_000 * seconds // 2
            recording = asyncio.run(record(url, wanted, write))
            if show:
                in_loop(partial(profiled, recording, "frame"))
            stages = {
                stage: partial(in_loop, partial(replayed, recording, wanted, stage))
                for stage in STAGES
            }
            found = machine.interleaved(options.runs, stages)
            document["jobs"][load_name] = {
                stage: {"runs": each, "figures": machine.spreads(each)}
                for stage, each in found.items()
            }
        os.sched_setaffinity(0, {int(core) for core in OTHER_CORES.split(",")})
        for load_name, write in loads.items():
            prepare(url, rows if load_name == "one UPDATE" else RUNS)
            with machine.brain(url, cores=SERVER_CORE) as brain:
                with Load(Options(brain.port, "/ws", 1), cores=OTHER_CORES) as load:
                    write()  # warm up: connections and caches
                    machine.quiet(load)
                    measure = partial(whole, server, brain, load, write)
                    each = machine.interleaved(options.runs, {f"{load_name}, whole": measure})
            document["jobs"][load_name]["whole"] = {
                "runs": (only := next(iter(each.values()))),
                "figures": machine.spreads(only),
            }
    for load_name, stages_ in document["jobs"].items():
        print(
            f"{load_name}: "
            + ", ".join(
                f"{stage} {each['figures']['rows_per_second']['median']:,.0f} rows/s"
                for stage, each in stages_.items()
            )
        )
    reached = document["jobs"]["one UPDATE"]["frame"]["figures"]["rows_per_second"]["median"]
    document["targets"] = [
        machine.target(
            "rows/s of one UPDATE, decode → board → frame, on one core",
            reached,
            least=MIN_ROWS_PER_SECOND,
        ),
    ]
    machine.write("ingest", document, quick=options.quick)


if __name__ == "__main__":
    main()
