"""An oracle over the join of poll and stream, and a proof that it finds faults.

Each row carries a version that grows by exactly one with every change of that row. So the stream's
changes of a row must read v, v + 1, v + 2, … from each join on: a missing step is a gap, a repeated
one an overlap, a smaller one a run that goes backwards. Between two streams a Snapshot may skip
versions (it is state, not history), but never go back. Writers of many habits write all the time,
and connections are killed at random.

Seen on 2 cores: 2900 reconnects and 174 000 steps on PostgreSQL 18, 16 and 15 without one fault;
each of the broken rules below within half a second and five reconnects.

To run longer:   BRAIN_ORACLE_RECONNECTS=1000 BRAIN_ORACLE_VERSIONS=18,16,15 pytest -s
tests/oracle/test_join.py
"""

import asyncio
import contextlib
import os
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow

from brain.contract.events import Changes, Event, Snapshot
from brain.contract.messages import ID, TASK_ID
from brain.delivery.board import Board
from brain.delivery.log import RUN, is_tombstone
from brain.postgres.checkpoints import Checkpoint
from brain.postgres.decoder import Decoder
from brain.postgres.follow import Follow
from brain.postgres.poll import Poll
from brain.postgres.replication import Stream
from brain.postgres.snapshots import PgSnapshot
from brain.postgres.statements import Statement
from brain.postgres.timing import StreamTiming, Timing
from tests.support.following import RUNS, WithoutJitter, held
from tests.support.patience import PATIENCE, within
from tests.support.postgres import Postgres, available, running
from tests.support.template import ROLE, TEMPLATE, with_template

pytestmark = [pytest.mark.usefixtures("unmeasured"), pytest.mark.long]

RECONNECTS = int(os.environ.get("BRAIN_ORACLE_RECONNECTS", "20"))
COUNTS = [
    RECONNECTS if "BRAIN_ORACLE_RECONNECTS" in os.environ else 8,
    pytest.param(RECONNECTS, marks=pytest.mark.faults),
]
"""Of reconnects: a few in `make test`, and many in `make faults`."""

VERSIONS = [int(v) for v in os.environ.get("BRAIN_ORACLE_VERSIONS", "18").split(",")]
SEED = int(os.environ.get("BRAIN_ORACLE_SEED", str(random.randrange(1_000_000))))
TIMING = Timing(
    stream=StreamTiming(idle=0.02),
    back_off=WithoutJitter(first=0.025, longest=0.025),
    promote_every=0.01,
    rejoin_within=0,
    watch_every=0.03,
    compare_every=0.2,
)
ROWS = 300
BUMP = "UPDATE runs SET task_id = (task_id::int + 1)::text, status = 'running' WHERE id = ANY (%s)"


@dataclass
class Oracle:
    """The version of each row, and every step that broke the rule."""

    seen: dict[str, int] = field(default_factory=dict)
    pushed: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    faults: list[str] = field(default_factory=list)

    def take(self, event: Event) -> None:
        match event:
            case Snapshot(rows=rows, unless_after=None):
                for run in rows:
                    version = int(run[TASK_ID] or 0)
                    if version < self.seen.get(run[ID], 0):
                        self.faults.append(f"backwards: {run[ID]} {self.seen[run[ID]]} → {version}")
                    self.seen[run[ID]] = version
            case Snapshot():
                pass  # a comparison: the board skips what the stream has overtaken
            case Changes(rows=changes):
                for _, run in changes:
                    version, before = int(run[TASK_ID] or 0), self.seen[run[ID]]
                    self.steps += 1
                    if version != before + 1:
                        kind = (
                            "overlap"
                            if version == before
                            else "gap"
                            if version > before
                            else "backwards"
                        )
                        self.faults.append(f"{kind}: {run[ID]} {before} → {version}")
                    self.seen[run[ID]] = version

    def push(self, run_id: str, version: int) -> None:
        if version <= self.pushed.get(run_id, 0):
            self.faults.append(f"pushed: {run_id} {self.pushed[run_id]} → {version}")
        self.pushed[run_id] = version


