"""Restarts at random moments, and mutants of the rules (restarts.py)."""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brain.delivery import board
from brain.delivery.tombstones import FINISHED
from brain.postgres import records
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.record_file import Record
from brain.postgres.records import Records
from tests.oracle.restarts import Plan, World
from tests.oracle.served_restarts import PLAN, ServedConsumer, ServedWorld, play
from tests.support.patience import eventually, within
from tests.support.postgres import Postgres, available, running
from tests.support.served import Brain
from tests.support.template import ROLE, TEMPLATE, with_template

pytestmark = [pytest.mark.usefixtures("unmeasured"), pytest.mark.long]

RESTARTS = int(os.environ.get("BRAIN_RESTARTS", "40"))
COUNTS = [
    RESTARTS if "BRAIN_RESTARTS" in os.environ else 16,
    pytest.param(RESTARTS, marks=pytest.mark.faults),
]
"""Of restarts: a few in `make test`, and many in `make faults`."""

VERSIONS = [int(v) for v in os.environ.get("BRAIN_RESTARTS_VERSIONS", "18").split(",")]
SEED = int(os.environ.get("BRAIN_RESTARTS_SEED", str(random.randrange(1_000_000))))


@pytest.mark.parametrize("restarts", COUNTS)
@pytest.mark.parametrize("version", VERSIONS)
async def test_restarts_lose_nothing(
    version: int, restarts: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if not available(version):
        pytest.skip(f"PostgreSQL {version} is not installed")
    with contextlib.ExitStack() as stack:
        server: Postgres
        if version == 18:
            server = request.getfixturevalue("postgres")
        else:
            server = with_template(stack.enter_context(running(version)))
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        world = World(url, SEED, tmp_path, Plan(restarts))
        await world.run(seconds=within(RESTARTS))
        print(world)
        assert world.faults == []
        assert not [why for why in world.gaps if why.startswith("NONE")], world.gaps
        assert world.resumed > 0.9 * world.restarts


@pytest.mark.parametrize("restarts", COUNTS)
@pytest.mark.parametrize("version", VERSIONS)
async def test_crashes_of_postgresql_lose_nothing(
    version: int, restarts: int, tmp_path: Path
) -> None:
    """Half of the writers commit without waiting for the disk."""
    if not available(version):
        pytest.skip(f"PostgreSQL {version} is not installed")
    with running(version, fsync="on", wal_writer_delay="10s") as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        world = World(url, SEED, tmp_path, Plan(restarts // 3, crashes=0.4), server)
        await world.run(seconds=within(RESTARTS))
        print(world)
        assert world.faults == []
        assert not [why for why in world.gaps if why.startswith("NONE")], world.gaps


@pytest.mark.faults
@pytest.mark.parametrize("crashes", [0.0, 0.3])
async def test_restarts_over_sockets_lose_nothing(crashes: float) -> None:
    """Of real processes. A 4410 has a reason in the log."""
    plan = PLAN._replace(restarts=RESTARTS, crashes=crashes)
    world = await play(SEED, plan, VERSIONS[0], within(10 * RESTARTS))
    assert world.faults == []
    assert not world.undocumented, world.gaps
    assert world.checks > 0


async def test_a_client_of_the_oracle_outlives_an_answer_that_is_cut_off(tmp_path: Path) -> None:
    """Brain is killed while it answers. A client that ended would be missed a minute later."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        brain: Any = SimpleNamespace(port=server.sockets[0].getsockname()[1])
        world = ServedWorld("", SEED, tmp_path, PLAN, resting=True)
        world.get = lambda path: Brain.request(brain, "GET", path)[1]  # type: ignore[method-assign]
        client = ServedConsumer(world, 0)
        task = asyncio.create_task(client.run())
        await eventually(lambda: task.done() or "Incomplete" in "".join(client.saw))
        assert not task.done(), task
        task.cancel()


# Mutants of rules, to show that this world detects holes. Every rule has one in
# tests/unit/postgres/test_record_mutants.py.


def snapshots_list_everything(patch: pytest.MonkeyPatch) -> None:
    """(1) A record at xmax: what was open then is never told."""

    def record(time: int, checkpoint: Checkpoint) -> Record:
        visible = checkpoint.visible
        return Record(time, visible.xmax, visible.xmax, checkpoint.flushed)

    patch.setattr(records, "_record", record)


def the_clock_is_right(patch: pytest.MonkeyPatch) -> None:
    """(3) Nothing remembers the highest time."""
    patch.setattr(Records, "high", 0)


def a_record_earlier(patch: pytest.MonkeyPatch) -> None:
    """(4) A row has the time of the last record that does not see it."""

    def time(self: Records, place: int, _: int) -> int:
        return self._list[place - 1].time

    patch.setattr(Records, "time", time)


def runs_have_no_past(patch: pytest.MonkeyPatch) -> None:
    """(5) What changed meanwhile was finished before."""
    patch.setattr(board, "ANYTHING", FINISHED)


def crashes_lose_nothing(patch: pytest.MonkeyPatch) -> None:
    """Every record counts after a crash, and what was read."""
    settle: Any = Records.settle

    def always(self: Records, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None and self._file is not None and self._list:
            self._file.durable = (self._list[-1].xmin, 1)
        elif checkpoint is not None:
            settle(self, checkpoint)

    patch.setattr(Records, "settle", always)


@pytest.mark.faults
@pytest.mark.parametrize(
    "mutant",
    [
        snapshots_list_everything,
        the_clock_is_right,
        a_record_earlier,
        runs_have_no_past,
        crashes_lose_nothing,
    ],
    ids=lambda mutant: mutant.__name__,
)
async def test_the_oracle_finds_each_mutant(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mutant(monkeypatch)
    plan = Plan(1000, check_every=4)
    if mutant is crashes_lose_nothing:
        # What a client has seen must be lost: a slot is flushed, and the stream never has it. And
        # the client must resume with it: memory is large, and few crashes are of a living Brain.
        plan = plan._replace(
            crashes=0.4, asynchronous=1.0, modes=("poll",), memories=(1 << 24,), check_every=3
        )
    with running(18, fsync="on", wal_writer_delay="10s") as server:
        with_template(server)
        url = server.url(server.create_database(TEMPLATE, ROLE), ROLE)
        world = World(url, SEED, tmp_path, plan, server)
        await world.run(until_fault=True, seconds=within(120))
        print(mutant.__name__, world, world.faults[:2])
        assert world.faults