class Hammer:
    """Writers, a killer, and a Follow."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.random = random.Random(seed)
        self.oracle = Oracle()
        self.board = Board(1 << 30)
        self.follow = Follow(
            url,
            RUNS,
            Decoder({}, 1000),
            self.board,
            mode="auto",
            interval=0.02,
            application="brain",
            timing=TIMING,
        )
        self._stop = False

    def ids(self, most: int) -> list[str]:
        """Sorted, or writers would deadlock."""
        return sorted(
            f"{i:03}" for i in self.random.sample(range(ROWS), self.random.randint(1, most))
        )

    async def run(self, reconnects: int, seconds: float, *, until_fault: bool = False) -> None:
        """Hammer until Brain has joined a stream this often."""
        async with await AsyncConnection.connect(self.url, autocommit=True) as conn:
            await conn.execute(
                "INSERT INTO runs (id, status, task_id)"
                " SELECT lpad(i::text, 3, '0'), 'running', '1' FROM generate_series(0, %s) i",
                [ROWS - 1],
            )
        following = asyncio.create_task(self._follow())
        writers = [
            asyncio.create_task(self._write(habit))
            for habit in (
                self._single,
                self._single,
                self._many,
                self._savepoints,
                self._two_phase,
                self._long,
                self._long,
            )
        ]
        killer = asyncio.create_task(self._kill())
        deadline = time.monotonic() + seconds
        while (
            self.follow.state.streams < reconnects
            and time.monotonic() < deadline
            and not (until_fault and self.oracle.faults)
        ):
            await asyncio.sleep(0.01)
            for task in (following, killer, *writers):
                if task.done():
                    task.result()
        killer.cancel()
        self._stop = True
        await asyncio.gather(*writers)
        try:
            if not until_fault:
                await self._settle()
        finally:
            following.cancel()
            await asyncio.gather(following, killer, return_exceptions=True)

    async def _follow(self) -> None:
        events: Any = self.follow.events()
        async with contextlib.aclosing(events):
            async for several in events:
                for event in several:
                    self.oracle.take(event)
                for entry, _, _ in self.board.apply(*several):
                    if not is_tombstone(entry):
                        self.oracle.push(entry[RUN][ID], int(entry[RUN][TASK_ID] or 0))

    async def _settle(self) -> None:
        async with await AsyncConnection.connect(self.url, autocommit=True) as conn:
            rows = await (await conn.execute("SELECT id, task_id::int FROM runs")).fetchall()
        table: dict[str, int] = {row[0]: row[1] for row in rows}
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            board = {
                run_id: int(entry[RUN][TASK_ID] or 0) for run_id, entry in held(self.board).items()
            }
            if board == table == self.oracle.seen:
                return
            await asyncio.sleep(0.01)
        assert board == table
        assert self.oracle.seen == table

    async def _kill(self) -> None:
        """Kill the walsender mostly, and sometimes every connection of Brain's."""
        async with await AsyncConnection.connect(self.url, autocommit=True) as conn:
            while True:
                begun = self.follow.state.streams
                while self.follow.state.streams == begun:
                    await asyncio.sleep(0.005)
                await asyncio.sleep(self.random.uniform(0, 0.15))
                which = "true" if self.random.random() < 0.2 else "backend_type = 'walsender'"
                query = (
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE"
                    f" datname = current_database() AND application_name = 'brain' AND {which}"
                )
                await conn.execute(query.encode())

    # Habits.

    async def _write(self, habit: Callable[[AsyncConnection[TupleRow]], Any]) -> None:
        async with await AsyncConnection.connect(
            self.url, autocommit=True, prepare_threshold=1
        ) as conn:
            while not self._stop:
                try:
                    await habit(conn)
                except psycopg.errors.DeadlockDetected:
                    await conn.rollback()
                await asyncio.sleep(self.random.uniform(0, 0.005))

    async def _single(self, conn: AsyncConnection[TupleRow]) -> None:
        await conn.execute(BUMP, [self.ids(1)])

    async def _many(self, conn: AsyncConnection[TupleRow]) -> None:
        async with conn.transaction(force_rollback=self.random.random() < 0.3):
            for run_id in self.ids(6):
                await conn.execute(BUMP, [[run_id]])

    async def _savepoints(self, conn: AsyncConnection[TupleRow]) -> None:
        """The transaction itself writes nothing: each row's xmin is that of a subtransaction."""
        async with conn.transaction():
            for run_id in self.ids(5):
                async with conn.transaction(force_rollback=self.random.random() < 0.3):
                    await conn.execute(BUMP, [[run_id]])
                await asyncio.sleep(self.random.uniform(0, 0.01))

    async def _two_phase(self, conn: AsyncConnection[TupleRow]) -> None:
        name = f"{os.getpid()} {id(self)}"
        await conn.execute("BEGIN")
        await conn.execute(BUMP, [self.ids(3)])
        await conn.execute(f"PREPARE TRANSACTION '{name}'".encode())
        await asyncio.sleep(self.random.uniform(0, 0.03))
        how = "ROLLBACK" if self.random.random() < 0.3 else "COMMIT"
        await conn.execute(f"{how} PREPARED '{name}'".encode())

    async def _long(self, conn: AsyncConnection[TupleRow]) -> None:
        """Begins before a join, commits after it."""
        async with conn.transaction():
            for run_id in self.ids(2):
                async with conn.transaction():
                    await conn.execute(BUMP, [[run_id]])
            await asyncio.sleep(self.random.uniform(0.05, 0.15))
        await asyncio.sleep(self.random.uniform(0, 0.1))


@pytest.fixture(autouse=True)
def _seed() -> None:
    print(f"seed: BRAIN_ORACLE_SEED={SEED}")


@pytest.mark.parametrize("reconnects", COUNTS)
@pytest.mark.parametrize("version", VERSIONS)
async def test_joins_without_gap_or_overlap(
    version: int, reconnects: int, request: pytest.FixtureRequest
) -> None:
    if not available(version):
        pytest.skip(f"PostgreSQL {version} is not installed")
    with contextlib.ExitStack() as stack:
        server: Postgres
        if version == 18:
            server = request.getfixturevalue("postgres")
        else:
            server = with_template(stack.enter_context(running(version)))
        hammer = Hammer(server.url(server.create_database(TEMPLATE, ROLE), ROLE), SEED)
        await hammer.run(reconnects, seconds=within(20 * reconnects))
        print(
            version,
            hammer.follow.state,
            f"steps={hammer.oracle.steps}",
            f"corrections={hammer.board.corrections}",
        )
        assert hammer.oracle.faults == []
        assert hammer.follow.state.streams >= reconnects
        assert hammer.oracle.steps > 10 * reconnects
        assert hammer.board.corrections == 0


# Mutants: the rules, broken one by one. Each is a misreading of them that looks right.


def poll_before_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed while the slot is being created is in neither."""
    making = False
    opened, read = Stream.open, Poll.read

    async def note(*args: Any, **more: Any) -> Stream:
        nonlocal making
        making = True
        try:
            return await opened(*args, **more)
        except BaseException:
            making = False
            raise

    async def blind(self: Poll, *, always: bool = False) -> AsyncGenerator[Event]:
        nonlocal making
        if making:
            making = not always
            if self.progress.checkpoint is not None:  # or it is the first look
                return
        async for piece in read(self, always=always):
            yield piece

    monkeypatch.setattr(Stream, "open", note)
    monkeypatch.setattr(Poll, "read", blind)


def drop_by_position_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is committed between the poll's snapshot and the position that is read after it is lost.

    (To drop by visibility alone is exact: what a snapshot sees was committed before that position,
    which only ends the test.)
    """
    monkeypatch.setattr(PgSnapshot, "sees", lambda _, __: True)


def drop_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What both the slot and the poll have seen arrives twice."""
    monkeypatch.setattr(PgSnapshot, "sees", lambda _, __: False)


def horizon_at_xmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was open at the checkpoint is never read."""
    since = Poll._since

    def later(self: Poll, checkpoint: Checkpoint) -> Statement:
        xmax = checkpoint.visible.xmax
        return since(self, replace(checkpoint, visible=PgSnapshot(xmax, xmax, frozenset())))

    monkeypatch.setattr(Poll, "_since", later)


def horizon_by_visibility(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot lists top-level transactions; a row may carry the id of a subtransaction."""

    def since(self: Poll, checkpoint: Checkpoint) -> Statement:
        visible = checkpoint.visible
        running = ",".join(map(str, sorted(visible.running)))
        condition = sql.SQL("NOT pg_visible_in_snapshot(r.xmin::text::xid8, %s::text::pg_snapshot)")
        return self._query(sql.SQL("r.xmin"), condition), [
            f"{visible.xmin}:{visible.xmax}:{running}"
        ]

    monkeypatch.setattr(Poll, "_since", since)


@pytest.mark.parametrize(
    "mutant",
    [
        poll_before_the_slot,
        drop_by_position_alone,
        drop_nothing,
        horizon_at_xmax,
        horizon_by_visibility,
    ],
    ids=lambda mutant: mutant.__name__,
)
async def test_the_oracle_finds_each_mutant(
    mutant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, database: str
) -> None:
    mutant(monkeypatch)
    hammer = Hammer(database, SEED)
    await hammer.run(100, seconds=PATIENCE, until_fault=True)
    print(
        mutant.__name__,
        f"streams={hammer.follow.state.streams}",
        f"steps={hammer.oracle.steps}",
        hammer.oracle.faults[:3],
    )
    assert hammer.oracle.faults
